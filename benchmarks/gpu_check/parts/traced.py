"""A trace of one piece of work in numbers: kernels, launches, copies, and every wait of the host with its place."""

import statistics
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import ROOT
from benchmarks.clock import timed, wait
from benchmarks.memory import cuda_peak_mib, forget_cuda_peak
from benchmarks.speed.engine_loop import busy_seconds, kernel_times
from benchmarks.speed.ours import LABELS, activities, label_seconds

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cuStreamSynchronize")
"""Calls of the CUDA runtime in which the host waits."""
LONGEST = 10
_UNIQUE = ("_unique2", "unique_dim", "unique_consecutive")
WAITING = ("nonzero", "masked_select", *_UNIQUE, "nms", "repeat_interleave")
"""Operations whose answer's size a GPU has to tell the host; repeat_interleave only where it is not told."""


class Span(NamedTuple):
    """Something on the host's time line, in microseconds."""

    name: str
    start: float
    end: float


@dataclass(frozen=True, kw_only=True)
class Traced:
    """seconds: of a run, not profiled. busy: seconds with a kernel. waits: by place. longest: name, times, seconds."""

    seconds: float
    busy: float
    kernels: int
    launches: int
    graphs: int
    copies: int
    operations: int
    waits: Counter[str]
    stages: dict[str, float]
    longest: list[tuple[str, int, float]]
    peak_mib: float

    def numbers(self) -> dict[str, Any]:
        """Plain values for JSON."""
        content = dict(vars(self))
        content["trace's waits"] = dict(content.pop("waits"))
        return content


def traced(work: Callable[[], object], *, cuda: bool, runs: int = 3, trace: Path | None = None) -> Traced:
    """Times `work`, then runs it once more under the profiler; `trace` takes what a browser opens."""
    device = torch.device("cuda" if cuda else "cpu")
    forget_cuda_peak(device)
    seconds = timed(work, runs, device)
    peak = cuda_peak_mib(device) or 0.0
    with profile(activities=activities(cuda), acc_events=True) as profiled:
        work()
        wait(device)
    if trace is not None:
        profiled.export_chrome_trace(str(trace))
    events = list(profiled.events() or [])
    on_host = [event for event in events if event.device_type == DeviceType.CPU]
    host = [Span(event.name, event.time_range.start, event.time_range.end) for event in on_host]
    spans = kernel_times(profiled) if cuda else []
    return Traced(
        seconds=statistics.median(seconds),
        busy=busy_seconds(spans),
        kernels=len(spans),
        launches=sum("Launch" in one.name and one.name.startswith("cu") for one in host),
        graphs=sum(one.name.startswith(("cudaGraphLaunch", "cuGraphLaunch")) for one in host),
        copies=sum(one.name.startswith(("cudaMemcpy", "cuMemcpy")) for one in host),
        operations=sum(one.name.startswith(("aten::", "torchvision::")) for one in host),
        waits=places(host),
        stages=label_seconds(profiled, cuda=cuda),
        longest=longest(profiled, cuda=cuda),
        peak_mib=peak,
    )


def places(host: Sequence[Span]) -> Counter[str]:
    """Of each wait the stage, the TorchScript functions and the operator around it, the outermost first.

    The profiler's own wait at the end, which nothing surrounds, is left out.
    """
    found: Counter[str] = Counter()
    for waiting in host:
        if waiting.name not in WAITS:
            continue
        around = [
            one
            for one in host
            if one.start <= waiting.start and one.end >= waiting.end and not one.name.startswith("cu")
        ]
        around.sort(key=lambda one: (one.start, -one.end))
        names = [one.name for one in around]
        named = [name for name in names if not name.startswith(("aten::", "torchvision::", "ProfilerStep"))]
        operators = [name for name in names if name.startswith(("aten::", "torchvision::"))]
        # Of the operators the outermost is what the source says, the innermost why it waits.
        said = [*named, *dict.fromkeys([operators[0], operators[-1]] if operators else [])]
        if said:
            found[" > ".join(said)] += 1
    return found


def longest(profiled: profile, *, cuda: bool) -> list[tuple[str, int, float]]:
    """The kernels, on a CPU the operations by themselves, that took longest: name, times, seconds in all."""
    sums: dict[str, list[float]] = {}
    for event in profiled.events() or []:
        label = event.name in LABELS or getattr(event, "is_user_annotation", False)
        if cuda and event.device_type == DeviceType.CUDA and not label:
            seconds = (event.time_range.end - event.time_range.start) / 1e6
        elif not cuda:
            seconds = event.self_cpu_time_total / 1e6
        else:
            continue
        sums.setdefault(event.name, []).append(seconds)
    ordered = sorted(sums.items(), key=lambda pair: -sum(pair[1]))
    return [(name, len(times), sum(times)) for name, times in ordered[:LONGEST]]


def waits_of(work: Callable[[], object]) -> Counter[str]:
    """The waits that PyTorch warns of in its sync debug mode, by the innermost line of this project's Python."""
    found: Counter[str] = Counter()

    def note(message: Warning | str, *_: object, **__: object) -> None:
        if "called a synchronizing" in str(message):
            found[place(traceback.extract_stack())] += 1

    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return found


def place(stack: Sequence[traceback.FrameSummary]) -> str:
    """ "model/boxes/rpn.py:120 in proposals: boxes[keep]", the innermost frame of the project outside the bench."""
    for frame in reversed(stack):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT) and ".venv" not in path.parts and "benchmarks" not in path.parts:
            line = (frame.line or "").strip()[:90]
            return f"{path.relative_to(ROOT)}:{frame.lineno} in {frame.name}: {line}"
    return "elsewhere"


class _Waiting(TorchDispatchMode):
    """Counts the operations of WAITING, and indexing by bool, by place."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        by_bool = name in ("index", "index_put", "index_put_") and any(
            one is not None and one.dtype == torch.bool for one in args[1]
        )
        told = name == "repeat_interleave" and (kwargs or {}).get("output_size") is not None
        if (name in WAITING and not told) or by_bool:
            self.found[f"{name}: {place(traceback.extract_stack())}"] += 1
        return func(*args, **(kwargs or {}))


def host_operations(work: Callable[[], object]) -> Counter[str]:
    """The operations that would make the host wait for a GPU, by name and place; runs anywhere.

    To be called under `torch.no_grad`, not inference_mode, under which `torch.where` is not seen as nonzero.
    """
    with _Waiting() as mode:
        work()
    return mode.found
