"""PASCAL VOC's own files: boxes from XML, masks from palette pictures with their border of 255."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

from model.classes import class_table
from tests.training.datasets.small_sets import HEIGHT, WIDTH, voc_object, voc_xml, write_indices, write_voc
from training.data.coco import CocoDataset
from training.datasets import voc


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    return write_voc(tmp_path)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "voc_2012"


def annotations(out: Path, part: str = "train") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((out / f"{part}.json").read_text())["annotations"]
    return found


def decoded(annotation: dict[str, Any]) -> np.ndarray[Any, Any]:
    mask: np.ndarray[Any, Any] = mask_utils.decode(annotation["segmentation"])
    return mask


def test_masks_are_the_pixels_of_the_object_s_number_without_the_border(devkit: Path, out: Path) -> None:
    voc.write_voc(devkit, out)
    person, dog, _ = annotations(out)
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[10:39, 12:29] = 1  # as drawn by write_voc; its border lies around it
    assert np.array_equal(decoded(person), expected)
    assert decoded(dog)[22:49, 42:59].all() and decoded(dog).sum() == 27 * 17 == dog["area"]
    drawn = np.asarray(Image.open(devkit / "SegmentationObject" / "2007_000027.png"))
    assert not (decoded(person) | decoded(dog))[drawn == 255].any() and (drawn == 255).sum() > 100


def test_boxes_lose_vocs_counting_from_1_and_parts_of_a_body_are_no_objects(devkit: Path, out: Path) -> None:
    voc.write_voc(devkit, out)
    assert [one["bbox"] for one in annotations(out)] == [
        [10.0, 8.0, 20.0, 32.0], [40.0, 20.0, 20.0, 30.0], [65.0, 5.0, 10.0, 10.0]
    ]  # fmt: skip


def test_training_reads_masks_of_set_a_and_keeps_a_difficult_object_as_a_crowd(
    devkit: Path, out: Path
) -> None:
    assert voc.write_voc(devkit, out) == [
        f"{out}/train.json: 1 images, 3 objects", f"{out}/val.json: 1 images, 1 objects"
    ]  # fmt: skip
    data = CocoDataset(devkit / "JPEGImages", out / "train.json", mask_classes="dog")
    _, target = data[0]
    names = [data.classes.name_of_label(label) for label in target["labels"].tolist()]
    assert names == ["person", "dog"] and target["has_mask"].tolist() == [False, True]
    assert target["masks"][1].shape == (30, 20) and target["masks"][1][2:29, 2:19].all()
    assert target["crowd_boxes"].tolist() == [[65.0, 5.0, 75.0, 15.0]]
    assert target["image_id"] == 2007000027
    assert data.classes.num_classes == 20


def test_names_of_coco_make_the_paper_s_voc_split(devkit: Path, out: Path) -> None:
    for names in ("voc", "coco"):
        voc.write_voc(devkit, out, names=names)
        categories = json.loads((out / "val.json").read_text())["categories"]
        assert len(class_table(categories, "voc").set_a_labels()) == 20
    assert {one["voc_name"]: one["name"] for one in categories}["sofa"] == "couch"
    assert [one["id"] for one in categories] == list(range(1, 21))


def test_images_of_main_without_a_mask_picture_keep_their_boxes(devkit: Path, out: Path) -> None:
    voc.write_voc(devkit, out, image_set="Main")
    boat = annotations(out)[-1]
    assert boat["segmentation"] == [] and boat["area"] == 36 * 36
    data = CocoDataset(devkit / "JPEGImages", out / "train.json", mask_classes="all")
    assert data.report.objects == 3 and data.report.objects_with_mask == 2


def test_an_object_without_pixels_or_of_another_class_loses_its_mask_and_is_counted(
    devkit: Path, out: Path
) -> None:
    path = devkit / "SegmentationObject" / "2007_000027.png"
    indices = np.array(Image.open(path))
    indices[indices == 1] = 0
    indices[0, 0] = 9
    write_indices(path, indices)
    classes = np.array(Image.open(devkit / "SegmentationClass" / "2007_000027.png"))
    classes[classes == 12] = 13
    write_indices(devkit / "SegmentationClass" / "2007_000027.png", classes)
    lines = voc.write_voc(devkit, out)
    assert [one["segmentation"] == [] for one in annotations(out)] == [True, True, False]
    assert lines[1:-1] == [
        "  1 x object without a pixel in SegmentationObject (kept without its mask); first: "
        "object 1 (person) of 2007_000027",
        "  1 x mask of another class in SegmentationClass (kept without its mask); first: "
        "object 2 (dog) of 2007_000027: index 13 in SegmentationClass; expected 12",
        "  1 x mask without an object in the annotation (left out); first: "
        "index 9 in 2007_000027.png; 2007_000027.xml has 3 objects",
    ]


def test_a_picture_in_colours_of_another_size_or_missing_is_refused_by_its_file(
    devkit: Path, out: Path
) -> None:
    path = devkit / "SegmentationObject" / "2009_000001.png"
    good = Image.open(path)
    good.load()
    good.convert("RGB").save(path)
    with pytest.raises(
        ValueError, match=r"2009_000001\.png: is a picture of mode RGB; expected palette indices"
    ):
        voc.write_voc(devkit, out)
    good.crop((0, 0, 20, 30)).save(path)
    with pytest.raises(ValueError, match=r"2009_000001\.png: is 20 x 30; expected 80 x 64"):
        voc.write_voc(devkit, out)
    path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"2009_000001\.png: cannot be read"):
        voc.write_voc(devkit, out)
    path.unlink()
    with pytest.raises(ValueError, match=r"2009_000001\.png: no such picture of segmentations"):
        voc.write_voc(devkit, out)
    assert not (out / "val.json").exists()


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        (voc_xml("2009_000001", [voc_object("unicorn", 1, 1, 5, 5)]), "object 1 is called 'unicorn'"),
        (
            voc_xml("2009_000001", [voc_object("cat", 1, 1, 5, 5)]).replace("<xmax>5</xmax>", ""),
            "no <bndbox><xmax>",
        ),
        (
            voc_xml("2009_000001", []).replace(f">{WIDTH}<", ">wide<"),
            "<size><width> is 'wide'; expected a number",
        ),
        (voc_xml("2009_000001", []).replace(f">{WIDTH}<", ">nan<"), "is 'nan'; expected a number"),
        ("<annotation>", "not valid XML"),
    ],
)
def test_a_broken_annotation_is_refused_by_its_file(devkit: Path, out: Path, text: str, seen: str) -> None:
    (devkit / "Annotations" / "2009_000001.xml").write_text(text)
    with pytest.raises(ValueError, match=seen) as raised:
        voc.write_voc(devkit, out)
    assert "2009_000001.xml" in str(raised.value)


def test_lists_may_carry_marks_and_missing_or_empty_ones_are_named(devkit: Path, out: Path) -> None:
    path = devkit / "ImageSets" / "Segmentation" / "train.txt"
    path.write_text("2007_000027  1\n")
    voc.write_voc(devkit, out)
    assert len(annotations(out)) == 3
    path.write_text("\n")
    with pytest.raises(ValueError, match=r"train\.txt: lists no image"):
        voc.write_voc(devkit, out)
    path.unlink()
    with pytest.raises(ValueError, match=r"cannot read the list of images .*train\.txt"):
        voc.write_voc(devkit, out)
