"""The training loop on a tiny set: what it writes, how it stops, and that it goes on as if it had never stopped."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoint import load_checkpoint, load_network
from tests.training.processes import begin
from tests.training.tiny_set import equal, rows, tiny_changes, weights, write_tiny_set
from training.run import Run
from training.train import main

Words = list[str]
Train = Callable[..., int]


@pytest.fixture
def run(tiny_set: Path, tmp_path: Path) -> Train:
    """Train in `tmp_path`/run with further words on the command line; the exit status."""
    return lambda *words: main([*tiny_changes(tiny_set, tmp_path / "run"), *words])


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


# ---- what a run writes ----


def test_a_run_ends_with_a_checkpoint_that_loads_and_a_row_for_every_step(run: Train, out: Path) -> None:
    assert run() == 0
    _, classes, contents = load_network(out / "checkpoint.pt")
    assert contents["step"] == 4 and contents["finished"] and classes.names == ("brick", "tile", "slab")
    assert classes.has_mask == (True, True, False)
    assert contents["training_config"]["model"] == contents["model_config"]
    written = rows(out)
    assert [(row["step"], row["stage"]) for row in written] == [
        ("1", "detector"), ("2", "detector"), ("3", "mask"), ("4", "mask")
    ]  # fmt: skip
    for row in written:
        empty = {key for key, value in row.items() if value == ""}
        detector = {"loss_objectness", "loss_rpn_box", "loss_class", "loss_box"}
        assert empty == (detector if row["stage"] == "mask" else {"loss_mask"})
        assert all(float(row[key]) >= 0 for key in row.keys() - empty - {"stage"})
        assert float(row["images_per_second"]) > 0 and float(row["learning_rate"]) > 0


def test_the_loss_is_the_sum_of_the_losses_times_their_weights(run: Train, out: Path) -> None:
    assert run("loss_weights.loss_box=10", "loss_weights.loss_class=0", "optimiser.clip_norm=0") == 0
    row = {key: float(value) for key, value in rows(out)[0].items() if key != "stage" and value}
    wanted = row["loss_objectness"] + row["loss_rpn_box"] + 10 * row["loss_box"]
    assert row["loss"] == pytest.approx(wanted, rel=1e-4)


def test_the_mask_stage_moves_the_mask_branch_and_nothing_else(run: Train, out: Path) -> None:
    assert run("schedule.mask_steps=0") == 0
    detector = weights(out)
    assert run("--resume") == 0
    moved = {key for key, value in weights(out).items() if not torch.equal(value, detector[key])}
    assert moved and all(key.startswith(("mask_branch.", "mask_weights.")) for key in moved)


def test_the_detector_stage_leaves_the_mask_branch_as_it_began(run: Train, out: Path) -> None:
    assert run("schedule.mask_steps=0", "schedule.detector_steps=1") == 0
    one = weights(out)
    assert run("schedule.mask_steps=0", "schedule.detector_steps=2", "--restart") == 0
    moved = {key for key, value in weights(out).items() if not torch.equal(value, one[key])}
    assert moved and not any(key.startswith(("mask_branch.", "mask_weights.")) for key in moved)


def test_end_to_end_training_moves_both_sides(run: Train, out: Path) -> None:
    stages = ["schedule.end_to_end_steps=2", "schedule.detector_steps=0", "schedule.mask_steps=0"]
    assert run(*stages) == 0
    assert all(row["stage"] == "end_to_end" and "" not in row.values() for row in rows(out))


def test_the_mask_stage_has_a_learning_rate_of_its_own(run: Train, out: Path) -> None:
    words = ["optimiser.learning_rate=1e-3", "optimiser.mask_learning_rate=5e-4", "schedule.decay=none"]
    assert run(*words, "schedule.warmup_steps=0") == 0
    assert [float(row["learning_rate"]) for row in rows(out)] == [1e-3, 1e-3, 5e-4, 5e-4]


def test_a_finished_detector_is_taken_from_another_run(run: Train, out: Path, tmp_path: Path) -> None:
    assert run("schedule.mask_steps=0") == 0
    other = tmp_path / "other"
    start = f"data.detector_from={out / 'checkpoint.pt'}"
    assert run(start, "schedule.detector_steps=0", f"output.dir={other}") == 0
    detector, whole = weights(out), weights(other)
    taken = [key for key in whole if not key.startswith(("mask_branch.", "mask_weights."))]
    assert taken and all(torch.equal(whole[key], detector[key]) for key in taken)


def test_clipping_keeps_the_step_of_sgd_within_rate_times_norm(run: Train, out: Path) -> None:
    words = [f"optimiser.{word}" for word in ("name=sgd", "weight_decay=0", "momentum=0", "learning_rate=1")]
    words += [
        f"schedule.{word}" for word in ("warmup_steps=0", "detector_steps=1", "mask_steps=0", "decay=none")
    ]
    assert run(*words, "optimiser.clip_norm=1e-6") == 0
    clipped = weights(out)
    assert run(*words, "optimiser.clip_norm=0.01", "--restart") == 0
    loose = weights(out)
    names = [key for key, _ in load_network(out / "checkpoint.pt")[0].named_parameters()]
    moved = torch.stack([(loose[key] - clipped[key]).square().sum() for key in names]).sum().sqrt()
    assert 0.009 < float(moved) < 0.011


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(run: Train, out: Path) -> None:
    states = []
    for seed in ("1", "1", "2"):
        assert run("--seed", seed, "--restart") == 0
        states.append(weights(out))
    assert equal(states[0], states[1]) and not equal(states[1], states[2])


def test_tensorboard_gets_the_figures_of_the_log(run: Train, out: Path) -> None:
    accumulator = import_module("tensorboard.backend.event_processing.event_accumulator")
    assert run("output.tensorboard=true") == 0
    events = accumulator.EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    shown = {event.step: event.value for event in events.Scalars("loss")}
    assert shown == pytest.approx({int(row["step"]): float(row["loss"]) for row in rows(out)}, rel=1e-4)


# ---- going on ----


def test_a_run_made_longer_goes_on_and_the_rest_of_a_finished_one_is_nothing(run: Train, out: Path) -> None:
    assert run() == 0
    before = (out / "checkpoint.pt").stat().st_mtime_ns
    assert run("--resume") == 0
    assert (out / "checkpoint.pt").stat().st_mtime_ns == before
    assert run("--resume", "schedule.mask_steps=3") == 0
    assert [row["step"] for row in rows(out)] == ["1", "2", "3", "4", "5"]


def test_a_run_goes_on_with_the_configuration_of_its_checkpoint_wherever_it_lies_now(
    run: Train, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    moved = [f"output.dir={out.rename(tmp_path / 'moved')}", "--resume"]
    assert main(moved) == 0
    assert "going on at step 4 of 4" in capsys.readouterr().out
    assert main([*moved, "schedule.mask_steps=3"]) == 0
    assert [row["step"] for row in rows(tmp_path / "moved")] == ["1", "2", "3", "4", "5"]
    assert main([*moved, "seed=5"]) == 2
    assert "seed was 0, is 5" in capsys.readouterr().err
    assert main([*moved, "--config", "training/presets/shapes.toml"]) == 2
    assert "with another configuration" in capsys.readouterr().err


def test_make_gives_a_run_that_was_begun_only_the_settings_that_it_is_given(tmp_path: Path) -> None:
    def commands(*words: str) -> list[list[str]]:
        done = subprocess.run(
            ["make", "--dry-run", "train", f"RUN={tmp_path}", *words],
            capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        lines = done.stdout.splitlines()
        return [line.partition("training.train")[2].split() for line in lines if "-m training.train" in line]

    there = ["--resume", f"output.dir={tmp_path}"]
    assert commands() == [["--config", "training/presets/shapes.toml", *there]]
    (tmp_path / "checkpoint.pt").touch()
    assert commands() == [there]
    (tmp_path / "finished").touch()
    assert commands() == []
    assert commands("ARGS=seed=1") == [[*there, "seed=1"]]
    assert commands("CONFIG=a.toml") == [["--config", "a.toml", *there]]


def test_a_run_that_is_there_is_neither_overwritten_nor_mixed_up(
    run: Train, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    before = (out / "checkpoint.pt").read_bytes()
    capsys.readouterr()
    assert run() == 2
    assert "is there already: --resume goes on from it" in capsys.readouterr().err
    assert run("--resume", "seed=5", "optimiser.weight_decay=0.5") == 2
    error = capsys.readouterr().err
    assert "optimiser.weight_decay was 0.01, is 0.5; seed was 0, is 5" in error and error.count("\n") == 1
    assert (out / "checkpoint.pt").read_bytes() == before


def test_resuming_where_nothing_was_starts_and_says_so(
    run: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--resume") == 0
    assert "no checkpoint yet, starting from the beginning" in capsys.readouterr().out


def test_a_run_does_not_go_on_with_other_data(
    run: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("brick\ntile\n")
    assert run(f"data.mask_classes={names}") == 0
    names.write_text("brick\n")
    assert run(f"data.mask_classes={names}", "--resume") == 2
    assert "which of them have masks, are not those of the run" in capsys.readouterr().err


LONG = ["schedule.detector_steps=12", "schedule.mask_steps=12", "model.transfer.dropout=0.2"]


def signalled_after(step: int, number: signal.Signals) -> None:
    """The training is sent a signal when so many steps are done: SIGKILL alone, others with its loader workers."""
    train_on = Run.train_on

    def signalled(run: Run, *batch: Any) -> Any:
        if run.step == step:
            os.kill(os.getpid() if number == signal.SIGKILL else 0, number)
        return train_on(run, *batch)

    Run.train_on = signalled  # type: ignore[method-assign, assignment]


def stop_at(step: int, number: signal.Signals, words: Words, output: Path) -> tuple[int, str]:
    """Train with the arguments `words` in a process group of its own, signalled after `step`: status and output."""
    before = partial(signalled_after, step, number)
    return begin("training.train", *words, output=output, before=before).ended()


@pytest.mark.timeout(900)
def test_a_run_killed_and_interrupted_ends_with_the_weights_of_one_left_alone(
    tiny_set: Path, tmp_path: Path
) -> None:
    """Bit for bit, with two loader workers, through both stages, the optimiser's state and dropout."""
    alone, broken = tmp_path / "alone", tmp_path / "broken"
    more = ["data.workers=2", *LONG]
    words = [*tiny_changes(tiny_set, alone), *more]
    assert main(words) == 0
    words = [*tiny_changes(tiny_set, broken), *more, "output.checkpoint_every=2", "--resume"]

    status, output = stop_at(5, signal.SIGKILL, words, tmp_path / "killed.txt")
    assert status == -signal.SIGKILL and load_checkpoint(broken / "checkpoint.pt")["step"] == 4, output

    status, output = stop_at(14, signal.SIGINT, words, tmp_path / "interrupted.txt")
    assert status == 130 and load_checkpoint(broken / "checkpoint.pt")["step"] == 15, output
    assert "stopped by SIGINT at step 15" in output and "--resume" in output
    assert "Traceback" not in output

    status, output = begin("training.train", *words, output=tmp_path / "last.txt").ended()
    assert status == 0, output
    assert equal(weights(alone), weights(broken))
    assert [row["step"] for row in rows(broken)] == [str(step) for step in range(1, 25)]
    assert [row["loss"] for row in rows(broken)] == [row["loss"] for row in rows(alone)]


# ---- mistakes ----


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(
    run: Train, out: Path, tiny_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["optimiser.name=sgd", "optimiser.learning_rate=1e30", "schedule.warmup_steps=0"]
    assert run(*words, "output.checkpoint_every=1") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: step 2: loss_") and "is not finite" in error and "loss_box" in error
    assert f"{out / 'checkpoint.pt'} holds the last good state" in error
    known = {image["id"] for image in json.loads((tiny_set / "train.json").read_text())["images"]}
    named = error.partition("image ids of the batch: ")[2].partition(".")[0]
    assert len(named.split(", ")) == 2 and {int(number) for number in named.split(", ")} <= known
    assert load_checkpoint(out / "checkpoint.pt")["step"] == 1
    assert all(bool(value.isfinite().all()) for value in weights(out).values())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_breaks_during_the_run_is_one_line_with_its_name(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], workers: int
) -> None:
    folder, out = tmp_path / "set", tmp_path / "run"
    write_tiny_set(folder, images=2)
    for picture in (folder / "images").iterdir():
        data = picture.read_bytes()
        picture.write_bytes(data[: len(data) // 2])  # the header, which is looked at before, is whole
    assert main([*tiny_changes(folder, out), f"data.workers={workers}"]) == 2
    error = capfd.readouterr().err
    (line,) = (line for line in error.splitlines() if line.startswith("error: "))
    assert (
        line.startswith("error: step 1: none of 5 images") and ".png: " in line and "Traceback" not in error
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["schedule.mask_step=1"],
            "error: unknown key schedule.mask_step: did you mean schedule.mask_steps?",
        ),
        (["data.train_annotations=gone.json"], "gone.json"),
        (["data.mask_classes=brik"], "brik"),
        (["--mask-classes", "brik"], "brik"),
        (["data.detector_from=gone.pt"], "gone.pt: no such checkpoint"),
        (["--config", "gone.toml"], "gone.toml: no such configuration file"),
        (["schedule.detector_steps=0", "schedule.mask_steps=0"], "no steps: set end_to_end_steps"),
        (["seed=-2"], "seed is -2"),
        (["--seed", "-2"], "seed is -2"),
    ],
)
def test_a_users_mistake_is_one_line_and_nothing_is_written(
    run: Train, out: Path, capsys: pytest.CaptureFixture[str], words: Words, message: str
) -> None:
    assert run(*words) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if not line.startswith("checking images: ")]
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]
    assert not out.exists()


def test_a_gpu_that_was_asked_for_and_is_not_there_is_an_error(
    run: Train, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run("--device", "cuda") == 2
    assert "device is cuda, but torch" in capsys.readouterr().err
