"""A thousand images of random sizes, one after the other: whether the worker grows, and the longest answer.

    python -m benchmarks.load.sizes --archive build/maskx.mar [--engine light] [--images 1000]

starts a server with the archive on loopback and prints a table. Every image has a size of its own, so that whatever is
prepared or kept for a size is prepared and kept anew; what the describe call says of the engine stands above the table.
"""

import http.client
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
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


def measure(archive: Path, engine: str, count: int) -> tuple[str, list[float], list[float]]:
    """What the server says of its engine; seconds of each answer, and MiB that the worker has resident after it.

    Raises ValueError: an image was not answered, or the worker was replaced.
    """
    with (
        tempfile.TemporaryDirectory(prefix="maskx-sizes-") as folder,
        Served(archive, Path(folder) / "state", engine=engine) as served,
    ):
        told, memory, worker = served.description().get("engine"), Memory(served), served.worker()
        seconds, resident = [], []
        connection = http.client.HTTPConnection(HOST, served.ports.inference, timeout=120)
        for data in photographs(count):
            begin = time.perf_counter()
            connection.request("POST", "/predictions/maskx", data, {"score_threshold": "0.05"})
            answer = connection.getresponse()
            body = answer.read()
            seconds.append(time.perf_counter() - begin)
            if answer.status != 200:
                raise ValueError(f"an image was answered with {answer.status}: {body[:200]!r}")
            resident.append(memory.now().get("worker", 0.0))
        connection.close()
        if not served.same_worker(worker):
            raise ValueError("the worker at the end is not the one of the beginning")
    return str(told), seconds, resident


def report(seconds: Sequence[float], resident: Sequence[float]) -> str:
    """The table, and the aims: no growth, no answer above `STALL` times the median."""
    begin = round(WARM_UP * len(seconds))
    late, memory = seconds[begin:], resident[begin:]
    median, longest = statistics.median(late), max(late)
    tenth = max(len(memory) // 10, 1)
    first, last = statistics.mean(memory[:tenth]), statistics.mean(memory[-tenth:])
    rows = [
        ("median ms", f"{1e3 * median:.0f}"),
        ("99 % ms", f"{1e3 * sorted(late)[int(0.99 * (len(late) - 1))]:.0f}"),
        ("longest ms", f"{1e3 * longest:.0f}"),
        ("longest / median", f"{longest / median:.2f}"),
        ("above the aim", f"{sum(one > STALL * median for one in late)} of {len(late)}"),
        ("resident MiB at first", f"{first:.0f}"),
        ("resident MiB at last", f"{last:.0f}"),
        ("most MiB", f"{max(memory):.0f}"),
    ]
    return table((f"{len(seconds)} sizes, after the first {begin}", ""), rows)


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
        told, seconds, resident = measure(options.archive, options.engine, options.images)
        print(f"engine: {told}\n\n{report(seconds, resident)}")
    return status.code


if __name__ == "__main__":
    sys.exit(main())
