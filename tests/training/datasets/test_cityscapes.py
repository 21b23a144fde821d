"""Cityscapes' own files, converted and read as training and evaluation read them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from model.classes import class_table
from tests.training.datasets.small_sets import HEIGHT, WIDTH, write_cityscapes
from training.data.coco import CocoDataset
from training.datasets import __main__ as command
from training.datasets import cityscapes
from training.evaluate.truth import load_ground_truth

TRUTH = "gtFine/train/aachen/aachen_000001_000019_gtFine_instanceIds.png"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_cityscapes(tmp_path)
    return tmp_path / "cityscapes"


def test_instances_become_objects_groups_crowds_and_void_stays(root: Path) -> None:
    lines = cityscapes.write_cityscapes(root, root)
    assert lines == [f"{root}/train.json: 2 images, 6 objects", f"{root}/val.json: 1 images, 3 objects"]
    contents = json.loads((root / "train.json").read_text())
    assert [one["name"] for one in contents["categories"]] == [
        "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"
    ]  # fmt: skip
    seen = [
        (a["image_id"], a["category_id"], a["bbox"], a["area"], a["iscrowd"]) for a in contents["annotations"]
    ]
    assert seen[:3] == [
        (1, 26, [10, 50, 20, 10], 200, 1), (1, 24, [30, 24, 12, 12], 144, 0), (1, 26, [5, 20, 20, 20], 400, 0)
    ]  # fmt: skip
    assert (coco_mask.decode(contents["annotations"][2]["segmentation"])[20:40, 5:25] == 1).all()
    (void, _) = (coco_mask.decode(image["void"]) for image in contents["images"])
    assert void[:, :3].all() and void.sum() == 3 * HEIGHT


def test_masks_are_the_very_pixels_also_over_the_ends_of_columns_and_in_the_last_one(root: Path) -> None:
    random = np.random.default_rng(0)
    ids = random.choice([7, 1, 4, 26, 26000, 26001, 24000, 29001], (HEIGHT, WIDTH)).astype(np.uint16)
    ids[:, -2:] = 26001
    ids[40:, 3] = ids[:9, 4] = 24000
    Image.fromarray(ids).save(root / TRUTH)
    cityscapes.write_cityscapes(root, root)
    contents = json.loads((root / "train.json").read_text())
    masks = {
        (a["category_id"], a["area"]): a["segmentation"]
        for a in contents["annotations"]
        if a["image_id"] == 2
    }
    for one, label in ((26, 26), (26000, 26), (26001, 26), (24000, 24)):
        mask = masks.pop((label, int((ids == one).sum())))
        assert (coco_mask.decode(mask) == (ids == one)).all()
        assert (
            mask["counts"]
            == coco_mask.encode(np.asfortranarray((ids == one).astype(np.uint8)))["counts"].decode()
        )
    assert masks == {}
    assert (coco_mask.decode(contents["images"][1]["void"]) == np.isin(ids, (1, 4))).all()


def test_what_was_written_can_be_trained_on_and_judged_by(root: Path) -> None:
    cityscapes.write_cityscapes(root, root)
    data = CocoDataset(root / "leftImg8bit/train", root / "train.json", mask_classes="car,person")
    image, target = data[1]
    assert image.shape == (3, HEIGHT, WIDTH) and target["labels"].tolist() == [1, 3]
    assert target["crowd_boxes"].tolist() == [[10, 50, 30, 60]] and target["masks"][1].sum() == 400
    classes = class_table(json.loads((root / "val.json").read_text())["categories"], "all")
    truth = load_ground_truth(root / "val.json", classes)
    void = truth.void[1]
    assert void is not None and int(coco_mask.area(void)) == 3 * HEIGHT
    assert [one.crowd for one in truth.objects[1]] == [True, False, False]


def test_an_image_without_void_says_so(root: Path) -> None:
    with Image.open(root / TRUTH) as truth:
        ids = np.array(truth)
    ids[ids == 1] = 7
    Image.fromarray(ids).save(root / TRUTH)
    cityscapes.write_cityscapes(root, root)
    assert [image["void"] is None for image in json.loads((root / "train.json").read_text())["images"]] == [
        False, True
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (np.full((HEIGHT, WIDTH), 34, np.uint16), r"has the ids \[34\]; expected labels 0 to 33"),
        (np.full((HEIGHT, WIDTH), 7001, np.uint16), r"has the ids \[7001\]"),
        (np.full((HEIGHT, WIDTH), 34000, np.uint16), r"has the ids \[34000\]"),
        (np.full((HEIGHT, WIDTH), 65535, np.uint16), r"has the ids \[65535\]"),
        (np.zeros((HEIGHT, WIDTH, 3), np.uint8), r"mode RGB; expected one channel of 16 bits"),
    ],
)
def test_a_picture_that_has_no_instance_ids_is_refused_by_name(
    root: Path, ids: np.ndarray, words: str
) -> None:
    Image.fromarray(ids).save(root / TRUTH)
    with pytest.raises(ValueError, match=rf"aachen_000001_000019_gtFine_instanceIds\.png: .*{words}"):
        cityscapes.write_cityscapes(root, root)
    assert not (root / "train.json").exists()


def test_broken_and_missing_files_are_named_and_what_to_unpack(root: Path) -> None:
    (root / TRUTH).write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"instanceIds\.png: cannot be read"):
        cityscapes.write_cityscapes(root, root)
    (root / "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png").unlink()
    with pytest.raises(
        ValueError, match=r"no aachen/aachen_000000_000019_leftImg8bit\.png.*unpack leftImg8bit"
    ):
        cityscapes.write_cityscapes(root, root)
    with pytest.raises(ValueError, match=r"gtFine/train: no CITY/.*; unpack gtFine_trainvaltest\.zip"):
        cityscapes.write_cityscapes(root / "elsewhere", root)


def test_by_hand_is_told_by_fetch_list_and_keys(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--root", str(root.parent)]
    for what in ("fetch", "keys"):
        assert command.main([what, "cityscapes", *words]) == 2
        error = capsys.readouterr().err
        assert re.match(r"error: .*fetch by hand gtFine_trainvaltest\.zip .*convert cityscapes --root", error)
        assert error.count("\n") == 1
    assert command.main(["list"]) == 0
    assert re.search(r"cityscapes +by hand", capsys.readouterr().out)
    assert command.main(["convert", "cityscapes", *words]) == 0
    assert f"data.train_images={root}/leftImg8bit/train" in capsys.readouterr().out
    assert command.main(["keys", "cityscapes", *words]) == 0
    assert f"data.val_annotations={root}/val.json" in capsys.readouterr().out
