"""Batches through the network while the next ones are decoded: how busy it keeps the device."""

import itertools
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.machine import usable_cores
from benchmarks.speed.ours import LABELS, Ours
from benchmarks.speed.side import read
from maskx_answer import Detections
from maskx_image import DecodedImage

DECODED_AHEAD = 2
"""Batches that wait, decoded, for the device."""


class Engine(Ours):
    """Our side, which can also run batches overlapped."""

    def engine(self, files: Sequence[str], batch: int, batches: int) -> dict[str, Any]:
        """See `engine_loop`."""
        data = read(files)
        self.answer(data[:batch])
        return engine_loop(self, data, batch=batch, batches=batches)


def engine_loop(
    side: Ours, data: Sequence[bytes], *, batch: int, batches: int, watch: bool = True
) -> dict[str, Any]:
    """Runs `batches` batches, images taken from `data` in turns; decoding before and encoding after are in threads.

    Returns seconds in all, images a second, and the device's idle share: on a GPU one less the time in which any kernel
    ran; on a CPU, which is never idle, one less the time inside `predict`. Without `watch` no profiler looks on, whose
    work would be in the seconds, and the idle share of a GPU is that of a CPU.
    """
    waiting: queue.Queue[list[DecodedImage]] = queue.Queue(maxsize=DECODED_AHEAD)
    threads = max(usable_cores(), 1)
    endless = itertools.cycle(data)

    def decode_all() -> None:
        with ThreadPoolExecutor(threads) as decoders:
            for _ in range(batches):
                waiting.put(list(decoders.map(side.decode, itertools.islice(endless, batch))))

    def encode(image: DecodedImage, found: Detections) -> int:
        return len(side.body(image, found))

    cuda = side.device.type == "cuda"
    watched = cuda and watch
    producer = threading.Thread(target=decode_all, name="decode", daemon=True)
    inside = 0.0
    encoded = []
    with ThreadPoolExecutor(threads) as encoders:
        producer.start()
        profiled = profile(activities=[ProfilerActivity.CUDA], acc_events=True) if watched else None
        if profiled is not None:
            profiled.start()
        begin = time.perf_counter()
        for _ in range(batches):
            images = waiting.get()
            started = time.perf_counter()
            found = side.predict(images)
            inside += time.perf_counter() - started
            encoded += [encoders.submit(encode, *pair) for pair in zip(images, found, strict=True)]
        size = sum(one.result() for one in encoded)
        if cuda:
            torch.cuda.synchronize(side.device)
        seconds = time.perf_counter() - begin
        if profiled is not None:
            profiled.stop()
            inside = busy_seconds(kernel_times(profiled))
    producer.join()
    idle, rate = max(1 - inside / seconds, 0.0), batch * batches / seconds
    return {"seconds": seconds, "images_per_second": rate, "idle_share": idle, "answer_bytes": size}


def kernel_times(profiled: profile) -> list[tuple[float, float]]:
    """Begin and end, in microseconds, of all that ran on the GPU; the labels' own lines are left out."""
    return [
        (event.time_range.start, event.time_range.end)
        for event in profiled.events() or []
        if event.device_type == DeviceType.CUDA
        and event.name not in LABELS
        and not getattr(event, "is_user_annotation", False)
    ]


def busy_seconds(spans: Sequence[tuple[float, float]]) -> float:
    """Seconds that are covered by at least one of the spans of microseconds."""
    covered, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        covered += max(stop - max(start, end), 0.0)
        end = max(end, stop)
    return covered / 1e6
