"""What a loaded set holds, in words: annotations and what became of them, sizes, classes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.classes import ClassTable
from training.data.coco import CocoDataset
from training.data.findings import Report
from training.data.masks import NO_MASK
from training.data.packing import PackedAnnotations

SMALL, LARGE = 32.0, 96.0
"""COCO's limits of small, medium and large, as the side of a square of the same area."""

_SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A set, counted.

    Args:
        name: of the set in messages.
        listed: names of all categories of its file.
        objects, masks, images: int64 [C], of each class its objects, those with a mask, the images it is in.
    """

    name: str
    classes: ClassTable
    report: Report
    packed: PackedAnnotations
    listed: tuple[str, ...]
    objects: NDArray[np.int64]
    masks: NDArray[np.int64]
    images: NDArray[np.int64]

    @classmethod
    def of(cls, data: CocoDataset, name: str) -> "Facts":
        """Those of a set."""
        packed, labels = data.packed, data.packed.labels - 1
        count = data.classes.num_classes
        rows = np.repeat(np.arange(len(packed.image_ids)), np.diff(packed.object_starts))
        pairs = np.unique(rows * count + labels)  # each class once to an image
        return cls(
            name=name,
            classes=data.classes,
            report=data.report,
            packed=packed,
            listed=data.listed,
            objects=np.bincount(labels, minlength=count),
            masks=np.bincount(labels[packed.mask_kinds != NO_MASK], minlength=count),
            images=np.bincount(pairs % count, minlength=count),
        )

    def names(self, chosen: NDArray[np.bool_]) -> list[str]:
        """Names of the classes that a mark [C] chooses."""
        return [name for name, taken in zip(self.classes.names, chosen, strict=True) if taken]

    @property
    def in_a(self) -> NDArray[np.bool_]:
        """[C] whether a class is in set A."""
        return np.array(self.classes.has_mask)


def sizes(facts: Facts) -> list[str]:
    """Lines on annotations, images and objects."""
    report, packed = facts.report, facts.packed
    crowds = percent(report.crowd_regions, report.objects + report.crowd_regions)
    lines = [
        f"{report.annotations} annotations: {report.objects} objects, {report.crowd_regions} crowd regions "
        f"({crowds}), {report.left_out} left out"
    ]
    if len(packed.image_ids) < report.images:
        skipped = report.images - len(packed.image_ids)
        words = "is no sample" if skipped == 1 else "are no samples"
        lines.append(f"{counted(skipped, 'image')} without objects {words} (data.skip_empty)")
    pixels = packed.sizes.astype(np.int64).prod(axis=1)
    order = np.argsort(pixels, kind="stable")
    small, middle, large = (
        "{1} x {0}".format(*packed.sizes[order[at]]) for at in (0, len(order) // 2, len(order) - 1)
    )
    to_an_image = np.diff(packed.object_starts)
    lines.append(
        f"images of {small} to {large}, in the middle {middle}; objects to an image: "
        f"{int(np.median(to_an_image))} in the middle, {int(to_an_image.max())} at most"
    )
    boxes = packed.boxes.astype(np.float64)
    sides = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    few, many = int((sides < SMALL).sum()), int((sides >= LARGE).sum())
    quantiles = ", ".join(
        f"{value:.0f} ({100 * share:.0f} %)"
        for share, value in zip(_SHARES, np.quantile(sides, _SHARES), strict=True)
    )
    lines.append(
        f"objects by their boxes: {percent(few, len(sides))} small (below 32 x 32 pixels), "
        f"{percent(len(sides) - few - many, len(sides))} medium, {percent(many, len(sides))} large (from 96 x 96); "
        f"side of a square of the same area: {quantiles}"
    )
    return lines


def class_table_lines(facts: Facts, *, most: int = 30) -> list[str]:
    """A table of the classes by their objects, the most first; of more than `most` the first and the last."""
    order = np.argsort(-facts.objects, kind="stable").tolist()
    shown = order if len(order) <= most else [*order[: most // 2], -1, *order[len(order) - most // 2 :]]
    names = [_short(name) for name in facts.classes.names]
    wide = max(len("class"), *(len(names[at]) for at in shown if at >= 0))
    lines = [f"{'class':{wide}}  set  learned from  objects  with mask  in images"]
    for at in shown:
        if at < 0:
            rest = order[most // 2 : len(order) - most // 2]
            lines.append(
                f"{f'... {len(rest)} more':{wide}}  {'':17}  {facts.objects[rest].sum():7}  "
                f"{facts.masks[rest].sum():9}"
            )
            continue
        source, in_set = facts.classes.mask_sources[at], "A" if facts.classes.has_mask[at] else "B"
        mask = f"{facts.masks[at]:9}" if source != "boxes" else f"{'-':>9}"
        lines.append(
            f"{names[at]:{wide}}  {in_set:3}  {source:12}  {facts.objects[at]:7}  {mask}  {facts.images[at]:9}"
        )
    return lines


def class_line(facts: Facts) -> str:
    """The classes in one line: those of most and of fewest objects."""
    order = np.argsort(-facts.objects, kind="stable").tolist()
    total = int(facts.objects.sum())
    told = [f"{_short(facts.classes.names[at])} {percent(int(facts.objects[at]), total)}" for at in order[:3]]
    fewest = order[3:][-2:]
    least = [f"{_short(facts.classes.names[at])} {facts.objects[at]}" for at in fewest]
    return (
        f"objects by class: {', '.join(told)}"
        + (", ..." if len(order) > 5 else ",") * bool(least)
        + (f" {', '.join(least)} objects" if least else "")
    )


def percent(part: int, of: int) -> str:
    """A share in per cent, of two digits where it is small."""
    share = 100 * part / max(of, 1)
    return f"{share:.0f} %" if share >= 10 or share == 0 else f"{share:.2g} %"


def counted(count: int, one: str, many: str = "") -> str:
    """A count with its noun, of which `many` is the plural if it is not that with an s."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def few(names: Sequence[str], most: int = 6) -> str:
    """Some names, and how many there are."""
    shown = ", ".join(map(_short, names[:most]))
    return shown + (f", ... ({len(names)} in all)" if len(names) > most else "")


def _short(name: str, most: int = 40) -> str:
    return name if len(name) <= most else name[: most - 3] + "..."
