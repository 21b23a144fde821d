"""What the parts of `make gpu-check` count: matching detections, waits by place, requests, sizes, drawn photographs."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from benchmarks.gpu_check.parts import compiled, served
from benchmarks.gpu_check.parts.answers import PIXELS, sizes
from benchmarks.gpu_check.parts.comparing import compare
from benchmarks.gpu_check.parts.graphed import measure_trunk, trunk_of
from benchmarks.gpu_check.parts.traced import Span, host_operations, places
from benchmarks.gpu_check.parts.training_same import relative
from benchmarks.gpu_check.photos import photos
from model.boxes.suppression import nms_by_class
from tests.benchmarks.setting import setting_in
from tests.model.small_network import small_network


def detection(x: float, *, category: int = 1, score: float = 0.9) -> dict[str, Any]:
    return {"category_id": category, "bbox": [x, 0.0, 10.0, 10.0], "score": score}


def test_detections_match_by_category_and_box_and_each_only_once() -> None:
    ours = [detection(0), detection(100), detection(200, category=2), detection(300, score=0.1)]
    theirs = [detection(1, score=0.2), detection(200, category=1), detection(400)]
    found = compare([ours], [theirs])
    assert (found.sure, found.matched) == (3, 1)  # the first, whatever its score there
    assert found.more == 2
    assert found.box_iou == pytest.approx(90 / 110) and found.score_difference == pytest.approx(0.7)
    twice = compare([[detection(0), detection(0)]], [[detection(0)]])
    assert (twice.sure, twice.matched) == (2, 1)


def served_row(clients: int | None, **changes: Any) -> dict[str, Any]:
    what = {
        "network": served.LARGE,
        "workers": 0,
        "protocol": "REST",
        "device": "cpu",
        "precision": "float32",
    }
    numbers = {"sent": 100, "client_cpu_ms": 1.0, "requests": 100, "rate": 50.0, "errors": {}}
    seconds = dict.fromkeys(("p50", "p90", "p99", "p99.9", "mean", "max"), 0.02)
    return {
        **what,
        **numbers,
        **seconds,
        "clients": clients,
        "busy_percent": None,
        "memory_mib": None,
        **changes,
    }


def test_bars_of_serving_are_judged_by_rest_alone_and_not_by_the_requests_before_the_first_turn(
    tmp_path: Path,
) -> None:
    rows = [
        served_row(None, rate=900.0, errors={"500": 2}),
        served_row(1, p99=0.03),
        served_row(24, rate=300.0),
        served_row(24, rate=800.0, protocol="gRPC"),
        served_row(24, rate=700.0, network=served.TRAINED, errors={"503": 1}),
    ]
    notes = ["gRPC: absent", f"{served.FAILED}it died"]
    numbers = served.shown_part(setting_in(tmp_path), rows, notes).numbers
    assert numbers["bars"] == pytest.approx({"served": 300.0, "served p50": 20, "served p99": 1.5})
    assert numbers["requests"] == {"asked": 500, "not 200": 4}  # a server that was lost counts too


def test_the_busy_share_is_that_of_the_looks_after_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    count = tmp_path / "count"
    program.write_text(
        f"#!/bin/sh\necho x >> {count}\n"
        f"case $(wc -l < {count}) in\n"
        '1) echo "0, 900";; 2) echo "40, 1000";; 3) echo "[N/A], 1";; 4) echo "60, 1200";;\nesac\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(served, "PAUSE", 0.0)
    with served.Watch() as watch:
        while len(watch.mib) < 3:
            time.sleep(0.01)
    assert watch.numbers() == {"busy_percent": 50.0, "memory_mib": 1200.0}
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    with served.Watch() as watch:
        pass
    assert watch.numbers() == {"busy_percent": None, "memory_mib": None}


def test_no_two_of_fifty_sizes_are_alike_and_all_have_as_many_pixels() -> None:
    found = sizes(50)
    assert len(set(found)) == 50
    assert all(abs(width * height / PIXELS - 1) < 0.01 for width, height in found)
    assert max(w / h for w, h in found) > 2 > 0.5 > min(w / h for w, h in found)


def test_a_wait_is_named_by_its_stage_and_operator_and_the_profilers_own_is_not_counted() -> None:
    host = [
        Span(name="maskx::rpn", start=0, end=100),
        Span(name="nms_by_level", start=5, end=90),
        Span(name="aten::where", start=10, end=50),
        Span(name="aten::nonzero", start=11, end=49),
        Span(name="cudaStreamSynchronize", start=20, end=40),
        Span(name="aten::mul", start=60, end=70),
        Span(name="cudaDeviceSynchronize", start=200, end=300),
    ]
    assert places(host) == {"maskx::rpn > nms_by_level > aten::where > aten::nonzero": 1}


def test_an_operation_that_would_wait_is_named_with_its_line() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 9, 10], [20, 20, 30, 30]])
    with torch.no_grad():
        found = host_operations(
            lambda: nms_by_class(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([1, 1, 2]), 0.5)
        )
    assert sum(found.values()) >= 1
    assert all(": model/" in name or ": elsewhere" in name for name in found)


def test_an_operation_that_is_told_the_size_of_its_answer_does_not_wait() -> None:
    counts = torch.tensor([1, 2])
    told = host_operations(lambda: torch.repeat_interleave(counts, output_size=3))
    untold = host_operations(lambda: torch.repeat_interleave(counts))
    assert (sum(told.values()), sum(untold.values())) == (0, 1)


def test_a_loss_that_is_not_finite_is_infinitely_far_from_one_that_is() -> None:
    assert relative(2.0, 1.0) == 0.5
    assert relative(2.0, float("nan")) == float("inf")


def test_a_drawn_photograph_has_its_objects_inside_the_drawing(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 4, height=64, width=96)
    content = json.loads((folder / "train.json").read_text())
    assert len(content["images"]) == 4 and content["annotations"]
    for one in content["images"]:
        with Image.open(folder / "train" / one["file_name"]) as image:
            assert image.size == (one["width"], one["height"]) == (96, 64)
    for one in content["annotations"]:
        x, _, width, _ = one["bbox"]
        assert x >= 0 and x + width <= 64 and one["segmentation"]["size"] == [64, 96]
        assert coco_mask.area(one["segmentation"]) == one["area"]


def test_the_trunk_of_the_file_is_the_networks_own_backbone_and_rpn_head(tmp_path: Path) -> None:
    network = small_network().eval().inference().eval()
    torch.jit.script(network).save(str(tmp_path / "maskx.pt"))
    trunk = trunk_of(tmp_path / "maskx.pt", torch.device("cpu"), torch.float32, 64, 128)
    with torch.no_grad():
        answers = trunk()
        found = measure_trunk(trunk, torch.device("cpu"), runs=2)
    assert len(answers) == 3 * 5 and answers[0].shape[2:] == (16, 32)
    assert found.launched > 0 and found.replayed is None and found.same is None


def test_the_compiled_part_says_why_there_is_no_package_and_tells_its_gain(tmp_path: Path) -> None:
    setting = setting_in(tmp_path)
    none = compiled.shown_part(setting, {"precision": "bfloat16", "reason": "there is no C++ compiler"})
    assert "there is no C++ compiler" in none.text and none.numbers["bars"] == {}
    side = {"images_per_second": 10.0, "p50": 0.8, "peak_mib": None}
    found = {
        "precision": "bfloat16",
        "compiled in": 60.0,
        "parts": ["trunk"],
        "alike": 0.97,
        "TorchScript, batch 8": side,
        "compiled, batch 8": side | {"images_per_second": 15.0},
        "graph": {"launched": 0.004, "replayed": 0.003, "same": False},
    }
    told = compiled.shown_part(setting, found)
    assert told.numbers["bars"] == {"compiled": 1.5}
    assert "1.50 times" in told.text and "97 %" in told.text and "**other answers**" in told.text


@pytest.mark.parametrize(("least", "most", "expected"), [(800, 1333, (750, 1333)), (224, 314, (177, 314))])
def test_a_canvas_of_1080p_is_bounded_by_its_longer_side(
    tmp_path: Path, least: int, most: int, expected: tuple[int, int]
) -> None:
    setting = replace(setting_in(tmp_path), min_size=least, max_size=most)
    assert compiled.canvas_of_1080p(setting) == expected
