"""The compiled package (AOTInductor) on the device beside TorchScript: bytes to JSON, and its trunk in a CUDA graph."""

import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.clock import timed
from benchmarks.engines.agreement import agreement
from benchmarks.engines.packaged import make_package
from benchmarks.gpu_check.parts.graphed import Trunk, measure_trunk
from benchmarks.gpu_check.parts.large import PICTURES
from benchmarks.gpu_check.setting import CheckSetting, Clock, Keep, measured, say
from benchmarks.memory import cuda_peak_mib, forget_cuda_peak
from benchmarks.speed.ours import Ours
from benchmarks.tables import Part, shown, table
from maskx_compiled import CompiledParts, package_for
from model.canvas import canvas_side

BATCHES = (8, 1)
"""The one that is judged first."""
TITLE = "The compiled package beside TorchScript"
Numbers = dict[str, Any]


def measure(setting: CheckSetting, seconds: float, keep: Keep) -> Part:
    """In the precision of serving alone: compiling takes most of the time."""
    clock, precision = Clock(seconds), setting.best_first()[0]
    say(f"compiling the package in {precision}")
    made = make_package(str(setting.large), precision, device=setting.device)
    found: Numbers = {"precision": precision, "compiled in": made["seconds"]}
    if "reason" in made:
        found["reason"] = made["reason"]
        return shown_part(setting, found)
    found["parts"] = made["record"]["parts"]
    keep(shown_part(setting, found))
    sides = {
        "TorchScript": Ours(setting.large / "maskx.pt", setting.device, precision),
        "compiled": Ours(setting.large / "maskx.pt", setting.device, precision, package=made["path"]),
    }
    data = [setting.picture("1080p", seed) for seed in range(2 if setting.short else PICTURES)]
    bodies = [side.answer(data[:1])[0] for side in sides.values()]
    found["alike"] = agreement(*bodies)
    for batch in (2,) if setting.short else BATCHES:
        for name, side in sides.items():
            say(f"{name}, batch {batch}")
            found[f"{name}, batch {batch}"] = in_batches(side, data[:batch], runs=2 if setting.short else 40)
            keep(shown_part(setting, found))
    if clock.has(5) or setting.short:
        found["graph"] = graph_of(setting, Path(made["path"]), precision)
    return shown_part(setting, found)


def in_batches(side: Ours, images: list[bytes], *, runs: int) -> Numbers:
    """One batch after the other, two of them before any counts."""
    forget_cuda_peak(side.device)
    batch = partial(side.answer, images)
    timed(batch, 2)
    seconds = timed(batch, runs)
    return {
        "seconds": seconds,
        "p50": statistics.median(seconds),
        "images_per_second": len(images) * runs / sum(seconds),
        "peak_mib": cuda_peak_mib(side.device),
    }


def graph_of(setting: CheckSetting, path: Path, precision: str) -> Numbers:
    """The compiled trunk on the canvas of a 1080p photograph, launched and replayed; or why it cannot be."""
    device = torch.device(setting.device)
    parts = package_for(
        path, torchscript=setting.large / "maskx.pt", device=device, precision=precision, wanted="compiled"
    )
    if isinstance(parts, str) or "trunk" not in parts.parts:
        return {"reason": parts if isinstance(parts, str) else "the trunk is not in the package"}
    sides = [canvas_side(side, parts.record["step"]) for side in canvas_of_1080p(setting)]
    try:
        found = measure_trunk(trunk_of(parts, device, precision, *sides), device, 2 if setting.short else 40)
    except RuntimeError as error:  # whatever a capture forbids
        return {"reason": str(error).splitlines()[0]}
    return {"launched": found.launched, "replayed": found.replayed, "same": found.same}


def canvas_of_1080p(setting: CheckSetting) -> tuple[int, int]:
    """Height and width to which a photograph of 1920 x 1080 is resized."""
    shrunk = min(setting.min_size / 1080, setting.max_size / 1920)
    return round(1080 * shrunk), round(1920 * shrunk)


def trunk_of(parts: CompiledParts, device: torch.device, precision: str, height: int, width: int) -> Trunk:
    """The compiled trunk on one canvas of this size."""
    canvas = torch.rand(1, 3, height, width, device=device).to(getattr(torch, precision))
    canvas = canvas.contiguous(memory_format=torch.channels_last)

    def run() -> list[Tensor]:
        return parts.run("trunk", canvas)

    return run


def shown_part(setting: CheckSetting, found: Numbers) -> Part:
    """A row for each engine and batch, and the trunk's graph below."""
    if "reason" in found:
        text = f"No package in {found['precision']} was made: {found['reason']}\n"
        return Part(TITLE, text, measured(asked=0, not_200=0, **found))
    batches = [name for name in found if ", batch " in name]
    rows = [_row(name, found[name]) for name in batches]
    headers = ("", "images/s", "p50 of a batch", "CUDA memory at most, MiB")
    text = table(headers, rows) if rows else ""
    text += (
        f"\nIn {found['precision']}: {', '.join(found['parts'])}, compiled in {found['compiled in']:.0f} s.\n"
    )
    bars: dict[str, float] = {}
    if batches:
        batch = batches[0].rpartition(" ")[2]
        pair = [found.get(f"{name}, batch {batch}") for name in ("compiled", "TorchScript")]
        if pair[0] and pair[1]:
            bars["compiled"] = pair[0]["images_per_second"] / pair[1]["images_per_second"]
            text += (
                f"Batch of {batch}: {bars['compiled']:.2f} times as many images a second. Of the first photograph's "
                f"detections {100 * found['alike']:.0f} % are alike.\n"
            )
    if graph := found.get("graph"):
        text += f"The compiled trunk of one image: {_told(graph)}.\n"
    return Part(TITLE, text, measured(bars, asked=0, not_200=0, **found))


def _row(name: str, one: Numbers) -> tuple[str, ...]:
    peak = "-" if one["peak_mib"] is None else f"{one['peak_mib']:.0f}"
    return name, f"{one['images_per_second']:.1f}", shown(one["p50"]), peak


def _told(graph: Numbers) -> str:
    if "reason" in graph:
        return f"no graph: {graph['reason']}"
    if graph["replayed"] is None:
        return f"{shown(graph['launched'])}; there are no CUDA graphs here"
    same = "the same answers" if graph["same"] else "**other answers**"
    return f"{shown(graph['launched'])} launched, {shown(graph['replayed'])} in a CUDA graph, {same}"
