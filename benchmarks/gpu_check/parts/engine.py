"""The engine: 1080p JPEGs in, JSON out, in this process, and how busy that keeps the device."""

from functools import partial
from typing import Any

import numpy as np

from benchmarks.clock import timed
from benchmarks.gpu_check.parts.answers import of_sizes, spread
from benchmarks.gpu_check.parts.large import PICTURES
from benchmarks.gpu_check.setting import NO_TIME, CheckSetting, Clock, Keep, each, measured, say
from benchmarks.memory import cuda_peak_mib, forget_cuda_peak
from benchmarks.speed.engine_loop import engine_loop
from benchmarks.speed.ours import Ours
from benchmarks.tables import Part, shown, table

BATCHES = (8, 1, 4)
"""The one that is judged first."""
Numbers = dict[str, Any]


def measure(setting: CheckSetting, seconds: float, keep: Keep) -> Part:
    """One precision after the other, that of serving first; in the short form that alone."""
    clock = Clock(seconds)
    data = [setting.picture("1080p", seed) for seed in range(2 if setting.short else PICTURES)]
    found: dict[str, Numbers] = {}

    def failed(precision: str, why: str) -> None:
        found.setdefault(precision, {})["failed"] = why

    def work(precision: str) -> None:
        of_precision(setting, precision, data, found, clock)

    chosen = setting.best_first()[: 1 if setting.short else None]
    return each(chosen, clock, 10, work, failed, keep, lambda: shown_part(setting, found))


def of_precision(
    setting: CheckSetting, precision: str, data: list[bytes], found: dict[str, Numbers], clock: Clock
) -> None:
    """Every batch size: one batch at a time, then overlapped. Fills `found` as it goes."""
    side = Ours(setting.large / "maskx.pt", setting.device, precision)
    numbers: Numbers = found.setdefault(precision, {})
    for batch in (2,) if setting.short else BATCHES:
        if numbers and not clock.has(5):
            numbers["note"] = f"no time was left for batch {batch}"
            return
        say(f"engine in {precision}, batch {batch}")
        images = data[:batch]
        forget_cuda_peak(side.device)
        batch_of = partial(side.answer, images)  # raises RuntimeError where an answer is not 200
        (first,) = timed(batch_of)
        timed(batch_of, 1 if setting.short else 4)
        count = 1 if setting.short else max(min(int(2.0 / max(*timed(batch_of), 1e-3)), 60), 4)
        seconds = timed(batch_of, count)
        # Without the profiler, whose own work would count; its run of the same loop tells the idle share.
        loops = 2 if setting.short else max(count, 12)
        fast = engine_loop(side, data, batch=batch, batches=loops, watch=False)
        watched = engine_loop(side, data, batch=batch, batches=min(loops, 25))
        if "sizes" not in numbers and precision == setting.best_first()[0]:
            unseen = of_sizes(data, 3 if setting.short else 50)
            numbers["sizes"] = spread([timed(partial(side.answer, [image]))[0] for image in unseen])
        p50, p99 = np.percentile(seconds, [50, 99])
        numbers[f"batch {batch}"] = {
            "first": first,
            "seconds": seconds,
            "images_per_second": batch * len(seconds) / sum(seconds),
            "p50": float(p50),
            "p99": float(p99),
            "overlapped": fast["images_per_second"],
            "idle_share": watched["idle_share"],
            "peak_mib": cuda_peak_mib(side.device),
        }


def shown_part(setting: CheckSetting, found: dict[str, Numbers]) -> Part:
    """A row for each precision and batch."""
    rows, notes = [], []
    bars: dict[str, float] = {}
    for precision, of in found.items():
        for name, one in of.items():
            if name == "sizes":
                bars["unseen sizes large"] = one["ratio"]
                notes.append(
                    f"- {precision}, {one['count']} sizes never seen, one image each: median {shown(one['median'])}, "
                    f"slowest {shown(one['slowest'])}, ratio {one['ratio']:.2f}"
                )
                continue
            if name in ("failed", "note"):
                notes.append(f"- {precision}: {one}")
                continue
            cells = [
                shown(one["first"]),
                f"{one['images_per_second']:.1f}",
                shown(one["p50"]),
                shown(one["p99"]),
            ]
            cells += [f"{one['overlapped']:.1f}", f"{100 * one['idle_share']:.0f} %"]
            cells.append("-" if one["peak_mib"] is None else f"{one['peak_mib']:.0f}")
            rows.append((f"{precision}, {name}", *cells))
    headers = ["", "first batch", "images/s", "p50 of a batch", "p99", "overlapped: images/s", "idle"]
    headers.append("CUDA memory at most, MiB")
    text = table(headers, rows) if rows else ""
    idle = "no kernel ran" if setting.on_gpu else "the network was not running"
    text += (
        f"\nResNet-50-FPN at {setting.min_size}, calibrated random weights, 100 detections. Overlapped: decoding and "
        f"encoding in threads beside the device. Idle: the share of that time in which {idle}.\n"
    )
    text += "".join(f"{note}\n" for note in notes)
    judged = found.get("bfloat16", {}).get("batch 8")
    if judged:
        bars |= {"engine": judged["overlapped"], "engine idle": 100 * judged["idle_share"]}
    failed = sum("failed" in one and one["failed"] != NO_TIME for one in found.values())
    numbers = measured(bars, asked=0, not_200=failed, precisions=found)
    return Part("Engine, 1080p JPEGs, bytes in to JSON out", text, numbers)
