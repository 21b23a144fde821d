"""The in-process side of the overhead: the handler's own Service, no server, no network, in a process of its own."""

import itertools
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.load.client import LONGEST_SECONDS
from benchmarks.speed.ours import Ours
from benchmarks.speed.side import read
from maskx_forward import Lanes
from maskx_served import lanes_of
from maskx_warm_up import warm_up_network


class Offline:
    """decode + network + encode of image bytes, batch after batch, as a server's worker does it."""

    def __init__(self, path: str, images: Sequence[str], threads: int) -> None:
        """Loads and warms up as the handler does, on the CPU or on the first GPU.

        Args:
            path: of the maskx.pt.
            images: files, taken in turn.
            threads: of torch; the worker's own number.
        """
        torch.set_num_threads(threads)
        ours = Ours(path, "cuda:0" if torch.cuda.is_available() else "cpu")
        warm_up_network(ours.model)
        self._service = ours.service
        self._service.lanes = Lanes(lanes_of(ours.model))
        self._requests = itertools.cycle([{"body": image} for image in read(images)])

    def run(self, batch: int, seconds: float, least: int = 1) -> dict[str, Any]:
        """Batches of `batch` images until `seconds` have passed, and at least so many.

        "images": how many; "seconds": what they took; "ends": when each batch was done, of those seconds; "errors":
        answers that were none.
        """
        if not 0 < seconds <= LONGEST_SECONDS:
            raise ValueError(f"a run of {seconds} s; up to {LONGEST_SECONDS:.0f} s is allowed")
        images = errors = 0
        ends: list[float] = []
        begin = time.perf_counter()
        while (spent := time.perf_counter() - begin) < seconds or images < least * batch:
            answers = self._service.answer(list(itertools.islice(self._requests, batch)), [{}] * batch)
            errors += sum(answer.status != 200 for answer in answers)
            images += batch
            ends.append(time.perf_counter() - begin)
        return {"images": images, "seconds": spent, "ends": ends, "errors": errors}
