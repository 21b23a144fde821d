"""Evaluation: average precision over sets A, B and all, and mask quality on ground-truth boxes."""

import json
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from model.classes import ClassTable
from tests.training.data.coco_scene import (
    CLASSES,
    HEIGHT,
    WIDTH,
    Change,
    KnowingNetwork,
    Scene,
    Thing,
    corner,
    usual_scene,
)
from training.evaluate.measure import Results, evaluate_network, judge
from training.evaluate.predictions import Predictions, predict
from training.evaluate.report import percent, table
from training.evaluate.truth import load_ground_truth


def evaluated(
    folder: Path,
    scene: Scene,
    network: KnowingNetwork | None = None,
    change: Change = bool,
    classes: ClassTable = CLASSES,
) -> Results:
    images, annotations = scene.write(folder, change)
    return evaluate_network(network or KnowingNetwork(scene), classes, images, annotations)


def predicted(
    folder: Path, scene: Scene, network: KnowingNetwork | None = None, change: Change = bool, **options: Any
) -> Predictions:
    images, annotations = scene.write(folder, change)
    truth = load_ground_truth(annotations, CLASSES)
    return predict(network or KnowingNetwork(scene), CLASSES, images, truth, **options)


def test_a_perfect_predictor_scores_one_everywhere(tmp_path: Path) -> None:
    results = evaluated(tmp_path, usual_scene())
    assert results.images == 5 and results.skipped == {}
    for group, objects in ((results.a, 6), (results.b, 6), (results.all, 12)):
        assert group.objects == objects
        assert (group.box.ap, group.box.ap50, group.box.ap75) == pytest.approx((1, 1, 1))
        assert (group.mask.ap, group.mask.ap50, group.mask.ap75) == pytest.approx((1, 1, 1))
        assert group.mask_iou == 1
    assert [one.mask_supervised for one in results.classes] == [True, False, True, False]
    assert all(one.mask_ap == pytest.approx(1) and one.mask_iou == 1 for one in results.classes)


def test_masks_one_row_too_low_cost_mask_precision_and_no_box_precision(tmp_path: Path) -> None:
    scene = usual_scene()
    results = evaluated(tmp_path, scene, KnowingNetwork(scene, rows=1))
    assert results.all.box.ap == pytest.approx(1)
    assert results.all.mask.ap is not None and results.all.mask.ap < 0.9
    masks = [thing.mask for things in scene.things.values() for thing in things]
    shifted = [np.roll(mask, 1, axis=0) for mask in masks]
    wanted = np.mean([(m & s).sum() / (m | s).sum() for m, s in zip(masks, shifted, strict=True)])
    assert results.all.mask_iou == pytest.approx(wanted) and wanted < 0.95


def test_labels_one_too_high_score_nothing(tmp_path: Path) -> None:
    scene = usual_scene()
    results = evaluated(tmp_path, scene, KnowingNetwork(scene, labels=1))
    for group in (results.a, results.b, results.all):
        assert group.box.ap == 0 and group.mask.ap == 0


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools' loadRes
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_slices_of_one_evaluation_equal_cocoeval_restricted_to_the_group(tmp_path: Path, kind: str) -> None:
    scene = usual_scene(scale=8)
    false = [Thing(5, corner(20, 20, 9, scene.size)), Thing(7, corner(3, 3, 60, scene.size))]
    network = KnowingNetwork(scene, noise=3, rows=6, extra=false)
    predictions = predicted(tmp_path, scene, network)
    results = judge(predictions, CLASSES)

    truth = COCO(str(tmp_path / "truth.json"))
    for group, category_ids in ((results.a, [2, 7]), (results.b, [5, 9]), (results.all, [2, 5, 7, 9])):
        plain = [dict(result) for result in predictions.results]
        for result in plain:
            result.pop("bbox" if kind == "segm" else "segmentation")
        evaluation = COCOeval(truth, truth.loadRes(plain), kind)
        evaluation.params.catIds = category_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        mine = group.box if kind == "bbox" else group.mask
        assert [-1.0 if value is None else value for value in astuple(mine)[:12]] == pytest.approx(
            evaluation.stats[:12]
        )
        assert mine.ap is not None and 0 < mine.ap < 1 and mine.ap_medium != mine.ap_large
        assert mine.ap75 != mine.ap50


def test_a_false_mask_counts_in_the_size_range_of_its_area_and_not_of_its_box(tmp_path: Path) -> None:
    size = (128, 128)
    frame = np.zeros(size, dtype=bool)
    frame[4:124, [4, 123]] = True  # a box of 120 x 120, but 240 pixels
    scene = Scene({i: [Thing(2, corner(50, 50, 20, size))] for i in (1, 2)}, size=size)
    results = evaluated(tmp_path, scene, KnowingNetwork(scene, extra=[Thing(2, frame)]))
    assert results.all.box.ap_small == pytest.approx(1)
    assert results.all.mask.ap_small is not None and results.all.mask.ap_small < 0.9


def test_a_filled_box_scores_its_share_of_mask_pixels(tmp_path: Path) -> None:
    scene = usual_scene()
    results = evaluated(tmp_path, scene)
    fills = []
    for things in scene.things.values():
        for thing in things:
            x0, y0, x1, y1 = thing.box
            fills.append(thing.mask.sum() / ((x1 - x0) * (y1 - y0)))
    assert results.all.box_fill == pytest.approx(np.mean(fills))
    assert results.all.filled_box.ap50 == pytest.approx(1)  # three quarters are more than half
    assert results.all.filled_box.ap is not None and results.all.mask.ap is not None
    assert results.all.filled_box.ap < results.all.mask.ap - 0.3


def test_what_is_found_in_a_crowd_is_neither_right_nor_wrong(tmp_path: Path) -> None:
    scene = usual_scene()
    area = np.zeros((HEIGHT, WIDTH), dtype=bool)
    area[30:40, 0:20] = True
    inside = Thing(CLASSES.ids[0], corner(31, 3, 6))
    for things in scene.things.values():
        things.append(Thing(CLASSES.ids[0], area, crowd=True))
    known = Scene({i: [t for t in things if not t.crowd] for i, things in scene.things.items()})
    results = evaluated(tmp_path, scene, KnowingNetwork(known, extra=[inside]))
    assert results.all.objects == 12
    assert results.all.mask_iou == 1
    assert results.all.mask.ap == pytest.approx(1) and results.all.box.ap == pytest.approx(1)
    without_crowds = evaluated(tmp_path / "again", known, KnowingNetwork(known, extra=[inside]))
    assert without_crowds.all.mask.ap is not None and without_crowds.all.mask.ap < 0.95


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    evaluated(tmp_path, usual_scene())
    assert capfd.readouterr().out == ""


def test_missing_broken_and_wrongly_sized_images_are_left_out_and_counted(tmp_path: Path) -> None:
    def spoil(document: dict[str, Any]) -> None:
        (tmp_path / "images" / "1.png").unlink()
        (tmp_path / "images" / "2.png").write_bytes(b"no image")
        document["images"][2]["height"] += 1
        for annotation in document["annotations"]:
            if annotation["image_id"] == 3:
                annotation["segmentation"] = [[2, 2, 40, 2, 40, 30, 2, 30]]

    results = evaluated(tmp_path, usual_scene(), change=spoil)
    assert results.images == 2 and results.all.objects == 3
    assert results.all.mask.ap == pytest.approx(1)
    assert results.skipped == {
        "images that are missing": 1,
        "images that are broken or of another size than annotated": 2,
    }
    assert "2 images that are broken" in table(results)


def test_a_set_without_a_readable_image_is_refused(tmp_path: Path) -> None:
    scene = usual_scene()
    images, annotations = scene.write(tmp_path)
    for image in images.iterdir():
        image.unlink()
    with pytest.raises(ValueError, match="5 images that are missing"):
        evaluate_network(KnowingNetwork(scene), CLASSES, images, annotations)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"images": []}', '{"images": [], "annotations": [], "categories": []}']
)
def test_annotations_that_are_no_coco_file_are_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "truth.json").write_text(text)
    with pytest.raises(ValueError, match="truth.json"):
        load_ground_truth(tmp_path / "truth.json", CLASSES)


def test_every_form_of_segmentation_gives_the_same_mask(tmp_path: Path) -> None:
    square = np.zeros((HEIGHT, WIDTH), dtype=bool)
    square[10:20, 5:25] = True
    flat = square.ravel(order="F").astype(int)
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *changes.tolist(), flat.size]).tolist()
    forms: list[Any] = [
        {"size": [HEIGHT, WIDTH], "counts": counts},
        [[5, 10, 25, 10, 25, 20, 5, 20]],
        [[5, 10, 15, 10, 15, 20, 5, 20], [15, 10, 25, 10, 25, 20, 15, 20]],
    ]

    def add(document: dict[str, Any]) -> None:
        (first,) = document["annotations"]
        document["annotations"] += [
            first | {"id": i, "segmentation": form} for i, form in enumerate(forms, 2)
        ]

    _, annotations = Scene({1: [Thing(2, square)]}).write(tmp_path, add)
    objects = load_ground_truth(annotations, CLASSES).objects[1]
    assert [(coco_mask.decode(one.mask) == square).all() for one in objects] == [True] * 4


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        [],
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5, 6, 7]],
        "text",
        {"size": [9, 9], "counts": [81]},
        {"size": [HEIGHT, WIDTH], "counts": [5]},
    ],
)
def test_an_object_without_a_readable_mask_counts_for_boxes_and_is_no_mistake_for_masks(
    tmp_path: Path, segmentation: Any
) -> None:
    change: Change = lambda document: document["annotations"][0].update(segmentation=segmentation)  # noqa: E731
    results = evaluated(tmp_path, usual_scene(), change=change)
    assert results.skipped == {"objects without a readable mask": 1}
    assert results.all.box.ap == pytest.approx(1) and results.all.mask.ap == pytest.approx(1)
    assert results.all.objects == 12


def test_objects_outside_their_image_are_left_out_and_counted(tmp_path: Path) -> None:
    def move(document: dict[str, Any]) -> None:
        document["annotations"][0]["bbox"] = [WIDTH + 3, 0, 5, 5]
        document["annotations"][1]["bbox"][2] = 0

    results = evaluated(tmp_path, usual_scene(), change=move)
    assert results.skipped == {"objects without area inside their image": 2}
    assert results.all.objects == 10


def test_a_group_without_classes_has_no_figures(tmp_path: Path) -> None:
    oracle = ClassTable(ids=CLASSES.ids, names=CLASSES.names, has_mask=(True,) * 4)
    results = evaluated(tmp_path, usual_scene(), classes=oracle)
    assert results.b.objects == 0 and results.b.mask_iou is None and results.b.mask.ap is None
    assert results.a.mask.ap == results.all.mask.ap == pytest.approx(1)
    assert percent(results.b.mask.ap) == "-"


def test_a_network_that_finds_nothing_has_precision_zero(tmp_path: Path) -> None:
    predictions = predicted(tmp_path, usual_scene())
    predictions.results.clear()
    results = judge(predictions, CLASSES)
    assert results.all.box.ap == 0 and results.all.mask.ap == 0 and results.all.mask_iou == 1


def test_a_set_may_have_more_detections_than_a_byte_can_count(tmp_path: Path) -> None:
    scene = usual_scene()
    results = evaluated(tmp_path, scene, KnowingNetwork(scene, extra=[Thing(2, corner(2, 2, 6))] * 60))
    assert results.all.mask.ap50 is not None and 0 < results.all.mask.ap50 < 1


@pytest.mark.parametrize(
    ("lists", "spoilt"),
    [
        ({}, True),  # COCO's: searched for every class, so a bee in an image without bees is wrong
        ({"neg_category_ids": []}, False),  # nobody looked for bees
        ({"neg_category_ids": [5]}, True),  # somebody did
        ({"neg_category_ids": [], "not_exhaustive_category_ids": [2]}, False),
    ],
)
def test_an_image_of_a_federated_set_is_judged_by_the_classes_it_was_searched_for(
    tmp_path: Path, lists: dict[str, list[int]], spoilt: bool
) -> None:
    """The false bee is surer than the true one of the other image."""
    scene = Scene({1: [Thing(5, corner(5, 5, 20))], 2: [Thing(2, corner(8, 8, 24))]})
    predictions = predicted(tmp_path, scene, change=lambda document: document["images"][1].update(lists))
    (found,) = (one for one in predictions.results if one["image_id"] == 1)
    predictions.results.append({**found, "image_id": 2, "score": 1.0})
    results = judge(predictions, CLASSES)
    for group in (results.all.box, results.all.mask):
        assert group.ap == pytest.approx(0.75 if spoilt else 1)


@pytest.mark.parametrize(("in_part", "ap"), [([], 0.75), ([2], 1.0)])
def test_what_is_found_beside_the_annotated_objects_of_a_class_searched_in_part_is_not_wrong(
    tmp_path: Path, in_part: list[int], ap: float
) -> None:
    scene = Scene({1: [Thing(5, corner(5, 5, 20))], 2: [Thing(2, corner(2, 2, 16))]})
    lists = {"neg_category_ids": [], "not_exhaustive_category_ids": in_part}
    predictions = predicted(tmp_path, scene, change=lambda document: document["images"][1].update(lists))
    (found,) = (one for one in predictions.results if one["image_id"] == 2)
    mask = coco_mask.encode(np.asfortranarray(corner(22, 24, 12).astype(np.uint8)))
    predictions.results.append(
        {**found, "bbox": [24.0, 22.0, 12.0, 12.0], "segmentation": mask, "score": 1.0}
    )
    results = judge(predictions, CLASSES)
    for group in (results.all.box, results.all.mask):
        assert group.ap == pytest.approx(ap)


def test_the_batch_size_changes_no_figure(tmp_path: Path) -> None:
    scene = usual_scene()
    network = KnowingNetwork(scene, noise=1)
    one, three = (predicted(tmp_path / str(size), scene, network, batch_size=size) for size in (1, 3))
    assert judge(one, CLASSES) == judge(three, CLASSES)
    assert [count for _, count in network.detection_calls] == [1] * 5 + [3, 2]


def test_the_front_of_a_set_is_evaluated_alone_when_asked(tmp_path: Path) -> None:
    scene = usual_scene()
    images, annotations = scene.write(tmp_path)
    truth = load_ground_truth(annotations, CLASSES, max_images=2)
    results = judge(predict(KnowingNetwork(scene), CLASSES, images, truth), CLASSES)
    assert results.images == 2 and results.all.objects == 6


def test_the_score_threshold_reaches_the_network_and_the_results(tmp_path: Path) -> None:
    network = KnowingNetwork(usual_scene())
    predictions = predicted(tmp_path, network.scene, network, score_threshold=0.25, batch_size=5)
    assert network.detection_calls == [([0.25] * 5, 5)]
    assert judge(predictions, CLASSES, score_threshold=0.25).score_threshold == 0.25


def test_results_survive_json(tmp_path: Path) -> None:
    results = evaluated(tmp_path, usual_scene())
    again = json.loads(json.dumps(results.to_dict()))
    assert again["b"]["mask"]["ap50"] == pytest.approx(1)
    assert [one["name"] for one in again["classes"]] == ["ant", "bee", "cat", "dog"]


def test_the_number_of_detections_reaches_the_network_and_the_judge(tmp_path: Path) -> None:
    predictions = predicted(tmp_path, usual_scene(), max_detections=7)
    assert predictions.max_detections == judge(predictions, CLASSES).max_detections == 7
    with pytest.raises(ValueError, match="max_detections is 0; give 1 or more"):
        predicted(tmp_path / "none", usual_scene(), max_detections=0)
