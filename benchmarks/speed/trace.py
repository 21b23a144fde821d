"""A trace of one request, for a person to look at: what ran when, with the network's stages named.

    python -m benchmarks.speed.trace [--model build/maskx.pt] [--image photo.jpg] [--precision bfloat16]

writes build/profile/trace.json.gz and a table of the operators that took longest.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.profiler import profile, record_function

from benchmarks import ROOT
from benchmarks.command import add_network_options, parser_of
from benchmarks.pictures import SIZES, kept
from benchmarks.speed.network import prepare
from benchmarks.speed.ours import Ours, activities, label_seconds
from benchmarks.tables import shown, table

OPERATORS = 30


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    options = parser().parse_args(arguments)
    image = options.image or kept(options.out, "1080p", SIZES["1080p"], 0)
    path = options.model
    if path is None:
        print("making the network of the bench (random weights; --model names a trained one) ...", flush=True)
        folder = options.out / "network"
        prepare(folder, image, 80, min_size=options.min_size, max_size=options.max_size)
        path = folder / "maskx.pt"
    side = Ours(path, options.device, options.precision)
    data = image.read_bytes()
    for _ in range(3):
        side.answer([data])
    trace, text = write_trace(side, data, options.out)
    print(text)
    print(
        f"{trace}: open it at https://ui.perfetto.dev (the file stays on your machine), or in Chrome at chrome://tracing"
    )
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = parser_of("benchmarks.speed.trace", __doc__, out=ROOT / "build" / "profile")
    made.add_argument("--model", type=Path, help="a maskx.pt (default: the network of the bench, made anew)")
    made.add_argument("--image", type=Path, help="(default: a drawn photograph of 1920 x 1080)")
    made.add_argument("--precision", default="auto", help="(default: %(default)s)")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    made.add_argument("--device", default=device, help="(default: %(default)s)")
    add_network_options(made)
    return made


def write_trace(side: Ours, data: bytes, folder: Path) -> tuple[Path, str]:
    """Writes trace.json.gz and operators.txt of one request; returns the trace's path and the stages as a table."""
    folder.mkdir(parents=True, exist_ok=True)
    cuda = side.device.type == "cuda"
    with (
        profile(activities=activities(cuda), record_shapes=True, acc_events=True) as profiled,
        record_function("one request"),
    ):
        side.answer([data])
    trace = folder / "trace.json.gz"
    profiled.export_chrome_trace(str(trace))
    order = "self_device_time_total" if cuda else "self_cpu_time_total"
    operators = profiled.key_averages(group_by_input_shape=True).table(
        sort_by=order, row_limit=OPERATORS, max_name_column_width=48, max_shapes_column_width=80
    )
    (folder / "operators.txt").write_text(operators + "\n", encoding="utf-8")
    stages = label_seconds(profiled, cuda=cuda)
    rows = [[name, shown(seconds)] for name, seconds in stages.items()]
    text = f"precision {side.model.precision}, {side.device}\n\n{table(['stage', 'time'], rows)}\n"
    text += f"{folder / 'operators.txt'}: the {OPERATORS} operators that took longest, by shape"
    return trace, text


if __name__ == "__main__":
    sys.exit(main())
