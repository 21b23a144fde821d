"""Other engines compute the dense parts of the same network: the same numbers, the same answers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.engines.agreement import agreement
from benchmarks.engines.dense import (
    BOUNDS,
    PARTS,
    Dense,
    Recorded,
    answers_of,
    cast,
    computed_by,
    difference,
    differences,
    eager,
    network_in,
)
from benchmarks.engines.onnx_files import write_parts
from benchmarks.engines.runners import onnx_runtime, openvino, optimised_torchscript
from benchmarks.speed.floor import run_eagerly
from benchmarks.speed.network import config_of_size
from benchmarks.speed.ours import Ours
from benchmarks.speed.peer import pixels_of
from model.inference import Inference
from tests.benchmarks.small_bench import CLASSES, MAX_SIZE, MIN_SIZE, Bench, fewer_proposals

Given = dict[str, tuple[Tensor, ...]]


@pytest.fixture(scope="module")
def files(network: Inference, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_parts(network, tmp_path_factory.mktemp("onnx"))


@pytest.fixture(scope="module")
def ours(bench: Bench) -> Ours:
    return Ours(bench.served, "cpu", "float32")


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


def tensors(network: Inference, *, images: int, rows: int, columns: int, rois: int) -> Given:
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
    bench: Bench, ours: Ours, onnx: Dense
) -> None:
    """Wherever a part's answer went missing or to another place, boxes and masks would be others."""
    (expected,) = ours.answer([bench.picture])
    network = network_of(bench)
    calls: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        def run(*given: Tensor) -> Any:
            calls.append(name)
            return getattr(onnx, name)(*given)

        return run

    computed_by(network, Dense(**{name: counted(name) for name in PARTS}))
    other = Ours(bench.served, "cpu", "float32")
    other.model._module = network
    (found,) = other.answer([bench.picture])
    assert calls == list(PARTS)
    assert len(json.loads(expected)["detections"]) > 10
    assert agreement(expected, found) > 0.9


def test_answers_agree_by_class_box_and_mask(bench: Bench, ours: Ours) -> None:
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


def test_what_the_parts_were_given_in_a_request_is_kept_for_the_comparison(
    bench: Bench, network: Inference
) -> None:
    other, recorded = network_of(bench), Recorded(eager(network))
    computed_by(other, recorded.dense())
    run_eagerly(other, pixels_of(bench.picture))
    assert {name: len(given) for name, given in recorded.given.items()} == {
        "trunk": 1,
        "box_head": 1,
        "mask_head": 3,
    }
    assert recorded.given["trunk"][0].shape == (1, 3, 96, 160)


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
    one = torch.tensor([1.0, -4.0])
    assert difference(one, torch.tensor([1.0, -3.0])) == 0.25
    assert difference(one, torch.tensor([1.0])) == float("inf")
    assert difference(one, torch.tensor([1.0, float("nan")])) == float("inf")
