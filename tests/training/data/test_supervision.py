"""Supervision as it comes: which masks are read, how much each counts, and what a class's masks are learned from."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.classes import ClassTable, class_table
from tests.training.data.coco_set import (
    BOX,
    CUP,
    DOG,
    HEIGHT,
    WIDTH,
    Document,
    Load,
    annotation,
    document,
    finding,
)
from training.data.augment import cropped, flip_horizontally
from training.data.coco import CocoDataset
from training.data.splits import MASKS_OF_SET_A, as_they_come, judged_classes, split_classes
from training.evaluate.truth import load_ground_truth

ODD: list[Any] = ["half", float("nan"), float("inf"), -0.1, 1.1, True, [0.5], {}, 10**400, ""]


def many(of_class: dict[int, list[dict[str, Any]]]) -> Document:
    """Objects of one box with further keys, by category; without a "segmentation" they have a square one."""
    entries = [(category, more) for category, found in of_class.items() for more in found]
    contents = document()
    contents["annotations"] = [
        annotation(number, 50, category, [2.0, 3.0, 20.0, 20.0], **more)
        for number, (category, more) in enumerate(entries, start=1)
    ]
    return contents


BARE: dict[str, Any] = {"segmentation": []}
TRUE: dict[str, Any] = {}
TAUGHT = {"mask_source": "segmenter", "mask_quality": 0.9}


def sources(dataset: CocoDataset) -> dict[str, str]:
    return dict(zip(dataset.classes.names, dataset.classes.mask_sources, strict=True))


def test_auto_takes_classes_of_enough_true_masks_into_set_a_and_tells_the_others_apart(
    load_coco: Load,
) -> None:
    enough = [TRUE] * MASKS_OF_SET_A
    dataset = load_coco(
        many({BOX: [*enough, BARE, BARE], CUP: [*enough[1:], BARE], DOG: [TAUGHT, BARE]}), mask_classes="auto"
    )
    assert sources(dataset) == {"box": "masks", "cup": "some_masks", "dog": "taught"}
    assert dataset.classes.has_mask == (True, False, False)
    assert dataset.report.objects_with_mask == 2 * MASKS_OF_SET_A  # those of cups and the taught one too
    assert int(dataset.target(0)["has_mask"].sum()) == 2 * MASKS_OF_SET_A
    assert not dataset.report.findings  # an object with a box alone is nothing that is wrong here


def test_taught_masks_do_not_make_a_class_one_of_set_a(load_coco: Load) -> None:
    taught = [TAUGHT] * (2 * MASKS_OF_SET_A)
    dataset = load_coco(many({BOX: [TRUE] * MASKS_OF_SET_A, CUP: taught, DOG: [BARE]}), mask_classes="auto")
    assert sources(dataset) == {"box": "masks", "cup": "taught", "dog": "boxes"}


def test_where_no_class_has_enough_masks_those_with_half_of_the_most_are_set_a(load_coco: Load) -> None:
    most = MASKS_OF_SET_A - 1
    half = (most + 1) // 2
    dataset = load_coco(
        many({BOX: [TRUE] * most, CUP: [TRUE] * half, DOG: [TRUE] * (half - 1)}), mask_classes="auto"
    )
    assert sources(dataset) == {"box": "masks", "cup": "masks", "dog": "some_masks"}


def test_a_class_of_a_single_mask_is_set_a_where_no_other_has_more(load_coco: Load) -> None:
    dataset = load_coco(many({BOX: [TRUE], CUP: [BARE], DOG: [TAUGHT]}), mask_classes="auto")
    assert sources(dataset) == {"box": "masks", "cup": "boxes", "dog": "taught"}


def test_masks_that_cannot_be_used_do_not_count_for_set_a(load_coco: Load) -> None:
    """Tools write [[]] or a line for an object that has a box alone."""
    line = {"segmentation": [[2, 3, 5, 6]]}
    dataset = load_coco(many({BOX: [TRUE, TRUE], CUP: [line] * 5, DOG: [BARE]}), mask_classes="auto")
    assert sources(dataset) == {"box": "masks", "cup": "boxes", "dog": "boxes"}
    assert finding(dataset, "polygon of fewer than 3 points").count == 5


def test_taught_masks_alone_are_enough_to_learn_from(load_coco: Load) -> None:
    dataset = load_coco(many({BOX: [TAUGHT], CUP: [BARE]}), mask_classes="auto")
    assert sources(dataset) == {"box": "taught", "cup": "boxes", "dog": "boxes"}
    assert dataset.classes.set_a_labels() == ()


def test_auto_without_a_mask_is_an_error_unless_no_masks_are_learned(load_coco: Load) -> None:
    with pytest.raises(ValueError, match="no object has a mask that can be used"):
        load_coco(many({BOX: [BARE], CUP: [{**TAUGHT, "mask_weight": 0}]}), mask_classes="auto")
    alone = load_coco(many({BOX: [BARE]}), mask_classes="auto", require_masks=False)
    assert set(alone.classes.mask_sources) == {"boxes"}


def test_with_a_given_set_a_true_masks_of_set_b_are_not_looked_at_and_taught_ones_are_read(
    load_coco: Load,
) -> None:
    absurd = {"segmentation": {"size": "?"}}
    contents = many({BOX: [TRUE], CUP: [absurd, TAUGHT], DOG: [absurd]})
    dataset = load_coco(contents, mask_classes="box")
    assert dataset.target(0)["has_mask"].tolist() == [True, False, True, False]
    assert sources(dataset) == {"box": "masks", "cup": "taught", "dog": "boxes"}
    assert not dataset.report.findings
    contents["annotations"][2]["segmentation"] = {"size": "?"}
    assert finding(load_coco(contents, mask_classes="box"), "RLE that cannot be read").count == 1


def test_a_validation_set_is_read_as_the_table_of_the_training_says(load_coco: Load) -> None:
    table = ClassTable(
        ids=(BOX, CUP, DOG),
        names=("box", "cup", "dog"),
        has_mask=(True, False, False),
        mask_sources=("masks", "some_masks", "boxes"),
    )
    dataset = load_coco(many({BOX: [TRUE], CUP: [TRUE], DOG: [TRUE]}), classes=table)
    assert dataset.target(0)["has_mask"].tolist() == [True, True, False]
    assert dataset.classes == table and not dataset.report.sources


def test_weights_come_into_the_target_object_by_object_and_only_where_one_is_not_1(load_coco: Load) -> None:
    known = many({BOX: [{"mask_weight": 0.25}, TRUE, {"mask_weight": 1}], CUP: [{"mask_weight": 0.5}]})
    target = load_coco(known)[0][1]
    assert target["mask_weights"].dtype == torch.float32
    assert target["mask_weights"].tolist() == [0.25, 1, 1, 1]  # of a true mask of set B nothing is read
    assert "mask_weights" not in load_coco(many({BOX: [{"mask_weight": 1.0}, TRUE]}))[0][1]


def test_weights_and_makers_go_by_image_whatever_the_order_of_the_file(load_coco: Load) -> None:
    contents = many({BOX: [{"mask_weight": 0.25}, {**TAUGHT, "mask_weight": 0.5}, {"mask_weight": 0.75}]})
    contents["annotations"][0]["image_id"] = 7  # the second image of the list
    dataset = load_coco(contents)
    assert [dataset.target(row)["mask_weights"].tolist() for row in (0, 1)] == [[0.5, 0.75], [0.25]]
    assert dataset.packed.true_masks.tolist() == [False, True, True]


def test_a_mask_of_weight_0_is_none(load_coco: Load) -> None:
    """So what is learned from boxes alone is learned of its object."""
    known = many({BOX: [TRUE, {"mask_weight": 0, "segmentation": {"size": "?"}}]})
    dataset = load_coco(known)
    assert dataset.target(0)["has_mask"].tolist() == [True, False]
    assert dataset.report.objects_with_mask == 1 and not dataset.report.findings


@pytest.mark.parametrize("value", ODD, ids=[repr(v)[:12] for v in ODD])
def test_a_weight_that_is_none_is_named_and_its_mask_teaches_nothing(load_coco: Load, value: Any) -> None:
    dataset = load_coco(many({BOX: [TRUE, {"mask_weight": value}]}))
    found = finding(dataset, "mask_weight that is no number from 0 to 1")
    assert (found.count, found.outcome) == (1, "kept without its mask")
    assert "annotation 2 of a.png" in found.first
    assert dataset.target(0)["has_mask"].tolist() == [True, False]


@pytest.mark.parametrize("value", [7, True, ["segmenter"], {}, "", " "])
def test_a_source_that_is_no_word_is_named_and_its_mask_is_not_read(load_coco: Load, value: Any) -> None:
    dataset = load_coco(many({BOX: [TRUE, {"mask_source": value}], CUP: [{"mask_source": value}]}))
    found = finding(dataset, "mask_source that is no word")
    assert (found.count, found.outcome) == (2, "kept without its mask")
    assert dataset.target(0)["has_mask"].tolist() == [True, False, False]


@pytest.mark.parametrize("value", ODD, ids=[repr(v)[:12] for v in ODD])
def test_a_quality_that_is_none_is_named_and_its_mask_stays(load_coco: Load, value: Any) -> None:
    dataset = load_coco(many({BOX: [TRUE, {"mask_source": "x", "mask_quality": value}]}))
    assert finding(dataset, "mask_quality that is no number from 0 to 1").outcome == "kept"
    assert dataset.target(0)["has_mask"].tolist() == [True, True]


def test_null_is_as_absent(load_coco: Load) -> None:
    nulls = dict.fromkeys(("mask_source", "mask_quality", "mask_weight"))
    dataset = load_coco(many({BOX: [nulls], CUP: [nulls]}))
    assert dataset.target(0)["has_mask"].tolist() == [True, False] and not dataset.report.findings


def test_weights_stay_with_their_objects_when_an_image_is_mirrored_or_cut(load_coco: Load) -> None:
    contents = many({BOX: [{"mask_weight": 0.25}, {"mask_weight": 0.5}, {"mask_weight": 0.75}]})
    for entry, x in zip(contents["annotations"], (0.0, 10.0, 30.0), strict=True):
        square = annotation(1, 50, BOX, [x, 0.0, 8.0, 8.0])
        entry |= {"bbox": square["bbox"], "segmentation": square["segmentation"]}
    image, target = load_coco(contents)[0]
    flipped = flip_horizontally(image, target)[1]
    assert flipped["mask_weights"].tolist() == [0.25, 0.5, 0.75]
    assert flipped["boxes"][:, 0].tolist() == [WIDTH - 8, WIDTH - 18, WIDTH - 38]
    inside = cropped(image, target, (9, 0, WIDTH, HEIGHT))[1]
    assert inside["mask_weights"].tolist() == [0.5, 0.75] and inside["boxes"][:, 0].tolist() == [1, 21]


def test_images_left_out_take_no_weights_and_makers_with_them(load_coco: Load) -> None:
    contents = many({BOX: [TRUE, {**TAUGHT, "mask_weight": 0.5}]})
    contents["images"].insert(0, {"id": 3, "file_name": "empty.png", "width": WIDTH, "height": HEIGHT})
    dataset = load_coco(contents, skip_empty=True)
    assert len(dataset) == 1 and dataset.target(0)["mask_weights"].tolist() == [1, 0.5]
    assert dataset.packed.true_masks.tolist() == [True, False]


def test_the_report_says_by_source_how_many_classes_and_objects_and_who_taught_them(load_coco: Load) -> None:
    enough = [TRUE] * MASKS_OF_SET_A
    other = {"mask_source": "joined"}
    contents = many({BOX: [*enough, BARE, TAUGHT], CUP: [TRUE, BARE], DOG: [TAUGHT, other, TAUGHT, BARE]})
    report = load_coco(contents, mask_classes="auto").report
    assert report.sources == (
        f"set A, true masks: 1 class, {MASKS_OF_SET_A + 2} objects "
        f"({MASKS_OF_SET_A} with a true mask, 1 by segmenter): box",
        "some true masks, fewer than set A asks: 1 class, 2 objects (1 with a true mask): cup",
        "masks taught by another: 1 class, 4 objects (0 with a true mask, 2 by segmenter, 1 by joined): dog",
    )
    assert all(line in str(report) for line in report.sources)
    given = load_coco(many({BOX: [TRUE], CUP: [TRUE], DOG: [BARE]}), mask_classes="box").report
    assert given.sources[1] == "boxes alone: 2 classes, 2 objects: cup, dog"


def test_nothing_is_judged_by_a_mask_that_no_human_made(coco_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "val.json"
    path.write_text(json.dumps(many({BOX: [TRUE, TAUGHT]})))
    classes = class_table(document()["categories"], "all")
    truth = load_ground_truth(path, classes, coco_folder)
    assert [one.mask is not None for one in truth.objects[50]] == [True, False]
    found = {one.kind: one.count for one in truth.findings}
    assert found == {"mask that no human made, by which is not judged": 1}


def test_auto_is_what_a_network_was_trained_with_where_it_is_judged() -> None:
    table = ClassTable(
        ids=(1, 2),
        names=("a", "b"),
        has_mask=(True, False),
        mask_sources=("masks", "taught"),
    )
    assert judged_classes(table, "auto") is table
    assert judged_classes(table, "b").mask_sources == ("boxes", "masks")
    with pytest.raises(ValueError, match="decided by the masks of a training set"):
        split_classes([{"id": 1, "name": "a"}], "auto")


def test_the_bound_of_set_a_is_the_first_number_that_is_enough() -> None:
    table = class_table([{"id": i, "name": str(i)} for i in (1, 2)], "all")
    counts = np.array([MASKS_OF_SET_A, MASKS_OF_SET_A - 1])
    assert as_they_come(table, counts, np.zeros(2, int)).mask_sources == ("masks", "some_masks")
