"""A whole step of a training: the host waits for the RoIs it drew and for the figures, and for nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import training.data.colour
from tests.model.operations import Operations
from tests.model.test_step_operations import watched
from tests.training.tiny_set import tiny_config
from training.data.sampler import SeededBatches
from training.distributed import ALONE
from training.run import Run
from training.schedule import Stage
from training.train import prepared

Started = Callable[..., tuple[Run, Any]]


@pytest.fixture
def started(tiny_set: Path, tmp_path: Path) -> Started:
    def start(stage: Stage, *changes: str) -> tuple[Run, Any]:
        config = tiny_config(tiny_set, tmp_path, f"schedule.{stage}_steps=4", *changes)
        run, data = prepared(config, ALONE, resume=False, restart=False)
        run.begin(stage)
        return run, data

    return start


def counted(run: Run, data: Any, count: int, monkeypatch: pytest.MonkeyPatch) -> Operations:
    """What a step of `count` images asks of the device; with colours where they are to be changed on it."""
    run.network.batched = True
    (pairs,) = SeededBatches(size=len(data), batch_size=count, batches=1, seed=0)
    images, targets = (list(part) for part in zip(*(data[pair] for pair in pairs), strict=True))
    assert all(("colours" in known) == run.config.augment.on_device for known in targets)
    with watched(run.network, monkeypatch) as device:
        monkeypatch.setattr(training.data.colour, "moved", lambda tensors, to: list(tensors))
        assert run.train_on(images, targets)["loss_mask"] > 0
    return device


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_step_waits_twice_whatever_the_batch_with_every_augmentation(
    started: Started, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [f"augment.{kind}=0.2" for kind in ("brightness", "contrast", "saturation", "hue")]
    words += ["augment.on_device=true", "augment.scale_jitter=[0.8, 1.25]", f"optimiser.name={name}"]
    run, data = started("end_to_end", *words)
    few, many = (counted(run, data, count, monkeypatch) for count in (2, 6))
    assert few.waits == many.waits == {"tolist": 2}
    assert many.total <= 1.3 * few.total


def test_masks_on_ground_truth_wait_for_the_figures_alone(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, data = started("mask", "model.mask.train_on=ground_truth", "teacher.weight=0.5")
    assert run.teacher is not None
    # The teacher pools in evaluation, which has its own counts (model/inference/).
    assert counted(run, data, 4, monkeypatch).waits["tolist"] == 1


def test_parts_of_a_step_are_counted_in_one_read_each(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, data = started("end_to_end", "schedule.accumulate=2", "schedule.batch_size=4")
    # Each part: its RoIs when it is counted, its counts, its RoIs when it is learnt from; and the figures.
    assert counted(run, data, 4, monkeypatch).waits == {"tolist": 7}


def test_a_run_on_a_cpu_takes_the_way_of_a_cpu(started: Started) -> None:
    run, _ = started("detector")
    assert run.device == torch.device("cpu") and not run.network.batched
