"""The network of the bench (ResNet-50-FPN with calibrated random weights), and the photographs, made on the CPU."""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor

from benchmarks.gpu_check.setting import CheckSetting, Keep, measured
from benchmarks.machine import usable_cores
from benchmarks.speed.network import prepare
from benchmarks.speed.setting import CLASSES
from benchmarks.tables import Part, table

PICTURES = 8


def measure(setting: CheckSetting, seconds: float, keep: Keep) -> Part:
    """Draws the photographs, then calibrates the network on the first."""
    begin = time.monotonic()
    pictures = 2 if setting.short else PICTURES
    with ProcessPoolExecutor(max(usable_cores() // 2, 1), multiprocessing.get_context("fork")) as drawers:
        others = drawers.submit(setting.coco_sized)
        list(drawers.map(setting.picture_path, ["1080p"] * pictures, range(pictures)))
        others.result()
    drawn = time.monotonic() - begin
    begin = time.monotonic()
    sizes = {"min_size": setting.min_size, "max_size": setting.max_size}
    about = prepare(setting.large, setting.picture_path("1080p"), CLASSES, **sizes)
    network = (
        f"{setting.min_size} to {setting.max_size} pixels, {about['proposals']} proposals, {about['detections']} "
        f"detections, {about['flops']['whole'] / 1e9:.0f} GFLOP at 1080p; {time.monotonic() - begin:.0f} s"
    )
    rows = [("photographs", f"{pictures} of 1080p, {drawn:.0f} s"), ("ResNet-50-FPN", network)]
    return Part("The network of the bench", table(("what", "how"), rows), measured(about=about))
