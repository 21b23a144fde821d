"""The sheet of ground truth beside predictions."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.training.coco_scene import (
    CLASSES,
    HEIGHT,
    WIDTH,
    KnowingNetwork,
    Scene,
    Thing,
    corner,
    usual_scene,
)
from training import sheet
from training.coco_results import dense_mask, load_ground_truth
from training.predictions import Predictions, predict


@pytest.fixture
def predicted(tmp_path: Path) -> tuple[Path, Predictions]:
    scene = usual_scene()
    scene.things[2].append(Thing(2, corner(30, 2, 8), crowd=True))
    images, annotations = scene.write(tmp_path)
    return images, predict(KnowingNetwork(scene), CLASSES, images, load_ground_truth(annotations, CLASSES))


def test_names_of_set_b_alone_are_marked(predicted: tuple[Path, Predictions]) -> None:
    truth = predicted[1].truth
    drawn = {
        d["category"]: d["mask_supervised"]
        for i in truth.image_ids
        for d in sheet.truth_detections(truth, i, CLASSES)
    }
    assert drawn == {"ant": True, "bee [B]": False, "cat": True, "dog [B]": False}


def test_crowds_are_not_drawn(predicted: tuple[Path, Predictions]) -> None:
    truth = predicted[1].truth
    assert len(truth.objects[2]) == 4
    assert len(sheet.truth_detections(truth, 2, CLASSES)) == 3


def test_predictions_below_the_threshold_or_of_another_image_are_not_drawn(
    predicted: tuple[Path, Predictions],
) -> None:
    results = predicted[1].results  # all of score 0.9
    assert len(sheet.predicted_detections(results, 1, CLASSES, 0.5)) == 3
    assert sheet.predicted_detections(results, 1, CLASSES, 0.95) == []
    assert sheet.predicted_detections(results, 5, CLASSES, 0.5) == []


def test_an_enlarged_detection_covers_the_same_part_of_the_image(predicted: tuple[Path, Predictions]) -> None:
    one = sheet.truth_detections(predicted[1].truth, 1, CLASSES)[0]
    large = sheet.enlarged(one, 3)
    assert large["bbox"] == [3 * value for value in one["bbox"]] and large["area"] == 9 * one["area"]
    pixels = dense_mask(large["segmentation"])
    assert pixels.shape == (3 * HEIGHT, 3 * WIDTH)
    for row in range(3):
        for column in range(3):
            assert (pixels[row::3, column::3] == dense_mask(one["segmentation"])).all()


def test_images_are_taken_from_the_whole_set_and_never_without_objects() -> None:
    scene = Scene({i: [] if i % 3 == 0 else [Thing(2, corner(2, 2, 8))] for i in range(1, 31)})
    objects = {i: tuple(things) for i, things in scene.things.items()}
    truth = sheet.GroundTruth(
        image_ids=tuple(objects),
        file_names={},
        sizes={},
        objects=objects,  # type: ignore[arg-type]
        skipped={},
    )
    chosen = sheet.sheet_images(truth, 5)
    assert len(set(chosen)) == 5 and chosen[0] == 1 and chosen[-1] == 29
    assert not any(image_id % 3 == 0 for image_id in chosen)
    assert len(sheet.sheet_images(truth, 100)) == 20


def test_the_sheet_holds_every_pair_at_its_place(tmp_path: Path, predicted: tuple[Path, Predictions]) -> None:
    images, predictions = predicted
    path = tmp_path / "sheet.png"
    sheet.write_sheet(path, images, predictions.truth, predictions.results, CLASSES, count=3)
    pixels = np.asarray(Image.open(path))
    cell, gap = sheet.CELL, sheet.GAP
    assert pixels.shape == (sheet.LINE + gap + 2 * (cell + gap), gap + 2 * (2 * cell + 2 + gap), 3)
    first = pixels[sheet.LINE + gap :, gap : gap + cell]
    second = pixels[sheet.LINE + gap :, gap + cell + 2 : gap + 2 * cell + 2]
    height = 5 * HEIGHT  # 48 pixels fit five times into a cell of 256
    coloured = [np.ptp(half[:height, : 5 * WIDTH], axis=2).max() for half in (first, second)]
    assert min(coloured) > 50  # both halves carry drawn masks
    assert (
        pixels[sheet.LINE + gap + cell + gap :, gap + 2 * cell + 2 + gap :] == 255
    ).all()  # no fourth pair


def test_a_large_image_is_drawn_within_its_cell() -> None:
    drawn = sheet.picture(Image.new("RGB", (900, 300)), [])
    assert drawn.size == (256, 85)


def test_a_sheet_without_pairs_is_its_title_alone() -> None:
    assert sheet.compose([], "nothing").height == sheet.LINE + sheet.GAP
