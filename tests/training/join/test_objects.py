import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from model.classes import class_table
from training.join.objects import Objects, load_objects, require_truth

CATEGORIES = [{"id": number, "name": name} for number, name in ((1, "a"), (2, "b"))]
SQUARE = [[2, 2, 8, 2, 8, 8, 2, 8]]


def entry(number: int, category: int, **more: Any) -> dict[str, Any]:
    usual = {"id": number, "image_id": 7, "category_id": category, "bbox": [1, 1, 8, 8], "iscrowd": 0}
    return {**usual, "segmentation": SQUARE, "area": 36, **more}


def load(folder: Path, annotations: list[dict[str, Any]], **how: Any) -> Objects:
    Image.new("RGB", (20, 16)).save(folder / "7.png")
    images = [{"id": 7, "file_name": "7.png", "width": 20, "height": 16}]
    document = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (folder / "set.json").write_text(json.dumps(document))
    classes = class_table(CATEGORIES, "a")
    return load_objects(folder / "set.json", folder, classes, **{"truth_of": classes.set_a_labels(), **how})


def test_only_masks_of_set_a_that_no_source_has_made_are_truth(tmp_path: Path) -> None:
    annotations = [
        entry(1, 1),
        entry(2, 1, mask_source="segmenter"),
        entry(3, 2),
        entry(4, 1, segmentation=[]),
    ]
    found = load(tmp_path, annotations)
    assert [one.truth is not None for one in found.objects] == [True, False, False, False]


def test_a_mask_of_set_b_is_not_even_looked_at(tmp_path: Path) -> None:
    found = load(tmp_path, [entry(1, 1), entry(2, 2, segmentation="nonsense")])
    assert len(found.objects) == 2 and not found.objects[1].truth


def test_crowd_regions_are_no_objects_of_a_join(tmp_path: Path) -> None:
    found = load(tmp_path, [entry(1, 1, iscrowd=1), entry(2, 1)])
    assert [one.annotation for one in found.objects] == [1]


def test_of_a_class_with_many_masks_some_judge_and_all_others_stay(tmp_path: Path) -> None:
    annotations = [entry(number, 1) for number in range(1, 11)] + [entry(11, 2), entry(12, 2)]
    found = load(tmp_path, annotations, per_class=4)
    assert Counter(one.label for one in found.objects) == {1: 4, 2: 2}
    assert [one.annotation for one in found.objects if one.label == 1] == [0, 2, 5, 7]


def test_an_evaluation_takes_all_objects_with_truth_and_no_others(tmp_path: Path) -> None:
    annotations = [entry(1, 1), entry(2, 2), entry(3, 2, segmentation=[])]
    found = load(tmp_path, annotations, truth_of=(1, 2), only_with_truth=True, per_class=1)
    assert [one.annotation for one in found.objects] == [0, 1]


def test_a_set_without_a_true_mask_is_refused(tmp_path: Path) -> None:
    found = load(tmp_path, [entry(1, 1, segmentation=[]), entry(2, 2)])
    with pytest.raises(ValueError, match="no object of set A has a mask.*data.mask_classes"):
        require_truth(found, "set.json")


def test_a_set_without_an_object_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no object is left"):
        load(tmp_path, [entry(1, 1, iscrowd=1)])


def test_a_trial_asks_about_the_first_images_alone(tmp_path: Path) -> None:
    found = load(tmp_path, [entry(1, 1), entry(2, 2)])
    assert found.of_first(None) == found.of_first(1) == found and not found.of_first(0).objects
