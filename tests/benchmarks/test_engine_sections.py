"""What the comparison of engines says is what its numbers say, and a side that is missing is named with its reason."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.engines import packaged, page
from benchmarks.engines.agreement import agreement
from benchmarks.engines.sections import breakdown_table, whole
from benchmarks.engines.side import STAGE_OF
from benchmarks.engines.started import PEER_COMPILED, PEERS, wanted
from benchmarks.speed.__main__ import parser
from benchmarks.speed.setting import PEER, Setting
from benchmarks.tables import Times

PRECISIONS = ("float32", "bfloat16")


def setting_in(folder: Path) -> Setting:
    return Setting(
        folder=folder, device="cpu", precisions=PRECISIONS, min_size=160, max_size=256, rounds=1, quick=True
    )


def test_a_gain_is_how_many_times_as_long_the_other_takes_in_the_same_precision() -> None:
    rows = {
        "480p": {"compiled float32": Times((2.0,)), "TorchScript float32": Times((3.0,))},
        "1080p": {
            "compiled float32": Times((2.0,)),
            "TorchScript float32": Times((5.0,)),
            "TorchScript bfloat16": Times((1.0,)),
            PEER: Times((16.0,)),
        },
    }
    part = whole(rows, {"OpenVINO float32": "it is not installed"})
    assert part.ratios == {
        "480p, TorchScript float32 / compiled float32": 1.5,
        "1080p, TorchScript float32 / compiled float32": 2.5,
        f"1080p, {PEER} / compiled float32": 8.0,
    }
    assert "OpenVINO float32 was left out: it is not installed" in part.text
    (line,) = (one for one in part.text.splitlines() if one.startswith(f"| {PEER} |"))
    assert line == f"| {PEER} | - | 16.00 s |"


def test_a_share_is_the_time_that_the_operations_would_take_at_the_machines_rate() -> None:
    seconds = dict.fromkeys([*STAGE_OF.values(), "all else"], 1.0) | {"trunk": 4.0}
    medians = {"compiled bfloat16": seconds | {"whole": 12.0}}
    flops = {
        "whole": 700,
        "backbone": 300,
        "rpn.head": 100,
        "box_head": 50,
        "mask_branch": 100,
        "box_predictor": 150,
    }
    text, ratios, shares = breakdown_table(medians, {"bfloat16": 100.0}, flops)
    of = shares["compiled bfloat16"]
    assert of["trunk"] == (300 + 100) / 100 / 4.0
    assert (of["box head"], of["mask head"]) == (0.5, 1.0)
    # Trunk 4 s, and 1 s each of box head, mask head, NMS with box crops, detections, mask crops.
    assert of["network"] == pytest.approx(700 / 100 / 9.0)
    assert ratios == {"network by compiled bfloat16, share of the matrix-multiplication rate": of["network"]}
    assert "4.00 s (100 %)" in text


def test_every_side_is_asked_for_and_the_compiled_one_only_where_there_is_a_package(tmp_path: Path) -> None:
    packages: dict[str, dict[str, Any]] = {
        "float32": {"reason": "no C++ compiler is here"},
        "bfloat16": {"path": "maskx.pt2"},
    }
    found = {name: options for name, _, options in wanted(setting_in(tmp_path), 80, PEERS, packages)}
    assert found["compiled float32"] == "no C++ compiler is here"
    compiled = found["compiled bfloat16"]
    assert isinstance(compiled, dict) and compiled["package"] == "maskx.pt2"
    assert "ONNX Runtime float32" in found and "ONNX Runtime bfloat16" not in found
    assert {"OpenVINO bfloat16", PEER, f"{PEER_COMPILED} bfloat16"} <= set(found)
    alone = [name for name, _, _ in wanted(setting_in(tmp_path), 3000, (), packages)]
    assert alone == [f"{engine} {one}" for engine in ("TorchScript", "compiled") for one in PRECISIONS]


def test_without_a_compiler_the_reason_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise ValueError("no C++ compiler is here\nand more")

    monkeypatch.setattr(packaged, "require_compiler", missing)
    assert packaged.make_package(str(tmp_path), "float32")["reason"] == "no C++ compiler is here"


def test_the_pages_table_has_the_results_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cost = {
        "ready": 4.25,
        "loaded_mib": 900.4,
        "peak_one_mib": 1100.0,
        "peak_batch_mib": 1600.0,
        "archive_mib": 120.0,
    }
    parts = {
        page.WHOLE: {
            "480p": {"compiled float32": {"median": 0.5}},
            "1080p": {PEER: {"median": 5.0}},
            "skipped": {},
        },
        page.BREAKDOWN: {"shares": {"compiled float32": {"network": 0.61}}},
        page.COST: {"compiled float32": cost},
    }
    path = tmp_path / "cpu.json"
    path.write_text(json.dumps({"parts": parts}))
    assert page.main([str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "| compiled float32 | 500 ms | - | 61 % |" in lines
    assert f"| {PEER} | - | 5.00 s | - |" in lines
    assert "| ready after | 4.2 s |" in lines and "| memory at load | 900 MiB |" in lines
    path.write_text(json.dumps({"parts": {}}))
    assert page.main([str(path)]) == 2
    assert "run make bench with --parts engines" in capsys.readouterr().err


def test_an_empty_mask_agrees_with_itself() -> None:
    rle = {"size": [4, 4], "counts": "`0"}
    one = {"category_id": 1, "bbox": [0.0, 0.0, 2.0, 2.0], "area": 0, "segmentation": rle}
    body = json.dumps({"detections": [one]}).encode()
    assert agreement(body, body) == 1.0


def test_peers_can_be_chosen_and_left_out() -> None:
    assert parser().parse_args([]).peers is None
    assert parser().parse_args(["--peers"]).peers == []
    assert parser().parse_args(["--peers", "OpenVINO"]).peers == ["OpenVINO"]
    with pytest.raises(SystemExit):
        parser().parse_args(["--peers", "abacus"])
