"""Keypoints from a COCO file to the network and back to COCO's average precision."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.checkpoint import load_network
from model.classes import ClassTable, class_table
from model.keypoints.layout import KeypointsConfig
from tests.training.tiny_set import SMALLEST
from training.config import DEFAULT_CONFIG, load_config
from training.data.augment import AugmentConfig, cropped, flip_horizontally
from training.data.coco import CocoDataset
from training.drawn.__main__ import main as draw_set
from training.drawn.figures import FIGURES, NAMES, FiguresConfig, draw
from training.drawn.write import write_set
from training.evaluate.__main__ import main
from training.evaluate.measure import judge
from training.evaluate.precision import keypoint_precision
from training.evaluate.predictions import Predictions
from training.evaluate.report import table
from training.evaluate.truth import GroundTruth, load_ground_truth
from training.run_log import COLUMNS
from training.train import train

PRESET = Path("training/presets/figures.toml")
CONFIG = load_config(PRESET).model.keypoints


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "figures"
    assert write_set(FIGURES, folder, FiguresConfig(train=6, val=4, seed=1, size=96))
    return folder


def document(figures: Path) -> dict[str, Any]:
    contents: dict[str, Any] = json.loads((figures / "val.json").read_text())
    return contents


def loaded(figures: Path, contents: dict[str, Any], tmp_path: Path, **options: Any) -> CocoDataset:
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(contents))
    return CocoDataset(figures / "val", path, mask_classes="all", **{"keypoints": CONFIG, **options})


def person(contents: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in contents["annotations"] if one["category_id"] == 1)
    return found


# ---- the drawn set ----


def test_a_figures_left_is_the_images_right_and_the_same_seed_draws_the_same() -> None:
    pixels, _ = draw(seed=3, split=0, index=5, side=96)
    again, _ = draw(seed=3, split=0, index=5, side=96)
    other, _ = draw(seed=4, split=0, index=5, side=96)
    assert np.array_equal(pixels, again) and not np.array_equal(pixels, other)
    for drawn in (d for i in range(8) for d in draw(seed=3, split=0, index=i, side=96)[1]):
        if drawn.keypoints is not None:
            at = dict(zip(NAMES, drawn.keypoints, strict=True))
            if at["left_shoulder"][2] and at["right_shoulder"][2]:
                assert at["left_shoulder"][0] > at["right_shoulder"][0]


def test_a_keypoint_that_is_seen_lies_on_its_figure_and_a_hidden_one_does_not() -> None:
    seen: list[bool] = []
    hidden: list[bool] = []
    for index in range(40):
        for drawn in draw(seed=0, split=0, index=index, side=96)[1]:
            for x, y, visible in [] if drawn.keypoints is None else drawn.keypoints.tolist():
                if visible:
                    (seen if visible == 2 else hidden).append(bool(drawn.mask[int(y), int(x)]))
    assert hidden and not any(hidden)
    assert np.mean(seen) > 0.99


def test_the_preset_names_what_is_drawn(figures: Path) -> None:
    category = document(figures)["categories"][0]
    assert tuple(category["keypoints"]) == CONFIG.names == NAMES
    assert [[a + 1, b + 1] for a, b in CONFIG.lines] == category["skeleton"]


def test_a_drawn_set_is_not_drawn_twice_and_a_strangers_folder_is_left_alone(
    figures: Path, tmp_path: Path
) -> None:
    assert not write_set(FIGURES, figures, FiguresConfig(train=6, val=4, seed=1, size=96))
    (tmp_path / "photograph.jpg").touch()
    with pytest.raises(ValueError, match="is no drawn data set"):
        write_set(FIGURES, tmp_path, FiguresConfig(train=1, val=1))


def test_the_command_draws_a_set_and_names_a_size_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["figures", "--out", str(tmp_path / "set"), "--train", "1", "--val", "1"]
    assert draw_set([*arguments, "--size", "64"]) == 0
    assert json.loads((tmp_path / "set" / "train.json").read_text())["images"][0]["width"] == 64
    assert draw_set([*arguments, "--size", "10"]) == 2
    assert "size is 10" in capsys.readouterr().err


# ---- reading ----


def test_keypoints_are_read_half_a_pixel_further_and_only_where_they_are_labelled(
    figures: Path, tmp_path: Path
) -> None:
    contents = document(figures)
    changed = person(contents)
    changed["keypoints"][:6] = [10, 20, 2, 33, 44, 0]
    data = loaded(figures, contents, tmp_path)
    row = next(i for i in range(len(data)) if data.image_id(i) == changed["image_id"])
    mine = [a for a in contents["annotations"] if a["image_id"] == changed["image_id"]].index(changed)
    target = data.target(row)
    assert target["keypoints"][mine, :2].tolist() == [[10.5, 20.5, 2.0], [0.0, 0.0, 0.0]]
    crates = target["labels"] == 2
    assert not target["keypoints"][crates].any() and target["keypoints"].shape[1:] == (13, 3)
    assert data.report.objects_with_keypoints == sum("keypoints" in a for a in contents["annotations"])
    assert "with keypoints" in str(data.report)


def test_a_network_without_keypoints_reads_none(figures: Path, tmp_path: Path) -> None:
    data = loaded(figures, document(figures), tmp_path, keypoints=None)
    assert "keypoints" not in data.target(0) and "keypoints" not in str(data.report)


@pytest.mark.parametrize(
    "wrong", [[1, 2, 2] * 12, [1, 2, 3] * 13, ["a", 2, 2] * 13, "none", [float("nan"), 1, 2] * 13]
)
def test_keypoints_that_cannot_be_read_are_counted_and_left_out(
    figures: Path, tmp_path: Path, wrong: Any
) -> None:
    contents = document(figures)
    person(contents)["keypoints"] = wrong
    report = loaded(figures, contents, tmp_path).report
    assert [(f.kind, f.outcome, f.count) for f in report.findings] == [
        ("keypoints that cannot be read", "kept without its keypoints", 1)
    ]


def test_a_set_without_keypoints_or_with_others_is_refused(figures: Path, tmp_path: Path) -> None:
    contents = document(figures)
    contents["categories"][0]["keypoints"][0] = "nose"
    with pytest.raises(ValueError, match=r"category 1 has the keypoints \['nose'"):
        loaded(figures, contents, tmp_path)
    without = copy.deepcopy(document(figures))
    for annotation in without["annotations"]:
        annotation.pop("keypoints", None)
    with pytest.raises(ValueError, match="no object has a keypoint"):
        loaded(figures, without, tmp_path)


# ---- augmentation ----


def test_in_a_mirrored_image_left_and_right_have_changed_places(figures: Path, tmp_path: Path) -> None:
    data = loaded(figures, document(figures), tmp_path)
    image, target = data[0]
    flipped_image, flipped = flip_horizontally(image, target)
    left, right = NAMES.index("left_hand"), NAMES.index("right_hand")
    both = (target["keypoints"][:, [left, right], 2] > 0).all(dim=1)
    assert bool(both.any())
    assert torch.equal(flipped["keypoints"][both, left, 0], 96 - target["keypoints"][both, right, 0])
    assert torch.equal(flipped["keypoints"][both, left, 1], target["keypoints"][both, right, 1])
    _, again = flip_horizontally(flipped_image, flipped)
    assert torch.allclose(again["keypoints"], target["keypoints"], atol=1e-4)


def test_augmentation_flips_keypoints_with_their_boxes(figures: Path, tmp_path: Path) -> None:
    mirroring = AugmentConfig(horizontal_flip=1.0)
    _, target = loaded(figures, document(figures), tmp_path, augment=mirroring)[0, 7]
    at, boxes = target["keypoints"], target["boxes"][:, None]
    inside = ((at[:, :, :2] >= boxes[:, :, :2] - 3) & (at[:, :, :2] <= boxes[:, :, 2:] + 3)).all(dim=2)
    assert bool(inside[at[:, :, 2] == 2].all()) and bool((at[:, :, 2] > 0).any())


def test_in_a_part_of_the_image_keypoints_move_with_it(figures: Path, tmp_path: Path) -> None:
    image, target = loaded(figures, document(figures), tmp_path)[0]
    _, part = cropped(image, target, (5, 9, 96, 96))
    assert target["keypoints"].shape == part["keypoints"].shape
    labelled = target["keypoints"][:, :, 2] > 0
    moved = (target["keypoints"] - part["keypoints"])[labelled]
    assert moved.tolist() == [[5.0, 9.0, 0.0]] * int(labelled.sum())


# ---- average precision ----


def results_of(contents: dict[str, Any], **changes: Any) -> list[dict[str, Any]]:
    """The annotations of figures as perfect results, but for `changes`."""
    return [
        {"image_id": a["image_id"], "category_id": 1, "score": 0.9, "keypoints": list(a["keypoints"])}
        | changes
        for a in contents["annotations"]
        if "keypoints" in a
    ]


def judged_by(figures: Path) -> tuple[dict[str, Any], ClassTable, GroundTruth]:
    contents = document(figures)
    classes = class_table(contents["categories"], "all")
    return contents, classes, load_ground_truth(figures / "val.json", classes)


def test_what_lies_on_every_keypoint_has_precision_one_and_distance_costs_by_sigma(figures: Path) -> None:
    contents, classes, truth = judged_by(figures)
    perfect = keypoint_precision(truth, results_of(contents), classes, CONFIG)
    assert perfect.ap == perfect.ap50 == 1.0
    assert perfect.objects == len(results_of(contents))
    moved = results_of(contents)
    for one in moved:
        one["keypoints"][0::3] = [x + 1.5 for x in one["keypoints"][0::3]]
    off = keypoint_precision(truth, moved, classes, CONFIG).ap
    strict = dataclasses.replace(CONFIG, sigmas=tuple(s / 10 for s in CONFIG.sigmas))
    lost = keypoint_precision(truth, moved, classes, strict).ap
    assert off is not None and lost is not None and 0.1 < off < 1.0 and lost < 0.01


def test_left_taken_for_right_is_no_right_answer(figures: Path) -> None:
    contents, classes, truth = judged_by(figures)
    swapped = results_of(contents)
    for one in swapped:
        one["keypoints"] = np.array(one["keypoints"]).reshape(-1, 3)[list(CONFIG.mirrored)].flatten().tolist()
    found = keypoint_precision(truth, swapped, classes, CONFIG).ap
    assert found is not None and found < 0.2


def test_the_table_has_a_row_of_keypoints_where_they_were_judged(figures: Path) -> None:
    contents, classes, truth = judged_by(figures)
    mask = next(iter(truth.objects.values()))[0].mask
    results = results_of(contents, bbox=[1.0, 1.0, 20.0, 20.0], segmentation=mask)
    predictions = Predictions(truth=truth, results=results, object_masks=[])
    judged = judge(predictions, classes, keypoints=CONFIG)
    assert judged.keypoints is not None and judged.keypoints.ap == 1.0
    assert "keypoints" in table(judged) and "100.0" in table(judged)
    without = judge(predictions, classes, keypoints=KeypointsConfig())
    assert without.keypoints is None and "keypoints" not in table(without)


# ---- the whole way ----


def test_a_training_with_keypoints_can_be_evaluated_and_names_its_loss(
    figures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(
        PRESET,
        [
            *(f"data.{part}_images={figures / part}" for part in ("train", "val")),
            *(f"data.{part}_annotations={figures / part}.json" for part in ("train", "val")),
            *SMALLEST, "output.log_every=1", "model.keypoints.width=8", "model.keypoints.convolutions=1",
            "schedule.end_to_end_steps=2", "schedule.batch_size=2", "schedule.warmup_steps=1",
            f"output.dir={tmp_path / 'run'}",
        ],
    )  # fmt: skip
    checkpoint = train(config)
    header, row = (tmp_path / "run" / "log.csv").read_text().splitlines()[:2]
    figures_of_step = dict(zip(header.split(","), row.split(","), strict=True))
    assert float(figures_of_step["loss_keypoint"]) == pytest.approx(np.log(56**2), rel=0.2)
    network, _, _ = load_network(checkpoint)
    assert network.keypoint_branch is not None
    assert network.keypoint_branch.of_label.tolist() == [False, True, False]
    arguments = ["--checkpoint", str(checkpoint), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main([*arguments, "--score-threshold", "0.0"]) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())["keypoints"]
    assert 0.0 <= found["ap"] < 0.5 and found["objects"] > 0
    assert "keypoints" in capsys.readouterr().out


def test_the_loss_of_keypoints_has_no_column_where_there_are_none() -> None:
    assert not load_config(DEFAULT_CONFIG).model.keypoints.used
    assert "loss_keypoint" not in COLUMNS and "loss_mask" in COLUMNS
