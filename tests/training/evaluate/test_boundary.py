"""Boundary AP: the lesser of two overlaps, and beside faster-coco-eval's own where that is installed."""

import contextlib
import csv
import io
import json
import sys
import types
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from tests.training.evaluate.random_set import CLASSES, SIDE, RandomSet, random_set, text
from training.evaluate import boundary
from training.evaluate.measure import judge
from training.evaluate.precision import mask_precision
from training.evaluate.predictions import Predictions
from training.evaluate.report import table, write_csv
from training.evaluate.truth import load_ground_truth


def strip(mask: dict[str, Any], share: float) -> dict[str, Any]:
    """The pixels of a mask within `share` of the diagonal of its outline, by plain erosion."""
    pixels = mask_utils.decode(mask).astype(bool)
    inside = np.pad(pixels, 1)
    for _ in range(max(1, round(share * float(np.hypot(*pixels.shape))))):
        near = [np.roll(inside, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        inside = np.logical_and.reduce(near)
    left = pixels & ~inside[1:-1, 1:-1]
    return dict(mask_utils.encode(np.asfortranarray(left.astype(np.uint8))))


@pytest.fixture
def plain_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's own strips in place of the package's, so that the rest is tested without it."""
    module = types.ModuleType("faster_coco_eval.core.mask")
    vars(module)["rleToBoundary"] = strip
    for name in ("faster_coco_eval", "faster_coco_eval.core"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "faster_coco_eval.core.mask", module)


def square(top: int, side: int) -> dict[str, Any]:
    pixels = np.zeros((SIDE, SIDE), np.uint8)
    pixels[top : top + side, 20 : 20 + side] = 1
    return dict(mask_utils.encode(np.asfortranarray(pixels)))


def squares(
    folder: Path, truth: list[tuple[int, int, int, bool]], found: list[tuple[int, int, int, float]]
) -> RandomSet:
    """An image of squares: category, upper edge, side, and whether it is a crowd or its score."""
    made = random_set(folder, 0, images=1)
    made.document["annotations"], results = [], []
    for number, (category, top, side, crowd) in enumerate(truth, start=1):
        one = {"id": number, "image_id": 1, "category_id": category, "bbox": [20, top, side, side]}
        more = {"area": side * side, "iscrowd": int(crowd), "segmentation": text(square(top, side))}
        made.document["annotations"].append(one | more)
    for category, top, side, score in found:
        one = {"image_id": 1, "category_id": category, "bbox": [20, top, side, side]}
        results.append(one | {"score": score, "segmentation": square(top, side)})
    (folder / "truth.json").write_text(json.dumps(made.document))
    return RandomSet(made.document, load_ground_truth(folder / "truth.json", CLASSES), results)


def one_square(folder: Path) -> RandomSet:
    """A square of 100 pixels a side, found 6 rows too low, and one of 12 that is found exactly."""
    return squares(folder, [(2, 10, 100, False), (3, 10, 12, False)], [(2, 16, 100, 0.9), (3, 10, 12, 0.9)])


@pytest.mark.usefixtures("plain_strips")
def test_a_large_mask_that_is_moved_loses_at_its_boundary_and_a_small_one_is_as_before(
    tmp_path: Path,
) -> None:
    """240 x 240 pixels: strips of round(.02 * 339.4) = 7 pixels, of which 6 rows move away."""
    made = one_square(tmp_path)
    masks = mask_precision(made.truth, made.results, CLASSES)
    edges = mask_precision(made.truth, made.results, CLASSES, boundary=True)
    shared, whole = 100 * 94, 2 * 100 * 100
    assert masks.over({2}).ap == pytest.approx(0.8) and 0.85 < shared / (whole - shared) < 0.9
    ring = 100 * 100 - 86 * 86
    common = 2 * 7 * 94 + 2 * 1 * 86  # both sides of 7 columns, and a row of 7 - 6 at top and at bottom
    assert common / (2 * ring - common) == pytest.approx(0.4)  # below the least threshold
    assert edges.over({2}).ap == 0.0
    assert edges.over({3}).ap == masks.over({3}).ap == pytest.approx(1.0)


@pytest.mark.usefixtures("plain_strips")
def test_what_lies_in_a_crowd_is_judged_by_the_mask_alone(tmp_path: Path) -> None:
    """A square deep in the crowd shares none of its outline, and is no mistake."""
    truth = [(2, 10, 12, False), (2, 100, 120, True)]
    made = squares(tmp_path, truth, [(2, 140, 30, 0.9), (2, 10, 12, 0.5)])
    assert mask_precision(made.truth, made.results, CLASSES, boundary=True).over({2}).ap == pytest.approx(1.0)
    alone = squares(tmp_path / "crowd alone", truth[1:], [(2, 140, 30, 0.9)])
    assert mask_precision(alone.truth, alone.results, CLASSES, boundary=True).over({2}).ap is None


@pytest.mark.parametrize("seed", range(3))
def test_figures_are_those_of_faster_coco_eval(tmp_path: Path, seed: int) -> None:
    faster = pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed")
    made = random_set(tmp_path, seed, images=12)
    plain = [{k: v for k, v in one.items() if k != "bbox"} for one in made.results]
    plain = [one | {"segmentation": text(one["segmentation"])} for one in plain]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = faster.COCO(json.loads(json.dumps(made.document)))
        evaluation = faster.COCOeval_faster(truth, truth.loadRes(plain), "boundary")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    table_of_masks = mask_precision(made.truth, made.results, CLASSES)
    found = mask_precision(made.truth, made.results, CLASSES, boundary=True).over(CLASSES.ids)
    mine = [-1.0 if value is None else value for value in astuple(found)[:12]]
    assert mine == pytest.approx(evaluation.stats[:12], abs=1e-9)
    whole = table_of_masks.over(CLASSES.ids).ap
    assert found.ap is not None and whole is not None and found.ap < whole
    masks = [one["segmentation"] for one in made.results[:20]]
    for ours, theirs in zip([strip(mask, 0.02) for mask in masks], boundary.strips_of(masks), strict=True):
        assert (mask_utils.decode(ours) == mask_utils.decode(theirs)).all()


@pytest.mark.usefixtures("plain_strips")
def test_the_figures_stand_in_results_and_table_where_asked_for(tmp_path: Path) -> None:
    made = one_square(tmp_path)
    predictions = Predictions(truth=made.truth, results=made.results, object_masks=[])
    judged = judge(predictions, CLASSES, boundary=True)
    assert judged.a.boundary is not None and judged.a.boundary.ap == pytest.approx(0.5)  # classes 2 and 3
    assert judged.classes[1].boundary is not None and judged.classes[1].boundary.ap == pytest.approx(1.0)
    lines = [line.split() for line in table(judged).splitlines()]
    assert ["boundary", "AP", "AP50", "AP75"] in lines
    assert ["A", "(with", "masks)", "50.0", "50.0", "50.0"] in lines
    write_csv(tmp_path / "per_class.csv", judged)
    with (tmp_path / "per_class.csv").open(newline="") as file:
        figures = [row["boundary_ap75"] for row in csv.DictReader(file)]
    assert [float(one) for one in figures[:2]] == pytest.approx([0.0, 1.0]) and figures[2] == ""
    plain = judge(predictions, CLASSES)
    write_csv(tmp_path / "plain.csv", plain)
    assert plain.a.boundary is None and "boundary" not in (tmp_path / "plain.csv").read_text()


def test_without_the_package_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval.core.mask", None)
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(ValueError, match=r"needs the package faster-coco-eval.*requirements/boundary\.txt"):
        boundary.require_boundary()
