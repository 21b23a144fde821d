"""Progress of a long step: a bar with rate and time left on a terminal, plain lines in a log."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, Generic, Self, TextIO, TypeVar

from tqdm import tqdm

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 10.0


class Progress(Generic[T]):
    """Shows the progress of a long step: on a terminal a bar, elsewhere a plain line now and then and one at the end.

        for image in progress(images, "evaluating"): ...
        with progress(range(1000), "training", unit="steps") as shown:
            shown.advance()

    Args:
        items: what to go through; of a range the caller may count by `advance`.
        total: number of items, where `items` has no length.
        done: items already done before this run; they count for the share, not for the rate.
        file: default: standard error.
    """

    def __init__(
        self,
        items: Iterable[T],
        label: str,
        *,
        total: int | None = None,
        unit: str = "images",
        done: int = 0,
        file: TextIO | None = None,
        seconds_between_lines: float = SECONDS_BETWEEN_LINES,
    ) -> None:
        self.items = items
        self.label = label
        self.total = len(items) if total is None and isinstance(items, Sized) else total
        self.unit = unit
        self.first = self.done = done
        self.file = sys.stderr if file is None else file
        self.noted = ""
        self.seconds_between_lines = seconds_between_lines
        self.started = self.last_line = time.monotonic()
        self.shown_at: int | None = None
        self.bar: tqdm[Any] | None = None
        if self.file.isatty():
            self.bar = tqdm(
                total=self.total,
                initial=done,
                desc=label,
                unit=f" {unit}",
                file=self.file,
                dynamic_ncols=True,
            )

    def __iter__(self) -> Iterator[T]:
        with self:
            for item in self.items:
                yield item
                self.advance()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Show the last state and end the bar or the lines."""
        if self.bar is not None:
            self.bar.close()
        elif self.shown_at != self.done:
            self._line()

    def advance(self, count: int = 1) -> None:
        """`count` more items are done."""
        self.done += count
        if self.bar is not None:
            self.bar.update(count)
        elif time.monotonic() - self.last_line >= self.seconds_between_lines:
            self._line()

    def note(self, text: str) -> None:
        """What stands at the end of the bar or of the next line."""
        self.noted = text
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)

    def say(self, text: str) -> None:
        """A line of its own that does not break the bar."""
        if self.bar is not None:
            self.bar.write(text, file=self.file)
        else:
            print(text, file=self.file, flush=True)

    def _line(self) -> None:
        self.last_line = now = time.monotonic()
        self.shown_at = self.done
        rate = (self.done - self.first) / max(now - self.started, 1e-9)
        line = f"{self.label}: {self.done}"
        if self.total:
            line += f"/{self.total} {self.unit} ({100 * self.done / self.total:.0f} %)"
        else:
            line += f" {self.unit}"
        if self.done > self.first:
            line += f", {rate:.3g} {self.unit}/s"
        if self.total and rate > 0 and self.done < self.total:
            line += f", {duration((self.total - self.done) / rate)} left"
        print(line + (f", {self.noted}" if self.noted else ""), file=self.file, flush=True)


progress = Progress


def counted(label: str, *, unit: str = "images") -> Callable[[int, int], None]:
    """A function of (items done, items in all) that shows a step which reports in this way."""
    shown: list[Progress[int]] = []

    def report(done: int, total: int) -> None:
        if not shown:  # the time that the first items took is not known
            shown.append(progress(range(total), label, unit=unit, done=done))
        shown[0].advance(done - shown[0].done)
        if done == total:
            shown[0].close()

    return report


def duration(seconds: float) -> str:
    """Seconds as m:ss, or h:mm:ss from one hour on."""
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
