"""Training with objects that have boxes only: the schedule of their losses, the teacher, and going on bit for bit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoint import load_checkpoint, load_network
from model.network import MaskXRCNN
from tests.model.small_network import small_network
from tests.training.tiny_set import equal, rows, tiny_changes, weights, write_tiny_set
from training.config import BoxLossesConfig, TeacherConfig, box_only_weights, load_config
from training.run import Run
from training.teacher import Teacher
from training.train import main

ON = ["box_losses.projection=1", "box_losses.pairwise=0.5", "teacher.weight=0.5"]
TWENTY = ["schedule.end_to_end_steps=10", "schedule.detector_steps=0", "schedule.mask_steps=10"]
NEW = ["loss_projection", "loss_pairwise", "loss_pseudo_mask"]
Train = Callable[..., int]


@pytest.fixture
def run(tiny_set: Path, tmp_path: Path) -> Train:
    """Train in `tmp_path`/`out` with further words on the command line; the exit status."""
    return lambda *words, out="run", data=tiny_set: main([*tiny_changes(data, tmp_path / out), *words])


# ---- twenty steps ----


def test_twenty_steps_with_everything_on_log_every_loss_and_leave_a_checkpoint_that_loads(
    run: Train, tmp_path: Path
) -> None:
    assert run(*ON, *TWENTY) == 0
    written = rows(tmp_path / "run")
    assert len(written) == 20
    for row in written:
        assert all(float(row[name]) >= 0 for name in [*NEW, "loss_mask"])
    assert sum(float(row["loss_pseudo_mask"]) > 0 for row in written) >= 4
    network, _, contents = load_network(tmp_path / "run" / "checkpoint.pt")
    teacher = contents["teacher"]["model"]
    assert contents["teacher"]["updates"] == 10  # of the last stage
    assert teacher.keys() == network.state_dict().keys()
    assert all(bool(value.isfinite().all()) for value in teacher.values())
    differing = {
        key.split(".")[0] for key, value in network.state_dict().items() if not value.equal(teacher[key])
    }
    assert differing == {"mask_branch", "mask_weights"}  # the detector stands still in stage "mask"


def test_the_loss_of_a_step_is_the_sum_with_the_weights_of_that_step(run: Train, tmp_path: Path) -> None:
    steps = ["schedule.detector_steps=0", "schedule.mask_steps=6"]
    assert run(*ON, *steps, "box_losses.warmup_steps=2", "teacher.warmup_steps=2") == 0
    for step, row in enumerate(rows(tmp_path / "run")):
        figures = {name: float(row[name]) for name in [*NEW, "loss_mask", "loss"]}
        wanted = figures["loss_mask"] + figures["loss_projection"]
        wanted += 0.5 * (0.5 if step == 0 else 1.0) * figures["loss_pairwise"]
        wanted += (0.0 if step < 2 else 0.5) * figures["loss_pseudo_mask"]
        assert figures["loss"] == pytest.approx(wanted, rel=1e-4), step


def test_the_masks_of_set_b_in_the_file_change_nothing(run: Train, tmp_path: Path) -> None:
    spoilt = tmp_path / "spoilt"
    write_tiny_set(spoilt)
    document = json.loads((spoilt / "train.json").read_text())
    of_b = [one for one in document["annotations"] if one["category_id"] == 3]
    for one in of_b:
        one["segmentation"] = {"no": ["mask", None]}
    (spoilt / "train.json").write_text(json.dumps(document))
    assert of_b
    assert run(*ON) == 0
    assert run(*ON, out="other", data=spoilt) == 0
    assert equal(weights(tmp_path / "run"), weights(tmp_path / "other"))


@pytest.mark.parametrize(
    ("words", "columns"),
    [
        ([], set()),
        (["teacher.weight=0.5"], {"loss_pseudo_mask"}),
        (["box_losses.projection=1"], {"loss_projection", "loss_pairwise"}),
    ],
)
def test_a_weight_of_its_own_is_what_switches_each_on(
    run: Train, tmp_path: Path, words: list[str], columns: set[str]
) -> None:
    assert run(*words, "schedule.detector_steps=0", "schedule.mask_steps=1") == 0
    assert set(NEW) & set(rows(tmp_path / "run")[0]) == columns
    assert ("teacher" in load_checkpoint(tmp_path / "run" / "checkpoint.pt")) == (
        "loss_pseudo_mask" in columns
    )


# ---- going on ----


@pytest.mark.parametrize("broken_off_at", [2, 5])
def test_a_run_broken_off_goes_on_to_the_same_weights_and_the_same_teacher(
    run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken_off_at: int
) -> None:
    """Bit for bit, in the middle of either stage, after the teacher's warm-up and with dropout."""
    words = [*ON, "teacher.warmup_steps=1", "box_losses.warmup_steps=2", "model.transfer.dropout=0.2"]
    words += ["schedule.end_to_end_steps=4", "schedule.detector_steps=0", "schedule.mask_steps=4"]
    assert run(*words, out="alone") == 0

    step = Run.train_on

    def break_off(self: Run, *arguments: Any) -> dict[str, float]:
        if self.step == broken_off_at:
            raise KeyboardInterrupt
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "train_on", break_off)
        assert run(*words, "output.checkpoint_every=1") == 130
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] == broken_off_at
    assert run(*words, "output.checkpoint_every=1", "--resume") == 0
    alone, broken = (load_checkpoint(tmp_path / out / "checkpoint.pt") for out in ("alone", "run"))
    assert equal(alone["model"], broken["model"])
    assert equal(alone["teacher"]["model"], broken["teacher"]["model"])
    assert alone["teacher"]["updates"] == broken["teacher"]["updates"] == 4


def test_a_run_does_not_go_on_with_other_box_losses_or_another_teacher(
    run: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*ON) == 0
    assert run("--resume", *ON, "teacher.momentum=0.9", "box_losses.margin=0.2") == 2
    error = capsys.readouterr().err
    assert "box_losses.margin was 0.1, is 0.2; teacher.momentum was 0.999, is 0.9" in error


# ---- the teacher ----


def nudged(network: MaskXRCNN, seed: int) -> None:
    torch.manual_seed(seed)
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.randn_like(value))
            else:
                value.add_(seed)


def test_the_teacher_is_the_moving_average_of_every_weight_and_statistic() -> None:
    network = small_network()
    teacher = Teacher(network, momentum=0.15)
    slow = {name: value.double().clone() for name, value in network.state_dict().items()}
    for update in range(4):
        nudged(network, update + 1)
        teacher.follow(network)
        kept = min(0.15, (1 + update) / (10 + update))
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                slow[name] = kept * slow[name] + (1 - kept) * value.double()
            else:
                slow[name] = value.double()
    for name, value in teacher.network.state_dict().items():
        torch.testing.assert_close(value.double(), slow[name], atol=1e-5, rtol=1e-5, msg=name)
    assert teacher.updates == 4


def test_the_teacher_shares_nothing_with_the_network_and_is_not_trained() -> None:
    network = small_network().train()
    teacher = Teacher(network, momentum=0.9)
    before = {name: value.clone() for name, value in teacher.network.state_dict().items()}
    nudged(network, 1)
    assert equal(teacher.network.state_dict(), before)
    assert not teacher.network.training
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())


def test_a_teacher_comes_back_from_its_state_and_refuses_another_networks() -> None:
    teacher, other = Teacher(small_network(), momentum=0.9), Teacher(small_network(seed=1), momentum=0.9)
    teacher.follow(small_network(seed=2))
    other.restore(teacher.state(), source="here")
    assert equal(other.network.state_dict(), teacher.network.state_dict()) and other.updates == 1
    with pytest.raises(ValueError, match="here: .* weights are missing"):
        Teacher(small_network(num_classes=4), momentum=0.9).restore(teacher.state(), source="here")


# ---- settings ----


def test_the_pairwise_loss_rises_and_the_teachers_masks_begin_after_their_warm_up() -> None:
    box_losses = BoxLossesConfig(projection=2, pairwise=1, warmup_steps=4)
    teacher = TeacherConfig(weight=0.5, warmup_steps=3)
    weights = [box_only_weights(box_losses, teacher, step, of=100) for step in range(6)]
    assert [w["loss_projection"] for w in weights] == [2] * 6
    assert [w["loss_pairwise"] for w in weights] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert [w["loss_pseudo_mask"] for w in weights] == [0, 0, 0, 0.5, 0.5, 0.5]


def test_at_most_half_of_a_stage_is_warm_up_and_one_of_none_starts_at_once() -> None:
    box_losses, teacher = BoxLossesConfig(pairwise=1), TeacherConfig(weight=1)
    weights = [box_only_weights(box_losses, teacher, step, of=4) for step in range(4)]
    assert [w["loss_pairwise"] for w in weights] == [0.5, 1, 1, 1]
    assert [w["loss_pseudo_mask"] for w in weights] == [0, 0, 1, 1]
    at_once = BoxLossesConfig(pairwise=1, warmup_steps=0).weights(0, of=10)
    assert at_once == {"loss_projection": 0, "loss_pairwise": 1}
    assert TeacherConfig(weight=1, warmup_steps=0).weights(0, of=10) == {"loss_pseudo_mask": 1}


def test_by_default_there_is_neither() -> None:
    assert box_only_weights(BoxLossesConfig(), TeacherConfig(), 5, of=10) == {}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("box_losses.projection=-1", "projection is -1.0"),
        ("box_losses.pairwise=-1", "pairwise is -1.0"),
        ("box_losses.warmup_steps=-1", "warmup_steps is -1"),
        ("box_losses.colour_threshold=1.5", "colour_threshold is 1.5"),
        ("box_losses.margin=2", "margin is 2.0"),
        ("box_losses.color_threshold=0.1", "did you mean box_losses.colour_threshold"),
        ("teacher.weight=-1", "weight is -1.0"),
        ("teacher.momentum=1", "momentum is 1"),
        ("teacher.mask_threshold=0", "mask_threshold is 0.0"),
        ("teacher.warmup_steps=-1", "warmup_steps is -1"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_by_name(word: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config("training/presets/shapes.toml", [word])
