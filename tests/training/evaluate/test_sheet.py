"""The sheet of ground truth beside predictions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.training.data.coco_scene import (
    CLASSES,
    HEIGHT,
    WIDTH,
    KnowingNetwork,
    Scene,
    Thing,
    corner,
    usual_scene,
)
from training.evaluate import sheet
from training.evaluate.predictions import Predictions, predict
from training.evaluate.truth import load_ground_truth


@pytest.fixture
def predicted(tmp_path: Path) -> tuple[Path, Predictions]:
    scene = usual_scene()
    scene.things[2].append(Thing(2, corner(30, 2, 8), crowd=True))
    images, annotations = scene.write(tmp_path)
    return images, predict(KnowingNetwork(scene), CLASSES, images, load_ground_truth(annotations, CLASSES))


def test_masks_of_set_b_are_drawn_otherwise_than_those_of_set_a(predicted: tuple[Path, Predictions]) -> None:
    truth = predicted[1].truth
    found = [one for image_id in truth.image_ids for one in sheet.truth_detections(truth, image_id, CLASSES)]
    in_a = {one["category"]: one["mask_supervised"] for one in found}
    assert in_a == {"ant": True, "bee": False, "cat": True, "dog": False}
    one = next(one for one in found if one["category"] == "bee")
    image = Image.new("RGB", (WIDTH, HEIGHT), "grey")
    as_if_in_a = np.asarray(sheet.picture(image, [{**one, "mask_supervised": True}]))
    assert (np.asarray(sheet.picture(image, [one])) != as_if_in_a).any()


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


def test_images_are_taken_from_the_whole_set_and_never_without_objects() -> None:
    scene = Scene({i: [] if i % 3 == 0 else [Thing(2, corner(2, 2, 8))] for i in range(1, 31)})
    objects: Any = {i: tuple(things) for i, things in scene.things.items()}
    truth = sheet.GroundTruth(image_ids=tuple(objects), file_names={}, sizes={}, objects=objects, skipped={})
    chosen = sheet.sheet_images(truth, 5)
    assert len(set(chosen)) == 5 and chosen[0] == 1 and chosen[-1] == 29
    assert not any(image_id % 3 == 0 for image_id in chosen)
    assert len(sheet.sheet_images(truth, 100)) == 20


def test_the_sheet_has_truth_on_the_left_predictions_on_the_right_and_every_pair_at_its_place(
    tmp_path: Path, predicted: tuple[Path, Predictions]
) -> None:
    images, predictions = predicted
    path = tmp_path / "sheet.png"
    results = [result for result in predictions.results if result["image_id"] != 1]  # nothing was found in 1
    sheet.write_sheet(path, images, predictions.truth, results, CLASSES, count=3)
    pixels = np.asarray(Image.open(path))
    cell, gap, top = sheet.CELL, sheet.GAP, sheet.LINE + sheet.GAP
    assert pixels.shape == (top + 2 * (cell + gap), gap + 2 * (2 * cell + 2 + gap), 3)
    next_pair = 2 * cell + 2 + gap
    colours = []
    for row, left in ((top, gap), (top, gap + next_pair), (top + cell + gap, gap)):
        halves = [pixels[row : row + 8 * HEIGHT, x : x + 8 * WIDTH] for x in (left, left + cell + 2)]
        colours.append([int(np.ptp(half, axis=2).max()) > 50 for half in halves])
    assert colours == [[True, False], [True, True], [True, True]]
    assert (pixels[top + cell + gap :, gap + next_pair :] == 255).all()  # no fourth pair


def test_a_large_image_is_drawn_within_its_cell() -> None:
    drawn = sheet.picture(Image.new("RGB", (900, 300)), [])
    assert drawn.size == (384, 128)


def test_a_sheet_without_pairs_is_its_title_alone() -> None:
    assert sheet.compose([], "nothing").height == sheet.LINE + sheet.GAP
