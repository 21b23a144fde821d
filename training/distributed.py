"""Several processes that train or evaluate one network together, on one machine or more, as `torchrun` starts them.

`torchrun --nproc-per-node 8 -m training.train ...`: each process has its share of every step's images, and
gradients are averaged (DistributedDataParallel). The losses are divided by counts over all processes, see
`model.losses.LossDivisor`, so the training is that of one process with all the images. The first process alone speaks,
logs and writes.
"""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from model.losses import own_total

T = TypeVar("T")
WAIT = timedelta(minutes=30)
"""How long a process waits for the others, who may be reading a large set or writing a checkpoint."""


class FailedElsewhere(Exception):
    """Another process has failed, and says why; this one cannot go on without it."""


class Group:
    """The processes of a training, and which of them this is.

    Args:
        rank: 0 for the first process, which speaks and writes.
        size: number of processes; 1 where there is no other, and then nothing here communicates.
    """

    def __init__(self, *, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks and writes."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of a list: every `size`-th item."""
        return list(items[self.rank :: self.size])

    def total(self, count: int | Tensor) -> float | Tensor:
        """What losses are divided by (`model.losses.LossDivisor`): the count over all processes, a process's mean."""
        if self.size == 1:
            return own_total(count)
        if isinstance(count, Tensor):
            own = count.to(torch.float32)
        else:  # filled in on the GPU; a tensor made here would be copied there, for which the host waits
            own = torch.full((), float(count), device=_device())
        return self.summed(own).clamp(min=1) / self.size

    def summed(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes, of the same shape in each."""
        if self.size == 1:
            return values
        values = values.detach().clone()
        dist.all_reduce(values)
        return values

    def mean(self, values: Tensor) -> Tensor:
        """The mean of a tensor over all processes, of the same shape in each."""
        return values if self.size == 1 else self.summed(values) / self.size

    def largest(self, number: int) -> int:
        """The largest of the numbers of all processes, without waiting for a GPU."""
        if self.size == 1:
            return number
        value = torch.tensor(number)
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return int(value)

    def gathered(self, value: T) -> list[T]:
        """A value of each process, in order, in every process; anything that can be pickled."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def collected(self, value: T) -> list[T]:
        """The same in the first process alone; an empty list in the others."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.first else None
        dist.gather_object(value, values)
        return values or []

    def require_same(self, values: dict[str, Any]) -> None:
        """That the named values are those of the first process in all of them.

        Raises:
            ValueError: in the first process, where they are not.
            FailedElsewhere: in the others.
        """
        for rank, others in enumerate(self.gathered(values)):
            differing = [name for name, value in values.items() if others.get(name) != value]
            if differing and self.first:
                raise ValueError(
                    f"process {rank} has another {differing[0]} than process 0; all machines must see the same "
                    "data and, at output.dir, the same folder"
                )
        self.wait()

    def wait(self) -> None:
        """Until all processes are here."""
        self.largest(0)

    @contextmanager
    def together(self) -> Iterator[None]:
        """A stretch without communication that every process must get through.

        Raises:
            ValueError: in the first process, the first error (ValueError, OSError) of any of them.
            FailedElsewhere: in the others.
        """
        if self.size == 1:
            yield
            return
        failure: Exception | None = None
        try:
            yield
        except (ValueError, OSError) as error:
            failure = error
        failed = [
            (rank, text)
            for rank, text in enumerate(self.gathered(None if failure is None else str(failure)))
            if text is not None
        ]
        if failed and not self.first:
            raise FailedElsewhere
        if failed:
            rank, text = failed[0]
            raise ValueError(text if rank == 0 else f"process {rank}: {text}") from failure

    @contextmanager
    def one_voice(self) -> Iterator[None]:
        """Within, the first process alone writes to standard output and standard error."""
        if self.first:
            yield
            return
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield


ALONE = Group()
"""A process that works without others."""


def started_together() -> tuple[int, int]:
    """(rank, number of processes) as `torchrun` tells by RANK and WORLD_SIZE; (0, 1) without it."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    return (int(os.environ.get("RANK", "0")), size) if size > 1 else (0, 1)


def refuse_processes(what: str) -> None:
    """ValueError where `what` was started as several processes."""
    _, size = started_together()
    if size > 1:
        raise ValueError(f"{what} runs in one process, and {size} were started; start it without torchrun")


def chosen_device(name: str) -> torch.device:
    """ "auto", "cpu" or "cuda" as a device; ValueError where CUDA was asked for and is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device is cuda, but torch {torch.__version__} finds no usable GPU here; "
            "use device=cpu, or install a torch built for this machine's driver"
        )
    return torch.device(name)


@contextmanager
def process_group(device: str) -> Iterator[Group]:
    """The processes that `torchrun` started this one among; `ALONE` where it did not.

    Args:
        device: "auto", "cpu" or "cuda". With CUDA each process takes the GPU of its number on its machine.

    Raises:
        ValueError: a machine has fewer GPUs than processes, or none where CUDA was asked for.
        FailedElsewhere: another process ended while this one waited for it.
    """
    rank, size = started_together()
    if size == 1:
        yield ALONE
        return
    on_gpu = chosen_device(device).type == "cuda"
    if on_gpu:
        local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= gpus:
            raise ValueError(
                f"process {local} of this machine (counted from 0) has no GPU of its own: there are {gpus}; "
                "start torchrun with a lower --nproc-per-node, or give device=cpu"
            )
        torch.cuda.set_device(local)
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, rank=rank, world_size=size, timeout=WAIT)
    try:
        yield Group(rank=rank, size=size)
    except RuntimeError as error:
        if not _of_communication(error):
            raise
        raise FailedElsewhere from error
    finally:
        dist.destroy_process_group()


def _device() -> torch.device:
    """Where sums over processes do not make the host wait: the GPU where there is one for this process."""
    return torch.device("cuda" if "nccl" in dist.get_backend() else "cpu")


def _of_communication(error: RuntimeError) -> bool:
    """Whether an error says that another process could not be reached."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower() or "nccl" in str(error).lower()
