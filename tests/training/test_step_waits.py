"""A whole step of a training: the host waits for the RoIs it drew and for the figures, and for nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import training.data.colour
from tests.model.test_step_operations import watched
from tests.training.tiny_set import tiny_changes, write_tiny_set
from training.config import load_config
from training.data.sampler import SeededBatches
from training.distributed import ALONE
from training.run import Run
from training.schedule import Stage
from training.train import prepared

Started = Callable[..., tuple[Run, Any]]


@pytest.fixture
def started(tmp_path: Path) -> Started:
    write_tiny_set(tmp_path)

    def start(stage: Stage, *changes: str) -> tuple[Run, Any]:
        words = [*tiny_changes(tmp_path, tmp_path / "out"), f"schedule.{stage}_steps=4", *changes]
        run, data = prepared(
            load_config("training/presets/shapes.toml", words), ALONE, resume=False, restart=False
        )
        run.begin(stage)
        return run, data

    return start


def batch(data: Any, count: int) -> tuple[Any, Any]:
    (pairs,) = SeededBatches(size=len(data), batch_size=count, batches=1, seed=0)
    images, targets = zip(*(data[pair] for pair in pairs), strict=True)
    return list(images), list(targets)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_step_waits_twice_whatever_the_batch_with_every_augmentation(
    started: Started, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    colours = [f"augment.{kind}=0.2" for kind in ("brightness", "contrast", "saturation", "hue")]
    run, data = started(
        "end_to_end",
        *colours,
        "augment.on_device=true",
        "augment.scale_jitter=[0.8, 1.25]",
        f"optimiser.name={name}",
    )
    run.network.batched = True
    waits, operations = [], []
    for count in (2, 6):
        images, targets = batch(data, count)
        assert all("colours" in known for known in targets)
        with watched(run.network, monkeypatch) as device:
            monkeypatch.setattr(training.data.colour, "moved", lambda tensors, to: list(tensors))
            figures = run.train_on(images, targets)
        waits.append(device.waits)
        operations.append(device.total)
        assert figures["loss_mask"] > 0
    assert waits == [{"tolist": 2}] * 2
    assert operations[1] <= 1.3 * operations[0]


def test_masks_on_ground_truth_wait_for_the_figures_alone(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, data = started("mask", "model.mask.train_on=ground_truth", "teacher.weight=0.5")
    run.network.batched = True
    assert run.teacher is not None
    images, targets = batch(data, 4)
    with watched(run.network, monkeypatch) as device:
        run.train_on(images, targets)
    # The teacher pools in evaluation, which has its own counts (model/inference.py).
    assert device.waits["tolist"] == 1


def test_parts_of_a_step_are_counted_in_one_read_each(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, data = started("end_to_end", "schedule.accumulate=2", "schedule.batch_size=4")
    run.network.batched = True
    images, targets = batch(data, 4)
    with watched(run.network, monkeypatch) as device:
        run.train_on(images, targets)
    # Each part: its RoIs when it is counted, its counts, its RoIs when it is learnt from; and the figures.
    assert device.waits == {"tolist": 7}


def test_a_run_on_a_cpu_takes_the_way_of_a_cpu(started: Started) -> None:
    run, _ = started("detector")
    assert run.device == torch.device("cpu") and not run.network.batched
