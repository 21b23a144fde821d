"""A COCO set of any kind becomes targets, and the masks of set B are never read."""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from torch.utils.data import DataLoader

from model.classes import class_table
from model.targets import mask_windows
from tests.model.pasting import paste_crop
from tests.training.data.coco_set import (
    BOX,
    CUP,
    DOG,
    HEIGHT,
    WIDTH,
    Load,
    annotation,
    assert_same,
    document,
    finding,
)
from tests.training.tiny_set import tiny_changes, write_tiny_set
from training.data.augment import AugmentConfig
from training.data.coco import read_picture
from training.data.packing import pack_annotations
from training.train import main


def test_a_target_holds_the_objects_of_its_own_image_in_the_order_of_the_file(load_coco: Load) -> None:
    dataset = load_coco(document())
    image, target = dataset[0]
    assert image.shape == (3, HEIGHT, WIDTH) and image.dtype == torch.uint8
    assert target["image_id"] == 50
    assert target["boxes"].dtype == torch.float32
    assert target["boxes"].tolist() == [[2.5, 3.25, 12.5, 11.75], [20, 5, 26, 11], [4, 4, 24, 24]]
    assert target["labels"].tolist() == [1, 2, 1]
    assert target["has_mask"].tolist() == [True, False, True]
    assert [tuple(mask.shape) for mask in target["masks"]] == [(9, 11), (0, 0), (20, 20)]
    assert target["crowd_boxes"].shape == (0, 4)


def test_a_crowd_region_is_no_object(load_coco: Load) -> None:
    target = load_coco(document()).target(1)
    assert target["labels"].tolist() == [3]
    assert target["crowd_boxes"].tolist() == [[0, 0, 40, 30]]


def test_images_without_objects_are_no_samples_where_they_are_to_be_left_out(load_coco: Load) -> None:
    """A crowd region is no object; what is left is as it was, in its order."""
    known = document()
    known["images"].insert(0, {"id": 3, "file_name": "empty.png", "width": WIDTH, "height": HEIGHT})
    known["annotations"].append(annotation(6, 3, BOX, [1.0, 1.0, 9.0, 9.0], iscrowd=1))
    usual, fewer = load_coco(known), load_coco(known, skip_empty=True)
    assert [usual.image_id(row) for row in range(len(usual))] == [3, 50, 7, 9]
    assert [fewer.image_id(row) for row in range(len(fewer))] == [50, 7]
    for row in range(2):
        assert_same(fewer.target(row), usual.target(row + 1))
        assert fewer.path(row) == usual.path(row + 1) and fewer.size(row) == usual.size(row + 1)
    assert fewer.target(1)["crowd_boxes"].tolist() == [[0, 0, 40, 30]]
    assert fewer.report == usual.report and fewer.report.images_without_objects == 2


def test_an_image_without_objects_is_kept(load_coco: Load) -> None:
    dataset = load_coco(document())
    target = dataset[2][1]
    assert len(dataset) == 3
    assert target["image_id"] == 9
    assert target["boxes"].shape == (0, 4) and target["labels"].shape == (0,)
    assert target["has_mask"].shape == (0,) and target["has_mask"].dtype == torch.bool
    assert target["masks"] == []


def test_pixels_are_those_of_the_file(load_coco: Load, coco_folder: Path) -> None:
    image, _ = load_coco(document())[0]
    with Image.open(coco_folder / "a.png") as file:
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(file))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools with NumPy 2
def test_masks_pasted_back_are_those_of_pycocotools(load_coco: Load, tmp_path: Path) -> None:
    contents = document()
    contents["annotations"].append(annotation(6, 9, DOG, [12, 7, 17, 17], segmentation={
        "size": [HEIGHT, WIDTH], "counts": [430, 3, 1200 - 433]}))  # fmt: skip
    dataset = load_coco(contents, mask_classes="all")
    coco = COCO(str(tmp_path / "instances.json"))
    seen = 0
    for row in range(len(dataset)):
        target = dataset.target(row)
        annotations = [a for a in coco.imgToAnns[target["image_id"]] if not a["iscrowd"]]
        windows = mask_windows(target["boxes"], HEIGHT, WIDTH)
        for mask, window, truth in zip(target["masks"], windows, annotations, strict=True):
            assert np.array_equal(paste_crop(mask, window, HEIGHT, WIDTH).numpy(), coco.annToMask(truth))
            seen += int(mask.sum()) > 0
    assert seen == 5


def test_the_report_counts_what_is_there(load_coco: Load) -> None:
    report = load_coco(document()).report
    assert (report.images, report.images_without_objects) == (3, 1)
    assert (report.objects, report.objects_with_mask, report.crowd_regions) == (4, 3, 1)
    assert report.findings == ()
    assert "4 objects (3 with a mask)" in str(report)


def test_spoiled_segmentations_of_set_b_change_nothing(load_coco: Load) -> None:
    clean = load_coco(document())
    contents = document()
    contents["annotations"][2]["segmentation"] = "these are not the masks you are looking for"
    spoiled = load_coco(contents)
    assert spoiled.report.findings == ()
    for row in range(3):
        assert_same(spoiled.target(row), clean.target(row))
    contents = document()
    contents["annotations"][0]["segmentation"] = "but set A is read"
    assert finding(load_coco(contents), "segmentation that cannot be read").count == 1


class Sealed(dict[str, Any]):
    """An annotation whose segmentation must not be touched in any way that Mapping offers."""

    def __getitem__(self, key: str) -> Any:
        assert key != "segmentation", "the segmentation was read"
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        assert key != "segmentation", "the segmentation was read"
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        assert key != "segmentation", "the segmentation was looked for"
        return super().__contains__(key)

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("the annotation was read whole")

    def values(self) -> Any:
        raise AssertionError("the annotation was read whole")

    def items(self) -> Any:
        raise AssertionError("the annotation was read whole")


def test_segmentations_of_set_b_and_of_crowds_are_not_even_taken_out(coco_folder: Path) -> None:
    contents = document()
    classes = class_table(contents["categories"], "box,dog")
    for position in (2, 3):  # the cup and the crowd
        contents["annotations"][position] = Sealed(contents["annotations"][position])
    _, report = pack_annotations(contents, classes, coco_folder, source="sealed")
    assert (report.objects, report.crowd_regions) == (4, 1)
    contents["annotations"][0] = Sealed(contents["annotations"][0])
    with pytest.raises(AssertionError, match="segmentation was read"):
        pack_annotations(contents, classes, coco_folder, source="sealed")


def test_a_validation_set_takes_over_the_labels_of_training(load_coco: Load) -> None:
    table = class_table([*document()["categories"], {"id": 1, "name": "ant"}], "dog")
    dataset = load_coco(document(), classes=table)
    assert dataset.target(0)["labels"].tolist() == [2, 3, 2]
    assert dataset.target(1)["has_mask"].tolist() == [True]
    assert dataset.report.objects_with_mask == 1


def test_a_category_that_changed_its_name_or_is_unknown_to_training_is_refused(load_coco: Load) -> None:
    renamed = class_table(
        [{"id": BOX, "name": "crate"}, {"id": CUP, "name": "cup"}, {"id": DOG, "name": "dog"}], "all"
    )
    with pytest.raises(ValueError, match="category 3 is called 'box'; expected 'crate'"):
        load_coco(document(), classes=renamed)
    without_cup = class_table([{"id": BOX, "name": "box"}, {"id": DOG, "name": "dog"}], "all")
    with pytest.raises(ValueError, match="annotation 3 of a.png: category_id 10"):
        load_coco(document(), classes=without_cup)


def test_a_class_under_another_id_is_told_by_its_name(load_coco: Load) -> None:
    table = class_table(
        [{"id": DOG, "name": "box"}, {"id": BOX, "name": "dog"}, {"id": CUP, "name": "cup"}], "all"
    )
    dataset = load_coco(document(), classes=table)
    assert dataset.target(1)["labels"].tolist() == [table.label_of_name("dog")]


def turned(coco_folder: Path, orientation: int) -> None:
    """a.png as a camera held sideways stores it: 40 x 30 pixels and a mark to turn them."""
    block = Image.Exif()
    block[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(coco_folder / "a.png", exif=block)


def test_annotations_of_the_upright_picture_get_the_upright_picture(
    load_coco: Load, coco_folder: Path
) -> None:
    turned(coco_folder, 6)
    contents = document()
    contents["images"][0] |= {"width": HEIGHT, "height": WIDTH}
    image, target = load_coco(contents)[0]
    assert image.shape == (3, WIDTH, HEIGHT)
    stored = read_picture(coco_folder / "a.png", width=WIDTH, height=HEIGHT)
    assert np.array_equal(image.permute(1, 2, 0).numpy(), np.rot90(stored, -1))
    assert [tuple(mask.shape) for mask in target["masks"]] == [(9, 11), (0, 0), (20, 20)]


def test_annotations_of_the_stored_picture_get_it_unturned_and_that_is_reported(
    load_coco: Load, coco_folder: Path
) -> None:
    turned(coco_folder, 6)
    dataset = load_coco(document())
    image, _ = dataset[0]
    with Image.open(coco_folder / "a.png") as file:
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(file))
    trouble = finding(dataset, "picture annotated as stored, so not turned upright")
    assert (trouble.count, trouble.outcome) == (1, "kept")


def test_an_entry_without_a_size_takes_that_of_its_upright_image(load_coco: Load, coco_folder: Path) -> None:
    turned(coco_folder, 8)
    contents = document()
    del contents["images"][0]["width"], contents["images"][0]["height"]
    dataset = load_coco(contents)
    assert dataset.size(0) == (WIDTH, HEIGHT)
    assert dataset[0][0].shape == (3, WIDTH, HEIGHT)


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "I;16", "1", "LA"])
def test_pictures_of_any_mode_arrive_as_rgb(load_coco: Load, coco_folder: Path, mode: str) -> None:
    grey = Image.fromarray(np.full((HEIGHT, WIDTH), 255, np.uint8))
    if mode == "I;16":
        grey = Image.fromarray(np.full((HEIGHT, WIDTH), 65_535, np.uint16))
    else:
        grey = grey.convert("RGB").convert(mode) if mode == "CMYK" else grey.convert(mode)
    grey.save(coco_folder / "sub/b.jpg", format="TIFF" if mode == "CMYK" else "PNG")
    image, _ = load_coco(document())[1]
    assert image.shape == (3, HEIGHT, WIDTH) and image.dtype == torch.uint8
    assert int(image.min()) == 255


def test_a_seed_with_the_index_augments_and_an_index_alone_does_not(load_coco: Load) -> None:
    dataset = load_coco(document(), augment=AugmentConfig(horizontal_flip=1.0))
    plain_image, plain = dataset[0]
    image, target = dataset[0, 11]
    assert torch.equal(image, plain_image.flip(2))
    assert target["boxes"][0].tolist() == [WIDTH - 12.5, 3.25, WIDTH - 2.5, 11.75]
    assert plain["boxes"][0].tolist() == [2.5, 3.25, 12.5, 11.75]
    assert torch.equal(load_coco(document())[0, 11][0], plain_image)


def test_workers_give_what_the_main_process_gives(load_coco: Load) -> None:
    dataset = load_coco(document(), augment=AugmentConfig(brightness=0.3))
    order = [(row, 100 * row + step) for step in range(2) for row in (2, 0, 1)]
    loader = DataLoader(dataset, batch_size=2, sampler=order, num_workers=2, collate_fn=list)
    samples = [sample for batch in loader for sample in batch]
    assert len(samples) == 6
    for key, (image, target) in zip(order, samples, strict=True):
        expected_image, expected = dataset[key]
        assert torch.equal(image, expected_image)
        assert_same(target, expected)


def test_a_data_set_can_be_sent_to_a_spawned_worker(load_coco: Load) -> None:
    dataset = load_coco(document())
    copied = pickle.loads(pickle.dumps(dataset))
    assert_same(copied[0][1], dataset[0][1])
    assert copied.classes == dataset.classes


def test_changing_a_target_does_not_change_the_data_set(load_coco: Load) -> None:
    dataset = load_coco(document())
    target = dataset.target(0)
    target["boxes"].zero_()
    target["labels"].zero_()
    target["masks"][0].zero_()
    assert dataset.target(0)["boxes"].sum() > 0
    assert dataset.target(0)["labels"].tolist() == [1, 2, 1]
    assert dataset.target(0)["has_mask"].tolist() == [True, False, True]


def test_an_index_outside_the_set_is_an_index_error(load_coco: Load) -> None:
    dataset = load_coco(document())
    with pytest.raises(IndexError):
        dataset[3]
    assert dataset[-1][1]["image_id"] == 9


def test_a_training_leaves_out_images_without_objects_where_it_is_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_set(tmp_path / "set", images=4)
    path = tmp_path / "set" / "train.json"
    contents = json.loads(path.read_text())
    contents["annotations"] = [one for one in contents["annotations"] if one["image_id"] != 101]
    path.write_text(json.dumps(contents))
    for skip, images in (("false", 4), ("true", 3)):
        changes = [*tiny_changes(tmp_path / "set", tmp_path / skip), f"data.skip_empty={skip}"]
        assert main([*changes, "schedule.detector_steps=1", "schedule.mask_steps=0"]) == 0
        said = capsys.readouterr().out
        assert f"\n{images} images; 3 classes" in said and "4 images (1 without objects)" in said
