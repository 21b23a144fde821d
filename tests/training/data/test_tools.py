"""COCO files as annotation tools write them: taken as they are meant, with a finding, in training and evaluation."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.classes import class_table
from tests.training.data.coco_set import (
    BOX,
    CUP,
    DOG,
    HEIGHT,
    WIDTH,
    Document,
    Load,
    annotation,
    assert_same,
    disc,
    document,
    finding,
)
from training.data.annotations import read_annotations
from training.data.findings import Finding
from training.data.tools import Document as InCocosForm
from training.data.tools import Reading, as_coco, found_name, whole_number
from training.evaluate.truth import load_ground_truth

Change = Callable[[Document], Any]
AS_NUMBER = "whole number written as text or as 1.0, taken for the number"
ADDED = "category without an object, as tools add them"
ANEW = "annotation id that is missing or repeated, numbered anew"


def same_as_before(load: Load, contents: Document, count: int, kind: str, words: str = "") -> Finding:
    """Load: nothing but one finding tells the set from the usual one."""
    usual, dataset = load(document()), load(contents)
    assert [one.kind for one in dataset.report.findings] == [kind]
    (found,) = dataset.report.findings
    assert found.count == count and words in found.first and "\n" not in str(found)
    for row in range(len(usual)):
        assert_same(dataset.target(row), usual.target(row))
        assert dataset.path(row) == usual.path(row) and dataset.size(row) == usual.size(row)
    return found


def every(key: str, **change: Callable[[Any], Any]) -> Change:
    def changed(contents: Document) -> None:
        for entry in contents[key]:
            entry.update({name: new(entry[name]) for name, new in change.items()})

    return changed


@pytest.mark.parametrize(
    ("change", "count", "words"),
    [
        (every("annotations", image_id=str), 5, "annotation 1: image_id '50', taken for 50"),
        (every("annotations", image_id="{:06d}".format), 5, "annotation 1: image_id '000050', taken for 50"),
        (every("annotations", category_id=float), 5, "annotation 1: category_id 3.0, taken for 3"),
        (every("annotations", category_id="{}.0".format), 5, "annotation 1: category_id '3.0', taken for 3"),
        (every("annotations", id=str), 5, "annotation '1': id '1', taken for 1"),
        (every("images", id=str), 3, "image '50': id '50', taken for 50"),
        (every("images", id=float, width=float, height=str), 9, "image 50.0: id 50.0, taken for 50"),
        (every("categories", id=str), 3, "category '11': id '11', taken for 11"),
    ],
)
def test_ids_as_text_or_with_a_point_are_taken_where_both_sides_agree(
    load_coco: Load, change: Change, count: int, words: str
) -> None:
    contents = document()
    change(contents)
    same_as_before(load_coco, contents, count, AS_NUMBER, words)


@pytest.mark.parametrize(
    ("value", "number"),
    [("7", 7), (" 007 ", 7), (7.0, 7), ("-7.00", -7), (7, 7),
     (True, None), (7.5, None), ("7.5", None), ("seven", None), ("", None), (None, None), ([7], None), ("\u0667", None),
     (float("nan"), None), (float("inf"), None), (1e300, None), ("9" * 19, None), (2**63, None)],
)  # fmt: skip
def test_what_is_a_whole_number(value: Any, number: int | None) -> None:
    assert whole_number(value) == number


def test_an_image_that_cannot_be_used_is_refused_though_its_id_is_text(load_coco: Load) -> None:
    contents = document()
    contents["images"][1] = {"id": "7", "width": -1}
    with pytest.raises(ValueError, match="image entry number 2: .* and a 'file_name'"):
        load_coco(contents)


def test_text_that_is_no_id_of_the_other_side_stays_what_it_is(load_coco: Load) -> None:
    contents = document()
    contents["annotations"][0]["image_id"] = "51"
    assert (
        "annotation 1: image_id '51'" in finding(load_coco(contents), "annotation of an unknown image").first
    )
    contents["annotations"][0] |= {"image_id": 50, "category_id": "dog"}
    with pytest.raises(ValueError, match=r"annotation 1 of a\.png: category_id 'dog'"):
        load_coco(contents)


@pytest.mark.parametrize(
    ("change", "count"),
    [
        (every("annotations", id=lambda _: 0), 4),  # CVAT
        (every("annotations", id=lambda one: min(one, 4)), 1),  # TACO
        (every("annotations", id=lambda _: None), 5),
        (every("annotations", id="a6ab5c9c-{}".format), 5),
    ],
)
def test_annotation_ids_that_are_no_ids_are_numbered_anew(
    load_coco: Load, change: Change, count: int
) -> None:
    contents = document()
    change(contents)
    same_as_before(load_coco, contents, count, ANEW, "expected a whole number, each once")


def test_what_is_wrong_with_an_annotation_without_an_id_is_told_by_its_number(load_coco: Load) -> None:
    contents = document()
    contents["annotations"][2] |= {"id": 1, "bbox": [1, 2, 0, 4]}
    assert finding(load_coco(contents), "box of no area").first.startswith("annotation number 3 of a.png: ")


@pytest.mark.parametrize("sides", [(-1, -1), (0, 0), (WIDTH, None), (None, HEIGHT), ("-1", -1.0), (WIDTH, 0)])
def test_sizes_that_no_picture_has_are_those_of_the_images(load_coco: Load, sides: tuple[Any, Any]) -> None:
    contents = document()
    for entry in contents["images"][1:]:
        entry |= {"width": sides[0], "height": sides[1]}
    words = f"image 7 (sub/b.jpg): width {sides[0]!r}, height {sides[1]!r}"
    same_as_before(load_coco, contents, 2, "size that no picture has, read from the image", words)


def roboflow(root: str) -> list[Document]:
    below = [
        {"id": i, "name": name, "supercategory": root}
        for i, name in ((BOX, "box"), (CUP, "cup"), (DOG, "dog"))
    ]
    return [{"id": 0, "name": root, "supercategory": "none"}, *below]


USUAL = document()["categories"]


@pytest.mark.parametrize(
    ("categories", "number"),
    [
        (roboflow("things"), 0),
        (roboflow("dog"), 0),
        ([{"id": 0, "name": "_background_", "supercategory": None}, *USUAL], 0),  # labelme2coco.py
        ([*USUAL, {"id": 99, "name": "background", "supercategory": ""}], 99),  # Datumaro from masks
        ([*USUAL, {"id": 5, "name": "5", "supercategory": None}], 5),  # FiftyOne, for gaps in the ids
        ([*USUAL, {"id": 12, "name": " cup "}], 12),
        ([{"id": 2, "name": "box"}, *USUAL], 2),
    ],
)
def test_categories_that_a_tool_adds_are_passed_over(
    load_coco: Load, categories: list[Document], number: int
) -> None:
    contents = document() | {"categories": categories}
    found = same_as_before(load_coco, contents, 1, ADDED, f"category {number} (")
    assert found.outcome == "passed over"
    assert load_coco(contents).classes.names == ("box", "cup", "dog")


@pytest.mark.parametrize(
    "categories",
    [
        [{"id": 0, "name": "animal", "supercategory": "none"}, *USUAL],
        [{"id": 0, "name": "animal"}, *[{**one, "supercategory": "animal"} for one in USUAL[:2]], USUAL[2]],
        [*USUAL, {"id": 4, "name": "5"}],
    ],
)
def test_a_class_that_has_no_object_yet_stays(load_coco: Load, categories: list[Document]) -> None:
    dataset = load_coco(document() | {"categories": categories})
    assert dataset.classes.num_classes == 4 and dataset.report.findings == ()


def test_digits_are_classes_though_one_has_no_object(load_coco: Load) -> None:
    names = {BOX: str(BOX), CUP: str(CUP), DOG: "dog", 7: "7"}
    contents = document() | {"categories": [{"id": i, "name": name} for i, name in names.items()]}
    assert load_coco(contents, mask_classes="all").classes.names == ("3", "7", "10", "dog")


def test_an_added_category_that_has_an_object_stays(load_coco: Load) -> None:
    contents = document() | {"categories": roboflow("things")}
    contents["annotations"].append(annotation(9, 50, 0, [1, 1, 5, 5]))
    assert load_coco(contents).classes.names == ("things", "box", "cup", "dog")
    contents["categories"] = roboflow("dog")
    with pytest.raises(ValueError, match="two categories have the name 'dog'"):
        load_coco(contents)


def test_of_two_empty_categories_of_one_name_one_stays_and_a_repeated_one_counts_once(
    load_coco: Load,
) -> None:
    contents = document() | {"categories": [*USUAL, {"id": 20, "name": "ant"}, {"id": 21, "name": "ant"}]}
    assert load_coco(contents).classes.ids == (BOX, CUP, DOG, 21)
    same_as_before(
        load_coco, document() | {"categories": [*USUAL, USUAL[0]]}, 1, "category that is listed again"
    )


def test_crowds_that_most_annotations_are_name_the_option_that_takes_them_as_objects(load_coco: Load) -> None:
    contents = document()
    for entry in contents["annotations"][:3]:
        entry["iscrowd"] = 1
    dataset = load_coco(contents)
    found = finding(dataset, "iscrowd 1, as most annotations have")
    assert found.count == 4 and "set data.crowd_as_objects=true" in found.first
    assert (dataset.report.objects, dataset.report.crowd_regions) == (1, 4)
    contents["annotations"][4]["iscrowd"] = True
    with pytest.raises(
        ValueError, match=r"(?s)no object is left.*5 x iscrowd 1.*data\.crowd_as_objects=true"
    ):
        load_coco(contents)
    taken = load_coco(contents, reading=Reading(crowd_as_objects=True))
    assert (taken.report.objects, taken.report.objects_with_mask, taken.report.crowd_regions) == (5, 4, 0)
    assert [one.kind for one in taken.report.findings] == ["iscrowd set aside, as data.crowd_as_objects says"]
    assert load_coco(document()).report.findings == ()  # one crowd among five annotations is what COCO means


def test_evaluation_takes_crowds_as_objects_too(tmp_path: Path) -> None:
    contents = document()
    every("annotations", iscrowd=lambda _: 1)(contents)
    path = written(tmp_path, contents)
    for taken in (False, True):
        truth = load_ground_truth(path, class_table(USUAL, "all"), reading=Reading(crowd_as_objects=taken))
        assert [one.crowd for found in truth.objects.values() for one in found] == [not taken] * 5


def test_iscrowd_as_text_is_a_number(load_coco: Load) -> None:
    contents = document()
    every("annotations", iscrowd=str)(contents)
    assert load_coco(contents).report == load_coco(document()).report


def written(folder: Path, contents: Document) -> Path:
    path = folder / "x.json"
    path.write_text(json.dumps(contents), encoding="utf-8")
    return path


def flat(segmentation: Any) -> Any:
    return segmentation[0] if isinstance(segmentation, list) and len(segmentation) == 1 else segmentation


def as_points(segmentation: Any) -> Any:
    if not isinstance(segmentation, list):
        return [segmentation]
    return [[ring[i : i + 2] for i in range(0, len(ring), 2)] for ring in segmentation]


@pytest.mark.parametrize(
    ("form", "count"),
    [(flat, 1), (as_points, 3), (lambda one: flat(as_points(one)), 3)],
    ids=["flat", "points", "ring"],
)
def test_polygons_in_one_list_too_few_or_too_many_are_taken(
    load_coco: Load, form: Callable[[Any], Any], count: int
) -> None:
    contents = document()
    every("annotations", segmentation=form)(contents)
    if form not in (flat, as_points):
        contents["annotations"][1]["segmentation"] = [document()["annotations"][1]["segmentation"]]
    kind = "polygon that is no list of lists of numbers, taken as it is meant"
    same_as_before(load_coco, contents, count, kind, "expected [[x, y, x, y, ...], ...]")


@pytest.mark.parametrize(
    "none", [{"bbox": None}, {"bbox": []}, {"bbox": [0, 0, 0, 0]}, {"bbox": [0.0] * 4}, {}]
)
def test_the_box_of_an_object_without_one_is_that_of_its_mask(load_coco: Load, none: Document) -> None:
    contents = document()
    for position in (0, 1):
        del contents["annotations"][position]["bbox"]
        contents["annotations"][position] |= none
    dataset = load_coco(contents)
    found = finding(dataset, "object without a box, which is taken from its mask")
    assert found.count == 2 and found.outcome == "kept"
    assert dataset.target(0)["boxes"][0].tolist() == [2.5, 3.25, 12.5, 11.75]
    rows, columns = np.nonzero(disc())
    around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert dataset.target(1)["boxes"][0].tolist() == [float(v) for v in around]
    assert dataset.report.objects_with_mask == 3


def test_masks_of_set_b_give_boxes_to_evaluation_alone(load_coco: Load, tmp_path: Path) -> None:
    contents = document()
    contents["annotations"][2]["bbox"] = None  # a cup, which has no masks in training
    dataset = load_coco(contents)
    assert finding(dataset, "box that is not four numbers").outcome == "left out"
    truth = load_ground_truth(tmp_path / "instances.json", dataset.classes)
    assert truth.skipped == {} and [one.box for one in truth.objects[50]][1] == (20, 5, 26, 11)


def test_coordinates_from_0_to_1_are_warned_of(load_coco: Load) -> None:
    contents = document()
    for entry in contents["annotations"]:
        x, y, w, h = entry["bbox"]
        entry["bbox"] = [x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT]
    found = finding(load_coco(contents, require_masks=False), "box of coordinates from 0 to 1, as most have")
    assert found.count == 5 and "expected pixels" in found.first
    contents = document()
    contents["annotations"][0]["bbox"] = [0, 0, 1, 1]  # one small box is a small box
    assert not [one for one in load_coco(contents).report.findings if "0 to 1" in one.kind]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (r"images\a.png", "a.png"),
        (r"C:\Users\me\label studio\media\upload\1\sub\b.jpg", "sub/b.jpg"),
        (r"..\..\media\a.png", "a.png"),
        (r"\\server\share\a.png", "a.png"),
        (r"sub\b.jpg", "sub/b.jpg"),
        (r"images\nowhere.png", r"images\nowhere.png"),
        (r"..\instances.json", r"..\instances.json"),
    ],
)
def test_a_windows_path_is_found_in_the_folder(coco_folder: Path, name: str, found: str) -> None:
    (coco_folder.parent / "instances.json").touch()
    assert found_name(name, coco_folder) == found


def test_names_of_another_machine_are_found_by_training_and_evaluation(
    load_coco: Load, tmp_path: Path
) -> None:
    """Label Studio on Windows."""
    contents = document()
    every("images", file_name=lambda one: "images\\" + one.replace("/", "\\"))(contents)
    kind = "file name of another machine, found in the folder"
    same_as_before(load_coco, contents, 3, kind, r"file_name 'images\\a.png'; a.png is there and taken")
    path = written(tmp_path, contents)
    truth = load_ground_truth(path, class_table(USUAL, "all"), tmp_path / "images")
    assert list(truth.file_names.values()) == ["sub/b.jpg", "empty.png", "a.png"]
    (tmp_path / "images" / "images\\a.png").write_bytes((tmp_path / "images" / "a.png").read_bytes())
    assert load_coco(contents).path(0).name == "images\\a.png"  # a name like this may be one


@pytest.mark.parametrize("folder", ["", "train2017"])
def test_images_without_a_name_are_named_by_their_coco_url(
    load_coco: Load, coco_folder: Path, folder: str
) -> None:
    """LVIS v1."""
    (coco_folder / "train2017").mkdir()
    (coco_folder / "a.png").rename(coco_folder / folder / "a.png")
    contents = document()
    contents["images"][0]["coco_url"] = "http://images.cocodataset.org/train2017/a.png"
    del contents["images"][0]["file_name"]
    dataset = load_coco(contents)
    assert dataset.path(0) == coco_folder / folder / "a.png"
    found = finding(dataset, "image without a file_name, named by its coco_url")
    assert "python -m training.datasets convert lvis_v1" in found.first


def test_what_is_in_cocos_form_stays_the_same_objects(tmp_path: Path) -> None:
    contents = document()
    taken = as_coco(contents)
    assert taken == contents and taken.tally.findings() == ()
    assert all(one is other for one, other in zip(taken["annotations"], contents["annotations"], strict=True))
    assert as_coco(taken) is taken
    assert isinstance(read_annotations(written(tmp_path, contents)), InCocosForm)


def test_a_document_that_is_given_is_not_changed(coco_folder: Path) -> None:
    contents = document()
    every("annotations", image_id=str, category_id=float)(contents)
    before = copy.deepcopy(contents)
    as_coco(contents, Reading(crowd_as_objects=True))
    assert contents == before


def test_classes_under_other_ids_are_matched_by_name_in_lists_of_classes_too(tmp_path: Path) -> None:
    """LVIS's lists of an image name categories as annotations do."""
    table = class_table([{"id": 1, "name": "dog"}, {"id": 2, "name": "box"}, {"id": 3, "name": "cup"}], "box")
    contents = document()
    for entry in contents["images"]:
        entry |= {"neg_category_ids": [CUP], "not_exhaustive_category_ids": [DOG]}
    truth = load_ground_truth(written(tmp_path, contents), table)
    assert [one.category_id for one in truth.objects[50]] == [2, 3, 2]
    assert truth.searched[9].classes == {3} and truth.searched[9].in_part == {1}
    assert [one.count for one in truth.findings] == [3]
