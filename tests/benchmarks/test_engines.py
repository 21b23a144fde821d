"""Other engines compute the dense parts of the same network: the same numbers, the same answers."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.engines.agreement import agreement
from benchmarks.engines.dense import (
    BOUNDS,
    PARTS,
    Dense,
    answers_of,
    cast,
    difference,
    differences,
    eager,
    network_in,
)
from benchmarks.engines.onnx_files import write_parts
from benchmarks.engines.runners import onnx_runtime, openvino, optimised_torchscript
from benchmarks.engines.side import COMPILED, ONNX_RUNTIME, OPENVINO, STAGE_OF, TORCHSCRIPT, EngineSide
from benchmarks.speed.floor import run_eagerly
from benchmarks.speed.network import config_of_size
from benchmarks.speed.peer import pixels_of
from model.inference import Inference
from tests.benchmarks.small_bench import CLASSES, MAX_SIZE, MIN_SIZE, Bench, fewer_proposals


@pytest.fixture(scope="module")
def files(network: Inference, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_parts(network, tmp_path_factory.mktemp("onnx"))


@pytest.fixture(scope="module")
def folder(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> str:
    """As `prepare` makes it, of the small bench."""
    made = tmp_path_factory.mktemp("network")
    shutil.copy(bench.served, made / "maskx.pt")
    about = {"classes": CLASSES, "min_size": MIN_SIZE, "max_size": MAX_SIZE}
    (made / "about.json").write_text(json.dumps(about))
    return str(made)


@pytest.fixture(scope="module")
def ours(folder: str) -> EngineSide:
    return EngineSide(folder, TORCHSCRIPT, "float32")


@pytest.fixture(scope="module")
def by_onnx(folder: str) -> EngineSide:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (requirements/peers.txt)")
    return EngineSide(folder, ONNX_RUNTIME, "float32")


@pytest.fixture(scope="module")
def network(bench: Bench) -> Inference:
    """That nobody changes."""
    return network_of(bench)


@pytest.fixture(scope="module")
def onnx(files: dict[str, Path]) -> Dense:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (requirements/peers.txt)")
    return onnx_runtime(files, threads=1)


def network_of(bench: Bench) -> Inference:
    """The network of the small bench, read from its maskx.pt."""
    return fewer_proposals(network_in(bench.served, config_of_size(MIN_SIZE, MAX_SIZE), CLASSES))


def tensors(
    network: Inference, *, images: int, rows: int, columns: int, rois: int
) -> dict[str, tuple[Tensor, ...]]:
    """What each part may be given, of sizes that no file was traced with."""
    torch.manual_seed(1)
    crops = [torch.rand(rois, 256, pool.size, pool.size) for pool in (network.box_pool, network.mask_pool)]
    weights = network.mask_table[torch.arange(rois) % len(network.mask_table)]
    canvas = torch.randn(images, 3, 32 * rows, 32 * columns)
    return dict(zip(PARTS, ((canvas,), (crops[0],), (crops[1], weights, network.mask_bias)), strict=True))


def test_the_network_read_from_the_file_answers_as_the_one_that_was_written(
    bench: Bench, network: Inference
) -> None:
    read, served = run_eagerly(network, pixels_of(bench.picture)), torch.jit.load(bench.served)
    written = run_eagerly(served, pixels_of(bench.picture))
    assert len(read["boxes"])
    for name, one in read.items():
        torch.testing.assert_close(one, written[name], msg=name)


def test_onnx_runtime_gives_the_parts_numbers_at_sizes_that_were_not_traced(
    network: Inference, onnx: Dense
) -> None:
    for sizes in (
        {"images": 1, "rows": 4, "columns": 3, "rois": 1},
        {"images": 3, "rows": 2, "columns": 5, "rois": 7},
    ):
        found = differences(tensors(network, **sizes), eager(network), onnx)
        assert set(found) == set(PARTS)
        assert max(found.values()) < BOUNDS["float32"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_openvino_gives_the_parts_numbers_within_its_precision(
    network: Inference, files: dict[str, Path], precision: str
) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed (requirements/peers.txt)")
    given = tensors(network, images=2, rows=2, columns=4, rois=5)
    found = differences(given, eager(network), openvino(files, 1, precision))
    assert max(found.values()) < BOUNDS[precision]


def test_torchscript_optimised_for_inference_gives_the_trunks_numbers(
    bench: Bench, network: Inference
) -> None:
    given = tensors(network, images=1, rows=4, columns=3, rois=2)
    found = differences(given, eager(network), optimised_torchscript(network_of(bench), "float32"))
    assert max(found.values()) < BOUNDS["float32"]


def test_a_request_by_onnx_runtime_is_answered_as_by_the_network_itself(
    bench: Bench, ours: EngineSide, by_onnx: EngineSide
) -> None:
    """Wherever a part's answer went missing or to another place, boxes and masks would be others."""
    (expected,), (found,) = (side.answer([bench.picture]) for side in (ours, by_onnx))
    assert len(json.loads(expected)["detections"]) > 10
    assert agreement(expected, found) > 0.9
    given = by_onnx.differences([bench.file])
    assert set(given) == set(PARTS)
    assert 0 < max(given.values()) < BOUNDS["float32"]


def test_the_times_of_stages_and_parts_fill_a_request(bench: Bench, folder: str, by_onnx: EngineSide) -> None:
    for side in (by_onnx, EngineSide(folder, TORCHSCRIPT, "float32")):
        before = side.answer([bench.picture])
        found = side.breakdown([bench.file])
        whole = found.pop("whole")
        assert set(found) == {*STAGE_OF.values(), "all else"}
        assert [name for name, seconds in found.items() if not seconds > 0] == []
        assert sum(found.values()) == pytest.approx(whole)
        assert side.answer([bench.picture]) == before


def test_an_engine_that_is_not_known_or_not_installed_says_so(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"engine is 'abacus'; known are ONNX Runtime, OpenVINO"):
        EngineSide(folder, "abacus", "float32")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r"openvino is not installed here.*requirements/peers\.txt"):
        EngineSide(folder, OPENVINO, "float32")


def test_without_a_package_the_compiled_engine_is_not_measured_as_something_else(
    folder: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="the package is not used: there is no"):
        EngineSide(folder, COMPILED, "float32", package=str(tmp_path / "maskx.pt2"))


def test_answers_agree_by_class_box_and_mask(bench: Bench, ours: EngineSide) -> None:
    (body,) = ours.answer([bench.picture])
    assert agreement(body, body) == 1.0
    content = json.loads(body)
    count = len(content["detections"])
    first = content["detections"][0]
    for key, value in (("category_id", CLASSES + 1), ("bbox", [0.0, 0.0, 1.0, 1.0])):
        other = {"detections": [first | {key: value}, *content["detections"][1:]]}
        assert agreement(body, json.dumps(other).encode()) == pytest.approx(1 - 1 / count)
    fewer = {"detections": content["detections"][1:]}
    assert agreement(body, json.dumps(fewer).encode()) == pytest.approx(2 * (count - 1) / (2 * count - 1))
    nothing = json.dumps({"detections": []}).encode()
    assert (agreement(nothing, nothing), agreement(body, nothing)) == (1.0, 0.0)


def test_bfloat16_differs_from_float32_by_more_than_the_bound_of_float32_and_less_than_its_own(
    bench: Bench, network: Inference
) -> None:
    """Else one of the bounds would say nothing."""
    other = network_of(bench)
    cast(other, "bfloat16")
    given = tensors(network, images=1, rows=3, columns=4, rois=2)
    low = {
        name: tuple(one.to(torch.bfloat16) if one.dim() else one for one in of) for name, of in given.items()
    }
    ours, theirs = eager(network), eager(other)
    for name in PARTS:
        expected, got = getattr(ours, name)(*given[name]), getattr(theirs, name)(*low[name])
        pairs = zip(answers_of(expected), answers_of(got), strict=True)
        worst = max(difference(a, b) for a, b in pairs)
        assert BOUNDS["float32"] < worst < BOUNDS["bfloat16"], name


def test_another_shape_or_no_number_is_as_different_as_can_be() -> None:
    one = torch.tensor([3.0, -4.0])
    assert difference(one, torch.tensor([3.0, -3.0])) == pytest.approx(0.2)
    assert difference(one, torch.zeros(2)) == 1.0
    assert difference(one, torch.tensor([3.0])) == float("inf")
    assert difference(one, torch.tensor([3.0, float("nan")])) == float("inf")
