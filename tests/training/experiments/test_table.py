"""Figures, table, plot and estimate of a grid."""

import json
from itertools import count, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from tests.training.tiny_set import tiny_changes, write_tiny_set
from training.config import changed, load_config
from training.evaluate.measure import GroupResults, Results
from training.evaluate.precision import AveragePrecision
from training.experiments import estimate as experiments_estimate
from training.experiments.estimate import Estimate, estimate, kinds, report, write_some
from training.experiments.grid import Cell, GridConfig, RowConfig, cells_of_seed
from training.experiments.plot import COLOURS, MARGIN, PANEL, write_plot
from training.experiments.table import FIGURES, figures_of, markdown, summary, with_gaps
from training.experiments.variants import mean_and_deviation

ROWS = (
    RowConfig(name="low"),
    RowConfig(name="mid", label="the middle", paper="Table 9"),
    RowConfig(name="high"),
)
GRID = GridConfig(about="", preset="shapes", between=("low", "high"), rows=ROWS)


def row(name: str, value: float | None, *, seed: int = 0, split: str = "") -> dict[str, Any]:
    return {"row": name, "seed": seed, "split": split, **dict.fromkeys(FIGURES, value)}


def test_figures_come_from_the_group_they_are_named_after() -> None:
    def group(tens: float) -> GroupResults:
        def precision(units: float) -> AveragePrecision:
            rest: dict[str, Any] = dict.fromkeys(("ap75", "ap_small", "ap_medium", "ap_large"))
            return AveragePrecision(ap=tens + units, ap50=tens + units + 0.5, **rest)

        box, mask, filled = (precision(units) for units in (1, 2, 3))
        shares: dict[str, Any] = {"mask_iou": tens + 4, "box_fill": tens + 5}
        return GroupResults(classes=1, objects=1, box=box, mask=mask, filled_box=filled, **shares)

    results = Results(
        images=1, score_threshold=0.05, skipped={}, a=group(10), b=group(20), all=group(30), classes=()
    )
    wanted = {"box_ap50": 11.5, "mask_ap": 12, "mask_ap50": 12.5, "mask_iou": 14}
    of_b = {f"{name}_b": value + 10 for name, value in wanted.items()}
    assert figures_of(results, filled=False) == {f"{name}_a": value for name, value in wanted.items()} | of_b
    filled = figures_of(results, filled=True)
    assert (filled["mask_ap_b"], filled["mask_ap50_a"], filled["mask_iou_a"]) == (23, 13.5, 15)
    assert filled["box_ap50_a"] == 11.5


def test_a_gap_is_that_of_the_rows_own_seed_and_split() -> None:
    rows = [row("low", 0.2), row("high", 0.6), row("mid", 0.3)]
    rows += [row("low", 0.0, seed=1), row("high", 0.4, seed=1), row("mid", 0.3, seed=1)]
    rows += [row("mid", 0.3, seed=2)]
    rows += [row(name, value, seed=2, split="voc") for name, value in (("low", 0.1), ("high", 0.9))]
    placed = {(one["row"], one["seed"]): one["gap_ap_b"] for one in with_gaps(GRID, rows) if not one["split"]}
    assert placed["mid", 0] == pytest.approx(0.25) and placed["mid", 1] == pytest.approx(0.75)
    assert placed["mid", 2] is None
    assert placed["low", 0] == 0 and placed["high", 0] == 1


def test_where_the_upper_row_is_no_better_there_is_no_gap() -> None:
    for low in (0.5, None):
        rows = [row("low", low), row("high", 0.5), row("mid", 0.6)]
        assert [one["gap_iou_b"] for one in with_gaps(GRID, rows)] == [None, None, None]


def test_the_table_shows_mean_and_sample_deviation_over_seeds() -> None:
    rows = [row("mid", value, seed=seed) for seed, value in enumerate((0.1, 0.2, 0.3))]
    rows.append({**row("low", 0.5), "mask_ap_b": None})
    head, rule, low, mid = markdown(GRID, summary(GRID, rows)).splitlines()
    assert head.startswith("| row | paper | runs | box AP50, A |") and head.endswith("| gap, AP | gap, IoU |")
    assert head.count("|") == rule.count("|") == low.count("|") == mid.count("|") == len(FIGURES) + 6
    assert mid.startswith("| the middle | Table 9 | 3 | 20.0 ± 10.0 |")
    assert low.startswith("| low |  | 1 | 50.0 | 50.0 | 50.0 | - |")


def test_the_trials_of_a_random_split_are_runs_of_one() -> None:
    rows = [row("mid", value, split=f"random:E{trial}_A20B60") for trial, value in ((1, 0.1), (2, 0.3))]
    rows += [row("mid", 0.5, split="random:E1_A30B50"), row("mid", 0.7, split="voc")]
    entries = summary(GRID, rows)
    runs = {one["split"]: one["runs"] for one in entries}
    assert list(runs.items()) == [("random:A20B60", 2), ("random:A30B50", 1), ("voc", 1)]
    spread = {"mean": pytest.approx(0.2), "deviation": pytest.approx(0.02**0.5), "runs": 2}
    assert entries[0]["figures"]["mask_ap_b"] == spread


def test_the_deviation_is_that_of_a_sample() -> None:
    mean, deviation = mean_and_deviation([1.0, 2.0, 3.0, 6.0])
    assert mean == 3 and deviation == pytest.approx((14 / 3) ** 0.5)
    assert mean_and_deviation([4.0]) == (4.0, None)


def test_bars_of_the_plot_are_as_long_as_their_figures(tmp_path: Path) -> None:
    rows = [
        {**row("low", 0.2), "mask_iou_a": None, "mask_ap_b": 0.0},
        {**row("high", 0.8), "mask_iou_a": 0.4},
    ]
    write_plot(tmp_path / "plot.png", summary(GRID, rows))
    with Image.open(tmp_path / "plot.png") as picture:
        pixels = picture.convert("RGB")
    width, height = pixels.size
    data = pixels.load()
    assert data is not None
    half = width - PANEL - MARGIN  # where the second panel begins

    def bars(colour: tuple[int, int, int], begin: int, end: int) -> list[int]:
        """Lengths of the bars of a colour, from above, between two columns."""
        lengths = [sum(data[x, y] == colour for x in range(begin, end)) for y in range(height)]
        return [now for before, now in pairwise(lengths) if now and not before]

    low, high = bars(COLOURS["b"], 0, half)
    (light,) = bars(COLOURS["a"], 0, half)
    assert high / low == pytest.approx(4, rel=0.05) and high / light == pytest.approx(2, rel=0.05)
    assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]


@pytest.fixture
def cell(tmp_path: Path) -> Cell:
    write_tiny_set(tmp_path / "set")
    changes = tiny_changes(tmp_path / "set", tmp_path / "run")
    grid = GridConfig(about="", preset="shapes", set=tuple(changes), rows=(RowConfig(name="one"),))
    (found,) = cells_of_seed(grid, grid.rows, ["schedule.detector_steps=3600"], seed=0, out=tmp_path)
    return found


def test_timed_steps_are_reckoned_up_to_those_of_the_schedule(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the configuration's own data, with a clock that goes on by a second whenever it is read."""
    seconds = count()
    monkeypatch.setattr(experiments_estimate, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    (found,) = estimate([cell], [], out=tmp_path, drawn=None, timed=True)
    assert (found.row, found.trainings, found.unknown) == ("one", 2, "")
    steps, images = 3600 + 2, 1  # of the detector and the mask branch; all of them
    assert found.seconds == pytest.approx(steps + images)
    assert not (tmp_path / "run").exists()


def test_a_training_that_cannot_be_timed_says_why(cell: Cell, tmp_path: Path) -> None:
    (tmp_path / "set" / "train.json").unlink()
    (found,) = estimate([cell], [], out=tmp_path, drawn=None, timed=True)
    assert found.seconds == 0 and "train.json" in found.unknown
    assert f"not known: {found.unknown}" in report([found])


def test_seconds_of_finished_rows_are_taken_where_the_kind_is_the_same(cell: Cell, tmp_path: Path) -> None:
    times = {"detector": 100.0, "training": 20.0, "evaluation": 3.0}
    kept = [
        {"kinds": kinds(cell), "seconds": times},
        {"kinds": kinds(cell), "seconds": times | {"detector": None, "training": 40.0}},
        {"kinds": {"training": "another"}, "seconds": times | {"training": 1e9}},
    ]
    seeded = {name: changed(getattr(cell, name), {"seed": 1}) for name in ("config", "detector")}
    other = Cell(**(vars(cell) | seeded | {"seed": 1}))
    (found,) = estimate([cell, cell, other], kept, out=tmp_path, drawn=None, timed=False)
    # Of both seeds the detector, and the mask branch with its evaluation; the same cell again is one training.
    detector, masks = 2 * 100.0, 2 * (30.0 + 3.0)
    assert found.trainings == 4 and found.seconds == pytest.approx(detector + masks)


def test_what_takes_another_time_is_of_another_kind(cell: Cell) -> None:
    longer = Cell(**(vars(cell) | {"config": load_config("training/presets/shapes.toml")}))
    assert kinds(longer)["training"] != kinds(cell)["training"]
    assert set(kinds(cell)) == {"detector", "training"}
    box = Cell(**(vars(cell) | {"row": RowConfig(name="box", box=True)}))
    assert set(kinds(box)) == {"detector"}


def test_the_report_adds_up_and_says_where_nobody_knows() -> None:
    known = Estimate(row="one", trainings=2, seconds=1800.0)
    text = report([known, Estimate(row="two", trainings=1, seconds=5400.0)])
    assert (
        text.startswith("about 2.00 hours on this machine:") and "one: 2 to train, about 0.50 hours" in text
    )
    text = report([known, Estimate(row="two", trainings=1, seconds=0.0, unknown="no file")])
    assert text.startswith("about 0.50 hours and more") and "two: 1 to train, nobody knows how long" in text


def test_a_small_set_is_spread_over_the_whole_one_and_keeps_its_objects(tmp_path: Path) -> None:
    write_tiny_set(tmp_path / "set", images=6)
    assert write_some(tmp_path / "set" / "train.json", tmp_path / "new" / "some.json", 2) == 6
    some = json.loads((tmp_path / "new" / "some.json").read_text())
    assert [one["id"] for one in some["images"]] == [100, 103]
    whole = json.loads((tmp_path / "set" / "train.json").read_text())
    assert some["annotations"] == [one for one in whole["annotations"] if one["image_id"] in (100, 103)]
    assert some["categories"] == whole["categories"]
