"""Accuracy as served: known answers give known average precisions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import maskx_compiled
from benchmarks.accuracy.__main__ import Accuracy, enlarged, main, measure, read, report, served
from maskx_image import decode
from tests.handler.compiled.parts import eager, put_package
from tests.served.compiled_standin import write_staged_standin
from tests.served.standin import METADATA, png, scene

CPU = torch.device("cpu")
RED, GREEN = (4, 5, 10, 12), (20, 3, 8, 9)


def write_set(folder: Path, *, moved: int) -> Path:
    """Two images with a red and a green rectangle each; in the second the annotated green one is `moved` aside."""
    annotations: list[dict[str, Any]] = []
    for number in (1, 2):
        (folder / f"{number}.png").write_bytes(png(scene(red=RED, green=GREEN)))
        for category_id, (x, y, w, h) in ((7, RED), (11, GREEN)):
            x += moved if (number, category_id) == (2, 11) else 0
            where = {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
            outline = {"segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}
            ids = {"id": len(annotations) + 1, "image_id": number, "category_id": category_id}
            annotations.append({**ids, **where, **outline})
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", "height": 30, "width": 40} for n in (1, 2)],
        "annotations": annotations,
        "categories": [{"id": one["id"], "name": one["name"]} for one in METADATA["categories"]],
    }
    path = folder / "set.json"
    path.write_text(json.dumps(content))
    return path


def measured(standin: Path, folder: Path, annotations: Path) -> Accuracy:
    return measure(served(standin, CPU, precision="float32"), folder, annotations, decoding="draft")


def test_a_model_that_finds_all_has_full_precision(standin: Path, tmp_path: Path) -> None:
    found = measured(standin, tmp_path, write_set(tmp_path, moved=0))
    assert (found.box.ap, found.mask.ap, found.mask_a.ap, found.mask_b.ap) == pytest.approx((1, 1, 1, 1))
    assert found.scaled_down == 0


def test_a_miss_lowers_the_set_of_its_class_alone(standin: Path, tmp_path: Path) -> None:
    found = measured(standin, tmp_path, write_set(tmp_path, moved=9))
    assert found.mask_a.ap == pytest.approx(1)  # red has masks in training, green has not
    assert found.mask_b.ap is not None
    assert found.mask_b.ap < 0.6


def test_an_image_of_another_size_than_annotated_is_refused(standin: Path, tmp_path: Path) -> None:
    annotations = write_set(tmp_path, moved=0)
    (tmp_path / "2.png").write_bytes(png(scene(width=50, red=RED)))
    with pytest.raises(ValueError, match=r"2\.png has 50 x 30 pixels, its annotations are for 40 x 30"):
        measured(standin, tmp_path, annotations)


def test_a_draft_of_an_enlarged_image_is_smaller_and_tells_the_enlarged_size(
    standin: Path, tmp_path: Path
) -> None:
    write_set(tmp_path, moved=0)
    model = served(standin, CPU, precision="float32")
    whole, draft = (read(tmp_path / "1.png", model, way, 8) for way in ("enlarged whole", "enlarged draft"))
    assert (whole.height, whole.width) == (draft.height, draft.width) == (240, 320)
    assert whole.pixels.shape == (240, 320, 3)
    assert draft.pixels.shape == (120, 160, 3)


def test_enlarging_keeps_the_picture() -> None:
    pixels = scene(red=RED)
    large = decode(enlarged(png(pixels), 4)).astype(int)
    assert np.abs(large[2::4, 2::4] - pixels).mean() < 8


def test_the_report_has_a_row_a_way_and_differences_in_points(standin: Path, tmp_path: Path) -> None:
    good = measured(standin, tmp_path, write_set(tmp_path, moved=0))
    bad = measured(standin, tmp_path, write_set(tmp_path, moved=9))
    lines = report([good, bad], tmp_path / "set.json").splitlines()
    rows = [line.split(" | ") for line in lines if "float32, " in line]
    assert good.box.ap is not None
    assert bad.box.ap is not None
    assert float(rows[1][6]) == pytest.approx(100 * (bad.box.ap - good.box.ap), abs=0.006)
    assert rows[0][6] == "+0.00"


def started(model: Path, folder: Path, annotations: Path, *more: str) -> int:
    """The command's status, with its results in out/."""
    words = [f"--model={model}", f"--images={folder}", f"--annotations={annotations}"]
    return main([*words, f"--out={folder / 'out'}", "--device=cpu", *more])


def test_the_command_writes_what_it_prints(
    standin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations = write_set(tmp_path, moved=0)
    assert started(standin, tmp_path, annotations, "--precisions", "float32", "--enlarge", "1") == 0
    (path,) = (tmp_path / "out").glob("accuracy-shapes-*.md")
    assert path.read_text() in capsys.readouterr().out
    results = json.loads(path.with_suffix(".json").read_text())["results"]
    ways = [(one["precision"], one["decoding"]) for one in results]
    assert ways == [("float32", "whole"), ("float32", "draft")]


def test_a_package_is_a_row_of_its_own_and_one_that_is_not_used_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = eager()
    monkeypatch.setattr(maskx_compiled, "load_libraries", lambda path, parts, device: made)
    model, annotations = write_staged_standin(tmp_path / "maskx.pt"), write_set(tmp_path, moved=0)
    package = put_package(model)
    words = ("--precisions", "float32", "--enlarge", "1", "--packages", str(package))
    assert started(model, tmp_path, annotations, *words) == 0
    (path,) = (tmp_path / "out").glob("accuracy-shapes-*.json")
    first, *_, last = json.loads(path.read_text())["results"]
    assert (first["engine"], last["engine"]) == ("torchscript", "compiled")
    assert last["mask"] == first["mask"] and all(one.shapes for one in made.values())
    assert "float32, compiled, whole" in capsys.readouterr().out
    put_package(model, torch="1.0")
    assert started(model, tmp_path, annotations, *words) == 2
    assert "it was compiled for PyTorch 1.0" in capsys.readouterr().err


def test_a_model_that_is_not_there_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    none = tmp_path / "none.pt"
    assert started(none, tmp_path, tmp_path / "set.json") == 2
    assert capsys.readouterr().err == f"error: there is no {none}; export one first (make archive)\n"
