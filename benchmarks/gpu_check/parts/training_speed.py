"""Images a second of training: EfficientNet-Lite0 with its readers, and ResNet-50-FPN beside torchvision's reference
step in the same precision."""

import itertools
import statistics
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.clock import timed
from benchmarks.gpu_check.photos import photos
from benchmarks.gpu_check.setting import CheckSetting, Clock, Keep, each, measured, say
from benchmarks.machine import usable_cores
from benchmarks.memory import cuda_peak_mib, forget_cuda_peak
from benchmarks.tables import Part, shown, table
from benchmarks.training.sides import OursStep, ReferenceStep, write_start
from benchmarks.training.steps import StepSide
from model.targets import Target
from training.config import load_config
from training.data.coco import CocoDataset
from training.data.reading import number_of_workers
from training.distributed import ALONE
from training.run import Run
from training.train import batches, prepared

Numbers = dict[str, Any]
Batch = tuple[list[Tensor], list[Target]]
MAXIMUM_READERS = 12
PHOTOGRAPHS = "EfficientNet-Lite0"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Images of the drawn set, of a step, and their sizes; steps: timed ones of each thing."""

    images: int
    shape: tuple[int, int]
    """Height and width of an image."""
    inputs: tuple[int, int]
    batch: int
    side: int
    resnet_batch: int
    warm_up: int
    steps: int


FULL = Sizes(
    images=192, shape=(480, 640), inputs=(384, 640), batch=16, side=800, resnet_batch=8, warm_up=4, steps=12
)
SHORT = Sizes(
    images=12, shape=(96, 128), inputs=(64, 96), batch=2, side=64, resnet_batch=1, warm_up=1, steps=2
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
        numbers = measured(self.bars, results=self.numbers, notes=self.notes)
        return Part("Training: images a second", text, numbers)


def measure(setting: CheckSetting, seconds: float, keep: Keep) -> Part:
    """EfficientNet-Lite0 first, then ResNet-50 in bfloat16, then in float32 where there is time."""
    clock = Clock(seconds)
    sizes = SHORT if setting.short else FULL
    found = Found()
    data = photos_of(setting, sizes)
    size = f"{sizes.shape[1]} x {sizes.shape[0]}"
    found.notes.append(f"{sizes.images} JPEGs of {size} with drawn objects; random weights at the start")

    def work(name: str) -> None:
        if name == PHOTOGRAPHS:
            photographs(setting, sizes, data, found)
        else:
            resnet(setting, sizes, data, name.split()[-1], found, clock)

    precisions = [one for one in ("bfloat16", "float32") if one in setting.precisions or not setting.on_gpu]
    names = [PHOTOGRAPHS, *(f"ResNet-50 in {one}" for one in precisions[: 1 if setting.short else None])]

    def failed(name: str, why: str) -> None:
        found.notes.append(f"{name}: {why}")

    return each(names, clock, 5 if setting.short else 15, work, failed, keep, found.part)


def photos_of(setting: CheckSetting, sizes: Sizes) -> Path:
    """Folder of the photographs."""
    height, width = sizes.shape
    return photos(Path(setting.folder) / f"photos-{height}", sizes.images, height=height, width=width)


def photo_run(setting: CheckSetting, sizes: Sizes, data: Path) -> tuple[Run, CocoDataset]:
    """The photographs' preset at 384 to 640 pixels, end to end in bfloat16, from random weights; its data."""
    readers = 1 if setting.short else max(min(MAXIMUM_READERS, usable_cores() - 2), 1)
    least, most = sizes.inputs
    config = load_config(
        "training/presets/photos.toml",
        [
            *(f"model.input.min_size={least}", f"model.input.max_size={most}", "model.backbone.weights=none"),
            *("schedule.end_to_end_steps=100000", "schedule.detector_steps=0", "schedule.mask_steps=0"),
            *(f"schedule.batch_size={sizes.batch}", "precision=bfloat16", "channels_last=true"),
            "optimiser.learning_rate=1e-5",  # random weights stay finite
            *(f"device={'cuda' if setting.on_gpu else 'cpu'}", f"data.workers={readers}"),
            *(f"data.train_images={data / 'train'}", f"data.train_annotations={data / 'train.json'}"),
            f"output.dir={Path(setting.folder) / 'photos-run'}",
        ],
    )
    return prepared(config, ALONE, resume=False, restart=True)


def one_step(run: Run, batch: Batch) -> float:
    """A step of the run; its loss."""
    run.set_learning_rate()
    return run.train_on(*batch)["loss"]


def photographs(setting: CheckSetting, sizes: Sizes, data: Path, found: Found) -> None:
    """The step by itself on batches in memory, then with readers, as a training has it."""
    say("training: EfficientNet-Lite0")
    run, dataset = photo_run(setting, sizes, data)
    run.begin("end_to_end")
    forget_cuda_peak(run.device)
    name = f"EfficientNet-Lite0, {sizes.inputs[0]} to {sizes.inputs[1]}, {sizes.batch} images, bfloat16"
    losses: list[float] = []
    with closing(batches(run, dataset)) as coming:

        def step_on(source: Iterator[Batch]) -> None:
            losses.append(one_step(run, next(source)))

        kept = itertools.cycle([next(coming) for _ in range(min(3, sizes.steps))])
        (first,) = timed(lambda: step_on(kept))
        found.notes.append(f"EfficientNet-Lite0's first step: {shown(first)}")
        timed(lambda: step_on(kept), sizes.warm_up)
        seconds = timed(lambda: step_on(kept), sizes.steps, run.device)
        found.add(
            f"{name}: the step, images in memory", sizes.batch, seconds, cuda_peak_mib(run.device), losses[-1]
        )
        # What the readers have piled up meanwhile would flatter them: it is used up first.
        timed(lambda: step_on(coming), min(2 * number_of_workers(run.config.data.workers, run.device), 30))
        steps = sizes.steps
        if not setting.short:
            steps = max(min(int(8 / statistics.median(seconds)), 120), steps)
        mean = statistics.fmean(timed(lambda: step_on(coming), steps, run.device))
        title = f"{name}: with {run.config.data.workers} readers"
        rate = found.add(title, sizes.batch, [mean], cuda_peak_mib(run.device), losses[-1])
        found.bars["training photos"] = rate


def resnet(
    setting: CheckSetting, sizes: Sizes, data: Path, precision: str, found: Found, clock: Clock
) -> None:
    """Our step as Mask R-CNN and as Mask^X R-CNN, and torchvision's, all in one precision, one after the other."""
    start = Path(setting.folder) / f"start-{sizes.side}.pt"
    if not start.is_file():
        write_start(data=str(data), network="resnet50", side=sizes.side, out=str(start))
    device = "cuda" if setting.on_gpu else "cpu"
    common: Numbers = {"side": sizes.side, "batch": sizes.resnet_batch, "batches": 2, "device": device}
    given, own = (str(data), str(start), "resnet50"), common | {"precision": precision, "channels_last": True}
    sides: dict[str, Callable[[], StepSide]] = {
        "maskx, as Mask R-CNN": lambda: OursStep(*given, "mask_rcnn", **own),
        "torchvision": lambda: _reference(given, precision, common),
        "maskx, Mask^X": lambda: OursStep(*given, "maskx", **own),
    }
    rates: dict[str, float] = {}
    for name, build in sides.items():
        if len(rates) >= 2 and not clock.has(8):
            found.notes.append(f"{name} in {precision}: no time was left")
            continue
        say(f"training: ResNet-50, {name}, {precision}")
        side = build()
        forget_cuda_peak(side.device)
        side.steps(sizes.warm_up)
        steps = side.steps(sizes.steps)
        title = f"ResNet-50-FPN, {sizes.side}, {sizes.resnet_batch} images, {precision}: {name}"
        loss = statistics.mean(steps["loss"])
        rates[name] = found.add(title, sizes.resnet_batch, steps["seconds"], cuda_peak_mib(side.device), loss)
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


def _reference(given: tuple[str, str, str], precision: str, common: Numbers) -> ReferenceStep:
    """torchvision's step; in bfloat16 under autocast, as its script has it with --amp."""
    side = ReferenceStep(*given, **common)
    if precision == "bfloat16":
        cast = torch.autocast(side.device.type, dtype=torch.bfloat16)
        side.network.forward = cast(side.network.forward)  # type: ignore[method-assign]
    return side
