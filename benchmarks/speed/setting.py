"""What one run of the bench is about, and the sides that it starts."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.command import progress
from benchmarks.pictures import SIZES, kept
from benchmarks.tables import Times
from benchmarks.worker import Remote, prepared_apart

PEER, SCRIPTED = "torchvision eager", "torchvision scripted"
CLASSES = 80
OURS = "benchmarks.speed.engine_loop:Engine"

say = partial(progress, "bench")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """folder: for what is made on the way. rounds: timed runs of each side. quick: fewer of everything.

    peers: engines that ours are compared with; None: all that are compared by default.
    """

    folder: Path
    device: str
    precisions: tuple[str, ...]
    min_size: int
    max_size: int
    rounds: int
    quick: bool
    peers: tuple[str, ...] | None = None
    prepared: dict[int, dict[str, Any]] = field(default_factory=dict)

    def picture(self, size: str, seed: int = 0) -> str:
        """Path of a drawn photograph, made where it is not there."""
        return str(kept(self.folder / "pictures", f"{size}-{seed}", SIZES[size], seed))

    def network(self, classes: int) -> dict[str, Any]:
        """What about.json holds of the network for so many classes, made once a run, never taken from another run."""
        if classes not in self.prepared:
            say(f"calibrating the network for {classes} classes")
            sizes = {"min_size": self.min_size, "max_size": self.max_size}
            picture = self.picture("1080p")
            self.prepared[classes] = prepared_apart(self.of(classes), picture, classes, **sizes)
        return self.prepared[classes]

    def of(self, classes: int) -> Path:
        """Folder of the network for so many classes."""
        return self.folder / f"classes-{classes}"

    def ours(self, classes: int, precision: str) -> Remote:
        """Our side in a process of its own."""
        self.network(classes)
        path = str(self.of(classes) / "maskx.pt")
        return Remote(OURS, path=path, device=self.device, precision=precision)

    def peer(self, classes: int, *, scripted: bool = False) -> Remote:
        """torchvision in a process of its own."""
        self.network(classes)
        given = {"weights": str(self.of(classes) / "peer.pt"), "classes": classes, "scripted": scripted}
        sizes = {"min_size": self.min_size, "max_size": self.max_size}
        return Remote("benchmarks.speed.peer:Peer", device=self.device, **given, **sizes)


@contextlib.contextmanager
def started(setting: Setting, *, scripted: bool) -> Iterator[dict[str, Remote]]:
    """All sides by the name that tables give them: ours per precision, then torchvision."""
    with contextlib.ExitStack() as stack:
        sides = {}
        for precision in setting.precisions:
            sides[ours_in(precision)] = stack.enter_context(setting.ours(CLASSES, precision))
        sides[PEER] = stack.enter_context(setting.peer(CLASSES))
        if scripted:
            sides[SCRIPTED] = stack.enter_context(setting.peer(CLASSES, scripted=True))
        yield sides


def ours_in(precision: str) -> str:
    """What a table calls our side."""
    return f"maskx {precision}"


def interleaved(
    sides: dict[str, Remote], files: Sequence[str], rounds: int, *, warm_up: int = 1
) -> dict[str, Times]:
    """Whole times of one batch on every side, A B A B ..., after warm-ups of each.

    A scripted network is run twice as often to warm up: torch rewrites it in its second run.
    """
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, side in sides.items():
            runs = 0 if number else warm_up if name == PEER else 2 * warm_up
            found[name].append(side.call("time", files=list(files), warm_up=runs)["seconds"])
    return {name: Times(tuple(seconds)) for name, seconds in found.items()}
