"""A thousand images of random sizes, one after the other: whether the worker grows, and the longest answer.

    python -m benchmarks.load.sizes --archive build/maskx.mar [--engine light] [--images 1000]

starts a server with the archive on loopback and prints a table. Every image has a size of its own, so that whatever is
prepared or kept for a size is prepared and kept anew; what the describe call says of the engine stands above the table.
Beside the seconds of each answer stand those that the worker took of the processor for it (Linux alone): an answer that
is long by the clock and not by these waited for a core, so it is the machine that is at fault and not the worker.
"""

import http.client
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.load.client import HOST
from benchmarks.load.server import Memory, Served
from benchmarks.tables import table
from model.files import command, exit_status
from server.processes import ENGINES, TORCHSERVE

LEAST, MOST = 40, 2000
"""Pixels of a side."""
WARM_UP = 0.2
"""Share of the images after which growth and stalls count."""
ASKED = {"score_threshold": "0.05", "max_detections": "10"}
"""Of every image as many objects, as far as there are any: each costs 0.7 ms in the network of `make demo`, and of up
to 100 the number explained 95 % of an answer's time."""
STALL = 2.0
"""Times the median: the aim for the longest answer."""


def photographs(count: int) -> Iterator[bytes]:
    """JPEGs of soft noise, the same always, each of another size."""
    random = np.random.default_rng(17)
    sizes: set[tuple[int, int]] = set()
    while len(sizes) < count:
        width, height = (
            round(float(side)) for side in np.exp(random.uniform(np.log(LEAST), np.log(MOST), 2))
        )
        if (width, height) in sizes:
            continue
        sizes.add((width, height))
        coarse = Image.fromarray(random.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        file = io.BytesIO()
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=85)
        yield file.getvalue()


@dataclass(frozen=True)
class Answers:
    """Of each answer the seconds by the clock, those of the worker's on the processor, and MiB that it has resident
    then; `engine` is what it says of that."""

    engine: str
    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    resident: list[float] = field(default_factory=list)


def processor_seconds(pid: int) -> float:
    """That a process' threads took of the processor so far, by the clock that Linux has for it; 0 elsewhere."""
    if sys.platform != "linux":
        return 0.0
    return time.clock_gettime((~pid << 3) | 2)  # CPUCLOCK_SCHED of the kernel's posix-timers


def measure(archive: Path, engine: str, count: int) -> Answers:
    """Of `count` images, one after the other.

    Raises ValueError: an image was not answered, or the worker was replaced.
    """
    with (
        tempfile.TemporaryDirectory(prefix="maskx-sizes-") as folder,
        Served(archive, Path(folder) / "state", engine=engine) as served,
    ):
        memory, worker = Memory(served), served.worker()
        if worker is None:
            raise ValueError("there is not one worker")
        made = Answers(str(served.description().get("engine")))
        connection = http.client.HTTPConnection(HOST, served.ports.inference, timeout=120)
        for data in photographs(count):
            begin, before = time.perf_counter(), processor_seconds(worker.pid)
            connection.request("POST", "/predictions/maskx", data, ASKED)
            answer = connection.getresponse()
            body = answer.read()
            made.seconds.append(time.perf_counter() - begin)
            made.processor.append(processor_seconds(worker.pid) - before)
            if answer.status != 200:
                raise ValueError(f"an image was answered with {answer.status}: {body[:200]!r}")
            made.resident.append(memory.now().get("worker", 0.0))
        connection.close()
        if not served.same_worker(worker):
            raise ValueError("the worker at the end is not the one of the beginning")
    return made


def report(made: Answers) -> str:
    """The table, and the aims: no growth, no answer above `STALL` times the median."""
    begin = round(WARM_UP * len(made.seconds))
    memory = made.resident[begin:]
    tenth = max(len(memory) // 10, 1)
    first, last = statistics.mean(memory[:tenth]), statistics.mean(memory[-tenth:])
    by_clock, of_processor = _spread(made.seconds[begin:]), _spread(made.processor[begin:])
    rows = [(name, by_clock[name], of_processor[name]) for name in by_clock]
    rows += [
        ("resident MiB at first", f"{first:.0f}", ""),
        ("resident MiB at last", f"{last:.0f}", ""),
        ("most MiB", f"{max(memory):.0f}", ""),
    ]
    return table((f"{len(made.seconds)} sizes, after the first {begin}", "by the clock", "processor"), rows)


def _spread(seconds: Sequence[float]) -> dict[str, str]:
    median, longest = statistics.median(seconds), max(seconds)
    return {
        "median ms": f"{1e3 * median:.1f}",
        "99 % ms": f"{1e3 * sorted(seconds)[int(0.99 * (len(seconds) - 1))]:.1f}",
        "longest ms": f"{1e3 * longest:.1f}",
        "longest / median": f"{longest / median:.2f}" if median else "-",
        "above the aim": f"{sum(one > STALL * median for one in seconds)} of {len(seconds)}",
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = command("benchmarks.load.sizes", __doc__)
    add = parser.add_argument
    add("--archive", type=Path, default=Path("build/maskx.mar"))
    add("--engine", choices=ENGINES, default=TORCHSERVE, help="the server (default: %(default)s)")
    add("--images", type=int, default=1000, help="of as many sizes (default: %(default)s)")
    options = parser.parse_args(arguments)
    with exit_status() as status:
        if options.images < 10:
            raise ValueError(f"--images is {options.images}; at least 10 are expected")
        made = measure(options.archive, options.engine, options.images)
        print(f"engine: {made.engine}\n\n{report(made)}")
    return status.code


if __name__ == "__main__":
    sys.exit(main())
