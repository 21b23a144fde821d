"""Which image is trained on when, and with which seed: a pure function of the run's seed and position.

Nothing here remembers anything. The batch of a step and the augmentation of each of its images follow from
(seed, position) alone, so a resumed run sees what the uninterrupted one would have seen, whatever the loader's
workers had fetched ahead when it was stopped.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

_EPOCH, _SAMPLE, _STEP, _IMAGE, _SCALE, _STAND_IN, _VIEW = 1, 2, 3, 4, 5, 6, 7


class SeededBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (index, sample seed) pairs; each pass over the data is shuffled anew.

    A batch may reach into the next pass, so every batch is full and no image is dropped.

    Args:
        size: images in the data set, at least 1.
        batch_size: images a batch, at least 1.
        batches: how many batches to yield.
        seed: the run's seed.
        position: images already seen; 0 at the start of a run.
        rank, processes: of each batch, every image from number `rank` on in steps of `processes` is yielded: the
            share of one of several processes.
        views: fixed ways in which an image is seen, one after the other from pass to pass; 0: another one each time.
    """

    def __init__(
        self,
        *,
        size: int,
        batch_size: int,
        batches: int,
        seed: int,
        position: int = 0,
        rank: int = 0,
        processes: int = 1,
        views: int = 0,
    ) -> None:
        if size < 1 or batch_size < 1:
            raise ValueError(f"{size} images in batches of {batch_size}: both must be at least 1")
        self.size = size
        self.batch_size = batch_size
        self.batches = batches
        self.seed = seed
        self.position = position
        self.rank = rank
        self.processes = processes
        self.views = views

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, torch.empty(0, dtype=torch.int64)
        for batch in range(self.batches):
            start = self.position + batch * self.batch_size
            pairs = []
            for at in range(start, start + self.batch_size):
                if at // self.size != epoch:
                    epoch = at // self.size
                    order = shuffled(self.size, seed=self.seed, epoch=epoch)
                pairs.append(self._pair(int(order[at % self.size]), at))
            yield pairs[self.rank :: self.processes]

    def _pair(self, row: int, position: int) -> tuple[int, int]:
        if not self.views:
            return row, sample_seed(seed=self.seed, position=position)
        view = view_at(position, size=self.size, views=self.views)
        return row, view_seed(seed=self.seed, row=row, view=view)


def shuffled(size: int, *, seed: int, epoch: int) -> Tensor:
    """A permutation of `size` indices, int64 [size], the same for the same seed and epoch."""
    generator = torch.Generator().manual_seed(mixed(seed, _EPOCH, epoch))
    return torch.randperm(size, generator=generator)


def sample_seed(*, seed: int, position: int) -> int:
    """The seed, 0..2^63-1, from which the augmentation of the image at `position` of the run is drawn."""
    return mixed(seed, _SAMPLE, position)


def view_at(position: int, *, size: int, views: int) -> int:
    """Which of its `views` the image at `position` of a run is seen in: the same for all of a pass over the data."""
    return position // size % views


def view_seed(*, seed: int, row: int, view: int) -> int:
    """The seed, 0..2^63-1, from which a view of the image at `row` is drawn (`augment.views`)."""
    return mixed(seed, _VIEW, row, view)


def stand_in(*, sample_seed: int, attempt: int, size: int) -> int:
    """Which of `size` images takes the place of one that cannot be read: the first (`attempt` 0), the second, ..."""
    return mixed(sample_seed, _STAND_IN, attempt) % size


def image_seed(*, seed: int, step: int, image_id: int) -> int:
    """The seed, 0..2^63-1, from which the anchors and RoIs of an image are drawn at a step of the run."""
    return mixed(seed, _IMAGE, step, image_id)


def step_seed(*, seed: int, step: int) -> int:
    """The seed, 0..2^63-1, of what is random in a step of the run and belongs to no image."""
    return mixed(seed, _STEP, step)


def scale_seed(*, seed: int, step: int, image_id: int | None = None) -> int:
    """The seed, 0..2^63-1, of the size at which a step sees an image; None: all its images."""
    return mixed(seed, _SCALE, step) if image_id is None else mixed(seed, _SCALE, step, image_id)


def mixed(*numbers: int) -> int:
    """Numbers stirred into one of 63 bits (splitmix64), so that neighbours have nothing in common."""
    state = 0
    for number in numbers:
        state = (state ^ number) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
