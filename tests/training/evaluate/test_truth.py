"""Evaluation reads by the rules of training: what is broken is counted or named, never a hang or a traceback."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from model.classes import class_table
from tests.training.data.coco_scene import CLASSES, HEIGHT, WIDTH, Change, Thing, corner, usual_scene
from training.data.coco import CocoDataset
from training.evaluate.truth import GroundTruth, load_ground_truth


def of_first(**change: Any) -> Change:
    return lambda document: document["annotations"][0].update(change)


def of_all(**change: Any) -> Change:
    return lambda document: [one.update(change) for one in document["annotations"]]


def of_image(**change: Any) -> Change:
    return lambda document: document["images"][0].update(change)


@pytest.mark.parametrize(
    "counts",
    [
        "jd`0=`o06J5L4M3L3N2N2N2N2N1O2N2N101N1O2O0O1O2N100",
        "",
        "PPPPPPPP",
        "0ooooo00",  # pycocotools does not come back from this one
        "]17=0k9" + "1" * 200,
        "\u20ac",
        [2**70],
        [-5, HEIGHT * WIDTH + 5],
        ["5"],
        None,
    ],
)
def test_run_lengths_that_are_broken_are_no_mask_and_named(tmp_path: Path, counts: Any) -> None:
    _, annotations = usual_scene().write(
        tmp_path, of_first(segmentation={"size": [HEIGHT, WIDTH], "counts": counts})
    )
    truth = load_ground_truth(annotations, CLASSES)
    assert truth.objects[1][0].mask is None and truth.objects[1][1].mask is not None
    assert truth.skipped == {"objects without a readable mask": 1}
    (finding,) = truth.findings
    assert finding.first.startswith("annotation 1 of 1.png: ")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (of_all(bbox=None, segmentation=[]), r"12 x box that is not four numbers.*annotation 1 of 1\.png: bbox None"),
        (of_all(bbox=["1", 2, 3, 4]), r"box that is not four numbers"),
        (of_all(bbox=[1, 2, 10**400, 4]), r"box that is not four numbers"),
        (of_all(image_id=None), r"12 x annotation of an unknown image.*annotation 1: image_id None"),
        (of_first(category_id=99), r"annotation 1 of 1\.png: category_id 99"),
        (of_first(category_id=[2]), r"annotation 1 of 1\.png: category_id \[2\]"),
        (of_image(width=None, height=None), r"1\.png: no width and height"),
        (of_image(width=10**9), r"image 1 \(1\.png\): 1000000000 x 40"),
        (of_image(height=-1), r"1\.png: no width and height that a picture can have"),
        (of_image(height="4O"), r"image 1 \(1\.png\): width 48, height '4O'"),
        (of_image(id="one"), r"image entry number 1"),
        (of_image(id=2), r"two images have the id 2"),
        (of_image(file_name=None), r"image entry number 1"),
        (of_image(neg_category_ids=5), r"image 1: neg_category_ids 5"),
        (of_image(neg_category_ids=[], not_exhaustive_category_ids=[[2]]), r"not_exhaustive_category_ids"),
        (lambda document: document["categories"][1].update(name="wasp"), r"category 5 is called 'wasp'.*'bee'"),
        (lambda document: document["categories"].append({"id": [1], "name": "x"}), r"category \{'id': \[1\]"),
        (lambda document: document["images"].insert(0, None), r"image entry number 1: None"),
        (lambda document: document["annotations"].insert(0, 5), r"annotation number 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_one_error_that_names_file_and_entry(
    tmp_path: Path, change: Change, words: str
) -> None:
    _, annotations = usual_scene().write(tmp_path, change)
    with pytest.raises(ValueError, match=rf"(?s)truth\.json.*{words}"):
        load_ground_truth(annotations, CLASSES)


@pytest.mark.parametrize(
    ("change", "skipped", "kind"),
    [
        (of_first(bbox=[1, 2, 3]), {"objects without a readable box": 1}, "box that is not four numbers"),
        (of_first(image_id=77), {"annotations of unknown images": 1}, "annotation of an unknown image"),
        (of_first(area=[5]), {}, "area that is no number of pixels, taken from mask or box"),
        (of_first(area=float("nan")), {}, "area that is no number of pixels, taken from mask or box"),
        (of_first(keypoints="nose"), {}, "keypoints that cannot be read"),
        (of_first(keypoints=[1, 2, None]), {}, "keypoints that cannot be read"),
        (of_first(bbox=[-9, 2, 30, 20]), {}, "box that reaches out of the image, cut to it"),
        (of_first(id=None), {}, "annotation id that is missing or repeated, numbered anew"),
        (of_first(id=2), {}, "annotation id that is missing or repeated, numbered anew"),
        (of_first(bbox=None), {}, "object without a box, which is taken from its mask"),
        (of_first(image_id="1"), {}, "whole number written as text or as 1.0, taken for the number"),
        (of_image(id="1"), {}, "whole number written as text or as 1.0, taken for the number"),
    ],
)  # fmt: skip
def test_single_annotations_that_are_broken_are_counted_as_in_training(
    tmp_path: Path, change: Change, skipped: dict[str, int], kind: str
) -> None:
    _, annotations = usual_scene().write(tmp_path, change)
    truth = load_ground_truth(annotations, CLASSES)
    assert truth.skipped == skipped
    (finding,) = truth.findings
    assert finding.kind == kind and finding.first.startswith(("annotation ", "image '1'"))
    left = [one for objects in truth.objects.values() for one in objects]
    assert len(left) == 12 - any("mask" not in words for words in skipped)
    assert all(one.area > 0 for one in left)


def test_a_box_that_reaches_out_of_its_image_is_cut_at_the_border(tmp_path: Path) -> None:
    _, annotations = usual_scene().write(tmp_path, of_first(bbox=[-3, -2, WIDTH + 9, HEIGHT + 9]))
    assert load_ground_truth(annotations, CLASSES).objects[1][0].box == (0, 0, WIDTH, HEIGHT)


def test_a_mask_outside_its_box_is_judged_though_training_leaves_it_out(tmp_path: Path) -> None:
    """LVIS has such masks, and its own code judges by them."""
    images, annotations = usual_scene().write(tmp_path, of_first(segmentation=[[40, 30, 47, 30, 47, 39]]))
    classes = class_table(json.loads(annotations.read_text())["categories"], "all")
    truth, data = load_ground_truth(annotations, classes), CocoDataset(images, annotations, classes=classes)
    assert truth.objects[1][0].mask is not None and truth.skipped == {}
    assert not bool(data.target(0)["has_mask"][0])
    outcomes = [(found.kind, found.outcome) for found in (*truth.findings, *data.report.findings)]
    kind = "segmentation outside its box"
    assert outcomes == [(kind, "kept"), (kind, "kept without its mask")]


def test_polygons_of_two_points_are_dropped_from_a_mask_as_in_training(tmp_path: Path) -> None:
    square = [2.0, 3.0, 12.0, 3.0, 12.0, 13.0, 2.0, 13.0]
    _, annotations = usual_scene().write(
        tmp_path, of_first(segmentation=[square, [2.0, 3.0, 9.0, 9.0]], area=None)
    )
    truth = load_ground_truth(annotations, CLASSES)
    mask = truth.objects[1][0].mask
    assert mask is not None and truth.skipped == {}
    assert int(coco_mask.area(mask)) == 100 == truth.objects[1][0].area


def test_sizes_that_are_not_stated_are_those_of_the_images_as_in_training(tmp_path: Path) -> None:
    def without_sizes(document: dict[str, Any]) -> None:
        for entry in document["images"]:
            del entry["width"], entry["height"]

    images, annotations = usual_scene().write(tmp_path, without_sizes)
    assert load_ground_truth(annotations, CLASSES, images).sizes == dict.fromkeys(
        range(1, 6), (HEIGHT, WIDTH)
    )
    Image.new("RGB", (9, 7)).save(images / "5.png")
    assert load_ground_truth(annotations, CLASSES, images).sizes[5] == (7, 9)
    (images / "5.png").unlink()
    with pytest.raises(ValueError, match=r"5\.png: cannot be read"):
        load_ground_truth(annotations, CLASSES, images)


def test_boxes_masks_and_crowds_are_those_of_training_but_exact(tmp_path: Path) -> None:
    scene = usual_scene()
    scene.things[2].append(Thing(2, corner(20, 20, 15), crowd=True))
    larger = [0.123, 1.456, 12.789, 12.875]
    images, annotations = scene.write(tmp_path, of_first(bbox=larger))
    classes = class_table(json.loads(annotations.read_text())["categories"], "all")
    truth, data = load_ground_truth(annotations, classes), CocoDataset(images, annotations, classes=classes)
    assert truth.objects[1][0].box == (0.123, 1.456, 0.123 + 12.789, 1.456 + 12.875)
    for row in range(len(data)):
        target, objects = data.target(row), truth.objects[data.image_id(row)]
        plain = [one for one in objects if not one.crowd]
        boxes = np.array([one.box for one in plain]).reshape(-1, 4)
        np.testing.assert_allclose(target["boxes"].numpy(), boxes, atol=1 / 512 + 1e-6)
        assert target["labels"].tolist() == [classes.label_of_id(one.category_id) for one in plain]
        assert len(target["crowd_boxes"]) == len(objects) - len(plain)
        for mask, one in zip(target["masks"], plain, strict=True):
            assert one.mask is not None and int(mask.sum()) == int(coco_mask.area(one.mask))
    assert sum(one.mask is not None for one in truth.objects[2] if one.crowd) == 1


def test_of_the_front_of_a_set_no_other_object_is_looked_at(tmp_path: Path) -> None:
    _, annotations = usual_scene().write(
        tmp_path, lambda document: document["annotations"][-1].update(bbox=None)
    )
    assert load_ground_truth(annotations, CLASSES, max_images=2).findings == ()
    nothing = load_ground_truth(annotations, CLASSES, only_categories=[])
    assert nothing.findings == () and not any(nothing.objects.values())


def test_a_set_without_annotations_is_no_mistake(tmp_path: Path) -> None:
    _, annotations = usual_scene().write(tmp_path, lambda document: document.update(annotations=[]))
    truth: GroundTruth = load_ground_truth(annotations, CLASSES)
    assert truth.skipped == {} and set(truth.objects.values()) == {()}
