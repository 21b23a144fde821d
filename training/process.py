"""A training as a process: signals, memory, and how a command that trains ends."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch

from model.files import ExitStatus, exit_status, one_line
from training.config import TrainingConfig
from training.distributed import FailedElsewhere, started_together
from training.images.broken import TooManyBroken
from training.run import NotFinite

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """A training was stopped by a signal, after it had saved its state."""

    def __init__(self, by: signal.Signals, *, step: int, checkpoint: Path) -> None:
        super().__init__(f"stopped by {by.name} at step {step}, saved {checkpoint}")
        self.by = by


@contextmanager
def training_status(again: str, *, trace: bool = False) -> Iterator[ExitStatus]:
    """The block of a command that trains, see `exit_status`: of several processes the first speaks for all.

    0: done; 2: a mistake, named; 130 or 143: stopped by Ctrl-C or SIGTERM.

    Args:
        again: how a training that was stopped goes on.
        trace: let errors go on up, to be shown with their place in the source.
    """
    rank, _ = started_together()

    def shown(error: BaseException) -> str:
        if trace:
            raise error
        return f"process {rank}: {one_line(error)}" if rank else one_line(error)

    interrupted = "interrupted; the last checkpoint, if there was one, stays as it was"
    with exit_status(torch.OutOfMemoryError, interrupted=interrupted, shown=shown) as status:
        try:
            yield status
        except FailedElsewhere:
            if rank == 0:
                print(
                    "error: another process ended; its own error, if it had one, stands above",
                    file=sys.stderr,
                )
            status.code = 2
        except Stopped as stopped:
            if rank == 0:
                print(f"{stopped}; {again}")
            status.code = 128 + stopped.by
        except TooManyBroken as broken:  # of which all processes know
            if trace:
                raise
            if rank == 0:
                print(f"error: {broken}. Mend the files or the disk, then {again}", file=sys.stderr)
            status.code = 2
        except NotFinite:  # of which all processes know
            if rank == 0 or trace:
                raise
            status.code = 2


class StopSignals:
    """Whether, and by which signal, the run was asked to stop."""

    by: signal.Signals | None = None


@contextmanager
def stop_on_signals(*, quiet: bool = False) -> Iterator[StopSignals]:
    """Within, the first of `SIGNALS` sets `StopSignals.by`; a second one interrupts at once (KeyboardInterrupt).

    The first is answered on standard error, unless `quiet`. Outside the main thread, where Python takes no
    signals, nothing is changed.
    """
    stop = StopSignals()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def wish(number: int, frame: FrameType | None) -> None:
        if stop.by is not None:
            raise KeyboardInterrupt
        stop.by = signal.Signals(number)
        # print() is not safe here: the signal may have come in the middle of another print().
        if not quiet:
            os.write(2, b"\nstopping after this step; a second signal stops at once, without saving\n")

    before = {number: signal.signal(number, wish) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals(worker: int) -> None:
    """For the loader's workers: a Ctrl-C goes to them too, and the training tells them itself when to end."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed for the next step, in this process and those it forks; whether it does.

    By itself it gives the end of the heap back to the kernel, which clears the pages when they are asked for anew: 7
    000 of them in a step of the drawn set, an eighth of a step of the mask branch. Tensors above 32 MiB still go back,
    or a large network would need a tenth more memory. Nothing that is computed changes. False where there is no glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    return bool(mallopt(mmap_threshold, 32 * 2**20) and mallopt(trim_threshold, 2**31 - 1))


def out_of_memory(error: BaseException) -> bool:
    """Whether memory, of a GPU or of the machine, ran out."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def memory_advice(config: TrainingConfig, *, processes: int) -> str:
    """Which settings to change where memory ran out, the one that changes nothing else first."""
    advice = []
    parts = 2 * config.schedule.accumulate
    if parts <= config.schedule.batch_size // processes:
        advice.append(f"schedule.accumulate={parts} (the same training, in more parts a step)")
    if config.precision == "float32":
        advice.append("precision=bfloat16")
    shorter_side = "smaller augment.min_sizes" if config.augment.min_sizes else "min_size"
    advice += [f"a smaller model.input.max_size and {shorter_side}", "fewer model.box.rois_per_image"]
    return f"Try {', '.join(advice[:-1])}, or {advice[-1]}"
