"""Images a second of training: EfficientNet-Lite0 with its readers, and ResNet-50-FPN beside torchvision's reference
step in the same precision."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_check.parts.photos import photos
from benchmarks.gpu_check.setting import CheckSetting, Clock, Keep, first_line, measured, say
from benchmarks.machine import usable_cores
from benchmarks.tables import Part, shown, table
from benchmarks.training.sides import OursStep, ReferenceStep, Start, StepSide
from model.targets import Target
from training.config import TrainingConfig, load_config
from training.data.coco import CocoDataset
from training.data.reading import number_of_workers
from training.distributed import ALONE
from training.run import Run
from training.train import batches, prepared

Numbers = dict[str, Any]
Batch = tuple[list[Tensor], list[Target]]
MAXIMUM_READERS = 12


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Images of the drawn set, of a step, and their sizes; steps: timed ones of each thing."""

    images: int
    height: int
    width: int
    inputs: tuple[int, int]
    batch: int
    side: int
    resnet_batch: int
    warm_up: int
    steps: int


FULL = Sizes(
    images=192,
    height=480,
    width=640,
    inputs=(384, 640),
    batch=16,
    side=800,
    resnet_batch=8,
    warm_up=4,
    steps=12,
)
SHORT = Sizes(
    images=12, height=96, width=128, inputs=(64, 96), batch=2, side=64, resnet_batch=1, warm_up=1, steps=2
)


@dataclass
class Found:
    """What there is so far, row by row."""

    rows: list[tuple[str, ...]] = field(default_factory=list)
    numbers: Numbers = field(default_factory=dict)
    bars: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, images: int, seconds: list[float], peak: float | None, loss: float) -> float:
        """A row; returns images a second."""
        rate = images / statistics.median(seconds)
        memory = "-" if peak is None else f"{peak:.0f}"
        self.rows.append((name, f"{rate:.1f}", shown(statistics.median(seconds)), memory, f"{loss:.2f}"))
        self.numbers[name] = {"seconds": seconds, "images": images, "peak_mib": peak, "loss": loss}
        return rate

    def part(self) -> Part:
        """As the report shows it."""
        text = table(("", "images/s", "step, median", "CUDA memory at most, MiB", "mean loss"), self.rows)
        text += "\n" + "".join(f"- {note}\n" for note in self.notes)
        return Part(
            title="Training: images a second",
            text=text,
            numbers=measured(self.bars, results=self.numbers, notes=self.notes),
        )


def measure(setting: CheckSetting, seconds: float, keep: Keep) -> Part:
    """EfficientNet-Lite0 first, then ResNet-50 in bfloat16, then in float32 where there is time."""
    clock = Clock(seconds)
    sizes = SHORT if setting.short else FULL
    found = Found()
    data = photos(
        Path(setting.folder) / f"photos-{sizes.height}", sizes.images, height=sizes.height, width=sizes.width
    )
    found.notes.append(
        f"{sizes.images} JPEGs of {sizes.width} x {sizes.height} with drawn objects; random weights at the start"
    )
    try:
        photographs(setting, sizes, data, found, clock)
    except Exception as error:  # one network must not cost the other
        found.notes.append(f"EfficientNet-Lite0: {first_line(error)}")
    keep(found.part())
    for precision in ("bfloat16", "float32"):
        if precision not in setting.precisions and setting.on_gpu:
            continue
        if found.rows and not clock.has(15 if not setting.short else 5):
            found.notes.append(f"ResNet-50 in {precision}: no time was left")
            continue
        try:
            resnet(setting, sizes, data, precision, found, clock)
        except Exception as error:
            found.notes.append(f"ResNet-50 in {precision}: {first_line(error)}")
        keep(found.part())
        if setting.short:
            break
    return found.part()


def photo_config(setting: CheckSetting, sizes: Sizes, data: Path, *, readers: int) -> TrainingConfig:
    """The photographs' preset at 384 to 640 pixels, end to end in bfloat16, from random weights."""
    device = "cuda" if setting.on_gpu else "cpu"
    return load_config(
        "training/presets/photos.toml",
        [
            f"model.input.min_size={sizes.inputs[0]}",
            f"model.input.max_size={sizes.inputs[1]}",
            "model.backbone.weights=none",
            "schedule.end_to_end_steps=100000",
            "schedule.detector_steps=0",
            "schedule.mask_steps=0",
            f"schedule.batch_size={sizes.batch}",
            "optimiser.learning_rate=1e-5",  # random weights stay finite
            "precision=bfloat16",
            "channels_last=true",
            f"device={device}",
            f"data.train_images={data / 'train'}",
            f"data.train_annotations={data / 'train.json'}",
            f"data.workers={readers}",
            f"output.dir={Path(setting.folder) / 'photos-run'}",
        ],
    )


def photo_run(setting: CheckSetting, sizes: Sizes, data: Path) -> tuple[Run, CocoDataset]:
    """A run at its beginning and its data; readers as many as the cores allow."""
    readers = 1 if setting.short else max(min(MAXIMUM_READERS, usable_cores() - 2), 1)
    return prepared(photo_config(setting, sizes, data, readers=readers), ALONE, resume=False, restart=True)


def one_step(run: Run, batch: Batch) -> float:
    """A step of the run; its loss."""
    run.set_learning_rate()
    return run.train_on(*batch)["loss"]


def photographs(setting: CheckSetting, sizes: Sizes, data: Path, found: Found, clock: Clock) -> None:
    """The step by itself on batches in memory, then with readers, as a training has it."""
    say("training: EfficientNet-Lite0")
    run, dataset = photo_run(setting, sizes, data)
    run.begin("end_to_end")
    if setting.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    name = f"EfficientNet-Lite0, {sizes.inputs[0]} to {sizes.inputs[1]}, {sizes.batch} images, bfloat16"
    with closing(batches(run, dataset)) as coming:
        kept = [next(coming) for _ in range(min(3, sizes.steps))]
        begin = time.perf_counter()
        one_step(run, kept[0])
        found.notes.append(f"EfficientNet-Lite0's first step: {shown(time.perf_counter() - begin)}")
        losses: list[float] = []
        for number in range(sizes.warm_up):
            losses.append(one_step(run, kept[number % len(kept)]))
        seconds = timed(lambda i: losses.append(one_step(run, kept[i % len(kept)])), sizes.steps, setting)
        found.add(f"{name}: the step, images in memory", sizes.batch, seconds, _peak(setting), losses[-1])

        def whole(_: int) -> None:
            losses.append(one_step(run, next(coming)))

        # What the readers have piled up meanwhile would flatter them: it is used up first.
        ahead = 2 * number_of_workers(run.config.data.workers, run.device)
        for number in range(min(ahead, 30)):
            whole(number)
        steps = (
            sizes.steps if setting.short else max(min(int(8 / statistics.median(seconds)), 120), sizes.steps)
        )
        begin = time.perf_counter()
        timed(whole, steps, setting)
        mean = (time.perf_counter() - begin) / steps
        rate = found.add(
            f"{name}: with {run.config.data.workers} readers", sizes.batch, [mean], _peak(setting), losses[-1]
        )
        found.bars["training photos"] = rate


def resnet(
    setting: CheckSetting, sizes: Sizes, data: Path, precision: str, found: Found, clock: Clock
) -> None:
    """Our step as Mask R-CNN and as Mask^X R-CNN, and torchvision's, all in one precision, one after the other."""
    start = Path(setting.folder) / f"start-{sizes.side}.pt"
    if not start.is_file():
        Start().start(data=str(data), network="resnet50", side=sizes.side, out=str(start))
    common: Numbers = {
        "side": sizes.side,
        "batch": sizes.resnet_batch,
        "batches": 2,
        "device": "cuda" if setting.on_gpu else "cpu",
    }
    own: Numbers = {"precision": precision, "channels_last": True}
    sides: dict[str, Callable[[], StepSide]] = {
        "maskx, as Mask R-CNN": lambda: OursStep(
            str(data), str(start), "resnet50", "mask_rcnn", **common, **own
        ),
        "torchvision": lambda: _reference(str(data), str(start), precision, common),
        "maskx, Mask^X": lambda: OursStep(str(data), str(start), "resnet50", "maskx", **common, **own),
    }
    rates: dict[str, float] = {}
    for name, build in sides.items():
        if len(rates) >= 2 and not clock.has(8):
            found.notes.append(f"{name} in {precision}: no time was left")
            continue
        say(f"training: ResNet-50, {name}, {precision}")
        side = build()
        if setting.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        side.steps(sizes.warm_up)
        steps = side.steps(sizes.steps)
        title = f"ResNet-50-FPN, {sizes.side}, {sizes.resnet_batch} images, {precision}: {name}"
        loss = statistics.mean(steps["loss"])
        rates[name] = found.add(title, sizes.resnet_batch, steps["seconds"], _peak(setting), loss)
        del side
        if setting.on_gpu:
            torch.cuda.empty_cache()
    if "torchvision" in rates:
        ratio = rates["maskx, as Mask R-CNN"] / rates["torchvision"]
        found.notes.append(
            f"ResNet-50-FPN in {precision}: {ratio:.2f} times the images/s of torchvision's reference step (the same "
            "network, weights at the start, images in memory, SGD)"
        )
        if precision == "bfloat16":
            found.bars["training resnet50"] = ratio


def _reference(data: str, start: str, precision: str, common: Numbers) -> ReferenceStep:
    """torchvision's step; in bfloat16 under autocast, as its script has it with --amp."""
    side = ReferenceStep(data, start, "resnet50", **common)
    if precision == "bfloat16":
        cast = torch.autocast(side.device.type, dtype=torch.bfloat16)
        side.network.forward = cast(side.network.forward)  # type: ignore[method-assign]
    return side


def timed(work: Callable[[int], object], count: int, setting: CheckSetting) -> list[float]:
    """Seconds of each of `count` runs, the device waited for."""
    found = []
    for number in range(count):
        _wait(setting)
        begin = time.perf_counter()
        work(number)
        _wait(setting)
        found.append(time.perf_counter() - begin)
    return found


def _wait(setting: CheckSetting) -> None:
    if setting.on_gpu:
        torch.cuda.synchronize()


def _peak(setting: CheckSetting) -> float | None:
    return torch.cuda.max_memory_allocated() / 2**20 if setting.on_gpu else None
