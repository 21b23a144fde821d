"""Rows of a grid whose masks come from joined sources: what is trained for them, and on what."""

import json
from pathlib import Path
from typing import Any

import pytest

from model.checkpoint import load_checkpoint
from tests.training.join.test_join import Painted
from tests.training.tiny_set import tiny_changes
from training.experiments import joined as joined_rows
from training.experiments.__main__ import Experiments, main
from training.experiments.grid import GridConfig, RowConfig
from training.train import train

ROWS = (
    RowConfig(name="best"),
    RowConfig(name="segmenter", join="best", source="segmenter", student=False),
    RowConfig(name="student", after="best", join="best", source="segmenter"),
    RowConfig(name="joined", join="best", student=False),
)
STEPS = ("schedule.end_to_end_steps=0", "schedule.detector_steps=2", "schedule.mask_steps=2")


@pytest.fixture(scope="module")
def rows(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    out = tmp_path_factory.mktemp("grid")
    overrides = (*tiny_changes(tiny_set, out / "unused"), *STEPS, "validate_transfer.groups=2")
    grid = GridConfig(about="A test.", preset="shapes", seeds=1, rows=ROWS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joined_rows, "load_segmenter", lambda folder, device: Painted())
        experiments = Experiments(grid, train, out=out, rows=ROWS, overrides=overrides, segmenter=tiny_set)
        experiments.run([0])
        return {row["row"]: row for row in experiments.kept_rows()}


def test_a_segmenter_that_knows_every_pixel_is_judged_by_its_own_masks(
    rows: dict[str, dict[str, Any]],
) -> None:
    assert rows["segmenter"]["mask_iou_b"] > 0.95 > rows["best"]["mask_iou_b"]
    assert rows["segmenter"]["seconds"]["training"] is None
    assert rows["segmenter"]["box_ap50_b"] == rows["best"]["box_ap50_b"]


def test_the_rule_takes_that_segmenter_by_itself(rows: dict[str, dict[str, Any]]) -> None:
    assert rows["joined"]["mask_iou_b"] > rows["best"]["mask_iou_b"]
    run = Path(rows["best"]["checkpoint"]).parent
    told = (run / "join" / "explained.txt").read_text()
    assert "true boxes of" in told and "set B: predicted against true IoU" in told


def test_no_row_asks_a_segmenter_what_another_has_asked_before(
    rows: dict[str, dict[str, Any]], tiny_set: Path
) -> None:
    out = Path(rows["best"]["checkpoint"]).parents[3]
    images = len(json.loads((tiny_set / "train.json").read_text())["images"])
    assert len(list((out / "segmenter").rglob("embedding.npz"))) == images


def test_a_student_learns_from_the_segmenters_masks_of_set_b_and_from_true_ones_of_set_a(
    rows: dict[str, dict[str, Any]], tiny_set: Path
) -> None:
    checkpoint = load_checkpoint(Path(rows["student"]["checkpoint"]))
    assert rows["student"]["checkpoint"] != rows["best"]["checkpoint"]
    taught = json.loads(Path(checkpoint["training_config"]["data"]["train_annotations"]).read_text())
    own = json.loads((tiny_set / "train.json").read_text())
    slabs = [one for one in taught["annotations"] if one["category_id"] == 3]
    assert slabs and all(one["mask_source"] == "segmenter" and "mask_weight" not in one for one in slabs)
    others = [one for one in taught["annotations"] if one["category_id"] != 3]
    assert others == [one for one in own["annotations"] if one["category_id"] != 3]
    assert checkpoint["classes"]["mask_sources"] == ["masks", "masks", "taught"]


def test_a_row_that_joins_wants_a_segmenter(tmp_path: Path) -> None:
    grid = GridConfig(about="A test.", preset="shapes", rows=ROWS)
    with pytest.raises(ValueError, match="row segmenter .* --segmenter FOLDER"):
        Experiments(grid, train, out=tmp_path, rows=ROWS).cells([0])


def test_without_a_segmenter_the_rows_that_need_one_are_left_out_of_all_rows_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["photos", "--dry-run", "--no-timing", "--out", str(tmp_path)]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "left out without --segmenter FOLDER" in told and "taught_agnostic" in told.splitlines()[0]
    assert main([*words, "--rows", "joined"]) == 2
    assert "row joined takes masks of joined sources" in capsys.readouterr().err


@pytest.mark.parametrize(("join", "box"), [("none", False), ("first", True)])
def test_only_a_row_above_with_a_mask_branch_can_be_joined_on(join: str, box: bool) -> None:
    with pytest.raises(ValueError, match="no row above it that has a mask branch"):
        GridConfig(
            about="A test.",
            preset="shapes",
            rows=(RowConfig(name="first", box=box), RowConfig(name="second", join=join)),
        )


def test_a_source_that_is_not_there_is_named_with_those_that_are(
    tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = (ROWS[0], RowConfig(name="other", join="best", source="segmentor", student=False))
    monkeypatch.setattr(joined_rows, "load_segmenter", lambda folder, device: Painted())
    overrides = (*tiny_changes(tiny_set, tmp_path / "unused"), *STEPS, "validate_transfer.groups=2")
    grid = GridConfig(about="A test.", preset="shapes", rows=rows)
    with pytest.raises(ValueError, match="source is 'segmentor'; there are chosen, .*segmenter"):
        Experiments(grid, train, out=tmp_path, rows=rows, overrides=overrides, segmenter=tiny_set).run([0])
