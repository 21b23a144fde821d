"""`python -m tests.hostile.annotations`: hostile annotation files through training, evaluation and the check of a set.

All in one process. A file either works, or ends in one error: `error: ` and the file's name, a line to a problem, each
of them printable and bounded and saying where. Anything else is a fault: an exception that goes up, a trace, a line of
a megabyte, a hang, memory beyond a bound.
"""

import contextlib
import faulthandler
import importlib.util
import io
import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from model.classes import class_table
from model.files import command, exit_status
from tests.hostile.coco_files import EITHER, REFUSED, WORKS, HostileFile, all_files, base, some_files, text_of
from tests.training.tiny_set import NAMES, tiny_changes, write_tiny_set
from training.data.annotations import read_annotations
from training.evaluate import __main__ as evaluate
from training.evaluate.truth import load_ground_truth
from training.train import main as train

LIMIT = 300
"""Seconds after which a file counts as one that hangs; no measure of speed."""
LONGEST = 1000
"""Characters of a line that is shown."""
MOST_LINES = 12
"""Lines of a refusal: five problems, and what to do."""
MEMORY = 512 * 2**20
"""Bytes that any small file may take."""
PER_BYTE = 20
"""Bytes of memory that a byte of JSON may take: a number of two characters is an object of 24 bytes and its pointer."""
LARGE = 5 * 2**20
"""Bytes of a file that is read whole, but of whose images not all are evaluated."""
MOST = 6 * 2**30
"""Bytes that this process may ever have."""

KEYPOINTS = ["model.keypoints.layout=own", 'model.keypoints.names=["a","b"]', "model.keypoints.width=8",
             "model.keypoints.convolutions=1"]  # fmt: skip
ONE_STEP = [
    "schedule.detector_steps=0", "schedule.mask_steps=0", "schedule.end_to_end_steps=1", "schedule.warmup_steps=0",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Road:
    """A way that annotation files go. `run`: takes the file, writes as a command does, and returns its status."""

    name: str
    run: Callable[[Path], int]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a file came to on a road. `fault`: what is wrong with that, "" where nothing is."""

    file: HostileFile
    road: str
    status: int
    output: str
    errors: str
    fault: str
    memory: int
    """Most bytes beyond what the process had before."""

    @property
    def outcome(self) -> str:
        return "fault" if self.fault else {0: WORKS, 2: REFUSED}[self.status]


class Hung(BaseException):
    """A file took longer than `LIMIT`."""


def roads(folder: Path, *, keypoints: bool = False) -> list[Road]:
    """The ways of annotation files over a tiny set and a tiny network, which are made in `folder`.

    `training.datasets check` is one of them where there is one.
    """
    images = folder / "images"
    write_tiny_set(folder)
    for name, text in (("notes.txt", "no picture"), ("empty.png", "")):
        (images / name).write_text(text)
    os.mkfifo(images / "pipe")
    good = folder / "good.json"
    good.write_bytes(text_of(base()))
    preset = ["--config", "training/presets/shapes.toml"]
    more = [*ONE_STEP, *(KEYPOINTS if keypoints else [])]

    def changes(annotations: Path, out: str) -> list[str]:
        files = [f"data.{which}_annotations={annotations}" for which in ("train", "val")]
        return [*tiny_changes(folder, folder / out), *files, *more]

    checkpoint = folder / "network" / "checkpoint.pt"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        if train([*preset, *changes(good, "network")]) != 0:
            raise RuntimeError(f"the valid file does not train: {errors.getvalue()}")
    table = class_table([{"id": i, "name": name} for i, name in enumerate(NAMES, start=1)], "brick,tile")

    def read_truth(annotations: Path) -> int:
        with exit_status() as status:
            load_ground_truth(annotations, table, images, document=read_annotations(annotations))
        return status.code

    def judge(annotations: Path) -> int:
        few = ["--max-images", "50"] if annotations.stat().st_size > LARGE else []
        return evaluate.main([*given, *few, "--annotations", str(annotations)])

    given = ["--checkpoint", str(checkpoint), "--images", str(images), "--out", str(folder / "evaluation")]
    given += ["--device", "cpu", "--sheet-images", "1"]
    found = [
        Road(name="train", run=lambda file: train(["--restart", *preset, *changes(file, "run")])),
        Road(name="truth", run=read_truth),
        Road(name="evaluate", run=judge),
    ]
    if importlib.util.find_spec("training.look") is not None:
        from training.datasets.__main__ import main as datasets

        found.append(Road(name="check", run=lambda file: datasets(["check", *preset, *changes(file, "run")])))
    return found


def see(file: HostileFile, annotations: Path, road: Road) -> Seen:
    """Sends a file, which lies at `annotations`, over a road, and judges what it comes to."""
    output, errors = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=e) for e in ("strict",
    "backslashreplace"))  # fmt: skip
    status, fault = -1, ""
    before = _memory("VmRSS")
    _reset_peak()
    try:
        with _alarm(), contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            status = road.run(annotations)
            output.flush()
    except (Exception, Hung, SystemExit) as error:
        place = [one for one in traceback.extract_tb(error.__traceback__) if one.name != "ring"][-1]
        fault = f"{type(error).__name__}: {str(error)[:200]} ({Path(place.filename).name}:{place.lineno})"
    memory = max(_memory("VmHWM") - before, 0)
    shown = [_text(stream) for stream in (output, errors)]
    fault = fault or _fault(file, road, annotations, status, *shown)
    if not fault and memory > MEMORY + PER_BYTE * annotations.stat().st_size:
        fault = f"took {memory / 2**20:.0f} MiB for {annotations.stat().st_size / 2**20:.1f} MiB"
    return Seen(
        file=file, road=road.name, status=status, output=shown[0], errors=shown[1], fault=fault, memory=memory
    )


def _fault(file: HostileFile, road: Road, annotations: Path, status: int, output: str, errors: str) -> str:
    """What is wrong with how a command has ended, "" where nothing is."""
    lines = [*output.split("\n"), *errors.split("\n")]
    if long := next((line for line in lines if len(line) > LONGEST), ""):
        return f"a line of {len(long)} characters: {long[:80]!r}"
    if odd := next((line for line in lines if not line.replace("\t", " ").isprintable()), ""):
        return f"a line that is not printable: {odd!r:.200}"
    if "Traceback" in errors or "Warning:" in errors:
        return f"a trace or a warning of Python: {errors[-300:]!r}"
    if status == 0:
        works = file.expect in (WORKS, EITHER) or road.name != "train"
        return "" if works else "works, but should not"
    if status != 2:
        return f"status {status}"
    if file.expect == WORKS:
        return f"refused, but should work: {errors[-300:]!r}"
    start = re.search(r"^error: ", errors, re.MULTILINE)
    if start is None:
        return f"no error is named: {errors[-300:]!r}"
    said = errors[start.start() :].rstrip("\n").split("\n")
    if len(said) > MOST_LINES:
        return f"an error of {len(said)} lines"
    if loose := next((line for line in said[1:] if not line.startswith(("  ", "(", str(annotations)))), ""):
        return f"a line that begins another error: {loose!r}"
    if annotations.name not in errors[start.start() :]:
        return f"the file is not named: {said[0]!r}"
    if not re.search(file.place, "\n".join(said).replace(str(annotations), "")):
        return f"no place is named ({file.place}): {said[0]!r}"
    return ""


def run(files: Sequence[HostileFile], folder: Path, *, say: Callable[[str], None] = print) -> list[Seen]:
    """Every file over every road, in an order; faults are said as they come."""
    ways = {
        which: roads(folder / name, keypoints=which) for which, name in ((False, "set"), (True, "keypoints"))
    }
    found = []
    for file in files:
        annotations = folder / "hostile.json"
        annotations.write_bytes(file.data())
        for road in ways[file.keypoints]:
            seen = see(file, annotations, road)
            found.append(seen)
            if seen.fault:
                say(f"{file.group}: {file.name}: {road.name}: {seen.fault}")
    return found


def counts(seen: Sequence[Seen]) -> str:
    """A table of outcomes by road."""
    ways = list(dict.fromkeys(one.road for one in seen))
    by = Counter((one.road, one.outcome) for one in seen)
    lines = [f"{'':10}" + "".join(f"{outcome:>9}" for outcome in (WORKS, REFUSED, "fault"))]
    lines += [
        f"{way:10}" + "".join(f"{by[way, outcome]:9}" for outcome in (WORKS, REFUSED, "fault"))
        for way in ways
    ]
    largest = max(seen, key=lambda one: one.memory)
    lines.append(
        f"{len({(one.file.group, one.file.name) for one in seen})} files; most memory beyond the start: "
        f"{largest.memory / 2**20:.0f} MiB ({largest.file.group}: {largest.file.name}, {largest.road})"
    )
    return "\n".join(lines)


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    """Raises `Hung` within where it takes too long. An alarm that was set before, as pytest's time-out is, goes on."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise Hung(f"after {LIMIT} s")

    before, begin = signal.signal(signal.SIGALRM, ring), time.monotonic()
    left = signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        if left:
            signal.alarm(max(1, left - int(time.monotonic() - begin)))


def _memory(key: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most."""
    match = re.search(rf"^{key}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return 1024 * int(match[1]) if match else 0


def _reset_peak() -> None:
    """Lets VmHWM begin anew, where the kernel lets us; else it is the most since the process began."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _text(stream: io.TextIOWrapper) -> str:
    with contextlib.suppress(UnicodeError):
        stream.flush()
    raw = stream.detach()
    assert isinstance(raw, io.BytesIO)
    return raw.getvalue().decode("utf-8", "backslashreplace")


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where there is no fault, else 1."""
    parser = command("tests.hostile.annotations", __doc__)
    parser.add_argument("--some", type=int, help="only a seeded part of so many files, of every group")
    parser.add_argument("--only", default="", help="only files whose group or name has this text")
    options = parser.parse_args(arguments)
    resource.setrlimit(resource.RLIMIT_DATA, (MOST, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    faulthandler.enable()
    files = all_files() if options.some is None else some_files(options.some)
    files = [file for file in files if options.only in f"{file.group}: {file.name}"]
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        seen = run(files, Path(folder))
    print(counts(seen))
    print(f"in {time.monotonic() - begin:.0f} s")
    return 1 if any(one.fault for one in seen) else 0


if __name__ == "__main__":
    sys.exit(main())
