"""What one run of the check is about, as every part's own process reads it."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.command import progress
from benchmarks.pictures import SIZES, kept, of_coco_sizes
from benchmarks.tables import Part

Keep = Callable[[Part], None]
"""Writes what a part has found so far, so that it is not lost if the part gets no further."""

NO_TIME = "no time was left"

say = partial(progress, "gpu-check")


@dataclass(frozen=True, kw_only=True)
class CheckSetting:
    """folder: absolute, for all that is made on the way. device: "cpu" or "cuda". precisions: that are checked on it.

    short: only to show that it runs. trained: a maskx.pt, or "" to export `checkpoint`; checkpoint: "" to train one
    here. min_size, max_size: of the bench's ResNet-50. workers: of TorchServe, each number a server; 0: as it chooses.
    """

    folder: str
    device: str
    precisions: tuple[str, ...]
    short: bool
    trained: str = ""
    checkpoint: str = ""
    min_size: int = 800
    max_size: int = 1333
    workers: tuple[int, ...] = (0,)

    @property
    def on_gpu(self) -> bool:
        """Whether the device is one."""
        return self.device.startswith("cuda")

    @property
    def trained_path(self) -> Path:
        """The trained network's maskx.pt, there once `parts.trained` is done."""
        return Path(self.folder) / "trained" / "maskx.pt"

    @property
    def checkpoint_path(self) -> Path:
        """Its checkpoint; absent where only a maskx.pt was given."""
        return Path(self.folder) / "trained" / "checkpoint.pt"

    @property
    def shapes(self) -> Path:
        """The drawn set that it is judged on."""
        return Path(self.folder) / "shapes"

    @property
    def large(self) -> Path:
        """Folder of the bench's network: maskx.pt, peer.pt."""
        return Path(self.folder) / "large"

    def coco_sized(self) -> tuple[str, ...]:
        """Paths of the JPEGs of COCO's sizes that TorchServe is sent, drawn where they are not there."""
        return of_coco_sizes(Path(self.folder) / "coco-sized", 8 if self.short else 32)

    def picture(self, size: str, seed: int = 0) -> bytes:
        """A drawn photograph, kept where it was made once."""
        return Path(self.picture_path(size, seed)).read_bytes()

    def picture_path(self, size: str, seed: int = 0) -> str:
        """Where it lies."""
        return str(kept(Path(self.folder) / "pictures", f"{size}-{seed}", SIZES[size], seed))

    def best_first(self) -> tuple[str, ...]:
        """The precisions, that of serving first, for what may run out of time."""
        order = ("bfloat16", "float16", "float32")
        return tuple(sorted(self.precisions, key=order.index))

    def to_json(self) -> str:
        """For the command line of a part's process."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "CheckSetting":
        """What `to_json` wrote."""
        content: dict[str, Any] = json.loads(text)
        content |= {key: tuple(one) for key, one in content.items() if isinstance(one, list)}
        return CheckSetting(**content)


class Clock:
    """The seconds a part has; they run from when it is made."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._begin = time.monotonic()

    @property
    def left(self) -> float:
        """Not below zero."""
        return max(self.seconds - (time.monotonic() - self._begin), 0.0)

    def has(self, seconds: float) -> bool:
        """Whether so many are left."""
        return self.left >= seconds


def first_line(error: BaseException) -> str:
    """An error in one line: its class and the last line that says something (TorchScript's come last)."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next((line for line in reversed(lines) if "Error" in line or "error" in line), "")
    return f"{type(error).__name__}: {told or (lines[0] if lines else 'no message')}"[:300]


def each(
    names: Sequence[str],
    clock: Clock,
    least: float | None,
    work: Callable[[str], None],
    failed: Callable[[str, str], None],
    keep: Keep,
    shown: Callable[[], Part],
) -> Part:
    """Does `work` for each of the names, the first in any case, others where `least` seconds are left (None: as many as
    the longest took); none costs the others: why one failed goes to `failed`. What is `shown` is kept after each, and
    returned at the end."""
    longest = 0.0
    for number, name in enumerate(names):
        before = clock.left
        if number and not clock.has(longest if least is None else least):
            failed(name, NO_TIME)
            continue
        try:
            work(name)
        except Exception as error:
            failed(name, f"failed: {first_line(error)}")
        longest = max(longest, before - clock.left)
        keep(shown())
    return shown()


def measured(
    bars: dict[str, float] | None = None, *, not_200: int | None = None, asked: int = 0, **more: Any
) -> dict[str, Any]:
    """The numbers of a part: what bars are judged by, its requests, how many had no 200, and whatever else."""
    requests = {} if not_200 is None else {"requests": {"asked": asked, "not 200": not_200}}
    return {"bars": dict(bars or {}), **requests, **more}
