"""What a load test's samples say: rates of a window, and latencies by percentile."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

PERCENTILES = (50.0, 90.0, 99.0, 99.9)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One request: when it was to begin and when its answer was there, in seconds of one clock, and how it ended.

    `outcome` is "" where it was answered as it should be, else a short name of what happened ("503", "timeout").
    """

    begin: float
    end: float
    outcome: str = ""

    @property
    def seconds(self) -> float:
        """From the intended beginning, so that the time a request waits behind a slow one counts."""
        return self.end - self.begin


def percentile(seconds: Sequence[float], percent: float) -> float | None:
    """The smallest value that `percent` of all do not exceed (nearest rank).

    None where there are too few for it to differ from the largest: p99.9 needs a thousand.

    Raises ValueError: `percent` is outside 0..100.
    """
    if not 0 < percent < 100:
        raise ValueError(f"the percentile is {percent}; between 0 and 100 is allowed")
    if len(seconds) * (100 - percent) < 100 * (1 - 1e-9):
        return None
    return sorted(seconds)[math.ceil(len(seconds) * percent / 100 - 1e-9) - 1]


def rate_between(ends: Sequence[float], begin: float, end: float) -> float:
    """Answers a second between the last one before `begin` and the last one before `end`; 0 where there is none.

    Both bounds are moments when an answer (and with it a whole batch) had just come, so that a window cuts no batch
    in two: with batches of 8 that take seconds, counting from `begin` itself would be wrong by a batch.
    """
    inside = sorted(moment for moment in ends if moment <= end)
    before = [moment for moment in inside if moment <= begin]
    first = before[-1] if before else begin
    counted = len(inside) - len(before)
    return counted / (inside[-1] - first) if counted and inside[-1] > first else 0.0


def without_server(ends: Sequence[float], *, batch: int, clients: int) -> list[Sample]:
    """A closed loop of so many clients that a server would make no longer, from the ends of batches in one process.

    Who is answered asks again at that moment and is answered with the batch for which all asked before him have left
    room. Raises ValueError: the clients don't fill batches of this size.
    """
    if clients % batch:
        raise ValueError(f"{clients} clients and batches of {batch}; a multiple is expected")
    later = clients // batch
    pairs = zip(ends, ends[later:], strict=False)
    return [Sample(begin=begin, end=end) for begin, end in pairs for _ in range(batch)]


def summary(samples: Sequence[Sample], *, warm_up: float, until: float) -> dict[str, Any]:
    """Numbers of the requests whose answers came after `warm_up` and until `until` (seconds on the samples' clock).

    "rate": good answers a second; "requests": how many answers; "errors": outcome -> count, of the whole run, the
    warm-up too; "p50".."p99.9", "mean", "max": seconds of good answers, None where there are too few.
    """
    good = [sample for sample in samples if not sample.outcome]
    counted = [sample.seconds for sample in good if warm_up < sample.end <= until]
    found: dict[str, Any] = {
        "requests": len(counted),
        "rate": rate_between([sample.end for sample in good], warm_up, until),
        "errors": dict(Counter(sample.outcome for sample in samples if sample.outcome)),
        "mean": sum(counted) / len(counted) if counted else None,
        "max": max(counted, default=None),
    }
    for percent in PERCENTILES:
        found[f"p{percent:g}"] = percentile(counted, percent)
    return found


def slope_percent(moments: Sequence[float], values: Sequence[float]) -> float:
    """By how much a straight line through the values rises from the first moment to the last, in % of their mean.

    Least squares; 0 where there are fewer than two moments. Raises ValueError: the two differ in length.
    """
    if len(moments) != len(values):
        raise ValueError(f"{len(moments)} moments and {len(values)} values; as many of each are expected")
    if len(values) < 2 or moments[0] == moments[-1]:
        return 0.0
    middle, mean = sum(moments) / len(moments), sum(values) / len(values)
    steepness = sum((t - middle) * (v - mean) for t, v in zip(moments, values, strict=True)) / sum(
        (t - middle) ** 2 for t in moments
    )
    return 100 * steepness * (moments[-1] - moments[0]) / mean
