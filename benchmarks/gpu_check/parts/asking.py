"""The handler's Service in this process: requests in, bodies out, with every status that was not 200 counted."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.clock import timed
from benchmarks.speed.ours import Ours
from benchmarks.speed.peer import DETECTIONS, SCORE_THRESHOLD
from maskx_warm_up import warm_up_network


class Asked:
    """A maskx.pt as TorchServe's worker has it, warmed up as there."""

    def __init__(self, path: Path, device: str, precision: str) -> None:
        ours = Ours(path, device, precision, version="check")
        self.model, self.service = ours.model, ours.service
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
        wishes = {"score_threshold": SCORE_THRESHOLD, "max_detections": DETECTIONS} | parameters
        return self.answer([{"body": image, **wishes} for image in images])

    def timed(self, images: Sequence[bytes], **parameters: Any) -> float:
        """Seconds of one batch; the answer is on the host when it is there."""
        return timed(lambda: self.ask(images, **parameters))[0]

    @property
    def asked(self) -> int:
        """Requests so far."""
        return sum(self.statuses.values())

    @property
    def not_200(self) -> int:
        """Those that were not answered 200."""
        return self.asked - self.statuses[200]
