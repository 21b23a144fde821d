"""Cityscapes' own precision: its rules one by one, and beside its own code where that can be imported."""

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as mask_utils

from model.classes import ClassTable, class_table
from training.datasets.cityscapes import CLASSES as LABELS
from training.datasets.cityscapes import write_cityscapes
from training.evaluate.cityscapes import CityscapesPrecision, cityscapes_precision
from training.evaluate.measure import judge
from training.evaluate.predictions import Predictions
from training.evaluate.report import table
from training.evaluate.truth import GroundTruth, load_ground_truth

HEIGHT, WIDTH = 64, 128
CAR, PERSON = 26, 24
Area = tuple[int, int, int, int]
"""Rows and columns from and to."""


def set_of(folder: Path, *pictures: NDArray[np.uint16]) -> tuple[GroundTruth, ClassTable]:
    """Pictures of instance ids in Cityscapes' layout, converted and read back; set A are persons alone."""
    for part, some in (("train", pictures[:1]), ("val", pictures)):
        for number, ids in enumerate(some):
            stem = f"ulm/ulm_{number:06d}_000019"
            for kind, picture in (("leftImg8bit", ids.astype(np.uint8)), ("gtFine", ids)):
                suffix = "_leftImg8bit.png" if kind == "leftImg8bit" else "_gtFine_instanceIds.png"
                path = folder / kind / part / f"{stem}{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(path)
    write_cityscapes(folder, folder)
    classes = class_table(json.loads((folder / "val.json").read_text())["categories"], "person")
    return load_ground_truth(folder / "val.json", classes), classes


def picture(**areas: Area) -> NDArray[np.uint16]:
    """Road with instances: `_26001=(top, bottom, left, right)`."""
    ids = np.full((HEIGHT, WIDTH), 7, np.uint16)
    for name, (top, bottom, left, right) in areas.items():
        ids[top:bottom, left:right] = int(name[1:])
    return ids


def found(area: Area, score: float, category: int = CAR, image: int = 1) -> dict[str, Any]:
    top, bottom, left, right = area
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top:bottom, left:right] = 1
    packed = dict(mask_utils.encode(np.asfortranarray(mask)))
    box = [float(left), float(top), float(right - left), float(bottom - top)]
    return {"image_id": image, "category_id": category, "bbox": box, "score": score, "segmentation": packed}


WHOLE, ASIDE, GROUP = (0, 20, 0, 20), (30, 50, 0, 20), (0, 20, 60, 80)
SCENE = {"_26001": WHOLE, "_26": GROUP, "_1": (0, 64, 100, 128), "_26002": (40, 48, 60, 70)}
"""One car; a group of cars; a border, which is void; a car of 80 pixels, which is too small."""


@pytest.mark.parametrize(
    ("detections", "ap50", "ap"),
    [
        ([], 0.0, 0.0),
        ([found(WHOLE, 0.9)], 1.0, 1.0),
        # IoU .8: found at .50 to .75, and not at .80, which it does not exceed.
        ([found((0, 20, 0, 16), 0.9)], 1.0, 0.6),
        ([found((0, 20, 0, 10), 0.9)], 0.0, 0.0),  # IoU .5 is not more than .5
        # A surer mistake: precision 0 then 1/2 over recall 0 then 1, by trapezoids from (0, 1): 1/2 * (0 + 1/2).
        ([found(ASIDE, 0.95), found(WHOLE, 0.9)], 0.25, 0.25),
        ([found(WHOLE, 0.9), found(ASIDE, 0.5)], 1.0, 1.0),
        # As sure as the right one: one point of precision 1/2 at recall 1.
        ([found(WHOLE, 0.9), found(ASIDE, 0.9)], 0.75, 0.75),
        # Twice: the surest finds it, whichever stands first.
        ([found(WHOLE, 0.5), found(WHOLE, 0.9)], 1.0, 1.0),
        ([found(WHOLE, 0.9), found(WHOLE, 0.9)], 0.75, 0.75),
        # In groups, in void and on objects too small nothing is wrong.
        ([found(GROUP, 0.95), found(WHOLE, 0.9)], 1.0, 1.0),
        ([found((0, 10, 60, 70), 0.95), found(WHOLE, 0.9)], 1.0, 1.0),
        ([found((0, 20, 105, 120), 0.95), found(WHOLE, 0.9)], 1.0, 1.0),
        ([found((40, 48, 60, 70), 0.95), found(WHOLE, 0.9)], 1.0, 1.0),
        ([found((40, 48, 60, 64), 0.95), found(WHOLE, 0.9)], 1.0, 1.0),
        # 7 of 10 columns in void are more than .50 to .65 of it, and not more than .70 to .95.
        ([found((0, 20, 97, 107), 0.95), found(WHOLE, 0.9)], 1.0, 0.4 + 0.6 * 0.25),
        # Another class is another matter, and a mask without a pixel is none.
        ([found(ASIDE, 0.95, PERSON), found((0, 0, 0, 0), 0.95), found(WHOLE, 0.9)], 1.0, 1.0),
    ],
)  # fmt: skip
def test_every_rule(tmp_path: Path, detections: list[dict[str, Any]], ap50: float, ap: float) -> None:
    truth, classes = set_of(tmp_path, picture(**SCENE))
    judged = cityscapes_precision(truth, detections, classes)
    wanted = CityscapesPrecision(ap=pytest.approx(ap), ap50=pytest.approx(ap50))  # type: ignore[arg-type]
    assert judged.over({CAR}) == judged.over(LABELS) == wanted  # no other class has an object
    assert judged.over({PERSON}) == CityscapesPrecision(ap=None, ap50=None)


def random_pictures(
    seed: int, images: int = 6
) -> tuple[list[NDArray[np.uint16]], list[list[tuple[int, float, NDArray[np.bool_]]]]]:
    """Pictures of ids with all that occurs, and of each detections: label, score, mask."""
    random = np.random.default_rng(seed)
    labels = [24, 25, 26, 33, 29]

    def area(least: int = 3) -> tuple[slice, slice]:
        height, width = random.integers(least, 30, 2)
        top, left = random.integers(0, HEIGHT - height), random.integers(0, WIDTH - width)
        return slice(top, top + height), slice(left, left + width)

    pictures, detections = [], []
    for _ in range(images):
        ids = np.full((HEIGHT, WIDTH), 7, np.uint16)
        ids[area(8)], ids[area(8)] = 3, 9
        for number in range(12):
            label = int(random.choice(labels))
            ids[area()] = label if random.random() < 0.25 else 1000 * label + number
        mine = []
        for one in np.unique(ids).tolist():
            label = one if one < 1000 else one // 1000
            for _ in range(int(random.integers(0, 4)) if label in LABELS else 0):
                mask = np.roll(ids == one, random.integers(-2, 3, 2), (0, 1))
                mask[area()] = random.random() < 0.3
                mine.append((label, float(np.round(random.random(), 1)), mask))
        for _ in range(6):
            mask = np.zeros((HEIGHT, WIDTH), bool)
            mask[area()] = True
            mine.append((int(random.choice(labels[:4])), float(np.round(random.random(), 1)), mask))
        pictures.append(ids)
        detections.append(mine)
    return pictures, detections


@pytest.mark.parametrize("seed", range(3))
def test_figures_are_those_of_cityscapes_own_code(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)  # cityscapesscripts 2.3.0 was written for numpy 1
    name = "cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling"
    pytest.importorskip(name, reason="cityscapesscripts is not installed", exc_type=ImportError)
    theirs = sys.modules[name]
    monkeypatch.setattr(theirs, "writeDict2JSON", lambda *_: None)  # fails on numpy 2's numbers
    pictures, detections = random_pictures(seed)
    truth, classes = set_of(tmp_path, *pictures)
    results, lists = [], []
    for image, mine in enumerate(detections):
        lines = []
        for number, (label, score, mask) in enumerate(mine):
            Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / f"{image}_{number}.png")
            lines.append(f"{image}_{number}.png {label} {score}")
            packed = dict(mask_utils.encode(np.asfortranarray(mask.astype(np.uint8))))
            one = {"image_id": image + 1, "category_id": label, "score": score, "segmentation": packed}
            results.append(one | {"bbox": mask_utils.toBbox(packed).tolist()})
        (tmp_path / f"{image}.txt").write_text("\n".join(lines))
        lists.append(str(tmp_path / f"{image}.txt"))
    arguments = theirs.args
    arguments.predictionPath, arguments.quiet, arguments.JSONOutput = str(tmp_path), True, False
    arguments.gtInstancesFile = str(tmp_path / "gtInstances.json")
    truths = sorted(str(path) for path in (tmp_path / "gtFine/val").glob("*/*.png"))
    with contextlib.redirect_stdout(io.StringIO()):
        want = theirs.evaluateImgLists(lists, truths, arguments)["averages"]
    judged = cityscapes_precision(truth, results, classes)
    found = judged.over(LABELS)
    assert (found.ap, found.ap50) == pytest.approx((want["allAp"], want["allAp50%"]), abs=1e-12)
    assert found.ap is not None and 0.02 < found.ap < 0.9
    for label, name in LABELS.items():
        ap = judged.over({label}).ap
        assert pytest.approx(want["classes"][name]["ap"], abs=1e-12, nan_ok=True) == (
            np.nan if ap is None else ap
        )


def test_the_figures_stand_in_results_and_table_where_asked_for(tmp_path: Path) -> None:
    truth, classes = set_of(tmp_path, picture(**SCENE, _24001=ASIDE))
    results = [found((0, 20, 0, 16), 0.9), found(ASIDE, 0.9, PERSON)]
    predictions = Predictions(truth=truth, results=results, object_masks=[])
    judged = judge(predictions, classes, cityscapes=True)
    assert judged.a.cityscapes == CityscapesPrecision(ap=1.0, ap50=1.0)
    assert judged.b.cityscapes == CityscapesPrecision(ap=pytest.approx(0.6), ap50=1.0)  # type: ignore[arg-type]
    lines = [line.split() for line in table(judged).splitlines()]
    assert ["Cityscapes'", "own", "AP", "AP50%"] in lines and ["car", "60.0", "100.0"] in lines
    assert ["all", "80.0", "100.0"] in lines and ["bus", "-", "-"] in lines
    assert json.loads(json.dumps(judged.to_dict()))["all"]["cityscapes"]["ap"] == pytest.approx(0.8)
    plain = judge(predictions, classes)
    assert plain.a.cityscapes is None and "Cityscapes" not in table(plain)


def test_a_file_without_void_is_refused_with_what_to_do(tmp_path: Path) -> None:
    truth, classes = set_of(tmp_path, picture(**SCENE))
    truth.void.clear()
    with pytest.raises(ValueError, match=r"1 of 1 images have no 'void'.*ulm_000000.*convert cityscapes"):
        cityscapes_precision(truth, [], classes)


@pytest.mark.parametrize("void", ["text", {"size": [3, 3], "counts": [9]}, []])
def test_a_void_that_cannot_be_read_is_refused_by_image(tmp_path: Path, void: Any) -> None:
    _, classes = set_of(tmp_path, picture(**SCENE))
    contents = json.loads((tmp_path / "val.json").read_text())
    contents["images"][0]["void"] = void
    (tmp_path / "val.json").write_text(json.dumps(contents))
    with pytest.raises(ValueError, match=r"val\.json: image 1: void: "):
        load_ground_truth(tmp_path / "val.json", classes)
