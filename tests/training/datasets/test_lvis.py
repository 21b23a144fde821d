"""LVIS v1's own files, converted and read as training reads them."""

import json
from pathlib import Path

import pytest

from tests.training.datasets.small_sets import write_json, write_lvis
from training.data.coco import CocoDataset
from training.datasets import lvis


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_lvis(tmp_path)
    return tmp_path


def test_images_of_val_are_found_in_both_folders_of_coco(root: Path) -> None:
    lines = lvis.write_lvis(root / "lvis", root / "lvis")
    assert lines == [
        f"{root}/lvis/train.json: 1 images, 1 objects", f"{root}/lvis/val.json: 2 images, 2 objects"
    ]  # fmt: skip
    data = CocoDataset(root / "coco", root / "lvis" / "val.json", mask_classes="person")
    assert [str(data.path(row).relative_to(root / "coco")) for row in range(2)] == [
        "train2017/000000000025.jpg", "val2017/000000000139.jpg"
    ]  # fmt: skip
    assert data.classes.names == ("aerosol_can", "person") and data.classes.ids == (1, 793)
    image, target = data[0]
    assert image.shape == (3, 64, 80)
    assert target["labels"].tolist() == [2] and target["masks"][0].sum() == 400


def test_what_lvis_says_beyond_coco_stays(root: Path) -> None:
    lvis.write_lvis(root / "lvis", root / "lvis")
    contents = json.loads((root / "lvis" / "train.json").read_text())
    assert contents["images"][0]["neg_category_ids"] == [1]
    assert contents["images"][0]["not_exhaustive_category_ids"] == []
    assert contents["categories"][1]["frequency"] == "f"
    assert contents["annotations"][0]["iscrowd"] == 0


@pytest.mark.parametrize(
    "address", [None, "http://images.cocodataset.org/val2014/000000000009.jpg", "http://x/train2017/"]
)
def test_an_image_that_is_not_of_coco_2017_is_refused_by_its_id(root: Path, address: str | None) -> None:
    path = root / "lvis" / "lvis_v1_train.json"
    contents = json.loads(path.read_text())
    contents["images"][0]["coco_url"] = address
    write_json(path, contents)
    with pytest.raises(ValueError, match=r"(?s)lvis_v1_train\.json.*image 9: coco_url"):
        lvis.write_lvis(root / "lvis", root / "lvis")
    assert not (root / "lvis" / "train.json").exists()


def test_a_missing_file_is_named(root: Path) -> None:
    (root / "lvis" / "lvis_v1_val.json").unlink()
    with pytest.raises(ValueError, match=r"lvis_v1_val\.json"):
        lvis.write_lvis(root / "lvis", root / "lvis")
