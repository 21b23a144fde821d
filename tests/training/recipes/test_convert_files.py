"""What files of weights bring beside them, what is refused, and pickles that would run something."""

import codecs
import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.checkpoint import load_checkpoint
from tests.training.recipes import detectron_peer as peer
from tests.training.recipes.detectron_peer import Kind, blobs, in_detectron2, write_python2_pickle
from tests.training.recipes.test_convert import NAMES, read
from tests.training.recipes.torchvision_peer import small_peer
from training.recipes.convert.__main__ import convert, main
from training.recipes.convert.pickles import read_file, read_pickle

DETECTRON2, PAPER = Kind(plus=0), Kind(masks="transfer")

# ---- what detectron2's files bring ----


def detectron2_file(folder: Path, change: dict[str, Any], *, drop: str = "", nested: bool = True) -> Path:
    """A file of detectron2 with weights changed or added (arrays), and those left out whose name begins with `drop`."""
    kind = DETECTRON2
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
    first = blobs(DETECTRON2)["conv1_w"]
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
    before = in_detectron2(blobs(DETECTRON2), DETECTRON2)
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
    state = in_detectron2(blobs(DETECTRON2), DETECTRON2)
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
def test_blobs_of_other_networks_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(blobs(PAPER) | {name: torch.zeros(3)})


def test_word_vectors_as_the_input_of_t_are_refused() -> None:
    state = blobs(PAPER) | {"bbox2mask_mlp_l1_w": torch.zeros(peer.MASK, 300)}
    with pytest.raises(ValueError, match="reads 300 numbers of a class"):
        read(state)


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
