"""COCO 2014's parts: trainval35k and minival from the 2014 files and 2017's val."""

import json
from pathlib import Path

import pytest

from tests.training.datasets.small_sets import COCO_IDS, write_coco_2014, write_json
from training.data.coco import CocoDataset
from training.datasets.coco_2014 import COCO_NAMES, write_2014


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    write_coco_2014(tmp_path)
    return tmp_path / "coco" / "annotations"


def ids_in(path: Path) -> list[int]:
    return [image["id"] for image in json.loads(path.read_text())["images"]]


def test_names_and_ids_are_those_of_a_file_of_coco(coco_mini: Path) -> None:
    categories = json.loads((coco_mini / "instances_val2017.json").read_text())["categories"]
    assert [(one["id"], one["name"]) for one in categories] == list(zip(COCO_IDS, COCO_NAMES, strict=True))


def test_the_parts_hold_each_image_once_and_train_reads_them_from_one_folder(annotations: Path) -> None:
    write_2014(annotations, annotations / "instances_val2017.json", annotations)
    assert ids_in(annotations / "instances_trainval35k.json") == [1, 2, 3, 5]
    assert ids_in(annotations / "instances_valminusminival2014.json") == [3, 5]
    assert ids_in(annotations / "instances_minival2014.json") == [4]
    path = annotations / "instances_trainval35k.json"
    data = CocoDataset(annotations.parent, path, mask_classes="all")
    assert [str(data.path(row).relative_to(annotations.parent)) for row in range(4)] == [
        "train2014/COCO_train2014_000000000001.jpg", "train2014/COCO_train2014_000000000002.jpg",
        "val2014/COCO_val2014_000000000003.jpg", "val2014/COCO_val2014_000000000005.jpg",
    ]  # fmt: skip
    assert data.report.objects_with_mask == 4 and not data.report.findings
    assert [one["id"] for one in json.loads(path.read_text())["annotations"]] == [101, 102, 103, 105]


def test_a_list_of_ids_is_taken_for_minival(annotations: Path, tmp_path: Path) -> None:
    (tmp_path / "minival.txt").write_text("COCO_val2014_000000000003.jpg\n5\n")
    write_2014(annotations, tmp_path / "minival.txt", tmp_path)
    assert ids_in(tmp_path / "instances_minival2014.json") == [3, 5]
    assert ids_in(tmp_path / "instances_valminusminival2014.json") == [4]


def test_a_minival_that_is_no_part_of_val2014_is_refused(annotations: Path, tmp_path: Path) -> None:
    (tmp_path / "minival.txt").write_text("2\n4\n")
    with pytest.raises(ValueError, match=r"1 of its 2 images are not in instances_val2014\.json, such as 2"):
        write_2014(annotations, tmp_path / "minival.txt", tmp_path)
    assert not (tmp_path / "instances_minival2014.json").exists()


def test_a_missing_file_other_categories_and_a_bare_annotation_are_named(
    annotations: Path, tmp_path: Path
) -> None:
    minival = annotations / "instances_val2017.json"
    val = annotations / "instances_val2014.json"
    contents = json.loads(val.read_text())
    write_json(val, contents | {"annotations": [{"id": 1, "image_id": 4}]})
    with pytest.raises(ValueError, match="annotation number 1.*expected image_id and category_id"):
        write_2014(annotations, minival, tmp_path)
    write_json(val, contents | {"categories": contents["categories"][:-1]})
    with pytest.raises(ValueError, match="other categories"):
        write_2014(annotations, minival, tmp_path)
    val.unlink()
    with pytest.raises(ValueError, match=r"instances_val2014\.json"):
        write_2014(annotations, minival, tmp_path)
