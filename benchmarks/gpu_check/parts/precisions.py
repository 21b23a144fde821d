"""Average precision of the trained network on the drawn set, in every precision of the device."""

from typing import Any

import torch

from benchmarks.accuracy.__main__ import Accuracy, served
from benchmarks.accuracy.__main__ import measure as measure_accuracy
from benchmarks.gpu_check.setting import CheckSetting, Clock, Keep, each, measured, say
from benchmarks.tables import Part, percent, table

LEAST = 0.05
"""Box AP in float32 from which on differences say something; 0 beside 0 is no proof."""


def measure(setting: CheckSetting, seconds: float, keep: Keep) -> Part:
    """float32 first, which the others are compared with; the CPU's own last, where there is time."""
    clock = Clock(seconds)
    names = ("float32", *setting.best_first())
    sides = list(dict.fromkeys(f"{one}, {setting.device}" for one in names if one in setting.precisions))
    if setting.on_gpu:
        sides.append("float32, cpu")
    found: dict[str, Accuracy | str] = {}

    def work(name: str) -> None:
        say(f"AP in {name}")
        precision, device = name.split(", ")
        model = served(setting.trained_path, torch.device(device), precision=precision)
        files, few = (setting.shapes / "val", setting.shapes / "val.json"), 8 if setting.short else None
        found[name] = measure_accuracy(model, *files, decoding="whole", max_images=few)

    return each(sides, clock, None, work, found.__setitem__, keep, lambda: shown_part(setting, found))


def shown_part(setting: CheckSetting, found: dict[str, Accuracy | str]) -> Part:
    """AP in percent and its difference to float32 on the same device, in points."""
    first = found.get(f"float32, {setting.device}")
    rows: list[tuple[str, ...]] = []
    bars: dict[str, float] = {}
    numbers: dict[str, Any] = {}
    images = 0
    for name, one in found.items():
        if isinstance(one, str):
            rows.append((name, *["-"] * 5, one))
            numbers[name] = {"failed": one}
            continue
        images = one.images
        differences: list[float | None] = [None, None]
        if isinstance(first, Accuracy):
            differences = [_points(one.box.ap, first.box.ap), _points(one.mask.ap, first.mask.ap)]
        figures = [percent(value) for value in (one.box.ap, one.box.ap50, one.mask.ap)]
        rows.append((name, *figures, *["-" if v is None else f"{v:+.2f}" for v in differences], ""))
        numbers[name] = {"box": one.box.ap, "mask": one.mask.ap, "differences": differences}
        precision, device = name.split(", ")
        known = [abs(value) for value in differences if value is not None]
        trained = isinstance(first, Accuracy) and (first.box.ap or 0.0) >= LEAST
        if precision != "float32" and device == setting.device and known and trained:
            bars[f"AP {precision}"] = max(known)
    headers = ("", "box AP", "box AP50", "mask AP", "box AP, difference", "mask AP, difference", "")
    text = table(headers, rows) + f"\n{images} images of the drawn set; AP in percent, "
    text += f"differences in points to float32 on {setting.device}.\n"
    return Part("AP of the trained network", text, measured(bars, results=numbers))


def _points(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else 100 * (value - other)
