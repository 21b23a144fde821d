"""Ctrl-C and SIGTERM as a wish to stop after the present step, not in the middle of it."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether, and by which signal, the run was asked to stop."""

    by: signal.Signals | None = None


@contextmanager
def stop_on_signals(*, quiet: bool = False) -> Iterator[Stop]:
    """Within, the first of `SIGNALS` sets `Stop.by`; a second one interrupts at once (KeyboardInterrupt).

    The first is answered on standard error, unless `quiet`. Outside the main thread, where Python takes no
    signals, nothing is changed.
    """
    stop = Stop()
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
