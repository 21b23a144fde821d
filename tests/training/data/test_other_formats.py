"""Files that are no COCO instances file are named as what they are, with what makes one of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.training.data.coco_set import BOX, Document, document
from training.data.annotations import read_annotations


def written(folder: Path, contents: Any, name: str = "x.json") -> Path:
    path = folder / name
    path.write_text(contents if isinstance(contents, str) else json.dumps(contents), encoding="utf-8")
    return path


def panoptic(contents: Document) -> None:
    segment = {"id": 3226956, "category_id": BOX, "iscrowd": 0, "bbox": [1, 2, 3, 4], "area": 9}
    contents["annotations"] = [{"segments_info": [segment], "file_name": "a.png", "image_id": 50}]


def keypoints(contents: Document) -> None:
    for entry in contents["annotations"]:
        del entry["bbox"], entry["segmentation"]
        entry |= {"keypoints": [1, 2, 2], "num_keypoints": 1}


def captions(contents: Document) -> None:
    contents["annotations"] = [{"image_id": 50, "id": 1, "caption": "A dog with a box."}]


VIA_IMAGE = {
    "filename": "a.png",
    "size": 5,
    "regions": [{"shape_attributes": {"name": "polygon"}}],
    "file_attributes": {},
}
LABEL_STUDIO = {
    "id": 1,
    "data": {"image": "/data/upload/1/a.png"},
    "annotations": [{"result": []}],
    "predictions": [],
}


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        (panoptic, "panoptic file.*segments_info.*panoptic2detection_coco_format.py"),
        (keypoints, "keypoints file without boxes; expected a bbox"),
        (captions, "captions file.*instances_"),
        ({"_via_settings": {}, "_via_img_metadata": {"a.png5": VIA_IMAGE}}, "VIA project.*Export Annotations"),
        ({"a.png5": VIA_IMAGE}, "VIA's own JSON.*Export Annotations"),
        ({"version": "5.4.1", "flags": {}, "shapes": [], "imagePath": "a.png"}, r"labelme.*labelme2coco\.py"),
        ([LABEL_STUDIO], r"Label Studio's own JSON.*client\.convert FILE --from labelstudio"),
        ({"info": {}, "categories": {"label": {}}, "items": []}, "Datumaro's own JSON.*datum convert"),
        ({"samples": []}, r"FiftyOne's own JSON.*COCODetectionDataset"),
        ({"classes": ["a"], "labels": {"a": []}}, "FiftyOne's own JSON"),
        ({"assets": {}, "tags": [], "version": "2.2.0"}, "VoTT project"),
        ([{"image": "a.png", "annotations": [{"label": "dog", "coordinates": {"x": 1}}]}], "CreateML"),
        ("path: ../data\ntrain: images/train\nnc: 2\nnames: [box, dog]\n", "YOLO data set's YAML.*datum convert -if y"),
        ("0 0.5 0.5 0.25 0.1\n12 0.5 0.5 0.25 1e-05\n", "YOLO label file.*datum convert -if yolo"),
        ("#filename,file_size,region_count\na.png,5,1\n", "CSV table"),
        ("<?xml version='1.0'?><annotations><version>1.1</version><meta></meta></annotations>",
         r"XML of CVAT.*client\.convert FILE --from cvat"),
        ("<annotation><folder>VOC2012</folder></annotation>", "PASCAL VOC.*datum convert -if voc"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS pointer.*git lfs pull"),
        ("<!DOCTYPE html><title>Sign in</title>", "HTML page"),
        ("PK\x03\x04...", "archive.*unpack"),
        ('{"image": 1}\n{"image": 2}\n', "JSON Lines"),
    ],
)  # fmt: skip
def test_a_file_of_another_format_is_named_with_what_helps(tmp_path: Path, contents: Any, words: str) -> None:
    if callable(contents):
        change, contents = contents, document()
        change(contents)
    with pytest.raises(ValueError, match=rf"x\.json: .*{words}") as caught:
        read_annotations(written(tmp_path, contents))
    assert "expected" in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_is_named_with_the_files_in_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r": a folder; expected a COCO instances file"):
        read_annotations(tmp_path)
    (tmp_path / "labels").mkdir()
    written(tmp_path / "labels", "0 0.5 0.5 0.2 0.2", "a.txt")
    with pytest.raises(ValueError, match="perhaps a YOLO data set"):
        read_annotations(tmp_path)
    written(tmp_path / "labels", "{}", "_annotations.coco.json")
    with pytest.raises(ValueError, match=r"such as one of those in it: labels/_annotations\.coco\.json"):
        read_annotations(tmp_path)


def test_further_keys_of_a_coco_file_make_it_no_other_format(tmp_path: Path) -> None:
    more: Document = {
        "data": {},
        "items": [],
        "samples": [],
        "assets": {},
        "tags": [],
        "classes": [],
        "labels": {},
    }
    contents = document() | more
    contents["annotations"][0] |= {"keypoints": [1, 2, 2], "caption": "a box"}
    assert read_annotations(written(tmp_path, contents))["categories"] == document()["categories"]
