"""How many masks a class needs: the rounds, what they are judged by, and the whole measurement."""

import json
from collections import Counter
from pathlib import Path

import pytest

from model.checkpoint import load_network
from model.classes import ClassTable
from tests.training.tiny_set import tiny_config, write_tiny_set
from training.config import TrainingConfig, changed
from training.experiments.mask_counts import (
    ClassAtCount,
    by_count,
    enough,
    main,
    measure,
    report,
    rounds_of,
)
from training.train import train


def table(classes: int) -> ClassTable:
    """All of them with masks."""
    ids = tuple(range(1, classes + 1))
    return ClassTable(ids=ids, names=tuple(f"class {i}" for i in ids), has_mask=(True,) * classes)


def test_in_all_rounds_every_class_has_every_count_once() -> None:
    masks = Counter({label: 10 * label for label in range(1, 13)})
    rounds = list(rounds_of(table(12), masks, (0, 2, 5), seed=3))
    assert len(rounds) == 4
    for label in masks:
        assert sorted(kept.get(label, 1000) for kept in rounds) == [0, 2, 5, 1000]
    for kept in rounds:
        assert Counter(kept.get(label, 1000) for label in masks) == {0: 3, 2: 3, 5: 3, 1000: 3}


@pytest.mark.parametrize("counts", [(), (1, 3), (0, 3, 3), (0, 5, 2)])
def test_counts_that_make_no_sense_are_refused(counts: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="they begin with 0 and rise"):
        list(rounds_of(table(12), Counter({1: 1, 2: 1}), counts, seed=0))


def seen(name: str, masks: int, **ious: float) -> list[ClassAtCount]:
    """A class with so many masks, and its IoU by what it kept: _0, _3, ..., whole."""
    return [
        ClassAtCount(
            name=name, kept=None if kept == "whole" else int(kept[1:]), masks=masks, objects=5, iou=iou
        )
        for kept, iou in ious.items()
    ]


def test_a_count_is_compared_with_none_and_all_of_the_same_classes() -> None:
    found = [
        *seen("cup", 50, _0=0.5, _3=0.6, _20=0.8, whole=0.9),
        *seen("hat", 10, _0=0.3, _3=0.5, _20=0.1, whole=0.7),  # has no 20 masks to keep
        *seen("bag", 90, _3=0.0, whole=1.0),  # was never judged without a mask
    ]
    none, three, twenty, whole = by_count(found)
    assert (none.classes, none.way, whole.way) == (2, 0, 1)
    assert (three.kept, three.classes) == (3, 2)
    assert [three.iou, three.without, three.with_all] == pytest.approx([0.55, 0.4, 0.8])
    assert three.way == pytest.approx(0.15 / 0.4)
    assert twenty.classes == 1 and twenty.way == pytest.approx(0.75)
    assert enough([none, three, twenty, whole]) == 20
    assert "half of the way from no mask to all: 20 masks or more" in report([none, three, twenty, whole])


def test_a_count_is_enough_only_where_all_above_it_are() -> None:
    rows = by_count(seen("cup", 50, _0=0.5, _1=0.8, _3=0.6, _20=0.8, whole=0.9))
    assert enough(rows) == 20
    rows = by_count(seen("cup", 50, _0=0.5, _3=0.6, whole=0.9))
    assert enough(rows) is None and "no number that was tried" in report(rows)


@pytest.fixture
def config(tmp_path: Path) -> TrainingConfig:
    """A training on the tiny set, judged by its own images."""
    write_tiny_set(tmp_path / "set")
    return tiny_config(tmp_path / "set", tmp_path / "run", "data.mask_classes=all")


def test_each_round_is_trained_with_the_masks_that_are_left_and_goes_on_where_it_was_stopped(
    config: TrainingConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = train(config)
    with_masks: list[Counter[int]] = []

    def noting(config: TrainingConfig, *, resume: bool = False) -> Path:
        document = json.loads(Path(config.data.train_annotations).read_text())
        with_masks.append(
            Counter(one["category_id"] for one in document["annotations"] if one.get("segmentation"))
        )
        return train(config, resume=resume)

    classes = load_network(checkpoint)[1]
    found = measure(config, classes, (0, 1), noting)
    whole = {1: 6, 2: 4, 3: 2}
    for category, masks in whole.items():
        assert sorted(one[category] for one in with_masks) == [0, 1, masks]
    assert sorted((one.name, one.kept is None) for one in found) == sorted(
        (name, last) for name in ("brick", "tile", "slab") for last in (False, False, True)
    )
    assert {one.name: one.masks for one in found} == {"brick": 6, "tile": 4, "slab": 2}

    runs = sorted((checkpoint.parent / "mask_counts").glob("0-1-*/*/*/checkpoint.pt"))
    trained = [run.stat().st_mtime_ns for run in runs]
    capsys.readouterr()
    assert main(["--checkpoint", str(checkpoint), "--counts", "0,1"]) == 0
    assert len(runs) == 3 and [run.stat().st_mtime_ns for run in runs] == trained
    printed = capsys.readouterr().out
    written = json.loads((checkpoint.parent / "mask_counts.json").read_text())
    assert [row["kept"] for row in written["counts"]] == [0, 1, None]
    assert len(written["classes"]) == 9 and "masks of a class" in printed


def test_other_masks_are_trained_with_anew(config: TrainingConfig) -> None:
    classes = load_network(train(config))[1]
    measure(config, classes, (0, 1), train)
    path = Path(config.data.train_annotations)
    document = json.loads(path.read_text())
    document["annotations"][0]["segmentation"] = []
    path.write_text(json.dumps(document))
    trained: list[TrainingConfig] = []

    def noting(config: TrainingConfig, *, resume: bool = False) -> Path:
        assert not resume
        trained.append(config)
        return train(config, resume=resume)

    found = measure(config, classes, (0, 1), noting)
    assert len(trained) == 3 and {one.name: one.masks for one in found}["brick"] == 5


def test_without_a_finished_detector_it_says_what_to_give(config: TrainingConfig) -> None:
    config = changed(config, {"schedule.detector_steps": 0, "schedule.end_to_end_steps": 1})
    classes = load_network(train(config))[1]
    with pytest.raises(
        ValueError, match=r"no finished stage-wise detector; name one: data\.detector_from=FILE"
    ):
        measure(config, classes, (0, 1), train)


@pytest.mark.parametrize(
    ("words", "reason"),
    [(["--checkpoint", "gone.pt"], "gone.pt"), (["--counts", "0,few"], "whole numbers with commas between")],
)
def test_a_mistake_is_one_line(
    words: list[str], reason: str, config: TrainingConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = train(changed(config, {"schedule.mask_steps": 0}))
    capsys.readouterr()
    assert main(["--checkpoint", str(checkpoint), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and reason in error and error.count("\n") == 1
