"""Average precision and recall beside pycocotools' and others' own, on made-up sets: COCO's and LVIS's figures."""

import contextlib
import io
import itertools
import json
import sys
import types
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from model.keypoints.layout import KeypointsConfig
from tests.training.evaluate.random_set import CLASSES, RandomSet, random_set, text
from training.evaluate.precision import (
    IOU_THRESHOLDS,
    AveragePrecision,
    box_precision,
    keypoint_precision,
    mask_precision,
)
from training.evaluate.predictions import usual_detections
from training.evaluate.truth import load_ground_truth

GROUPS = {"A": (2, 3), "B": (5, 7, 9), "all": (2, 3, 5, 7, 9)}
"""Category ids."""
JUDGES = {"bbox": box_precision, "segm": mask_precision}


def numbers(found: AveragePrecision, count: int = 12) -> list[float]:
    return [-1.0 if value is None else value for value in astuple(found)[:count]]


def only(results: Sequence[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    left = "segmentation" if kind == "bbox" else "bbox"
    return [{key: value for key, value in one.items() if key != left} for one in results]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools' loadRes
@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(3))
def test_all_twelve_figures_of_a_b_and_all_are_cocos(tmp_path: Path, kind: str, seed: int) -> None:
    made = random_set(tmp_path, seed, images=30)
    worst = min(made.results, key=lambda one: float(one["score"]))
    made.results += [dict(worst, score=0.995)] * 12  # so that ten detections are not all
    table = JUDGES[kind](made.truth, made.results, CLASSES)
    for ids in GROUPS.values():
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(tmp_path / "truth.json"))
            evaluation = COCOeval(truth, truth.loadRes(only(made.results, kind)), kind)
            evaluation.params.catIds = list(ids)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        found = table.over(ids)
        assert numbers(found) == pytest.approx(evaluation.stats, abs=1e-12)
        assert found.ar == found.ar_100 and found.ap_rare is None
        precision = evaluation.eval["precision"][..., 0, -1]
        by_iou = [float(one[one > -1].mean()) for one in precision]
        assert list(found.ap_by_iou) == pytest.approx(by_iou) and len(IOU_THRESHOLDS) == len(by_iou)
        np.testing.assert_allclose(IOU_THRESHOLDS, evaluation.params.iouThrs)
    whole = numbers(table.over(CLASSES.ids))
    assert len({round(value, 9) for value in whole}) >= 11, whole  # none stands for another


def test_the_twelve_figures_are_those_of_faster_coco_eval(tmp_path: Path) -> None:
    faster = pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed")
    made = random_set(tmp_path, 5)
    for kind, judged in JUDGES.items():
        with contextlib.redirect_stdout(io.StringIO()):
            truth = faster.COCO(json.loads(json.dumps(made.document)))
            plain = [
                one if kind == "bbox" else one | {"segmentation": text(one["segmentation"])}
                for one in only(made.results, kind)
            ]
            evaluation = faster.COCOeval_faster(truth, truth.loadRes(plain), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        mine = judged(made.truth, made.results, CLASSES).over(CLASSES.ids)
        assert numbers(mine) == pytest.approx(evaluation.stats[:12], abs=1e-9)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_ten_figures_of_keypoints_are_cocos(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    made = random_set(tmp_path, 3, images=30)
    names = KeypointsConfig(layout="coco", classes=("ant",)).all_names
    results = []
    for one in made.document["annotations"]:
        x, y, w, h = one["bbox"]
        points = np.stack(
            [*random.uniform((x, y), (x + w, y + h), (len(names), 2)).T, np.full(len(names), 2)], 1
        )
        one |= {"keypoints": points.flatten().tolist(), "num_keypoints": len(names)}
        for size in (0.02, 0.05, 0.1):
            moved = points + random.normal(0, size, points.shape) * (w, h, 0)
            detection = {
                "image_id": one["image_id"],
                "category_id": one["category_id"],
                "score": random.random(),
            }
            results.append(detection | {"keypoints": moved.flatten().tolist()})
    (tmp_path / "truth.json").write_text(json.dumps(made.document))
    config = KeypointsConfig(layout="coco", classes=("ant", "bee", "cat", "dog"))
    found = keypoint_precision(load_ground_truth(tmp_path / "truth.json", CLASSES), results, CLASSES, config)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(tmp_path / "truth.json"))
        evaluation = COCOeval(truth, truth.loadRes(results), "keypoints")
        evaluation.params.catIds = [2, 3, 5, 7]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert list(astuple(found)[1:]) == pytest.approx(evaluation.stats, abs=1e-12)
    assert all(0 < value <= 1 for value in evaluation.stats) and len(set(evaluation.stats)) > 8


# ---- LVIS ----


def lvis_by_hand(
    made: RandomSet, kind: str, ids: Sequence[int], ranges: tuple[float, float]
) -> dict[int, Any]:
    """LVIS's precision [10, 101] and recall [10] of each class (Gupta et al., 2019), in plain loops; None: no object.

    Detections of a class that its image was not searched for do not count; those that match nothing are passed over
    where not all of the class is annotated or where their own size is out of range, and so are matches of objects out
    of range.
    """
    entries = {entry["id"]: entry for entry in made.document["images"]}
    found: dict[int, Any] = {}
    for category in ids:
        curves, recalls, objects = [], [], 0
        for threshold in np.linspace(0.5, 0.95, 10):
            marks, objects = [], 0
            for image, entry in entries.items():
                annotated = [a for a in made.document["annotations"] if a["image_id"] == image]
                searched = {a["category_id"] for a in annotated} | set(entry["neg_category_ids"])
                truth = [a for a in annotated if a["category_id"] == category]
                inside = [ranges[0] <= a["area"] <= ranges[1] for a in truth]
                order = sorted(range(len(truth)), key=lambda k: not inside[k])
                truth, inside = [truth[k] for k in order], [inside[k] for k in order]
                objects += sum(inside)
                mine = [r for r in made.results if (r["image_id"], r["category_id"]) == (image, category)]
                if category not in searched or not mine:
                    continue
                mine = sorted(mine, key=lambda r: -r["score"])
                shape = "bbox" if kind == "bbox" else "segmentation"
                ious = mask_utils.iou([r[shape] for r in mine], [a[shape] for a in truth], [0] * len(truth))
                taken: set[int] = set()
                for row, result in enumerate(mine):
                    best, at = min(threshold, 1 - 1e-10), -1
                    for k in range(len(truth)):
                        if k in taken or ious[row][k] < best:
                            continue
                        if at >= 0 and inside[at] and not inside[k]:
                            break
                        best, at = ious[row][k], k
                    area = result["bbox"][2] * result["bbox"][3]
                    if kind == "segm":
                        area = float(mask_utils.area(result["segmentation"]))
                    if at >= 0:
                        taken.add(at)
                        passed = not inside[at]
                    else:
                        passed = category in entry["not_exhaustive_category_ids"]
                        passed = passed or not ranges[0] <= area <= ranges[1]
                    if not passed:
                        marks.append((result["score"], at >= 0))
            marks.sort(key=lambda mark: -mark[0])
            hits_so_far = list(itertools.accumulate(int(hit) for _, hit in marks))
            precision = [hits / number for number, hits in enumerate(hits_so_far, start=1)]
            right = [hits / max(objects, 1) for hits in hits_so_far]
            pairs = list(zip(right, precision, strict=True))
            levels = np.linspace(0, 1, 101)
            curves.append([max((p for r, p in pairs if r >= level), default=0.0) for level in levels])
            recalls.append(right[-1] if right else 0.0)
        found[category] = (np.array(curves), np.array(recalls)) if objects else None
    return found


def mean_of(found: dict[int, Any], ids: Sequence[int], part: int) -> float | None:
    values = [found[one][part].mean() for one in ids if found[one] is not None]
    return float(np.mean(values)) if values else None


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_lvis_figures_are_those_of_its_rules(tmp_path: Path, kind: str) -> None:
    made = random_set(tmp_path, 11, images=8, federated=True)
    assert usual_detections(made.truth) == 300
    table = JUDGES[kind](made.truth, made.results, CLASSES, max_detections=300)
    sizes = {"": (0, 1e10), "_small": (0, 32**2), "_medium": (32**2, 96**2), "_large": (96**2, 1e10)}
    by_size = {name: lvis_by_hand(made, kind, CLASSES.ids, ranges) for name, ranges in sizes.items()}
    for ids in GROUPS.values():
        found = table.over(ids)
        for name, by_class in by_size.items():
            assert getattr(found, f"ap{name}") == pytest.approx(mean_of(by_class, ids, 0), abs=1e-9), name
            assert getattr(found, f"ar{name}") == pytest.approx(mean_of(by_class, ids, 1), abs=1e-9), name
        kinds = {"ap_rare": (2, 9), "ap_common": (3, 5), "ap_frequent": (7,)}
        for name, of_kind in kinds.items():
            wanted = mean_of(by_size[""], [one for one in of_kind if one in ids], 0)
            assert getattr(found, name) == (None if wanted is None else pytest.approx(wanted, abs=1e-9)), name
    assert table.over(GROUPS["B"]).ap_rare is None  # its only rare class has no object
    assert numbers(table.over(CLASSES.ids)) != numbers(
        box_precision(made.truth, [], CLASSES).over(CLASSES.ids)
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning:lvis")
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_lvis_figures_are_those_of_its_own_code(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing = types.ModuleType("lvis.vis")  # wants matplotlib and OpenCV, and nothing is drawn here
    vars(drawing)["LVISVis"] = None
    monkeypatch.setitem(sys.modules, "lvis.vis", drawing)
    lvis = pytest.importorskip("lvis", reason="lvis is not installed")
    monkeypatch.setattr(np, "float", float, raising=False)  # lvis 0.5.3 was written for numpy 1
    made = random_set(tmp_path, 12, images=30, federated=True)
    theirs = [
        one if kind == "bbox" else one | {"segmentation": text(one["segmentation"])}
        for one in only(made.results, kind)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = lvis.LVIS(str(tmp_path / "truth.json"))
        evaluation = lvis.LVISEval(truth, lvis.LVISResults(truth, theirs), kind)
        evaluation.run()
    want = evaluation.get_results()
    found = JUDGES[kind](made.truth, made.results, CLASSES, max_detections=300).over(CLASSES.ids)
    pairs = {
        "AP": found.ap, "AP50": found.ap50, "AP75": found.ap75, "APs": found.ap_small, "APm": found.ap_medium,
        "APl": found.ap_large, "APr": found.ap_rare, "APc": found.ap_common, "APf": found.ap_frequent,
        "AR@300": found.ar, "ARs@300": found.ar_small, "ARm@300": found.ar_medium, "ARl@300": found.ar_large,
    }  # fmt: skip
    assert pairs == pytest.approx(dict(want), abs=1e-9)


def test_recall_at_300_counts_what_a_hundred_leave_out(tmp_path: Path) -> None:
    made = random_set(tmp_path, 1, federated=True)
    first = made.document["annotations"][0]
    right = {key: first[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.1}
    right["segmentation"] = made.truth.objects[first["image_id"]][0].mask
    wrong = right | {"bbox": [0.0, 0.0, 3.0, 3.0], "score": 0.9}
    results = [wrong] * 200 + [right]
    some = box_precision(made.truth, results, CLASSES, max_detections=300).over({first["category_id"]})
    assert some.ar_100 == 0.0 and some.ar is not None and some.ar > 0
    few = box_precision(made.truth, results, CLASSES).over({first["category_id"]})
    assert few.ar == few.ar_100 == 0.0


@pytest.mark.parametrize("federated", [True, False])
def test_a_frequency_that_lvis_does_not_know_is_refused_in_a_federated_set_alone(
    tmp_path: Path, federated: bool
) -> None:
    made = random_set(tmp_path, 0, images=2, federated=federated)
    made.document["categories"][1]["frequency"] = 17
    (tmp_path / "truth.json").write_text(json.dumps(made.document))
    if not federated:
        assert load_ground_truth(tmp_path / "truth.json", CLASSES).frequencies == {}
        return
    with pytest.raises(ValueError, match=r"truth\.json:\n.*category 3: frequency 17; expected r, c or f"):
        load_ground_truth(tmp_path / "truth.json", CLASSES)
