"""Weights of Detectron, of the paper's authors and of detectron2 as checkpoints of ours: the same detections as a
network written from their definition, on files of the names, shapes and pickle form of theirs."""

import codecs
import json
import os
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model.backbones.torchvision_state import State
from model.checkpoint import load_checkpoint, load_network
from tests.model.small_network import target
from tests.training.recipes import detectron_peer as peer
from tests.training.recipes.detectron_peer import Kind, blobs, detect, in_detectron2, write_python2_pickle
from tests.training.recipes.torchvision_peer import TOLERANCE, answer_of_converted, differences, small_peer
from training.recipes.convert.__main__ import convert, main
from training.recipes.convert.pickles import read_file, read_pickle

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
    table = load_network(
        converted(Kind(masks="none", classes=80), blobs(Kind(masks="none", classes=80)), tmp_path, classes="")
    )[1]
    assert (table.ids[:2], table.ids[-1], table.names[-1], table.set_a_labels()) == (
        (1, 2),
        90,
        "toothbrush",
        (),
    )
    with pytest.raises(ValueError, match="the weights have 7 classes: name them with --classes"):
        converted(Kind(masks="none", classes=7), blobs(replace(kind, classes=7)), tmp_path, classes="")


# ---- what detectron2's files bring ----


def detectron2_file(folder: Path, change: dict[str, Any], *, drop: str = "", nested: bool = True) -> Path:
    """A file of detectron2 with weights changed or added (arrays), and those left out whose name begins with `drop`."""
    kind = KINDS["detectron2 FPN"]
    state = {
        k: v.numpy() for k, v in in_detectron2(blobs(kind), kind).items() if not (drop and k.startswith(drop))
    }
    path = folder / "model_final.pkl"
    path.write_bytes(
        pickle.dumps({"model": state | change, "__author__": "somebody"} if nested else state | change)
    )
    return path


def convert_small(path: Path, folder: Path, **options: Any) -> Path:
    convert(path, folder / "checkpoint.pt", classes=",".join(NAMES), **options)
    return folder / "checkpoint.pt"


def test_pixels_are_those_of_the_file_or_as_they_are_said_to_be(tmp_path: Path) -> None:
    first = torch.tensor(blobs(KINDS["detectron2 FPN"])["conv1_w"])
    std = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
    rgb = {
        "pixel_mean": np.array([123.675, 116.28, 103.53]).reshape(3, 1, 1),
        "pixel_std": np.array([58.395, 57.12, 57.375]).reshape(3, 1, 1),
    }
    for change, options, expected in (
        ({}, {}, first.flip(1) * std),
        (rgb, {}, first),
        ({}, {"pixels": "rgb/std"}, first),
        ({}, {"pixels": "bgr/std"}, first.flip(1)),
    ):
        out = convert_small(detectron2_file(tmp_path, change), tmp_path, **options)
        torch.testing.assert_close(load_checkpoint(out)["model"]["backbone.body.conv1.weight"], expected)
    strange = {"pixel_mean": np.array([1.0, 2.0, 3.0])}
    with pytest.raises(ValueError, match=r"weights were trained with \[3.0, 2.0, 1.0\]"):
        convert_small(detectron2_file(tmp_path, strange), tmp_path)


def test_normalisations_of_the_pyramid_and_the_heads_are_folded(tmp_path: Path) -> None:
    name, shift = "backbone.fpn_lateral3", np.linspace(-1, 1, peer.FPN, dtype=np.float32)
    before = in_detectron2(blobs(KINDS["detectron2 FPN"]), KINDS["detectron2 FPN"])
    change = {
        f"{name}.norm.weight": np.full(peer.FPN, 2.0, np.float32),
        f"{name}.norm.bias": shift,
        f"{name}.norm.running_mean": np.zeros(peer.FPN, np.float32),
        f"{name}.norm.running_var": np.full(peer.FPN, 0.25 - 1e-5, np.float32),
        f"{name}.norm.num_batches_tracked": np.array(7),
    }
    model = load_checkpoint(convert_small(detectron2_file(tmp_path, change), tmp_path))["model"]
    torch.testing.assert_close(model["backbone.fpn.inner_blocks.1.0.weight"], before[f"{name}.weight"] * 4)
    expected = before[f"{name}.bias"] * 4 + torch.from_numpy(shift)
    torch.testing.assert_close(model["backbone.fpn.inner_blocks.1.0.bias"], expected)


def test_the_files_anchors_must_be_those_of_the_network(tmp_path: Path) -> None:
    def anchors(sizes: tuple[int, ...]) -> dict[str, Any]:
        name = "proposal_generator.anchor_generator.cell_anchors"
        return {f"{name}.{k}": peer.cell_anchors(1, (size,), 0).numpy() for k, size in enumerate(sizes)}

    convert_small(detectron2_file(tmp_path, anchors((32, 64, 128, 256, 512))), tmp_path)
    path = detectron2_file(tmp_path, anchors((16, 32, 64, 128, 256)))
    with pytest.raises(ValueError, match=r"give model.rpn.anchor_sizes=\[16, 32, 64, 128, 256\]"):
        convert_small(path, tmp_path)
    convert_small(path, tmp_path, overrides=["model.rpn.anchor_sizes=[16,32,64,128,256]"])


def test_a_training_of_detectron2_and_a_bare_pickle_are_read_too(tmp_path: Path) -> None:
    kind = KINDS["detectron2 FPN"]
    state = in_detectron2(blobs(kind), kind)
    torch.save({"model": state, "iteration": 9, "optimizer": {"state": {}}}, tmp_path / "model_0009.pth")
    one = load_checkpoint(convert_small(tmp_path / "model_0009.pth", tmp_path))["model"]
    other = load_checkpoint(convert_small(detectron2_file(tmp_path, {}, nested=False), tmp_path))["model"]
    assert all(torch.equal(value, other[name]) for name, value in one.items())


ZERO = np.zeros((2, 2, 1, 1), np.float32)


@pytest.mark.parametrize(
    ("change", "drop", "message"),
    [
        ({"sem_seg_head.p2.0.weight": ZERO}, "", "panoptic"),
        ({"roi_heads.box_predictor.1.cls_score.weight": ZERO}, "", "cascade"),
        ({"backbone.bottom_up.res4.0.conv2_offset.weight": ZERO}, "", "deformable"),
        ({"head.cls_subnet.0.weight": ZERO}, "", "RetinaNet"),
        ({"backbone.res5.0.conv1.weight": ZERO}, "", "DC5"),
        ({"backbone.bottom_up.s1.b1.a.weight": ZERO}, "", "no ResNet"),
        ({"backbone.fpn_lateral2.norm.weight": ZERO}, "", "fpn.*norm.* group normalisation"),
        ({"roi_heads.mask_head.extra.weight": ZERO}, "", "1 weights .* no place for: roi_heads.mask_head.extra.weight"),
        ({}, "roi_heads.box_predictor.cls_score", "no box branch"),
        ({}, "backbone.bottom_up.res3.2", "backbone.body is none of resnet18"),
        ({"roi_heads.box_predictor.bbox_pred.weight": np.zeros((4, 32), np.float32)}, "", "the same for all classes"),
        ({"roi_heads.box_head.fc2.weight": np.zeros((32, 30), np.float32)}, "", "of another shape"),
    ],
)  # fmt: skip
def test_what_this_network_cannot_be_is_refused_in_one_line(
    change: dict[str, Any], drop: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = detectron2_file(tmp_path, change, drop=drop)
    assert (
        main(["--weights", str(path), "--out", str(tmp_path / "out.pt"), "--classes", ",".join(NAMES)]) == 2
    )
    said = capsys.readouterr().err.strip()
    assert re.search(message, said) and said.count("\n") == 0 and not (tmp_path / "out.pt").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fpn_res2_2_sum_gn_s", "group normalisation"), ("fc_mask_head_mlp_l1_w", "a mask MLP of several layers"),
        ("_[mask]_res5_0_branch2a_w", "a conv5 of its own"), ("glove_embedding", "no place for: glove_embedding"),
    ],
)  # fmt: skip
def test_blobs_of_other_networks_are_refused(
    name: str, message: str, transfer: tuple[State, Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        converted(KINDS["the paper's T and MLP"], transfer[0] | {name: torch.zeros(3)}, tmp_path)


def test_word_vectors_as_the_input_of_t_are_refused(transfer: tuple[State, Path], tmp_path: Path) -> None:
    state = transfer[0] | {"bbox2mask_mlp_l1_w": torch.zeros(peer.MASK, 300)}
    with pytest.raises(ValueError, match="reads 300 numbers of a class"):
        converted(KINDS["the paper's T and MLP"], state, tmp_path)


def test_a_file_of_torchvision_is_converted_by_the_same_command(tmp_path: Path) -> None:
    torch.save(small_peer(5, side=64).state_dict(), tmp_path / "model.pth")
    words = [
        "--weights",
        str(tmp_path / "model.pth"),
        "--out",
        str(tmp_path / "out.pt"),
        "--classes",
        ",".join(NAMES),
    ]
    assert main(words) == 0
    assert load_checkpoint(tmp_path / "out.pt")["converted_from"] == "model.pth, torchvision"
    assert main([*words, "--mask-classes", "ape"]) == 2
    torch.save({"anything.weight": torch.zeros(3)}, tmp_path / "model.pth")
    assert main(words) == 2


# ---- pickles ----


def test_pickles_of_protocol_0_and_of_the_other_byte_order_are_read(tmp_path: Path) -> None:
    path = tmp_path / "old.pkl"
    write_python2_pickle(path, {"a_w": torch.arange(6.0).view(2, 3)}, "MODEL: {}", protocol=0)
    found = read_file(path)
    assert found.configuration == "MODEL: {}" and found.state["a_w"].tolist() == [[0, 1, 2], [3, 4, 5]]
    path.write_bytes(pickle.dumps({"blobs": {"a_w": np.arange(3, dtype=">f4"), "lr": np.float32(0.5)}}))
    assert read_file(path).state["a_w"].tolist() == [0, 1, 2]


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call, self.arguments


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
@pytest.mark.parametrize(
    "call",
    [os.mkdir, getattr, eval, np.load, torch.load, pickle.loads, np.frombuffer],
    ids=lambda call: call.__name__,
)
def test_a_pickle_that_would_run_something_is_refused_by_name_and_runs_nothing(
    call: Any, suffix: str, tmp_path: Path
) -> None:
    touched = tmp_path / "touched"
    argument = f"__import__('os').mkdir({str(touched)!r})" if call is eval else str(touched)
    path = tmp_path / f"evil{suffix}"
    path.write_bytes(pickle.dumps({"blobs": {"conv1_w": np.zeros(3), "evil": Evil(call, argument)}}))
    if suffix == ".pth":
        torch.save({"conv1_w": torch.zeros(3), "evil": Evil(call, argument)}, path)
    name = call.__name__
    with pytest.raises(ValueError, match=name if suffix == ".pkl" else "not a file of tensors"):
        read_file(path)
    assert not touched.exists()


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (b"", "not a pickle|Ran out of input|EOFError"), (b"<html>404</html>", "not a pickle|unpickling|invalid"),
        (pickle.dumps({"blobs": {"a": np.zeros(30)}})[:-40], "truncated|pickle"), (pickle.dumps([1, 2]), "found list"),
        (pickle.dumps({"blobs": 3}), "found int"), (pickle.dumps({"blobs": {"a": "text"}}), "holds no arrays"),
        (pickle.dumps(Evil(np.ndarray, (2**61,), "f8")), "pickle|big|memory|allocate|large"),
    ],
)  # fmt: skip
def test_a_file_that_is_broken_or_something_else_is_named(
    written: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "file.pkl"
    path.write_bytes(written)
    with pytest.raises(ValueError, match=f"(?i)file.pkl: .*({message})"):
        read_file(path)


def test_text_in_another_encoding_than_that_of_arrays_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.pkl"
    path.write_bytes(pickle.dumps(Evil(codecs.encode, "x", "zlib"), protocol=2))
    with pytest.raises(ValueError, match="encoding 'zlib'"):
        read_pickle(path)
    with pytest.raises(ValueError, match="no such file"):
        read_file(tmp_path / "nothing.pkl")
