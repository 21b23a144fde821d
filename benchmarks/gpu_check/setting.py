"""What one run of the check is about, as every part's own process reads it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.pictures import SIZES, photograph
from benchmarks.tables import Part

Keep = Callable[[Part], None]
"""Writes what a part has found so far, so that it is not lost if the part gets no further."""


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

    @property
    def coco_sized(self) -> Path:
        """Folder of the JPEGs of COCO's sizes that TorchServe is sent."""
        return Path(self.folder) / "coco-sized"

    @property
    def coco_sized_count(self) -> int:
        """How many of them."""
        return 8 if self.short else 32

    def picture(self, size: str, seed: int = 0) -> bytes:
        """A drawn photograph, kept where it was made once."""
        path = Path(self.folder) / "pictures" / f"{size}-{seed}.jpg"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photograph(SIZES[size].width, SIZES[size].height, seed))
        return path.read_bytes()

    def best_first(self) -> tuple[str, ...]:
        """The precisions, that of serving first, for what may run out of time."""
        order = ("bfloat16", "float16", "float32")
        return tuple(sorted(self.precisions, key=order.index))

    def to_json(self) -> str:
        """For the command line of a part's process."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> CheckSetting:
        """What `to_json` wrote."""
        content: dict[str, Any] = json.loads(text)
        plain: dict[str, Any] = {
            key: tuple(one) if isinstance(one, list) else one for key, one in content.items()
        }
        return CheckSetting(**plain)


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


def with_note(part: Part, note: str) -> Part:
    """The part with a line at its end."""
    return replace(part, text=f"{part.text.rstrip()}\n\n{note}\n")


def measured(
    bars: dict[str, float] | None = None, *, not_200: int | None = None, asked: int = 0, **more: Any
) -> dict[str, Any]:
    """The numbers of a part: what bars are judged by, its requests, how many had no 200, and whatever else."""
    requests = {} if not_200 is None else {"requests": {"asked": asked, "not 200": not_200}}
    return {"bars": dict(bars or {}), **requests, **more}


def say(line: str) -> None:
    """Progress, beside the result."""
    print(f"gpu-check: {line}", file=sys.stderr, flush=True)


def listed(values: Sequence[object]) -> str:
    """With commas between, "-" where there are none."""
    return ", ".join(map(str, values)) or "-"
