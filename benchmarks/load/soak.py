"""The soak: saturation for many minutes; errors, and whether the memory of front and worker stays flat."""

import threading
import time
from typing import Any

from benchmarks.load.sections import RATE_AND_TIMES, Numbers, rate_and_times
from benchmarks.load.server import Memory
from benchmarks.load.setting import CONCURRENCY, LoadSetting, closed, say
from benchmarks.load.times import slope_percent, summary
from benchmarks.tables import table

EVERY = 5.0
"""Seconds between two looks at the memory."""
BAR = 1.0
"""% that resident memory may rise over the last three quarters."""


def soak_numbers(setting: LoadSetting, minutes: float) -> Numbers:
    """The tiny network as it is shipped, 8 clients over REST in a closed loop for so many minutes."""
    network = setting.tiny
    seconds = 60 * minutes
    say(f"soak: {minutes:g} minutes")
    with setting.served(network, "soak") as served, setting.client(served, "REST") as client:
        worker = served.worker()
        seen: list[dict[str, float]] = []
        over = threading.Event()
        memory = Memory(served)
        start = time.perf_counter()

        def look() -> None:
            while not over.is_set():
                seen.append({"seconds": time.perf_counter() - start, **memory.now()})
                over.wait(EVERY)

        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            samples, _ = closed(client, CONCURRENCY, seconds)
        finally:
            over.set()
            watcher.join()
        same = served.same_worker(worker)
        found = summary(samples, warm_up=min(network.warm_up, seconds / 10), until=seconds)
    return {
        "minutes": minutes,
        **found,
        "same_worker": same,
        "memory": {name: rise([one for one in seen if name in one], name) for name in ("front", "worker")},
        "seen": seen,
    }


def rise(seen: list[dict[str, float]], name: str) -> dict[str, float]:
    """MiB in the last three quarters: mean, lowest, highest; and by how much a line through them rises, in %."""
    last = [one for one in seen if one["seconds"] >= seen[-1]["seconds"] / 4]
    values = [one[name] for one in last]
    risen = slope_percent([one["seconds"] for one in last], values)
    mean = sum(values) / len(values)
    return {"mean_mib": mean, "min_mib": min(values), "max_mib": max(values), "rise_percent": risen}


def soak_text(numbers: Numbers) -> str:
    """The load, then the memory."""
    rows = []
    for name, one in numbers["memory"].items():
        between = f"{one['min_mib']:.0f} to {one['max_mib']:.0f}"
        rows.append((name, f"{one['mean_mib']:.0f} MiB", between, f"{one['rise_percent']:+.2f} %"))
    worst: Any = max(one["rise_percent"] for one in numbers["memory"].values())
    return (
        table(("minutes", *RATE_AND_TIMES), [(f"{numbers['minutes']:g}", *rate_and_times(numbers))])
        + "\n"
        + table(("resident memory", "mean", "lowest to highest", "rise"), rows)
        + f"\nThe tiny network, {CONCURRENCY} clients over REST, looked at every {EVERY:.0f} s; the rise is that of a "
        f"straight line over the last three quarters. The bar is {BAR:.0f} %: "
        + ("kept" if worst < BAR else "not kept")
        + f". The worker at the end is {'the one' if numbers['same_worker'] else 'NOT the one'} of the beginning.\n"
    )
