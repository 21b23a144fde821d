"""Throughput: images a second, how long a batch takes its callers, and how busy that keeps the device."""

from typing import Any

import numpy as np

from benchmarks.speed.setting import PEER, Setting, ours_in, say, started
from benchmarks.tables import Part, shown, table
from benchmarks.worker import Remote

PUBLISHED = (
    "A published figure beside it: TorchServe with a Detectron2 Mask R-CNN (the Animated Drawings post on pytorch.org) "
    'at half precision and batch 8 answered 85.3 requests/s, p99 94.4 ms. Another GPU, unnamed, and another, "small", '
    "image size: it is printed here as a mark, not as a measurement of the same thing."
)


def throughput(setting: Setting) -> list[Part]:
    """One batch at a time, then with decoding and encoding beside the device."""
    with started(setting, scripted=False) as sides:
        return [batch_by_batch(setting, sides), overlapped(setting, sides)]


def batch_by_batch(setting: Setting, sides: dict[str, Remote]) -> Part:
    """Bytes in to JSON out, one batch after the other: images a second, and how long a batch takes its callers."""
    on_gpu = setting.device != "cpu"
    requests = 200 if not setting.quick else 20 if on_gpu else 2
    rows, numbers, ratios = [], {}, {}
    for batch in (1, 4, 8) if on_gpu else (1, 4):
        files = [setting.picture("1080p", seed) for seed in range(batch)]
        rate: dict[str, float] = {}
        for name, side in sides.items():
            if not on_gpu and name == PEER and batch > 1:
                continue
            say(f"throughput: {name}, batch of {batch}")
            count = max(requests // batch, 2)
            seconds = side.call("repeat", files=files, count=count, warm_up=3 if batch == 1 else 2)
            memory = side.call("memory")
            rate[name] = batch * len(seconds) / sum(seconds)
            p50, p99 = np.percentile(seconds, [50, 99])
            cells = [f"{rate[name]:.1f}", shown(float(p50)), shown(float(p99))]
            if "cuda_peak_mib" in memory:
                cells.append(f"{memory['cuda_peak_mib']:.0f}")
            rows.append([f"{name}, batch {batch}", *cells])
            numbers[f"{name}, batch {batch}"] = {"seconds": seconds, **memory}
        for precision in setting.precisions if PEER in rate else ():
            ratio = rate[ours_in(precision)] / rate[PEER]
            ratios[f"throughput at batch {batch}, maskx {precision} / torchvision eager float32"] = ratio
    headers = ["", "images/s", "p50 of a batch", "p99 of a batch"]
    headers += ["CUDA memory at most, MiB"] if on_gpu else []
    title = "Throughput, 1080p JPEGs, bytes in to JSON out, one batch at a time"
    return Part(title, f"{table(headers, rows)}\n{PUBLISHED}\n", numbers, ratios)


def overlapped(setting: Setting, sides: dict[str, Remote]) -> Part:
    """Batches with decoding and encoding in threads beside the device."""
    on_gpu = setting.device != "cpu"
    batch = 8 if on_gpu else 2
    files = [setting.picture("1080p", seed) for seed in range(batch)]
    rows, numbers = [], {}
    for name in map(ours_in, setting.precisions):
        say(f"engine loop: {name}")
        count = 2 if setting.quick else 25
        found: dict[str, Any] = sides[name].call("engine", files=files, batch=batch, batches=count)
        rows.append([name, f"{found['images_per_second']:.1f}", f"{100 * found['idle_share']:.0f} %"])
        numbers[name] = found
    what = "no kernel ran" if on_gpu else "the network was not running; a CPU is never idle here"
    text = table(["", "images/s", "idle share"], rows) + f"\nIdle: the share of the time in which {what}.\n"
    return Part(title=f"Engine loop with overlapped decoding, batch {batch}", text=text, numbers=numbers)
