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
from torchvision.ops import box_iou

from model.backbones.torchvision_state import State
from model.checkpoint import load_network
from tests.model.small_network import target
from tests.training.recipes import detectron_peer as peer
from tests.training.recipes.detectron_peer import Kind, blobs, detect, in_detectron2, write_python2_pickle
from tests.training.recipes.torchvision_peer import TOLERANCE, Answer, answer_of_converted, differences
from training.recipes.convert.__main__ import classes_of, convert
from training.recipes.convert.detectron import Found, network_of, read_detectron
from training.recipes.convert.pickles import File

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
    # An image of 128 pixels is whole cells on every level; of other sides torchvision moves anchors together.
    assert network.rpn.first_stride == (16 if kind.form == "c4" else 4)
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


@torch.no_grad()
def test_boxes_of_an_image_that_is_enlarged_are_detectrons_in_its_own_pixels(tmp_path: Path) -> None:
    """There the last pixel is a pixel of the original, which it is not where a box is enlarged by its sides."""
    kind, side, scale = KINDS["Detectron FPN"], 96, 5 / 3
    state = blobs(kind)
    sizes = [f"model.input.min_size={side * 5 // 3}", f"model.input.max_size={side * 5 // 3}"]
    network, _, _ = load_network(converted(kind, state, tmp_path, overrides=sizes))
    image = picture(side, side)
    theirs, _ = detect(state, kind, image, scale)
    assert theirs.labels.numel() >= 15
    boxes, scores, masks = apart(theirs, answer_of_converted(network.inference(), image, classes=5))
    assert scores < 1e-4 and boxes.median() < 0.1 and boxes.max() < 0.3 and masks.mean() < 0.005
    network.box_pool.inclusive = False
    boxes, _, _ = apart(theirs, answer_of_converted(network.inference(), image, classes=5), least=0.5)
    assert boxes.median() > 0.2


def apart(one: Answer, other: Answer, least: float = 0.9) -> tuple[Tensor, float, Tensor]:
    """How far boxes lie from their partners', of most detections, the largest difference of scores, those of masks."""
    overlap, partner = ((one.labels[:, None] == other.labels) * box_iou(one.boxes, other.boxes)).max(dim=1)
    mine = torch.where(overlap > least)[0]
    assert len(mine) >= 0.9 * max(
        len(one.labels), len(other.labels)
    )  # suppression decides others another way
    partner = partner[mine]
    boxes = (one.boxes[mine] - other.boxes[partner]).abs().amax(dim=1)
    scores = float((one.scores[mine] - other.scores[partner]).abs().max())
    return boxes, scores, (one.masks[mine] - other.masks[partner]).abs()


@pytest.fixture(scope="module")
def transfer(tmp_path_factory: pytest.TempPathFactory) -> tuple[State, Path]:
    """The paper's network, its file's weights and the checkpoint made of it."""
    state = blobs(KINDS["the paper's T and MLP"])
    return state, converted(KINDS["the paper's T and MLP"], state, tmp_path_factory.mktemp("transfer"))


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


def read(state: State, configuration: str | None = None) -> Found:
    return read_detectron(File(state=state, configuration=configuration))


def test_a_file_older_than_bbox_reg_weights_gives_the_same_boxes_and_masks(
    transfer: tuple[State, Path],
) -> None:
    """Detectron reads such a file with weights of 1: its offsets are a tenth and a fifth of the others'."""
    state = dict(transfer[0])
    for end in ("w", "b"):
        offsets = state[f"bbox_pred_{end}"]
        factor = torch.tensor([10.0, 10.0, 5.0, 5.0]).repeat(len(offsets) // 4)
        state[f"bbox_pred_{end}"] = offsets / factor.view(-1, *[1] * (offsets.dim() - 1))
    first = state["bbox2mask_mlp_l1_w"]  # what T read then
    by_row = torch.tensor([10.0, 10.0, 5.0, 5.0]).repeat_interleave(peer.HIDDEN)
    state["bbox2mask_mlp_l1_w"] = torch.cat(
        [first[:, : peer.HIDDEN], first[:, peer.HIDDEN :] * by_row], dim=1
    )
    old = read(state, "MODEL: {NUM_CLASSES: 6}")
    torch.testing.assert_close(old.state, read(transfer[0]).state, rtol=1e-5, atol=1e-6)
    masks = [network_of(found, found.config).mask_weights_of_all()[0] for found in (old, read(transfer[0]))]
    torch.testing.assert_close(*masks, rtol=1e-4, atol=1e-5)
    new = read(state, "MODEL: {NUM_CLASSES: 6, BBOX_REG_WEIGHTS: [10., 10., 5., 5.]}")
    assert torch.equal(new.state["box_predictor.bbox_pred.bias"], state["bbox_pred_b"])


def test_what_detectrons_configuration_says_is_taken(transfer: tuple[State, Path]) -> None:
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
    said, usual = read(transfer[0], told), read(transfer[0])
    assert (usual.config.backbone.stride_in, said.config.backbone.stride_in) == ("1x1", "3x3")
    assert (usual.config.transfer.activation, said.config.transfer.activation) == ("leaky_relu", "relu")
    named = [classes_of(found, ",".join(NAMES)).set_a_labels() for found in (said, usual)]
    assert named == [(2, 5), (1, 2, 3, 4, 5)]
    assert usual.config.transfer.input == "cls+box" and usual.config.mask.mlp == "official"
    on_one_line = read(transfer[0], "MRCNN_LABELS_TO_KEEP: (1, 3)\nBBOX_REG_WEIGHTS: 1")
    assert on_one_line.labels_with_masks == (1, 3)


def test_set_a_is_given_where_no_weight_shows_it(transfer: tuple[State, Path]) -> None:
    table = classes_of(read(transfer[0]), ",".join(NAMES), "bee,cat")
    assert [name for name, a in zip(table.names, table.has_mask, strict=True) if a] == ["bee", "cat"]
    with pytest.raises(ValueError, match="the file has no masks; leave it out"):
        classes_of(read(blobs(Kind(masks="none"))), ",".join(NAMES), "bee")


# ---- classes ----


def test_visual_genomes_classes_are_cocos_and_numbers_or_those_of_its_annotations(tmp_path: Path) -> None:
    found = read(blobs(Kind(masks="transfer", classes=3001)))
    table = classes_of(found)
    assert (table.names[0], table.names[79], table.names[80], table.names[-1]) == (
        "person", "toothbrush", "class 81", "class 3001",
    )  # fmt: skip
    assert table.set_a_labels() == tuple(range(1, 81)) and found.config.transfer.kind == "transfer"
    named = tmp_path / "vg3k_train.json"
    categories = [{"id": k, "name": f"synset.n.{k:02}"} for k in range(3001, 0, -1)]
    named.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    table = classes_of(found, str(named))
    assert (table.ids[0], table.names[0], table.names[-1]) == (1, "synset.n.01", "synset.n.3001")


def test_80_classes_are_cocos_and_other_counts_want_names() -> None:
    table = classes_of(read(blobs(Kind(masks="none", classes=80))))
    assert (table.ids[:2], table.ids[-1], table.names[-1], table.set_a_labels()) == (
        (1, 2),
        90,
        "toothbrush",
        (),
    )
    assert classes_of(read(blobs(Kind(masks="pose", classes=1)))).names == ("person",)
    with pytest.raises(ValueError, match="the weights have 7 classes: name them with --classes"):
        classes_of(read(blobs(Kind(masks="none", classes=7))))
