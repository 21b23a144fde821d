"""What a large image in tiles costs: the peak of the process's memory, and seconds.

    python -m benchmarks.accuracy.large_image [--model build/maskx.pt] [--size 12000x9000] [--tiles 2048,256]

The image is a JPEG that is drawn (`benchmarks.pictures`), of 1920 x 1080 pixels, repeated; a process of
its own answers it as a server's worker does, beside the same image without tiles, at its own limits.
"""

import argparse
import io
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import ROOT
from benchmarks.command import add_folder, described, parser_of, write_result
from benchmarks.memory import forget_peak, peak_mib
from benchmarks.pictures import SIZES, photograph
from benchmarks.speed.ours import Ours
from benchmarks.tables import table
from benchmarks.worker import apart
from model.files import exit_status

SIZE = re.compile(r"[1-9][0-9]{0,4}x[1-9][0-9]{0,4}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    options = parser().parse_args(arguments)
    with exit_status() as status:
        if not options.model.is_file():
            raise ValueError(f"there is no {options.model}; export one first (make archive)")
        if SIZE.fullmatch(options.size) is None:
            raise ValueError(f"--size is {options.size!r}; WIDTHxHEIGHT is expected, such as 12000x9000")
        width, height = map(int, options.size.split("x"))
        picture = options.folder / f"{options.size}.jpg"
        apart("benchmarks.accuracy.large_image:draw", path=str(picture), width=width, height=height)
        asked = {"path": str(options.model), "picture": str(picture)}
        ways: list[dict[str, Any]] = [
            apart("benchmarks.accuracy.large_image:measured", **asked, tiles=tiles)
            for tiles in (options.tiles, "")
        ]
        text = report(ways, options, picture.stat().st_size)
        print(text)
        machine = described("cpu")
        path = options.out / f"large-image-{options.name}-{machine['date'][:10]}.md"
        write_result(path, text, {"machine": machine, "results": ways})
        print(f"{path} and its .json written")
    return status.code


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = parser_of("benchmarks.accuracy.large_image", __doc__)
    add = made.add_argument
    build = ROOT / "build"
    add("--model", type=Path, default=build / "maskx.pt", help="(default: build/maskx.pt)")
    add("--size", default="12000x9000", help="WIDTHxHEIGHT (default: %(default)s)")
    add("--tiles", default="2048,256", help="side and overlap (default: %(default)s)")
    add("--name", default="demo", help="of the network, for the result's name (default: %(default)s)")
    add_folder(made, "large-image")
    return made


def draw(path: str, width: int, height: int) -> None:
    """Writes the JPEG."""
    with Image.open(io.BytesIO(photograph(*SIZES["1080p"], 0))) as small:
        pixels = np.asarray(small.convert("RGB"))
    repeats = (-(-height // pixels.shape[0]), -(-width // pixels.shape[1]), 1)
    whole = np.tile(pixels, repeats)[:height, :width]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(whole).save(path, quality=85)


def measured(path: str, picture: str, tiles: str) -> dict[str, Any]:
    """One answer: seconds of its parts, detections, status, and MiB before it and at its peak."""
    ours = Ours(path, "cpu")
    body = Path(picture).read_bytes()
    forget_peak()
    before, begin = peak_mib(), time.perf_counter()
    (answer,) = ours.service.answer([{"body": body} | ({"tiles": tiles} if tiles else {})])
    seconds, timings = time.perf_counter() - begin, answer.timings
    return {
        "tiles": tiles,
        "status": answer.status,
        "said": "" if answer.status == 200 else answer.body.decode(),
        "detections": answer.detections,
        "seconds": seconds,
        "decode": timings.decode,
        "network": timings.forward,
        "encode": timings.encode,
        "before_mib": before,
        "peak_mib": peak_mib(),
    }


def report(ways: Sequence[dict[str, Any]], options: argparse.Namespace, size: int) -> str:
    """The table, and what it is of."""
    rows = []
    for way in ways:
        cells = [f"{way[part]:.1f}" for part in ("seconds", "decode", "network", "encode")]
        memory = [f"{way['before_mib']:.0f}", f"{way['peak_mib']:.0f}"]
        told = str(way["detections"]) if way["status"] == 200 else f"{way['status']}: {way['said']}"
        rows.append([way["tiles"] or "none", *cells, *memory, told])
    head = ["tiles", "seconds", "decode", "network", "encode", "MiB before", "MiB at most", "detections"]
    return f"A JPEG of {options.size} pixels, {size / 1e6:.1f} MB, {options.name}.\n\n{table(head, rows)}"


if __name__ == "__main__":
    sys.exit(main())
