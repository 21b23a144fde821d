"""The inner validation: which form of the transfer function carries over to held-out classes of set A."""

import json
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from model.classes import ClassTable
from model.config import TransferConfig
from tests.training.data.coco_scene import CLASSES, KnowingNetwork, Scene, Thing, corner
from training.config import TrainingConfig, changed, config_from_dict, load_config, to_dict
from training.data.coco import training_set
from training.experiments import transfer_form as validate_transfer
from training.experiments.held_out import hold_out_groups
from training.experiments.transfer_form import CANDIDATES

FIVE = ClassTable(
    ids=(2, 5, 7, 9, 11), names=("ant", "bee", "cat", "dog", "eel"), has_mask=(True,) * 4 + (False,)
)
TWELVE = ClassTable(ids=tuple(range(1, 13)), names=tuple("abcdefghijkl"), has_mask=(True,) * 12)


class Stopped(Exception):
    pass


@dataclass
class NotingTrain:
    """Stands for the training: notes what it is asked for and writes the configuration as the checkpoint."""

    configs: list[TrainingConfig] = field(default_factory=list)
    resumed: list[bool] = field(default_factory=list)
    stop_at: int | None = None

    def __call__(self, config: TrainingConfig, *, resume: bool = False) -> Path:
        self.configs.append(config)
        self.resumed.append(resume)
        checkpoint = Path(config.output.dir) / "checkpoint.pt"
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_text(json.dumps(to_dict(config)))
        if len(self.configs) == self.stop_at:
            raise Stopped
        return checkpoint


@pytest.fixture
def scene() -> Scene:
    """Every class once in each of three images."""
    things = [Thing(i, corner(2, 1 + 12 * k, 11)) for k, i in enumerate(CLASSES.ids)]
    return Scene({image_id: list(things) for image_id in (1, 2, 3)})


@pytest.fixture
def config(tmp_path: Path, scene: Scene) -> TrainingConfig:
    images, annotations = scene.write(tmp_path / "data")
    changes = {
        "data.val_images": str(images),
        "data.val_annotations": str(annotations),
        "data.mask_classes": "ant,bee,cat",
        "schedule.end_to_end_steps": 0,
        "schedule.detector_steps": 50,
        "schedule.mask_steps": 20,
        "output.dir": str(tmp_path / "run"),
        "validate_transfer.candidates": "class_agnostic,exact,residual",
        "device": "cpu",
    }
    return changed(TrainingConfig(), changes)


@pytest.fixture(autouse=True)
def networks(monkeypatch: pytest.MonkeyPatch, scene: Scene) -> list[KnowingNetwork]:
    """The networks that `load_network` gives: on held-out classes `residual` is best, on the others `exact`."""
    given: list[KnowingNetwork] = []

    def load(path: Path) -> tuple[KnowingNetwork, ClassTable, dict[str, Any]]:
        config = config_from_dict(json.loads(path.read_text()))
        trained = Path(config.data.mask_classes).read_text().split()
        form = config.model.transfer
        held_out, others = (2, 2) if form.kind == "class_agnostic" else (1, 1) if form.residual else (4, 0)
        moved = {
            label: others if CLASSES.name_of_label(label) in trained else held_out for label in (1, 2, 3, 4)
        }
        given.append(KnowingNetwork(scene, labels_moved=moved))
        return given[-1], CLASSES, {}

    monkeypatch.setattr(validate_transfer, "load_network", load)
    return given


def validate(config: TrainingConfig, train: Callable[..., Path]) -> validate_transfer.Outcome:
    candidates = validate_transfer.chosen_candidates(config.validate_transfer.candidates)
    return validate_transfer.validate(config, train, candidates=candidates)


def test_the_form_best_on_held_out_classes_is_chosen_and_not_the_one_best_on_trained_classes(
    config: TrainingConfig,
) -> None:
    outcome = validate(config, NotingTrain())
    by_name = {one.name: one for one in outcome.judged}
    assert outcome.chosen == "residual"
    assert by_name["exact"].trained_iou == 1 and by_name["residual"].trained_iou < 1
    assert by_name["exact"].held_out_iou < by_name["class_agnostic"].held_out_iou
    assert by_name["class_agnostic"].held_out_iou < by_name["residual"].held_out_iou < 1


def test_held_out_classes_have_no_masks_in_training_and_the_others_of_set_a_have(
    config: TrainingConfig,
) -> None:
    train = NotingTrain()
    outcome = validate(config, train)
    ((held_out,),) = outcome.held_out
    for one in train.configs[1:]:
        assert set(Path(one.data.mask_classes).read_text().split()) == {"ant", "bee", "cat"} - {held_out}


def test_masks_of_set_b_are_neither_read_nor_asked_for(
    config: TrainingConfig, networks: list[KnowingNetwork], tmp_path: Path
) -> None:
    before = validate(config, NotingTrain())
    path = Path(config.data.val_annotations)
    document = json.loads(path.read_text())
    for annotation in document["annotations"]:
        if annotation["category_id"] == CLASSES.ids[3]:
            annotation["segmentation"] = "no mask at all"
    path.write_text(json.dumps(document))
    after = validate(changed(config, {"output.dir": str(tmp_path / "other")}), NotingTrain())
    assert [one.fold_ious for one in after.judged] == [one.fold_ious for one in before.judged]
    assert set.union(*(network.labels_asked for network in networks)) == {1, 2, 3}


def test_one_detector_is_trained_for_all_forms(config: TrainingConfig) -> None:
    train = NotingTrain()
    validate(config, train)
    detector, *forms = train.configs
    assert (detector.schedule.detector_steps, detector.schedule.mask_steps) == (50, 0)
    assert [one.model.transfer.kind for one in forms] == ["class_agnostic", "transfer", "transfer"]
    assert [one.model.transfer.residual for one in forms] == [False, False, True]
    for one in forms:
        assert one.data.detector_from == str(Path(detector.output.dir) / "checkpoint.pt")
        assert (one.schedule.end_to_end_steps, one.schedule.detector_steps) == (0, 0)
        assert one.schedule.mask_steps == config.validate_transfer.steps
    assert len({one.output.dir for one in train.configs}) == 4


def test_a_finished_detector_is_taken_as_it_is(config: TrainingConfig) -> None:
    train = NotingTrain()
    validate(changed(config, {"data.detector_from": "some/detector.pt"}), train)
    assert [one.data.detector_from for one in train.configs] == ["some/detector.pt"] * 3


@pytest.mark.parametrize(
    ("step", "changes", "taken"),
    [
        (70, {}, True),
        (50, {}, True),
        (70, {"model.transfer.residual": True}, True),
        (49, {}, False),
        (70, {"optimiser.learning_rate": 0.5}, False),
        (70, {"schedule.end_to_end_steps": 5}, False),
    ],
)
def test_the_runs_own_detector_is_taken_where_its_stage_is_done_and_it_is_the_same(
    config: TrainingConfig, step: int, changes: dict[str, Any], taken: bool
) -> None:
    own = Path(config.output.dir) / "checkpoint.pt"
    own.parent.mkdir()
    contents = {"format": 1, "model": {}, "model_config": {}, "classes": {}, "step": step}
    torch.save(contents | {"training_config": to_dict(changed(config, changes))}, own)
    train = NotingTrain()
    validate(config, train)
    assert len(train.configs) == (3 if taken else 4)
    assert (train.configs[-1].data.detector_from == str(own)) is taken


def test_finished_forms_are_not_trained_again_but_changed_ones_are(config: TrainingConfig) -> None:
    first, second, third = NotingTrain(), NotingTrain(), NotingTrain()
    outcome = validate(config, first)
    again = validate(config, second)
    assert len(first.configs) == 4
    assert len(second.configs) == 1  # the detector is asked for, and is finished
    assert again == outcome
    validate(changed(config, {"validate_transfer.steps": 7}), third)
    assert len(third.configs) == 4


def test_a_stopped_validation_goes_on_where_it_was(config: TrainingConfig) -> None:
    stopped, then = NotingTrain(stop_at=3), NotingTrain()
    with pytest.raises(Stopped):
        validate(config, stopped)
    validate(config, then)
    assert [one.output.dir for one in then.configs[1:]] == [
        stopped.configs[2].output.dir,
        then.configs[2].output.dir,
    ]
    assert then.resumed == [True, True, False]


def test_with_more_folds_every_class_of_set_a_is_held_out_in_turn(config: TrainingConfig) -> None:
    train = NotingTrain()
    outcome = validate(changed(config, {"validate_transfer.folds": 3}), train)
    assert sorted(name for group in outcome.held_out for name in group) == ["ant", "bee", "cat"]
    assert len(train.configs) == 1 + 3 * 3
    assert all(len(one.fold_ious) == 3 for one in outcome.judged)


def test_with_masks_as_they_come_classes_of_few_masks_are_held_out_too(
    config: TrainingConfig, scene: Scene, tmp_path: Path
) -> None:
    """Of the four classes that have masks the last has one alone, and is not in set A."""
    document = json.loads(Path(config.data.val_annotations).read_text())
    of_last = [one for one in document["annotations"] if one["category_id"] == CLASSES.ids[-1]]
    for one in of_last[1:]:
        one["segmentation"] = []
    few = tmp_path / "few.json"
    few.write_text(json.dumps(document))
    changes: dict[str, Any] = {"data.mask_classes": "auto", "data.train_images": config.data.val_images}
    changes |= {
        "data.train_annotations": str(few),
        "validate_transfer.groups": 4,
        "validate_transfer.folds": 4,
    }
    assert training_set(changed(config, changes)).classes.has_mask == (True, True, True, False)
    outcome = validate(changed(config, changes), NotingTrain())
    assert sorted(name for group in outcome.held_out for name in group) == sorted(CLASSES.names)


def test_where_cuda_was_asked_for_and_is_not_there_no_form_is_trained_or_judged_on_the_cpu(
    config: TrainingConfig, networks: list[KnowingNetwork], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    train = NotingTrain()
    with pytest.raises(ValueError, match="device is cuda, but torch"):
        validate(changed(config, {"device": "cuda"}), train)
    assert not train.configs and not networks


def test_the_run_prints_lines_that_set_the_chosen_form_and_writes_them(
    config: TrainingConfig, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    validate_transfer.run(config, NotingTrain())
    printed = capsys.readouterr().out
    lines = printed[
        printed.index("[model.transfer]") : printed.index(f"{config.output.dir}/validate_transfer.json")
    ]
    assert tomllib.loads(lines)["model"]["transfer"]["residual"] is True
    (tmp_path / "chosen.toml").write_text(lines)
    chosen = load_config(tmp_path / "chosen.toml").model.transfer
    assert chosen == TransferConfig(residual=True)
    written = json.loads((Path(config.output.dir) / "validate_transfer.json").read_text())
    assert written["chosen"] == "residual"
    assert changed(TrainingConfig(), written["settings"]).model.transfer == chosen


def test_every_candidate_is_a_configuration_of_its_own() -> None:
    made = {name: changed(TrainingConfig(), changes) for name, changes in CANDIDATES.items()}
    assert len(set(made.values())) == len(made)
    assert (
        made["exact_fan_in"].model.transfer == TransferConfig()
    )  # the paper's form is the default, its start ours
    assert made["exact"].model.transfer == TransferConfig(init="fan_out")
    assert made["class_agnostic"].model.transfer.kind == "class_agnostic"


def test_an_unknown_candidate_is_named() -> None:
    with pytest.raises(ValueError, match=r"no form is called exakt; there are all, or class_agnostic, exact"):
        validate_transfer.chosen_candidates("exakt, residual")


def test_groups_part_set_a_and_leave_set_b_out() -> None:
    groups = hold_out_groups(FIVE, dict.fromkeys(range(1, 6), 10), groups=3, seed=0)
    assert sorted(label for group in groups for label in group) == [1, 2, 3, 4]
    assert max(map(len, groups)) - min(map(len, groups)) == 1


def test_groups_have_about_as_many_objects_each() -> None:
    objects = {label: 2**label for label in range(1, 13)} | {12: 2100, 11: 2000, 10: 1900}
    sums = [
        sum(objects[label] for label in group) for group in hold_out_groups(TWELVE, objects, groups=3, seed=4)
    ]
    assert max(sums) < 1.3 * min(sums)


def test_another_seed_holds_out_other_classes() -> None:
    objects = dict.fromkeys(range(1, 13), 5)
    deals = [hold_out_groups(TWELVE, objects, groups=3, seed=seed) for seed in (0, 0, 1)]
    assert deals[0] == deals[1] != deals[2]


def test_a_class_without_objects_is_not_held_out_since_nothing_could_judge_it() -> None:
    groups = hold_out_groups(FIVE, {1: 4, 2: 4, 3: 4}, groups=3, seed=0)
    assert sorted(map(tuple, groups)) == [(1,), (2,), (3,)]


def test_too_few_classes_to_hold_one_out_are_refused() -> None:
    with pytest.raises(ValueError, match="3 groups of the 2 classes of set A"):
        hold_out_groups(FIVE, {1: 4, 2: 4, 5: 9}, groups=3, seed=0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"validate_transfer.folds": 4}, "folds is 4; give 1 to 3"),
        ({"validate_transfer.groups": 1}, "groups is 1"),
        ({"validate_transfer.steps": 0}, "steps is 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        changed(TrainingConfig(), changes)


def test_a_schedule_without_a_detector_is_refused(config: TrainingConfig) -> None:
    with pytest.raises(ValueError, match="no steps for a detector"):
        validate(changed(config, {"schedule.detector_steps": 0}), NotingTrain())
