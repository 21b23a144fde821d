"""Trouble in a COCO set is found before training: named, or counted and reported."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from model.classes import class_table
from tests.training.data.coco_set import (
    BOX,
    DOG,
    HEIGHT,
    WIDTH,
    Document,
    Load,
    annotation,
    assert_same,
    document,
    finding,
)
from training.data.coco import CocoDataset


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"bbox": [5, 5, 0, 4]}, "box of no area", "above 0"),
        ({"bbox": [5, 5, 4, -3]}, "box of no area", "above 0"),
        ({"bbox": [5, 5, 0.001, 4]}, "box of no area", "1/256"),
        ({"bbox": [41, 5, 4, 4]}, "box outside the image", "40 x 30"),
        ({"bbox": [-9, 5, 4, 4]}, "box outside the image", "40 x 30"),
        ({"bbox": [5, 30, 4, 4]}, "box outside the image", "40 x 30"),
        ({"bbox": [5, 5, 4]}, "box that is not four numbers", "expected [x, y, width, height]"),
        (
            {"bbox": None, "segmentation": []},
            "box that is not four numbers",
            "expected [x, y, width, height]",
        ),
        ({"bbox": [0, 0, 0, 0], "segmentation": None}, "box of no area", "above 0"),
        ({"bbox": [5, 5, 4, float("nan")]}, "box that is not four numbers", "expected"),
        ({"bbox": [5, 5, 4, 10**400]}, "box that is not four numbers", "expected"),
        ({"bbox": [5, 5, "4", 4]}, "box that is not four numbers", "expected"),
    ],
)
def test_an_object_without_a_box_to_use_is_left_out_and_counted(
    load_coco: Load, change: Document, kind: str, words: str
) -> None:
    contents = document()
    contents["annotations"][0] |= change
    dataset = load_coco(contents)
    trouble = finding(dataset, kind)
    assert (trouble.count, trouble.outcome) == (1, "left out")
    assert "annotation 1 of a.png" in trouble.first and words in trouble.first
    assert dataset.target(0)["labels"].tolist() == [2, 1]
    assert dataset.report.objects == 3


def test_an_annotation_of_an_unknown_image_is_left_out_and_counted(load_coco: Load) -> None:
    contents = document()
    contents["annotations"] += [annotation(n, 12345, BOX, [1, 1, 5, 5]) for n in (100, 101)]
    trouble = finding(load_coco(contents), "annotation of an unknown image")
    assert (trouble.count, trouble.outcome) == (2, "left out")
    assert "annotation 100: image_id 12345" in trouble.first


@pytest.mark.parametrize(
    ("segmentation", "kind"),
    [
        ([[1, 2, 3, 4, 5]], "polygon of odd length"),
        ([[3, 4, 9, 9]], "polygon of fewer than 3 points"),
        ([[900, 900, 910, 900, 910, 910]], "polygon far outside the image"),
        ([[30, 20, 38, 20, 38, 28]], "segmentation outside its box"),
        ({"size": [WIDTH, HEIGHT], "counts": [0, 1200]}, "RLE of another size than its image"),
        ({"size": [HEIGHT, WIDTH], "counts": [0, 1100]}, "RLE that does not add up"),
        ([], "class with masks, but no segmentation"),
        (None, "class with masks, but no segmentation"),
    ],
)
def test_an_object_whose_segmentation_does_not_fit_keeps_its_box(
    load_coco: Load, segmentation: Any, kind: str
) -> None:
    contents = document()
    contents["annotations"][0]["segmentation"] = segmentation
    dataset = load_coco(contents)
    trouble = finding(dataset, kind)
    assert (trouble.count, trouble.outcome) == (1, "kept without its mask")
    assert "annotation 1 of a.png" in trouble.first and "expected" in trouble.first + "expected" * (
        "far" in kind
    )
    assert dataset.target(0)["has_mask"].tolist() == [False, False, True]
    assert dataset.report.objects_with_mask == 2


def test_a_box_over_the_edge_is_cut_and_only_more_than_a_pixel_is_worth_a_word(load_coco: Load) -> None:
    contents = document()
    contents["annotations"][0]["bbox"] = [-0.5, 3.0, 10.0, 27.4]
    quiet = load_coco(contents)
    assert quiet.report.findings == ()
    assert quiet.target(0)["boxes"][0].tolist() == [0.0, 3.0, 9.5, 30.0]
    contents["annotations"][0]["bbox"] = [-5.0, 3.0, 15.0, 8.0]
    loud = load_coco(contents)
    assert finding(loud, "box that reaches out of the image, cut to it").outcome == "kept"
    assert loud.target(0)["boxes"][0].tolist() == [0.0, 3.0, 10.0, 11.0]


def test_a_polygon_of_two_points_beside_a_good_one_is_dropped_alone(load_coco: Load) -> None:
    contents = document()
    contents["annotations"][0]["segmentation"].append([3.0, 4.0, 9.0, 9.0])
    dataset = load_coco(contents)
    assert finding(dataset, "mask with some polygons of fewer than 3 points, which are dropped").count == 1
    assert_same(dataset.target(0), load_coco(document()).target(0))


def test_a_mask_without_a_pixel_in_its_window_is_no_mask(load_coco: Load) -> None:
    contents = document()
    contents["annotations"][0]["segmentation"] = [[3.01, 4.01, 3.02, 4.01, 3.02, 4.02]]
    dataset = load_coco(contents)
    target = dataset.target(0)
    assert target["has_mask"].tolist() == [False, False, True]
    assert target["masks"][0].shape == (0, 0)
    assert dataset.report.objects_with_mask == 2  # the count says so
    assert finding(dataset, "mask without a pixel").outcome == "kept without its mask"


def test_boxes_by_two_corners_are_warned_of_where_no_box_can_be_another(load_coco: Load) -> None:
    contents = document()
    for entry in contents["annotations"]:
        x, y, w, h = entry["bbox"]
        entry["bbox"] = [x, y, x + w, y + h]
    kind = "box that reads as two corners, as all do"
    assert finding(load_coco(contents), kind).count == 5
    contents["annotations"][0]["bbox"] = [20, 3, 10, 8]  # no corner lies left of the other
    assert kind not in [one.kind for one in load_coco(contents).report.findings]


def test_nothing_left_is_an_error_that_tells_why(load_coco: Load) -> None:
    contents = document()
    for entry in contents["annotations"]:
        entry["bbox"] = [1, 1, 0, 0]
    with pytest.raises(ValueError, match=r"(?s)no object is left.*5 x box of no area"):
        load_coco(contents)


def test_no_mask_left_is_an_error_unless_masks_are_not_needed(load_coco: Load) -> None:
    contents = document()
    for entry in contents["annotations"]:
        entry["segmentation"] = []
    with pytest.raises(ValueError, match=r"(?s)class with masks \(box, dog\).*3 x class with masks"):
        load_coco(contents)
    assert load_coco(contents, require_masks=False).report.objects == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"images": [],\n "annotations": [}', "not valid JSON at line 2, column 18"),
        (b"[1, 2]", "holds a JSON list"),
        (b'{"images": [], "categories": []}', "no list 'annotations'"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b"[" * 200_000, "nested too deeply"),
        (b"", "line 1, column 1"),
    ],
)
def test_a_file_that_is_no_coco_set_is_refused(
    coco_folder: Path, tmp_path: Path, text: bytes, message: str
) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=rf"other\.json.*{message}"):
        CocoDataset(coco_folder, path, mask_classes="all")


def test_missing_files_and_folders_are_named(coco_folder: Path, load_coco: Load, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.json"):
        CocoDataset(coco_folder, tmp_path / "nowhere.json", mask_classes="all")
    load_coco(document())
    with pytest.raises(ValueError, match="no folder of images"):
        CocoDataset(coco_folder / "nowhere", tmp_path / "instances.json", mask_classes="all")


def test_every_missing_image_is_counted_and_the_first_are_named(load_coco: Load) -> None:
    contents = document()
    contents["images"] += [
        {"id": 100 + n, "file_name": f"gone{n}.png", "width": 4, "height": 4} for n in range(7)
    ]
    with pytest.raises(ValueError, match=r"(?s)gone0\.png: cannot be read.*gone4\.png.*and 2 more") as caught:
        load_coco(contents)
    assert "gone5" not in str(caught.value)


def test_a_broken_image_is_named(load_coco: Load, coco_folder: Path) -> None:
    (coco_folder / "empty.png").write_bytes(b"this is a text")
    with pytest.raises(ValueError, match=r"empty\.png: not an image"):
        load_coco(document())


def test_an_image_cut_short_passes_the_header_check_and_is_named_when_decoded(
    load_coco: Load, coco_folder: Path
) -> None:
    whole = (coco_folder / "a.png").read_bytes()
    (coco_folder / "a.png").write_bytes(whole[: len(whole) // 2])
    dataset = load_coco(document())
    with pytest.raises(ValueError, match=r"a\.png: .*broken or cut short"):
        dataset[0]
    assert dataset[1][1]["image_id"] == 7


def test_an_image_deleted_or_replaced_after_the_check_is_named(load_coco: Load, coco_folder: Path) -> None:
    dataset = load_coco(document())
    Image.new("RGB", (8, 8)).save(coco_folder / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: expected 40 x 30"):
        dataset[0]
    (coco_folder / "a.png").unlink()
    with pytest.raises(ValueError, match=r"a\.png"):
        dataset[0]


def test_an_image_of_another_size_than_annotated_is_refused(load_coco: Load) -> None:
    contents = document()
    contents["images"][0]["width"] = 80
    with pytest.raises(ValueError, match=r"a\.png: is 40 x 30; expected 80 x 30"):
        load_coco(contents)


@pytest.mark.parametrize(
    ("key", "position", "change", "message"),
    [
        ("annotations", 1, {"category_id": 4}, "annotation 2 of sub/b.jpg: category_id 4"),
        ("annotations", 1, {"category_id": [3]}, r"category_id \[3\]"),
        ("images", 1, {"id": 50}, "two images have the id 50: a.png and sub/b.jpg"),
        ("images", 1, {"file_name": ""}, "image entry number 2"),
        ("images", 1, {"id": True}, "image entry number 2"),
        ("images", 1, {"width": 40.5}, "width 40.5, height 30"),
        ("images", 1, {"width": "4O"}, "width '4O'"),
        ("images", 1, {"file_name": "a\x00b"}, "null"),
        ("categories", 1, {"id": DOG}, "two categories have the id 11"),
        ("categories", 1, {"name": 5}, "expected a text"),
    ],
)
def test_ids_and_entries_that_are_wrong_are_refused_by_name(
    load_coco: Load, key: str, position: int, change: Document, message: str
) -> None:
    contents = document()
    contents[key][position] |= change
    with pytest.raises(ValueError, match=rf"instances\.json(?s:.*){message}"):
        load_coco(contents)


def test_an_unknown_mask_class_is_refused_with_the_file_and_a_near_name(load_coco: Load) -> None:
    with pytest.raises(ValueError, match=r"instances\.json.*'boxx'.*did you mean 'box'"):
        load_coco(document(), mask_classes="boxx")


def test_progress_is_told_from_before_the_first_image_so_that_a_rate_can_be_counted(load_coco: Load) -> None:
    told: list[tuple[int, int]] = []
    load_coco(document(), progress=lambda done, of: told.append((done, of)))
    assert told == [(0, 3), (3, 3)]


def test_an_empty_list_of_images_is_refused(load_coco: Load) -> None:
    with pytest.raises(ValueError, match="list of images is empty"):
        load_coco(document() | {"images": []})


def test_classes_come_from_one_place_only(load_coco: Load, coco_folder: Path) -> None:
    with pytest.raises(ValueError, match="either mask_classes or classes"):
        CocoDataset(coco_folder, "x.json")
    with pytest.raises(ValueError, match="either mask_classes or classes"):
        load_coco(document(), mask_classes="all", classes=class_table(document()["categories"], "all"))
