"""The bench on a GPU: stages, sizes and whole, throughput with p50 and p99, memory, and the device's idle share.

    python -m benchmarks.gpu_check.bench [--quick]

Where there is no GPU it runs on the CPU to the end, in a short form, and says so in its first line.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import ROOT
from benchmarks.speed.__main__ import heading, write
from benchmarks.speed.parts import CLASSES, batches, floor, sizes, whole
from benchmarks.speed.setting import PEER, Setting, add_network_options, ours_in, say, started
from benchmarks.tables import Part, document, shown, table
from benchmarks.worker import Remote

NO_GPU = "NO GPU HERE: every figure below is of the CPU, in a short form that only shows that the bench runs."
PUBLISHED = (
    "A published figure beside it: TorchServe with a Detectron2 Mask R-CNN (the Animated Drawings post on pytorch.org) "
    'at half precision and batch 8 answered 85.3 requests/s, p99 94.4 ms. Another GPU, unnamed, and another, "small", '
    "image size: it is printed here as a mark, not as a measurement of the same thing."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    options = parser().parse_args(arguments)
    on_gpu = options.device.startswith("cuda")
    if on_gpu and not torch.cuda.is_available():
        print(f"error: --device {options.device}, but PyTorch can use no GPU here", file=sys.stderr)
        return 2
    if not on_gpu:
        print(NO_GPU, flush=True)
    quick = options.quick or not on_gpu
    begin = time.monotonic()
    with Remote("bare") as bare:
        machine = bare.call("machine", device=options.device)
    native = machine["native_precisions"]
    setting = Setting(
        folder=options.folder.resolve(),
        device=options.device,
        precisions=tuple(options.precisions or (native if on_gpu else native[-1:])),
        min_size=options.min_size,
        max_size=options.max_size,
        rounds=options.rounds or (1 if quick else 10),
        quick=quick,
    )
    about = setting.network(CLASSES)
    requests = 2 if quick and not on_gpu else 20 if quick else 200
    with started(setting, CLASSES, scripted=False) as sides:
        parts = [whole(setting, sides)]
        if on_gpu:
            parts += [sizes(setting, sides), batches(setting, sides)]
        parts += [throughput(setting, sides, requests), engine(setting, sides, 2 if quick else 25)]
    parts.append(floor(setting, parts[0], about))
    minutes = (time.monotonic() - begin) / 60
    text = document("maskx on a GPU" if on_gpu else NO_GPU, heading(machine, setting, minutes), parts)
    path = write(
        options.out if on_gpu else setting.folder / "results", setting, machine, parts, text, minutes
    )
    print(text)
    say(f"{path} and its .json written, {minutes:.1f} minutes")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check.bench", description=(__doc__ or "").splitlines()[0]
    )
    made.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: %(default)s)"
    )
    made.add_argument("--quick", action="store_true", help="few runs of each")
    made.add_argument("--precisions", nargs="+", help="(default: those that the device computes by itself)")
    made.add_argument("--rounds", type=int, help="timed runs of each thing (default: 10, --quick 1)")
    add_network_options(made)
    made.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results", help="for the result, of a GPU alone"
    )
    return made


def throughput(setting: Setting, sides: dict[str, Remote], requests: int) -> Part:
    """Bytes in to JSON out, one batch after the other: images a second, and how long a batch takes its callers."""
    rows, numbers, ratios = [], {}, {}
    chosen = (1, 4, 8) if setting.device != "cpu" else (1, 4)
    per_second: dict[tuple[str, int], float] = {}
    for batch in chosen:
        files = [setting.picture("1080p", seed) for seed in range(batch)]
        for name, side in sides.items():
            if setting.device == "cpu" and name == PEER and batch > 1:
                continue
            say(f"throughput: {name}, batch of {batch}")
            side.call("reset_peak")
            seconds = side.call(
                "repeat", files=files, count=max(requests // batch, 2), warm_up=3 if batch == 1 else 2
            )
            memory = side.call("memory")
            per_second[name, batch] = batch * len(seconds) / sum(seconds)
            p50, p99 = np.percentile(seconds, [50, 99])
            cells = [f"{per_second[name, batch]:.1f}", shown(float(p50)), shown(float(p99))]
            if "cuda_peak_mib" in memory:
                cells.append(f"{memory['cuda_peak_mib']:.0f}")
            rows.append([f"{name}, batch {batch}", *cells])
            numbers[f"{name}, batch {batch}"] = {"seconds": seconds, **memory}
        for precision in setting.precisions:
            ours = per_second.get((ours_in(precision), batch))
            if ours and (PEER, batch) in per_second:
                ratios[f"throughput at batch {batch}, maskx {precision} / torchvision eager float32"] = (
                    ours / per_second[PEER, batch]
                )
    headers = ["", "images/s", "p50 of a batch", "p99 of a batch"]
    headers += ["CUDA memory at most, MiB"] if setting.device != "cpu" else []
    text = f"{table(headers, rows)}\n{PUBLISHED}\n"
    return Part(
        title="Throughput, 1080p JPEGs, bytes in to JSON out, one batch at a time",
        text=text,
        numbers=numbers,
        ratios=ratios,
    )


def engine(setting: Setting, sides: dict[str, Remote], count: int) -> Part:
    """Batches with decoding and encoding in threads beside the device."""
    files = [setting.picture("1080p", seed) for seed in range(8)]
    rows, numbers = [], {}
    batch = 8 if setting.device != "cpu" else 2
    for precision in setting.precisions:
        name = ours_in(precision)
        say(f"engine loop: {name}")
        found: dict[str, Any] = sides[name].call("engine", files=files, batch=batch, batches=count)
        rows.append([name, f"{found['images_per_second']:.1f}", f"{100 * found['idle_share']:.0f} %"])
        numbers[name] = found
    what = (
        "no kernel ran"
        if setting.device != "cpu"
        else "the network was not running; a CPU is never idle here"
    )
    text = table(["", "images/s", "idle share"], rows) + f"\nIdle: the share of the time in which {what}.\n"
    return Part(title=f"Engine loop with overlapped decoding, batch {batch}", text=text, numbers=numbers)


if __name__ == "__main__":
    sys.exit(main())
