"""Systems side by side over several seeds."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from model.classes import ClassTable
from tests.training.coco_scene import CLASSES, KnowingNetwork, usual_scene
from training import compare, evaluate, validate_transfer
from training.coco_results import AveragePrecision
from training.compare import FIGURES, Drawing, markdown
from training.config import DEFAULT_CONFIG, TrainingConfig, config_from_dict, load_config, to_dict
from training.evaluate import GroupResults, Results
from training.train import train as real_train
from training.variants import changed, mean_and_deviation


@dataclass
class NotingTrain:
    """Stands for the training: notes what it is asked for and writes the configuration as the checkpoint."""

    configs: list[TrainingConfig] = field(default_factory=list)

    def __call__(self, config: TrainingConfig, *, resume: bool = False) -> Path:
        self.configs.append(config)
        checkpoint = Path(config.output.dir) / "checkpoint.pt"
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_text(json.dumps(to_dict(config)))
        return checkpoint


SCENE = usual_scene()


@pytest.fixture
def config(tmp_path: Path) -> TrainingConfig:
    images, annotations = SCENE.write(tmp_path / "data")
    changes = {
        "data.val_images": str(images),
        "data.val_annotations": str(annotations),
        "data.mask_classes": "ant,cat",
        "model.transfer.residual": True,
        "schedule.end_to_end_steps": 0,
        "schedule.detector_steps": 50,
        "schedule.mask_steps": 20,
        "device": "cpu",
    }
    return changed(TrainingConfig(), changes)


@pytest.fixture(autouse=True)
def known_networks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """`load_network` gives a network whose masks are off by a row, for class-agnostic ones by two."""
    if "real" in request.node.name:
        return

    def load(path: Path) -> tuple[KnowingNetwork, ClassTable, dict[str, Any]]:
        config = config_from_dict(json.loads(path.read_text()))
        table = CLASSES
        if config.data.mask_classes == "all":
            table = replace(CLASSES, has_mask=(True,) * 4)
        rows = 2 if config.model.transfer.kind == "class_agnostic" else 1
        return KnowingNetwork(SCENE, rows=rows), table, {}

    monkeypatch.setattr(compare, "load_network", load)


def run(config: TrainingConfig, train: Any, folder: Path, **options: Any) -> list[dict[str, Any]]:
    return compare.compare(config, train, folder=folder, drawing=None, **({"seeds": [0]} | options))


def test_every_system_is_trained_in_its_form_on_the_one_detector_of_its_seed(
    config: TrainingConfig, tmp_path: Path
) -> None:
    train = NotingTrain()
    rows = run(config, train, tmp_path / "out", seeds=[0, 1])
    assert [(row["seed"], row["system"]) for row in rows] == [
        (s, name) for s in (0, 1) for name in compare.SYSTEMS
    ]
    for seed in (0, 1):
        mine = [one for one in train.configs if one.seed == seed]
        detectors = [one for one in mine if one.schedule.detector_steps]
        masks = [one for one in mine if one.schedule.mask_steps]
        assert len({one.output.dir for one in detectors}) == 1
        assert {one.data.detector_from for one in masks} == {
            str(Path(detectors[0].output.dir) / "checkpoint.pt")
        }
        assert [one.model.transfer.kind for one in masks] == ["class_agnostic"] + 3 * ["transfer"]
        assert [one.model.transfer.residual for one in masks] == [False, False, True, True]
        assert [one.data.mask_classes for one in masks] == 3 * ["ant,cat"] + ["all"]
        assert {one.schedule.mask_steps for one in masks} == {20}
        assert {one.schedule.detector_steps for one in masks} == {0}


def test_the_oracle_is_judged_by_the_split_of_the_others(config: TrainingConfig, tmp_path: Path) -> None:
    (row,) = run(config, NotingTrain(), tmp_path / "out", systems=["oracle"])
    assert row["results"]["b"]["classes"] == 2 and row["mask_iou_b"] is not None
    assert row["results"]["a"]["objects"] == 6


def test_the_box_system_is_judged_by_filled_boxes(config: TrainingConfig, tmp_path: Path) -> None:
    train = NotingTrain()
    box, agnostic = run(config, train, tmp_path / "out", systems=["box", "class_agnostic"])
    assert box["mask_iou_b"] == agnostic["results"]["b"]["box_fill"] != agnostic["mask_iou_b"]
    assert box["mask_ap_a"] == agnostic["results"]["a"]["filled_box"]["ap"] != agnostic["mask_ap_a"]
    assert box["box_ap50"] == agnostic["box_ap50"] == pytest.approx(1)
    assert [one.schedule.mask_steps for one in train.configs] == [
        0,
        0,
        20,
    ]  # nothing but the detector for the box


def test_finished_rows_are_kept_and_changed_ones_made_anew(config: TrainingConfig, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    first, second, third = NotingTrain(), NotingTrain(), NotingTrain()
    rows = run(config, first, folder, systems=["class_agnostic", "chosen"])
    assert run(config, second, folder, systems=["class_agnostic", "chosen"]) == rows and not second.configs
    again = run(
        changed(config, {"model.transfer.noise": 0.5}),
        third,
        folder,
        systems=["class_agnostic", "chosen", "exact"],
    )
    trained = [one for one in third.configs if one.schedule.mask_steps]
    assert [(one.model.transfer.residual, one.model.transfer.noise) for one in trained] == [
        (True, 0.5),
        (False, 0.0),
    ]
    assert again[0] == rows[0]
    assert len(json.loads((folder / "compare.json").read_text())["rows"]) == 4


def test_a_row_is_written_before_the_next_is_begun(config: TrainingConfig, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    known = NotingTrain()

    def fails_at_exact(config: TrainingConfig, *, resume: bool = False) -> Path:
        if config.schedule.mask_steps and config.model.transfer.kind == "transfer":
            raise RuntimeError("power cut")
        return known(config, resume=resume)

    with pytest.raises(RuntimeError, match="power cut"):
        run(config, fails_at_exact, folder, systems=["class_agnostic", "exact"])
    assert [row["system"] for row in json.loads((folder / "compare.json").read_text())["rows"]] == [
        "class_agnostic"
    ]
    assert "class_agnostic" in (folder / "compare.md").read_text()


def test_forms_of_the_inner_validation_are_systems_too(config: TrainingConfig, tmp_path: Path) -> None:
    train = NotingTrain()
    run(config, train, tmp_path / "out", systems=["one_layer"])
    assert train.configs[-1].model.transfer.layers == 1


def test_an_unknown_system_is_refused_before_anything_is_trained(
    config: TrainingConfig, tmp_path: Path
) -> None:
    train = NotingTrain()
    with pytest.raises(ValueError, match="'exakt'.*class_agnostic, exact"):
        run(config, train, tmp_path / "out", systems=["box", "exakt"])
    assert not train.configs


def test_a_schedule_without_mask_steps_is_refused(config: TrainingConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"schedule.mask_steps is 0"):
        run(changed(config, {"schedule.mask_steps": 0}), NotingTrain(), tmp_path / "out")


def test_figures_come_from_the_group_they_are_named_after() -> None:
    def group(tens: float) -> GroupResults:
        def precision(units: float) -> AveragePrecision:
            return AveragePrecision(
                ap=tens + units,
                ap50=tens + units + 0.5,
                ap75=None,
                ap_small=None,
                ap_medium=None,
                ap_large=None,
            )

        return GroupResults(
            classes=1,
            objects=1,
            box=precision(1),
            mask=precision(2),
            filled_box=precision(3),
            mask_iou=tens + 4,
            box_fill=tens + 5,
        )

    results = Results(
        images=1, score_threshold=0.05, skipped={}, a=group(10), b=group(20), all=group(30), classes=()
    )
    assert compare.figures_of(results, filled=False) == {
        "box_ap50_a": 11.5,
        "box_ap50_b": 21.5,
        "box_ap50": 31.5,
        "mask_ap_a": 12,
        "mask_ap_b": 22,
        "mask_ap50_a": 12.5,
        "mask_ap50_b": 22.5,
        "mask_iou_a": 14,
        "mask_iou_b": 24,
    }
    filled = compare.figures_of(results, filled=True)
    assert (filled["mask_ap_b"], filled["mask_ap50_a"], filled["mask_iou_a"]) == (23, 13.5, 15)
    assert filled["box_ap50_a"] == 11.5


def test_the_table_shows_mean_and_deviation_over_seeds() -> None:
    rows: list[dict[str, Any]] = [
        {"system": "chosen", "seed": seed, **dict.fromkeys(FIGURES, value)}
        for seed, value in enumerate((0.1, 0.2, 0.3))
    ]
    rows.append({"system": "box", "seed": 0, **dict.fromkeys(FIGURES, 0.5), "mask_ap_b": None})
    head, rule, chosen, box = markdown(rows).splitlines()
    assert head.count("|") == rule.count("|") == chosen.count("|") == box.count("|") == len(FIGURES) + 3
    assert chosen.startswith("| chosen | 3 | 20.0 ± 10.0 |")
    assert box.split(" | ")[2] == "50.0" and box.split(" | ")[2 + list(FIGURES).index("mask_ap_b")] == "-"


def test_the_deviation_is_that_of_a_sample() -> None:
    mean, deviation = mean_and_deviation([1.0, 2.0, 3.0, 6.0])
    assert mean == 3 and deviation == pytest.approx((14 / 3) ** 0.5)
    assert mean_and_deviation([4.0]) == (4.0, None)


TINY = [
    "model.input.min_size=64",
    "model.input.max_size=64",
    "model.backbone.fpn_channels=16",
    "model.box.width=32",
    "model.mask.width=16",
    "schedule.detector_steps=2",
    "schedule.mask_steps=1",
    "schedule.batch_size=2",
    "data.workers=0",
    "output.tensorboard=false",
    "device=cpu",
    "threads=1",
]


def test_real_trainings_on_drawn_data_give_rows_a_validation_and_an_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The experiments with nothing in the place of anything, as small as they can be."""
    base = load_config(DEFAULT_CONFIG, TINY)
    rows = compare.compare(
        base,
        real_train,
        seeds=[0, 1],
        systems=["box", "exact"],
        folder=tmp_path / "compare",
        drawing=Drawing(train=4, val=3),
    )
    assert [row["results"]["images"] for row in rows] == [3, 3, 3, 3]
    pictures = [tmp_path / "compare" / f"seed{seed}" / "data" / "val" / "000000.png" for seed in (0, 1)]
    assert pictures[0].read_bytes() != pictures[1].read_bytes()
    assert all(0 <= row["mask_iou_b"] <= 1 for row in rows)
    (checkpoint,) = (tmp_path / "compare" / "seed0" / "exact").glob("*/checkpoint.pt")

    data = compare.drawn_data(tmp_path / "compare" / "seed0" / "data")
    settings = {"validate_transfer.steps": 1, "validate_transfer.candidates": "exact,residual"}
    own = {"output.dir": str(tmp_path / "run"), "data.detector_from": str(checkpoint)}
    validate_transfer.run(changed(base, {**data, **settings, **own}), real_train)
    written = json.loads((tmp_path / "run" / "validate_transfer.json").read_text())
    assert [one["name"] for one in written["judged"]] == ["exact", "residual"]
    capsys.readouterr()

    out = tmp_path / "evaluation"
    assert evaluate.main(["--checkpoint", str(checkpoint), "--out", str(out), "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "B (boxes only)" in shown and str(out / "sheet.png") in shown
    results = json.loads((out / "results.json").read_text())
    assert results["b"]["mask_iou"] == rows[1]["mask_iou_b"]
    assert (out / "sheet.png").stat().st_size > 1000
    assert evaluate.main(["--checkpoint", str(tmp_path / "none.pt")]) == 2
    assert "none.pt" in capsys.readouterr().err
