"""Each side lives in a process of its own, with its own allocator and memory; the bench tells them when to run.

One JSON object a line: `{"method", "arguments"}` in, `{"answer"}` or `{"error"}` out. Only one side runs at a time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks import ROOT

Numbers = dict[str, float]


class Remote:
    """A side in its own process. Methods of `OursSide`, `PeerSide` and `Bare` are called by name."""

    module = "benchmarks.worker"

    def __init__(self, kind: str, **options: Any) -> None:
        """Starts the process; `options` are the keyword arguments of the side's class."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", self.module, json.dumps({"kind": kind, **options})],
            cwd=ROOT,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.name = kind
        self._read()

    def call(self, method: str, **arguments: Any) -> Any:
        """The answer of the side's method. Raises RuntimeError with the side's own traceback where it failed."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"method": method, "arguments": arguments}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """Ends the process; it has nothing to lose."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(timeout=60)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        self.close()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            raise RuntimeError(f"the process of {self.name!r} ended with status {status} (-9: out of memory)")
        message = json.loads(line)
        if "error" in message:
            raise RuntimeError(f"{self.name}: {message['error']}")
        return message["answer"]


class Bare:
    """Preparations and the floor: whatever needs torch but is no side."""

    def prepare(
        self, folder: str, picture: str, classes: int, min_size: int, max_size: int
    ) -> dict[str, Any]:
        """See `network.prepare`."""
        from benchmarks.speed.network import prepare

        data = Path(picture).read_bytes()
        return prepare(Path(folder), data, classes, min_size=min_size, max_size=max_size)

    def prepare_small(self, path: str) -> None:
        """See `network.prepare_small`."""
        from benchmarks.speed.network import prepare_small

        prepare_small(Path(path))

    def matmul_rates(self, precision: str, device: str, sides: Sequence[int]) -> Numbers:
        """See `floor.matmul_rates`; FLOP/s by side."""
        import torch

        from benchmarks.speed.floor import matmul_rates

        rates = matmul_rates(precision, torch.device(device), sides)
        return {str(side): rate for side, rate in rates.items()}

    def machine(self, device: str) -> dict[str, Any]:
        """See `machine.describe`, with the precisions the device computes by itself."""
        import torch

        from benchmarks.machine import describe, native_precisions

        where = torch.device(device)
        return {**describe(where), "native_precisions": native_precisions(where)}


class Side:
    """What both sides can be asked."""

    def __init__(self) -> None:
        self.side: Any = None

    def time(self, files: Sequence[str], warm_up: int = 0) -> dict[str, Any]:
        """Seconds of one batch, bytes in to JSON out, after `warm_up` others."""
        data = [Path(file).read_bytes() for file in files]
        for _ in range(warm_up):
            self.side.answer(data)
        begin = time.perf_counter()
        bodies = self.side.answer(data)
        seconds = time.perf_counter() - begin
        found = [len(json.loads(body)["detections"]) for body in bodies]
        return {"seconds": seconds, "detections": found, "bytes": [len(body) for body in bodies]}

    def repeat(self, files: Sequence[str], count: int, warm_up: int) -> list[float]:
        """Seconds of each of `count` batches, one after the other."""
        data = [Path(file).read_bytes() for file in files]
        seconds = []
        for number in range(warm_up + count):
            begin = time.perf_counter()
            self.side.answer(data)
            if number >= warm_up:
                seconds.append(time.perf_counter() - begin)
        return seconds

    def reset_peak(self) -> None:
        """Lets the GPU's memory be counted anew."""
        import torch

        if self.side.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.side.device)

    def stages(self, files: Sequence[str]) -> Numbers:
        """Seconds of each stage of one batch."""
        seconds: Numbers = self.side.stages([Path(file).read_bytes() for file in files])
        return seconds

    def masks_alone(self, masks: str, height: int, width: int, repeat: int) -> dict[str, Any]:
        """Seconds of each of `repeat` runs of masks -> compressed run lengths; `masks` holds (probabilities, boxes)."""
        import torch

        where = self.side.device
        probabilities, boxes = (one.to(where) for one in torch.load(masks, weights_only=True))
        seconds = []
        for _ in range(repeat):
            begin = time.perf_counter()
            texts = self.side.masks_alone(probabilities, boxes, height, width)
            seconds.append(time.perf_counter() - begin)
        return {"seconds": seconds, "masks": len(texts)}

    def memory(self, settled: bool = False) -> Numbers:
        """MiB held now and at most so far; `settled` collects garbage first. On a GPU its own memory, too."""
        import torch

        from benchmarks.memory import peak_mib, resident_mib, settle

        if settled:
            settle()
        found = {"resident_mib": resident_mib(), "peak_mib": peak_mib()}
        if self.side is not None and self.side.device.type == "cuda":
            found["cuda_peak_mib"] = torch.cuda.max_memory_allocated(self.side.device) / 2**20
        return found


class OursSide(Side):
    """maskx.pt in the handler's modules."""

    def __init__(self, path: str, device: str, precision: str) -> None:
        import torch

        from benchmarks.speed.ours import Ours

        self.side: Ours = Ours(Path(path), torch.device(device), precision)

    def about(self) -> dict[str, Any]:
        """What was chosen where the setting said auto."""
        from benchmarks.speed.ours import describe

        return describe(self.side.model)

    def runs_per_column(self, file: str) -> float:
        """See `ours.runs_per_column`, for one image."""
        from benchmarks.speed.ours import runs_per_column

        image = self.side.decode(Path(file).read_bytes())
        return runs_per_column(self.side.predict([image])[0])

    def engine(self, files: Sequence[str], batch: int, batches: int) -> dict[str, Any]:
        """See `engine_loop.engine_loop`."""
        from benchmarks.speed.engine_loop import engine_loop

        data = [Path(file).read_bytes() for file in files]
        self.side.answer(data[:batch])
        return engine_loop(self.side, data, batch=batch, batches=batches)

    def many(self, file: str, requests: int, threshold: float) -> None:
        """That many requests, one after the other."""
        from maskx_parameters import Parameters

        data = [Path(file).read_bytes()]
        for _ in range(requests):
            self.side.answer(data, Parameters(score_threshold=threshold, max_detections=100))


class PeerSide(Side):
    """torchvision."""

    def __init__(
        self, weights: str, classes: int, device: str, scripted: bool, min_size: int, max_size: int
    ) -> None:
        import torch

        from benchmarks.speed.peer import Peer

        self.side: Peer = Peer(
            Path(weights),
            classes,
            torch.device(device),
            scripted=scripted,
            min_size=min_size,
            max_size=max_size,
        )

    def pairs(self, file: str) -> int:
        """(proposal, class) pairs above the threshold."""
        return self.side.pairs(Path(file).read_bytes())

    def write_masks(self, file: str, out: str) -> int:
        """Writes what `masks_alone` reads; returns the number of masks."""
        import torch

        probabilities, boxes = self.side.masks_before_pasting(Path(file).read_bytes())
        torch.save((probabilities.clone(), boxes.clone()), out)
        return len(boxes)


KINDS: dict[str, type[Any]] = {"ours": OursSide, "peer": PeerSide, "bare": Bare}


def serve(kinds: Mapping[str, type[Any]]) -> None:
    """Serves the side that the command line names until its input ends."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    sys.stdout = sys.stderr  # whatever prints must not come between the answers
    warnings.simplefilter("ignore")
    options = json.loads(sys.argv[1])

    def answer(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    try:
        side = kinds[options.pop("kind")](**options)
        answer({"answer": None})
        for line in sys.stdin:
            message = json.loads(line)
            answer({"answer": getattr(side, message["method"])(**message["arguments"])})
    except Exception:
        answer({"error": traceback.format_exc()})


if __name__ == "__main__":
    serve(KINDS)
