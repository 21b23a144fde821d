"""Grids of experiments: what is trained, what is kept, how several processes share one."""

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from model.classes import ClassTable
from tests.training.data.coco_scene import CLASSES, KnowingNetwork, usual_scene
from tests.training.processes import begin
from tests.training.tiny_set import SMALLEST
from training.config import DEFAULT_CONFIG, TrainingConfig, changed, config_from_dict, load_config, to_dict
from training.evaluate import __main__ as evaluate
from training.experiments import __main__ as experiments
from training.experiments import transfer_form as validate_transfer
from training.experiments.__main__ import Experiments
from training.experiments.grid import DrawingConfig, GridConfig, RowConfig, drawn_data
from training.experiments.variants import detector_digest, digest
from training.locks import locked
from training.train import Stopped
from training.train import train as real_train

SCENE = usual_scene()
STEPS = ("schedule.end_to_end_steps=0", "schedule.detector_steps=50", "schedule.mask_steps=20", "device=cpu")
EXACT = ("model.transfer.input=cls+box", "model.transfer.residual=false")
ROWS = (
    RowConfig(name="box", box=True),
    RowConfig(name="class_agnostic", set=("model.transfer.kind=class_agnostic",)),
    RowConfig(name="exact", set=EXACT),
    RowConfig(name="conv", after="exact", set=("model.box.head=conv",)),
    RowConfig(name="oracle", after="exact", set=("data.mask_classes=all",)),
)
TINY = (*SMALLEST, "schedule.detector_steps=2", "schedule.mask_steps=1", "schedule.batch_size=2")


@dataclass
class NotingTrain:
    """Stands for the training: notes what it is asked for and writes the configuration as the checkpoint."""

    configs: list[TrainingConfig] = field(default_factory=list)
    stop_at: int = -1

    def __call__(self, config: TrainingConfig, *, resume: bool = False) -> Path:
        checkpoint = Path(config.output.dir) / "checkpoint.pt"
        if len(self.configs) == self.stop_at:
            raise Stopped(signal.SIGTERM, step=3, checkpoint=checkpoint)
        if not checkpoint.exists():
            self.configs.append(config)
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_text(json.dumps(to_dict(config)))
        return checkpoint

    @property
    def masks(self) -> list[TrainingConfig]:
        return [one for one in self.configs if one.schedule.mask_steps]


@pytest.fixture
def grid(tmp_path: Path, known_networks: None) -> GridConfig:
    images, annotations = SCENE.write(tmp_path / "data")
    data = (f"data.val_images={images}", f"data.val_annotations={annotations}", "data.mask_classes=ant,cat")
    between = ("class_agnostic", "oracle")
    return GridConfig(about="A test.", preset="shapes", set=STEPS + data, rows=ROWS, between=between)


@pytest.fixture
def known_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """`load_network` gives one whose masks are off by two rows if class-agnostic, none with B's masks, one else."""

    def load(path: Path) -> tuple[KnowingNetwork, ClassTable, dict[str, Any]]:
        config = config_from_dict(json.loads(path.read_text()))
        if config.data.mask_classes == "all":
            return KnowingNetwork(SCENE, rows=0), CLASSES.with_sources(["masks"] * 4), {}
        agnostic = config.model.transfer.kind == "class_agnostic"
        return KnowingNetwork(SCENE, rows=2 if agnostic else 1), CLASSES, {}

    monkeypatch.setattr(experiments, "load_network", load)


def made(
    grid: GridConfig, train: Any, out: Path, *, seeds: tuple[int, ...] = (0,), names: str = "", **options: Any
) -> list[dict[str, Any]]:
    rows = [row for row in grid.rows if not names or row.name in names.split(",")]
    under_way = Experiments(grid, train, out=out, rows=rows, **options)
    under_way.run(seeds)
    return [row for row in under_way.kept_rows() if row["row"] in [one.name for one in rows]]


def test_every_row_is_trained_in_its_form_on_the_detector_that_rows_of_its_seed_share(
    grid: GridConfig, tmp_path: Path
) -> None:
    train = NotingTrain()
    rows = made(grid, train, tmp_path / "out", seeds=(0, 1))
    assert [(row["row"], row["seed"]) for row in rows] == [
        (row.name, seed) for row in ROWS for seed in (0, 1)
    ]
    for seed in (0, 1):
        mine = [one for one in train.configs if one.seed == seed]
        detectors = [one for one in mine if one.schedule.detector_steps]
        masks = [one for one in mine if one.schedule.mask_steps]
        assert [one.model.box.head for one in detectors] == ["fc", "conv"]
        fc, conv = (str(Path(one.output.dir) / "checkpoint.pt") for one in detectors)
        assert [one.data.detector_from for one in masks] == [fc, fc, conv, fc]
        assert [one.model.transfer.kind for one in masks] == ["class_agnostic"] + 3 * ["transfer"]
        assert [one.data.mask_classes for one in masks] == 3 * ["ant,cat"] + ["all"]
        assert {one.schedule.mask_steps for one in masks} == {20} and len(masks) == 4
        assert not any(one.schedule.detector_steps for one in masks)


def test_the_oracle_is_judged_by_the_split_of_the_others(grid: GridConfig, tmp_path: Path) -> None:
    (row,) = made(grid, NotingTrain(), tmp_path / "out", names="oracle")
    assert row["results"]["b"]["classes"] == 2 and row["mask_iou_b"] == 1.0


def test_the_box_row_is_judged_by_filled_boxes_and_trains_no_mask_branch(
    grid: GridConfig, tmp_path: Path
) -> None:
    train = NotingTrain()
    box, agnostic = made(grid, train, tmp_path / "out", names="box,class_agnostic")
    assert box["mask_iou_b"] == agnostic["results"]["b"]["box_fill"] != agnostic["mask_iou_b"]
    assert box["mask_ap_a"] == agnostic["results"]["a"]["filled_box"]["ap"] != agnostic["mask_ap_a"]
    assert [one.schedule.mask_steps for one in train.configs] == [0, 20]


def test_every_split_has_its_own_mask_branch_on_the_one_detector_and_the_oracle_is_trained_once(
    grid: GridConfig, tmp_path: Path
) -> None:
    train = NotingTrain()
    both = replace(grid, splits=("ant,cat", "bee,dog"))
    rows = made(both, train, tmp_path / "out", names="exact,oracle")
    assert [(row["row"], row["split"]) for row in rows] == [
        (name, split) for name in ("exact", "oracle") for split in both.splits
    ]
    assert [one.data.mask_classes for one in train.masks] == ["ant,cat", "bee,dog", "all"]
    assert len(train.configs) == 4
    in_a = [{one["name"] for one in row["results"]["classes"] if one["mask_supervised"]} for row in rows]
    assert in_a == 2 * [{"ant", "cat"}, {"bee", "dog"}]


def test_an_end_to_end_row_is_trained_whole_and_without_a_detector(grid: GridConfig, tmp_path: Path) -> None:
    train = NotingTrain()
    whole = ("schedule.end_to_end_steps=30", "schedule.detector_steps=0", "schedule.mask_steps=0")
    made(replace(grid, rows=(RowConfig(name="whole", set=whole),), between=()), train, tmp_path / "out")
    (config,) = train.configs
    assert config.schedule.end_to_end_steps == 30 and not config.data.detector_from


def test_rows_of_a_seed_share_what_their_detector_sees_of_fixed_views_and_are_the_same_rows(
    grid: GridConfig, tmp_path: Path
) -> None:
    train = NotingTrain()
    made(grid, train, tmp_path / "out", overrides=["augment.views=3"], names="class_agnostic,exact")
    detector, *masks = train.configs
    assert detector.augment.views == 0 and not detector.data.features
    folder = str(tmp_path / "out" / "seed0" / "features")
    assert [one.data.features for one in masks] == [folder, folder]
    assert digest(masks[0]) == digest(changed(masks[0], {"data.features": ""}))
    plain = NotingTrain()
    made(grid, plain, tmp_path / "plain", names="exact")
    assert not any(one.data.features for one in plain.configs)
    assert digest(plain.configs[0]) == digest(changed(detector, {"output.dir": "elsewhere"}))


def test_finished_rows_are_kept_and_changed_ones_made_anew(grid: GridConfig, tmp_path: Path) -> None:
    first, second, third = NotingTrain(), NotingTrain(), NotingTrain()
    rows = made(grid, first, tmp_path / "out")
    assert made(grid, second, tmp_path / "out") == rows and not second.configs
    made(grid, third, tmp_path / "out", overrides=["schedule.mask_steps=21"], names="exact,oracle")
    assert [one.schedule.mask_steps for one in third.configs] == [21, 21]  # and the detector stays


def test_rows_of_equal_settings_are_made_once_and_stand_in_the_table_twice(
    grid: GridConfig, tmp_path: Path
) -> None:
    train = NotingTrain()
    again = replace(grid, rows=(*ROWS, RowConfig(name="again", after="exact")))
    rows = made(again, train, tmp_path / "out", names="exact,again")
    assert [row["row"] for row in rows] == ["exact", "again"] and rows[0]["results"] == rows[1]["results"]
    assert len(list((tmp_path / "out" / "seed0" / "rows").glob("*.json"))) == 1


def test_a_grid_that_was_stopped_goes_on_behind_the_last_finished_row(
    grid: GridConfig, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(Stopped):
        made(grid, NotingTrain(stop_at=2), out)  # the detector and one mask branch are trained by then
    shown = json.loads((out / "results.json").read_text())
    assert [row["row"] for row in shown["rows"]] == ["box", "class_agnostic"]
    assert "class_agnostic" in (out / "results.md").read_text()
    train = NotingTrain()
    made(grid, train, out)
    assert [one.model.box.head for one in train.configs] == ["fc", "conv", "conv", "fc"]
    assert len(json.loads((out / "results.json").read_text())["rows"]) == len(ROWS)


def run_beside(under_way: Experiments, path: Path, last: Callable[[TrainingConfig], bool]) -> NotingTrain:
    """Run beside another process, played by a lock, which is given back when `last` of the others is being trained."""
    train, lock = NotingTrain(), locked(path, wait=False)

    def giving_back(config: TrainingConfig, *, resume: bool = False) -> Path:
        if last(config):
            lock.__exit__(None, None, None)
        return train(config, resume=resume)

    lock.__enter__()
    under_way.train = giving_back
    under_way.run([0])
    return train


def test_a_row_that_another_process_is_at_comes_last(grid: GridConfig, tmp_path: Path) -> None:
    under_way = Experiments(grid, NotingTrain(), out=tmp_path / "out", rows=ROWS)
    (cell,) = [one for one in under_way.cells([0]) if one.row.name == "class_agnostic"]
    lock = under_way.row_file(cell).with_suffix(".lock")
    train = run_beside(under_way, lock, lambda config: config.data.mask_classes == "all")
    trained = [(one.model.box.head, one.model.transfer.kind, one.data.mask_classes) for one in train.masks]
    assert trained == [
        ("fc", "transfer", "ant,cat"),
        ("conv", "transfer", "ant,cat"),
        ("fc", "transfer", "all"),
        ("fc", "class_agnostic", "ant,cat"),
    ]


def test_rows_whose_detector_another_process_trains_come_last_too(grid: GridConfig, tmp_path: Path) -> None:
    under_way = Experiments(grid, NotingTrain(), out=tmp_path / "out", rows=ROWS[2:4])
    exact, _ = under_way.cells([0])
    lock = tmp_path / "out" / "seed0" / "runs" / f"{detector_digest(exact.detector)}.lock"
    train = run_beside(
        under_way, lock, lambda one: one.schedule.mask_steps > 0 and one.model.box.head == "conv"
    )
    assert [one.model.box.head for one in train.configs] == ["conv", "conv", "fc", "fc"]


def test_the_files_of_a_grid_place_its_rows_between_the_class_agnostic_one_and_the_oracle(
    grid: GridConfig, tmp_path: Path
) -> None:
    made(grid, NotingTrain(), tmp_path / "out", seeds=(0, 1))
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    gaps = {one["row"]: one["figures"]["gap_iou_b"] for one in document["summary"]}
    assert gaps["class_agnostic"]["mean"] == 0 and gaps["oracle"]["mean"] == 1
    assert 0.3 < gaps["exact"]["mean"] < 0.7 and gaps["exact"]["deviation"] == 0
    assert all(one["seeds"] == [0, 1] and one["runs"] == 2 for one in document["summary"])
    table = (tmp_path / "out" / "results.md").read_text()
    assert table.startswith("A test.\n") and "| oracle | 2 | 100.0 ± 0.0 |" in table
    with Image.open(tmp_path / "out" / "results.png") as picture:
        assert picture.format == "PNG"


def test_a_schedule_without_mask_steps_is_refused_before_anything_is_trained(
    grid: GridConfig, tmp_path: Path
) -> None:
    train = NotingTrain()
    with pytest.raises(ValueError, match="row class_agnostic: schedule.mask_steps is 0"):
        made(grid, train, tmp_path / "out", overrides=["schedule.mask_steps=0"])
    misspelt = replace(
        grid, rows=(*ROWS[:2], RowConfig(name="wide", set=("model.mask.widht=2",))), between=()
    )
    with pytest.raises(ValueError, match=r"row wide: unknown key model.mask.widht: did you mean"):
        made(misspelt, train, tmp_path / "out")
    assert not train.configs


def test_a_dry_run_makes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert experiments.main(["shapes", "--dry-run", "--no-timing", "--out", str(out), "--seeds", "2"]) == 0
    shown = capsys.readouterr().out
    assert "24 rows over seeds 0, 1: 0 kept, 24 to make" in shown and "exact: 2 to train" in shown
    assert not out.exists()


def test_what_cannot_be_run_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def error_of(*arguments: str) -> str:
        assert experiments.main([*arguments, "--out", str(tmp_path / "out"), "--dry-run"]) == 2
        return capsys.readouterr().err

    unknown = error_of("shape")
    assert (
        "shape: no such grid. There are clothing, mixed, mixed_photos, paper, photos, shapes" in unknown
        and "did you mean shapes?" in unknown
    )
    assert "no row is called exakt" in error_of("shapes", "--rows", "box,exakt")
    assert "--seeds 0" in error_of("shapes", "--seeds", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert "start it without torchrun" in error_of("shapes")


def test_a_row_of_fewer_masks_stands_on_the_common_detector_and_is_kept_by_its_share(
    grid: GridConfig, tmp_path: Path
) -> None:
    annotations = tmp_path / "train.json"
    entries = [{"id": i, "category_id": 2, "segmentation": [[1, 1, 5, 1, 5, 5]]} for i in range(10)]
    annotations.write_text(json.dumps({"images": [], "categories": [], "annotations": entries}))
    rows = tuple(RowConfig(name=f"row{share}", mask_share=share) for share in (0.2, 0.5, 1.0))
    train = NotingTrain()
    few = replace(grid, rows=rows, between=())
    kept = made(few, train, tmp_path / "out", overrides=[f"data.train_annotations={annotations}"])
    assert [row["row"] for row in kept] == [row.name for row in rows]
    detector, *masks = train.configs
    assert detector.data.train_annotations == masks[2].data.train_annotations == str(annotations)
    assert len({one.data.detector_from for one in masks}) == 1
    left = [
        sum(
            "segmentation" in entry
            for entry in json.loads(Path(one.data.train_annotations).read_text())["annotations"]
        )
        for one in masks
    ]
    assert left == [2, 5, 10]
    with pytest.raises(ValueError, match=r"mask_share is 2"):
        RowConfig(name="two", mask_share=2.0)


def test_auto_judges_by_the_split_that_the_network_was_trained_with(grid: GridConfig, tmp_path: Path) -> None:
    rows = (replace(ROWS[2], evaluate="auto"), replace(ROWS[2], name="all", evaluate="all"))
    by_auto, by_all = made(replace(grid, rows=rows, between=()), NotingTrain(), tmp_path / "out")
    assert (by_auto["results"]["a"]["classes"], by_all["results"]["a"]["classes"]) == (2, 4)


def test_real_trainings_on_drawn_data_give_rows_a_validation_and_an_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The experiments with nothing in the place of anything, as small as they can be."""
    drawn = GridConfig(
        about="A test.", preset="shapes", data="drawn", drawing=DrawingConfig(train=4, val=3), rows=ROWS[:3]
    )
    rows = made(drawn, real_train, tmp_path / "out", seeds=(0, 1), names="box,exact", overrides=TINY)
    assert [row["results"]["images"] for row in rows] == [3, 3, 3, 3]
    folders = [tmp_path / "out" / f"seed{seed}" for seed in (0, 1)]
    pictures = [folder / "data" / "val" / "000000.png" for folder in folders]
    assert pictures[0].read_bytes() != pictures[1].read_bytes()
    assert all(0 <= row["mask_iou_b"] <= 1 and row["seconds"]["evaluation"] > 0 for row in rows)
    assert [row["seconds"]["detector"] is None for row in rows] == [False, False, True, True]
    (exact, _) = (row for row in rows if row["row"] == "exact")
    checkpoint = Path(exact["checkpoint"])
    assert checkpoint.parent.parent == folders[0] / "runs"

    base = load_config(DEFAULT_CONFIG, TINY)
    settings = {"validate_transfer.steps": 1, "validate_transfer.candidates": "exact,residual"}
    own = {"output.dir": str(tmp_path / "run"), "data.detector_from": str(checkpoint)}
    validate_transfer.run(changed(base, {**drawn_data(folders[0] / "data"), **settings, **own}), real_train)
    written = json.loads((tmp_path / "run" / "validate_transfer.json").read_text())
    assert [one["name"] for one in written["judged"]] == ["exact", "residual"]
    capsys.readouterr()

    out = tmp_path / "evaluation"
    assert evaluate.main(["--checkpoint", str(checkpoint), "--out", str(out), "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "B (boxes only)" in shown and str(out / "sheet.png") in shown
    results = json.loads((out / "results.json").read_text())
    assert results["b"]["mask_iou"] == exact["mask_iou_b"]
    assert (out / "sheet.png").stat().st_size > 1000
    assert evaluate.main(["--checkpoint", str(tmp_path / "none.pt")]) == 2
    assert "none.pt" in capsys.readouterr().err


def test_two_processes_share_a_grid_and_train_nothing_twice(tmp_path: Path) -> None:
    (tmp_path / "two.toml").write_text(
        'about = "A test."\npreset = "shapes"\nseeds = 1\ndata = "drawn"\ndrawing = {train = 4, val = 2}\n'
        '[[rows]]\nname = "exact"\n[[rows]]\nname = "agnostic"\nset = ["model.transfer.kind=class_agnostic"]\n'
    )
    words = [str(tmp_path / "two.toml"), "--no-timing", "--out", str(tmp_path / "out"), *TINY]
    processes = [
        begin("training.experiments.__main__", *words, output=tmp_path / f"output{number}.txt")
        for number in range(2)
    ]
    done = [process.ended() for process in processes]
    assert [status for status, _ in done] == [0, 0], done
    text = "".join(output for _, output in done)
    assert text.count("stage detector: 2 steps") == 1 and text.count("stage mask: 1 steps") == 2
    assert text.count("| agnostic | 1 |") == 2  # both end with the whole table
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())["rows"]) == 2
