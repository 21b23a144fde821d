"""Weights of Detectron, of the paper's authors and of detectron2 as checkpoints of ours: the same detections as a
network written from their definition, on files of the names, shapes and pickle form of theirs."""

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model.backbones.torchvision_state import State
from model.checkpoint import load_checkpoint, load_network
from tests.model.small_network import target
from tests.training.recipes import detectron_peer as peer
from tests.training.recipes.detectron_peer import Kind, blobs, detect, in_detectron2, write_python2_pickle
from tests.training.recipes.torchvision_peer import TOLERANCE, answer_of_converted, differences
from training.recipes.convert.__main__ import convert

NAMES = ("ape", "bee", "cat", "dog", "elk")
COUNTS = ["model.rpn.pre_nms_test=60", "model.rpn.post_nms_test=60"]
AS_IT_IS = ["model.input.min_size=128", "model.input.max_size=128"]
"""An image of 128 pixels at its own size."""


def picture(height: int = 128, width: int = 128, seed: int = 3) -> Tensor:
    noise = torch.rand(1, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(seed))
    smooth = nn.functional.interpolate(noise, size=(height, width), mode="bicubic")[0]
    return (smooth * 255).clamp(0, 255).to(torch.uint8)


def file_of(kind: Kind, state: State, folder: Path, configuration: str | None = None) -> Path:
    path = folder / "model_final.pkl"
    if kind.plus:
        write_python2_pickle(path, state, configuration)
    else:
        arrays = {name: value.numpy() for name, value in in_detectron2(state, kind).items()}
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}))
    return path


def converted(kind: Kind, state: State, folder: Path, **options: Any) -> Path:
    out = folder / "checkpoint.pt"
    configuration = options.pop("configuration", None)
    changes = [*AS_IT_IS, *COUNTS, *options.pop("overrides", [])]
    classes = options.pop("classes", ",".join(NAMES[: kind.classes]))
    convert(file_of(kind, state, folder, configuration), out, classes=classes, overrides=changes, **options)
    return out


def require_same(kind: Kind, state: State, checkpoint: Path, image: Tensor) -> None:
    network, table, _ = load_network(checkpoint)
    theirs, maps = detect(state, kind, image)
    ours = answer_of_converted(network.inference(), image, classes=table.num_classes)
    assert theirs.labels.numel() >= 15 and len(theirs.labels.unique()) >= min(3, kind.classes)
    if kind.masks in ("pose", "none"):
        assert ours.masks.max() < 1e-6
        ours = replace(ours, masks=torch.zeros_like(theirs.masks))
    else:
        assert theirs.masks.std() > 0.05
    found = differences(theirs, ours)
    assert found.detections == theirs.labels.numel() and found.alone == 0, found
    assert found.boxes < 1e-3 and max(found.scores, found.masks) < TOLERANCE, found
    if maps is not None:
        assert network.keypoint_branch is not None
        features = network.backbone(network.canvas([image], image.shape[1], image.shape[2]))
        order = [int((theirs.boxes - box).abs().sum(1).argmin()) for box in ours.boxes]
        rois = torch.cat([torch.zeros(len(ours.boxes), 1), ours.boxes], dim=1)
        with torch.no_grad():
            mine = network.keypoint_branch(features, rois)
        torch.testing.assert_close(mine, maps[order], rtol=1e-3, atol=1e-3 * float(maps.abs().max()))


KINDS = {
    "Detectron FPN": Kind(),
    "Detectron FPN, class-agnostic": Kind(masks="agnostic"),
    "the paper's T and MLP": Kind(masks="transfer"),
    "Detectron C4": Kind(form="c4"),
    "Detectron keypoints": Kind(masks="pose", classes=1),
    "Detectron boxes alone": Kind(masks="none"),
    "detectron2 FPN": Kind(plus=0),
    "detectron2 C4": Kind(plus=0, form="c4"),
}


@pytest.mark.parametrize("name", KINDS)
def test_detections_of_a_converted_network_are_those_of_the_definition(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    state = blobs(kind)
    require_same(kind, state, converted(kind, state, tmp_path), picture())


@pytest.fixture(scope="module")
def transfer(tmp_path_factory: pytest.TempPathFactory) -> tuple[State, Path]:
    """The paper's network, its file's weights and the checkpoint made of it."""
    state = blobs(KINDS["the paper's T and MLP"])
    return state, converted(KINDS["the paper's T and MLP"], state, tmp_path_factory.mktemp("transfer"))


def model_config(checkpoint: Path) -> dict[str, Any]:
    found: dict[str, Any] = load_checkpoint(checkpoint)["model_config"]
    return found


def test_the_papers_network_can_be_trained_on_and_every_weight_is_reached(
    transfer: tuple[State, Path],
) -> None:
    network, _, contents = load_network(transfer[1])
    assert contents["converted_from"] == "model_final.pkl, Detectron"
    network.set_stage("mask")
    losses = network.train().losses([picture()], [target(3, height=128, width=128, classes=5)])
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert network.mask_weights.transfer is not None and network.mask_branch.mlp is not None
    for module in (network.mask_weights.transfer, network.mask_branch):
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in module.parameters())


def test_a_file_older_than_bbox_reg_weights_gives_the_same_boxes_and_masks(
    transfer: tuple[State, Path], tmp_path: Path
) -> None:
    """Detectron reads such a file with weights of 1: its offsets are a tenth and a fifth of the others'."""
    state, kind = dict(transfer[0]), KINDS["the paper's T and MLP"]
    for end in ("w", "b"):
        offsets = state[f"bbox_pred_{end}"]
        factor = torch.tensor([10.0, 10.0, 5.0, 5.0]).repeat(len(offsets) // 4)
        state[f"bbox_pred_{end}"] = offsets / factor.view(-1, *[1] * (offsets.dim() - 1))
    first = state["bbox2mask_mlp_l1_w"]  # what T read then
    by_row = torch.tensor([10.0, 10.0, 5.0, 5.0]).repeat_interleave(peer.HIDDEN)
    state["bbox2mask_mlp_l1_w"] = torch.cat(
        [first[:, : peer.HIDDEN], first[:, peer.HIDDEN :] * by_row], dim=1
    )
    old = "MODEL: {NUM_CLASSES: 6}"
    ours = [
        load_network(converted(kind, state, tmp_path, configuration=old))[0],
        load_network(transfer[1])[0],
    ]
    torch.testing.assert_close(ours[0].state_dict(), ours[1].state_dict(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        ours[0].mask_weights_of_all(), ours[1].mask_weights_of_all(), rtol=1e-4, atol=1e-5
    )
    new = f"{old[:-1]}, BBOX_REG_WEIGHTS: [10., 10., 5., 5.]}}"
    kept = load_network(converted(kind, state, tmp_path, configuration=new))[0]
    torch.testing.assert_close(kept.box_predictor.bbox_pred.bias, state["bbox_pred_b"])


def test_what_detectrons_configuration_says_is_taken(transfer: tuple[State, Path], tmp_path: Path) -> None:
    told = """MODEL:
  BBOX_REG_WEIGHTS: [10.0, 10.0, 5.0, 5.0]
MRCNN:
  BBOX2MASK:
    USE_LEAKYRELU: false
RESNETS:
  STRIDE_1X1: false
TRAIN:
  MRCNN_LABELS_TO_KEEP: !!python/tuple
  - 2
  - 5
  RPN_PRE_NMS_TOP_N: 2000
"""
    out = converted(KINDS["the paper's T and MLP"], transfer[0], tmp_path, configuration=told)
    config, usual = model_config(out), model_config(transfer[1])
    assert (usual["backbone"]["stride_in"], config["backbone"]["stride_in"]) == ("1x1", "3x3")
    assert (usual["transfer"]["activation"], config["transfer"]["activation"]) == ("leaky_relu", "relu")
    assert (
        load_network(out)[1].set_a_labels() == (2, 5)
        and len(load_network(transfer[1])[1].set_a_labels()) == 5
    )
    assert usual["transfer"]["input"] == "cls+box" and usual["mask"]["mlp"] == "official"


def test_set_a_is_given_where_no_weight_shows_it(transfer: tuple[State, Path], tmp_path: Path) -> None:
    kind = KINDS["the paper's T and MLP"]
    table = load_network(converted(kind, transfer[0], tmp_path, mask_classes="bee,cat"))[1]
    assert [name for name, a in zip(table.names, table.has_mask, strict=True) if a] == ["bee", "cat"]
    with pytest.raises(ValueError, match="the file has no masks; leave it out"):
        converted(Kind(masks="none"), blobs(Kind(masks="none")), tmp_path, mask_classes="bee")


# ---- classes ----


def few_rows(rows: int) -> State:
    """Weights of so many rows of classes."""
    return blobs(Kind(masks="transfer", classes=rows - 1))


def test_visual_genomes_classes_are_cocos_and_numbers_or_those_of_its_annotations(tmp_path: Path) -> None:
    kind = Kind(masks="transfer", classes=3001)
    state = few_rows(3002)
    table = load_network(converted(kind, state, tmp_path, classes=""))[1]
    assert (table.names[0], table.names[79], table.names[80], table.names[-1]) == (
        "person", "toothbrush", "class 81", "class 3001",
    )  # fmt: skip
    assert table.set_a_labels() == tuple(range(1, 81))
    named = tmp_path / "vg3k_train.json"
    categories = [{"id": k, "name": f"synset.n.{k:02}"} for k in range(3001, 0, -1)]
    named.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    table = load_network(converted(kind, state, tmp_path, classes=str(named)))[1]
    assert (table.ids[0], table.names[0], table.names[-1]) == (1, "synset.n.01", "synset.n.3001")


def test_80_classes_are_cocos_and_other_counts_want_names(tmp_path: Path) -> None:
    kind = Kind(masks="none", classes=80)
    table = load_network(converted(kind, blobs(kind), tmp_path, classes=""))[1]
    assert (table.ids[:2], table.ids[-1], table.names[-1], table.set_a_labels()) == (
        (1, 2),
        90,
        "toothbrush",
        (),
    )
    with pytest.raises(ValueError, match="the weights have 7 classes: name them with --classes"):
        converted(Kind(masks="none", classes=7), blobs(replace(kind, classes=7)), tmp_path, classes="")
