"""Where the host waits for the device, each with its place, and what one batch and one training step are made of."""

from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check.parts.answers import empty_images
from benchmarks.gpu_check.parts.asking import DETECTIONS, Asked
from benchmarks.gpu_check.parts.graphed import measure_trunk, trunk_of
from benchmarks.gpu_check.parts.large import PICTURES
from benchmarks.gpu_check.parts.traced import Traced, host_operations, traced, waits_of
from benchmarks.gpu_check.parts.training_speed import FULL, SHORT, one_step, photo_run, photos_of
from benchmarks.gpu_check.setting import CheckSetting, Clock, Keep, each, measured, say
from benchmarks.tables import Part, shown, table
from maskx_image import decode
from model.checkpoint import load_network
from training.train import batches

Numbers = dict[str, Any]
ROWS = 12
"""Of each list of places and kernels."""


@dataclass
class Told:
    """The text and the numbers so far."""

    text: str = ""
    numbers: Numbers = field(default_factory=dict)

    def part(self) -> Part:
        """As the report shows it."""
        title = "Where the host waits, and what a batch is made of"
        return Part(title, self.text or "-\n", measured(**self.numbers))


def measure(setting: CheckSetting, seconds: float, keep: Keep) -> Part:
    """The engine's batch first, then the eager network's places, then the training step."""
    clock = Clock(seconds)
    told = Told()
    works = {
        "one batch of the engine": engine_batch,
        "the trained network's batch": trained_batch,
        "the eager network": eager_places,
        "one training step": training_step,
        "a CUDA graph of the trunk": trunk_graph,
    }

    def work(name: str) -> None:
        say(f"waits: {name}")
        works[name](setting, told)

    def failed(name: str, why: str) -> None:
        told.text += f"\n{name}: {why}\n"
        told.numbers[name] = {"failed": why}

    return each(list(works), clock, 4, work, failed, keep, told.part)


def engine_batch(setting: CheckSetting, told: Told) -> None:
    """ResNet-50, 8 photographs of 1080p (in the short form 1), in the precision of serving."""
    images = [setting.picture("1080p", seed) for seed in range(1 if setting.short else PICTURES)]
    asked = Asked(setting.large / "maskx.pt", setting.device, setting.best_first()[0])
    name = f"One batch of {len(images)} 1080p JPEGs, ResNet-50, {asked.model.precision}"
    trace = Path(setting.folder) / "trace.json.gz"
    _work(setting, told, name, lambda: asked.ask(images), runs=1 if setting.short else 6, trace=trace)


def trained_batch(setting: CheckSetting, told: Told) -> None:
    """Drawn images, one without objects among them, in the precision of serving."""
    images = [path.read_bytes() for path in sorted((setting.shapes / "val").glob("*.png"))[:7]]
    images.append(empty_images()[0])
    asked = Asked(setting.trained_path, setting.device, setting.best_first()[0])
    name = f"One batch of {len(images)} drawn images, the trained network, {asked.model.precision}"
    _work(setting, told, name, lambda: asked.ask(images), runs=1 if setting.short else 6)


def training_step(setting: CheckSetting, told: Told) -> None:
    """EfficientNet-Lite0 as in the part on the speed of training."""
    sizes = SHORT if setting.short else FULL
    run, dataset = photo_run(setting, sizes, photos_of(setting, sizes))
    run.begin("end_to_end")
    with closing(batches(run, dataset)) as coming:
        batch = next(coming)
        name = f"One training step, EfficientNet-Lite0, {sizes.batch} images, bfloat16"
        _work(setting, told, name, lambda: one_step(run, batch), runs=1 if setting.short else 4)


def trunk_graph(setting: CheckSetting, told: Told) -> None:
    """Whether a CUDA graph of the trunk would gain at batch 1, for ResNet-50 and the trained network."""
    device = torch.device(setting.device)
    dtype: torch.dtype = getattr(torch, setting.best_first()[0])
    rows = []
    for name, path, height, width in (
        ("ResNet-50", setting.large / "maskx.pt", setting.min_size, setting.max_size),
        ("the trained network", setting.trained_path, 256, 320),
    ):
        height, width = (side + -side % 64 for side in (height, width))
        trunk, runs = trunk_of(path, device, dtype, height, width), 2 if setting.short else 40
        with torch.no_grad():
            found = measure_trunk(trunk, device, runs)
        replayed = "no graphs on a CPU" if found.replayed is None else shown(found.replayed)
        same = {None: "-", True: "yes", False: "NO"}[found.same]
        rows.append((f"{name}, {height} x {width}", shown(found.launched), replayed, same))
        told.numbers[f"graph of {name}"] = {"launched": found.launched, "replayed": found.replayed}
    headers = ("trunk of one image", "launched", "replayed as a CUDA graph", "same bits")
    told.text += f"\n**A CUDA graph of the trunk**\n\n{table(headers, rows)}"


def eager_places(setting: CheckSetting, told: Told) -> None:
    """The network of the checkpoint as Python runs it, so that each wait has a line of the source.

    Without a GPU nothing waits: then it is the operations that would, as the dispatcher sees them.
    """
    if not setting.checkpoint_path.is_file():
        why = "not looked at, for --maskx-pt alone was given, and no checkpoint"
        told.text += f"\nThe eager network: {why}.\n"
        return
    network, table_of_classes, _ = load_network(setting.checkpoint_path)
    inference = network.inference().eval().to(setting.device)
    inference.batched = True  # without a GPU too: it is the GPU's way that is looked at
    paths = sorted((setting.shapes / "val").glob("*.png"))[:4]
    images = [
        torch.from_numpy(decode(data)).to(setting.device).permute(2, 0, 1)
        for data in [path.read_bytes() for path in paths] + empty_images()[:1]
    ]
    count, classes = len(images), table_of_classes.num_classes + 1
    sizes = torch.tensor([image.shape[1:] for image in images])
    wished = torch.full((count,), 0.05), torch.full((count,), DETECTIONS)
    every = torch.ones((count, classes), dtype=torch.bool), torch.ones(count, dtype=torch.bool)

    def run() -> None:
        inference(images, sizes, *wished, *every)

    with torch.no_grad():
        run()
        found = waits_of(run) if setting.on_gpu else host_operations(run)
    if_gpu = "operations that would wait on a GPU (nonzero, nms, indexing by bool, ...)"
    waits = f"{sum(found.values())} {'waits' if setting.on_gpu else if_gpu}"
    told.text += f"\n**The eager network, {count} images in one batch: {waits}**\n\n{_places(found)}"
    told.numbers["eager"] = dict(found)


def _work(
    setting: CheckSetting,
    told: Told,
    name: str,
    work: Callable[[], object],
    *,
    runs: int,
    trace: Path | None = None,
) -> None:
    """Warms up, counts the waits, traces."""
    for _ in range(1 if setting.short else 4):
        work()
    found = traced(work, cuda=setting.on_gpu, runs=runs, trace=trace)
    told.text += f"\n**{name}**\n\n{_summary(setting, found)}\n"
    told.numbers[name] = found.numbers()
    if setting.on_gpu:
        waits = waits_of(work)
        told.text += f"Waits that PyTorch warns of (sync debug mode): {sum(waits.values())}, by the line of Python:\n\n"
        told.text += _places(waits)
        told.text += "\nBy stage and operator, as the trace has them:\n\n" + _places(found.waits)
        told.numbers[name]["waits"] = dict(waits)


def _summary(setting: CheckSetting, found: Traced) -> str:
    lines = [
        f"- whole: {shown(found.seconds)} (median of runs without the profiler)",
        f"- operations on the host: {found.operations}",
    ]
    if setting.on_gpu:
        share = found.busy / found.seconds if found.seconds else 0.0
        lines += [
            f"- kernels ran for {shown(found.busy)}: {100 * share:.0f} % of it; idle {100 * max(1 - share, 0):.0f} %",
            f"- launches {found.launches}, of them graphs {found.graphs}; copies {found.copies}; waits "
            f"{sum(found.waits.values())}; kernels {found.kernels}",
            f"- CUDA memory at most: {found.peak_mib:.0f} MiB",
        ]
    stages = {name: seconds for name, seconds in found.stages.items() if seconds > 0}
    if stages:
        of_what = "of kernels" if setting.on_gpu else "on the CPU"
        lines.append(f"- stages, {of_what}: " + ", ".join(f"{name} {shown(s)}" for name, s in stages.items()))
    text = "\n".join(lines) + "\n\n"
    headers = ("longest kernels" if setting.on_gpu else "longest operations", "times", "in all")
    return text + table(headers, [(n[:90].replace("|", "/"), str(c), shown(s)) for n, c, s in found.longest])


def _places(found: Counter[str]) -> str:
    rows = [(place.replace("|", "/"), str(count)) for place, count in found.most_common(ROWS)]
    left = sum(found.values()) - sum(count for _, count in found.most_common(ROWS))
    if left:
        rows.append((f"{len(found) - ROWS} more places", str(left)))
    return table(("place", "times"), rows) if rows else "none\n"
