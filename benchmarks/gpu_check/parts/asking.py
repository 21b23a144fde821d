"""The handler's Service in this process: requests in, bodies out, with every status that was not 200 counted."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from maskx_model import ServedModel
from maskx_service import Service
from maskx_settings import Limits
from maskx_warm_up import warm_up_network

DETECTIONS = 100
LOW = 0.05


class Asked:
    """A maskx.pt as TorchServe's worker has it, warmed up as there."""

    def __init__(self, path: Path, device: str, precision: str) -> None:
        self.device = torch.device(device)
        self.model = ServedModel(path, self.device, precision=precision)
        self.service = Service(self.model, Limits(), name="maskx", version="check")
        self.statuses: Counter[int] = Counter()
        self.said: list[str] = []
        """What the first few answers that were not 200 said."""
        warm_up_network(self.model)

    def answer(self, requests: Sequence[Mapping[str, Any]]) -> list[bytes | None]:
        """The body of each that was answered 200, None of any other."""
        found: list[bytes | None] = []
        for answer in self.service.answer(requests):
            self.statuses[answer.status] += 1
            found.append(answer.body if answer.status == 200 else None)
            if answer.status != 200 and len(self.said) < 3:
                self.said.append(f"{answer.status}: {answer.body[:200].decode(errors='replace')}")
        return found

    def ask(self, images: Sequence[bytes], **parameters: Any) -> list[bytes | None]:
        """All of them in one batch, with the same parameters."""
        wishes = {"score_threshold": LOW, "max_detections": DETECTIONS} | parameters
        return self.answer([{"body": image, **wishes} for image in images])

    def timed(self, images: Sequence[bytes], **parameters: Any) -> float:
        """Seconds of one batch; the answer is on the host when it is there."""
        begin = time.perf_counter()
        self.ask(images, **parameters)
        return time.perf_counter() - begin

    @property
    def asked(self) -> int:
        """Requests so far."""
        return sum(self.statuses.values())

    @property
    def not_200(self) -> int:
        """Those that were not answered 200."""
        return self.asked - self.statuses[200]
