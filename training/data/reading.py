"""How a training's images are read: by how many processes, and how a batch comes from them in one piece."""

import os
from collections.abc import Generator, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from model.files import one_line
from model.host import Layout, packed, unpacked
from model.targets import Target
from training.data.coco import Sample
from training.data.sampler import SeededBatches
from training.images.broken import Drawn, Problem, Samples, TooManyBroken, WithStandIns
from training.process import ignore_signals
from training.run import Run
from training.schedule import Stage

MOST_WORKERS = 10
PREFETCHED = 4
"""Batches that each process reads ahead for a GPU."""


def number_of_workers(asked: int | None, device: torch.device) -> int:
    """Reading processes: what was asked for, else 2, or for a GPU what the cores of this process allow."""
    if asked is not None:
        return asked
    if device.type != "cuda":
        return 2
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    trainings = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(min(cores // trainings - 1, MOST_WORKERS), 1)


def loader_options(workers: int, device: torch.device) -> dict[str, Any]:
    """Arguments of the `DataLoader` that follow from the number of its processes and the device it reads for."""
    on_gpu = device.type == "cuda"
    ahead = {"persistent_workers": True, "prefetch_factor": PREFETCHED if on_gpu else 2}
    return {"num_workers": workers, "pin_memory": on_gpu, **(ahead if workers else {})}


class PackedBatch:
    """A batch as one tensor, and where its parts lie.

    Between processes every tensor is a file of shared memory; a batch has hundreds, most of them masks of a few pixels.
    """

    def __init__(self, batch: Sequence[Sample]) -> None:
        tensors: list[Tensor] = []

        def numbered(value: Any) -> Any:
            if isinstance(value, Tensor):
                tensors.append(value)
                return _Part(len(tensors) - 1)
            if isinstance(value, list):
                return [numbered(item) for item in value]
            return value

        self.images = [numbered(image) for image, _ in batch]
        self.targets = [{key: numbered(value) for key, value in target.items()} for _, target in batch]
        self.buffer: Tensor
        self.layouts: list[Layout]
        self.buffer, self.layouts = packed(tensors)
        self.problems: list[Problem] = []
        """Images that could not be read on the way, and for which others stand in."""
        self.complete = True
        """Whether there is an image in every place; else the batch is not to be trained on."""

    def pin_memory(self) -> Self:
        """The same in memory that a GPU reads by itself; the loader calls it."""
        self.buffer = self.buffer.pin_memory()
        return self

    def unpacked(self) -> tuple[list[Tensor], list[Target]]:
        """Images and targets as two lists, since images differ in size; views of the one tensor."""
        tensors = unpacked(self.buffer, self.layouts)

        def back(value: Any) -> Any:
            if isinstance(value, _Part):
                return tensors[value]
            if isinstance(value, list):
                return [back(item) for item in value]
            return value

        targets: Any = [{key: back(value) for key, value in target.items()} for target in self.targets]
        return [back(image) for image in self.images], targets


def collated(drawn: Sequence[Drawn]) -> PackedBatch:
    """What was read for the places of a batch, in one piece."""
    batch = PackedBatch([one.sample for one in drawn if one.sample is not None])
    batch.problems = [problem for one in drawn for problem in one.problems]
    batch.complete = all(one.sample is not None for one in drawn)
    return batch


class _Part(int):
    """The number of a tensor in a `PackedBatch`, told apart by its type from the numbers that a target has."""


def batches(
    run: Run, data: Samples, stage: Stage | None = None
) -> Generator[tuple[list[Tensor], list[Target]]]:
    """The batches that are left of a stage of a run, which has come to it; None: of all its stages.

    Images that cannot be read have others in their places (`training.images.broken`).

    Raises:
        TooManyBroken: in all processes of the run.
        ValueError: a worker was killed.
    """
    config = run.config
    schedule = config.schedule
    left = schedule.total_steps - run.step
    if stage is not None:
        left = schedule.steps(stage) - schedule.steps_done(run.step)[stage]
    workers = number_of_workers(config.data.workers, run.device)
    sampler = SeededBatches(
        size=len(data),
        batch_size=schedule.batch_size,
        batches=left,
        seed=config.seed,
        position=run.images_seen,
        rank=run.group.rank,
        processes=run.group.size,
        views=config.augment.views if stage == "mask" else 0,
    )
    loader = DataLoader(
        WithStandIns(data),
        batch_sampler=sampler,
        collate_fn=collated,
        worker_init_fn=ignore_signals,
        **loader_options(workers, run.device),
        generator=torch.Generator(),  # else the loader draws from the generator that samples the RoIs
    )
    coming = iter(loader)
    try:
        for batch in coming:
            run.broken.meet(
                batch.problems,
                complete=batch.complete,
                step=run.step + 1,
                seen=run.images_seen + schedule.batch_size,
                group=run.group,
            )
            yield batch.unpacked()
    except TooManyBroken:
        raise
    except (ValueError, OSError) as error:
        raise ValueError(f"step {run.step + 1}: {one_line(error)}") from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ValueError(
            f"step {run.step + 1}: a process that reads images died ({one_line(error)}). Mostly memory, or "
            "shared memory (/dev/shm), ran out: try data.workers=0, or a smaller schedule.batch_size"
        ) from error
    finally:
        # The workers ignore SIGTERM, by which Python would end them at its exit, and an error keeps the loader alive.
        if workers:
            coming._shutdown_workers()  # type: ignore[attr-defined]
