"""What one batch adds to the metrics: names, values and labels; serve_config/metrics.yaml declares the same names.

Each sample costs a line of the worker's output, which the server reads, so what can be counted once for a batch is.
Knows nothing of the server.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from maskx_service import Answer

COUNTERS = ("maskx_requests_total", "maskx_errors_total", "maskx_images_total", "maskx_detections_total")
HISTOGRAMS = (
    "maskx_queue_seconds",
    "maskx_decode_seconds",
    "maskx_forward_seconds",
    "maskx_encode_seconds",
    "maskx_batch_size",
)
GAUGES = ("maskx_device_memory_bytes",)

KINDS = (
    dict.fromkeys(COUNTERS, "counter")
    | dict.fromkeys(HISTOGRAMS, "histogram")
    | dict.fromkeys(GAUGES, "gauge")
)
"""Every metric, and what it is to Prometheus."""

MEMORY_EVERY = 5.0
"""Seconds from one sample of the device's memory to the next, at least."""


@dataclass(frozen=True)
class Sample:
    """A value of the metric `name`, and the values of its own labels as metrics.yaml has them."""

    name: str
    value: float
    labels: tuple[str, ...] = ()


def samples_of(
    answers: Sequence[Answer], protocols: Sequence[str], queued: Sequence[float | None]
) -> list[Sample]:
    """The samples of a batch.

    Args:
        answers: of one batch, at least one.
        protocols: "rest" or "grpc" of each request.
        queued: seconds that each request waited, None where nobody knows.
    """
    timings = answers[0].timings
    asked = Counter((by, str(answer.status)) for by, answer in zip(protocols, answers, strict=True))
    samples = [Sample("maskx_requests_total", count, labels) for labels, count in asked.items()]
    errors = Counter(kind for answer in answers for kind in answer.errors)
    samples += [Sample("maskx_errors_total", count, (kind,)) for kind, count in errors.items()]
    for name, count in (
        ("maskx_images_total", sum(answer.images for answer in answers)),
        ("maskx_detections_total", sum(answer.detections for answer in answers)),
    ):
        if count > 0:
            samples.append(Sample(name, count))
    samples += [Sample("maskx_queue_seconds", _short(one)) for one in queued if one is not None]
    samples.append(Sample("maskx_decode_seconds", _short(timings.decode)))
    if timings.forward > 0:
        samples.append(Sample("maskx_forward_seconds", _short(timings.forward)))
    samples.append(Sample("maskx_encode_seconds", _short(timings.encode)))
    samples.append(Sample("maskx_batch_size", len(answers)))
    return samples


def memory_sample(device: str, taken: int) -> Sample:
    """The sample of `taken` bytes on a device."""
    return Sample("maskx_device_memory_bytes", taken, (device,))


def _short(seconds: float) -> float:
    """Rounded to the microsecond: a shorter line."""
    return round(seconds, 6)
