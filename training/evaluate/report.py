"""What an evaluation prints, and the same by class as CSV."""

import csv
from collections.abc import Sequence
from pathlib import Path

from model.files import whole
from training.evaluate.measure import ClassResults, GroupResults, Results
from training.evaluate.precision import AveragePrecision, KeypointPrecision
from training.evaluate.predictions import listed

SIZES = {
    "AP small": "ap_small",
    "medium": "ap_medium",
    "large": "ap_large",
    "AR@1": "ar_1",
    "@10": "ar_10",
    "@100": "ar_100",
    "AR small": "ar_small",
    "medium ": "ar_medium",
    "large ": "ar_large",
}
"""Headings of the second table, and figures of `AveragePrecision`."""
LVIS = {"AR@{most}": "ar", "APr": "ap_rare", "APc": "ap_common", "APf": "ap_frequent"}
"""What LVIS adds to them."""
CSV_FIGURES = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
    "ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large", "ar",
)  # fmt: skip


def table(results: Results) -> str:
    """The figures as aligned tables: the groups, every class, sizes and recall. In percent, "-" for no figure."""
    groups = [("A (with masks)", results.a), ("B (boxes only)", results.b), ("all", results.all)]
    heads = ["", "classes", "objects", "box AP", "AP50", "AP75", "mask AP", "AP50", "AP75"]
    rows = [[*heads, "filled box", "mask IoU", "box fill"]]
    for name, group in groups:
        figures = [each for one in (group.box, group.mask) for each in (one.ap, one.ap50, one.ap75)]
        figures += [group.filled_box.ap, group.mask_iou, group.box_fill]
        rows.append([name, str(group.classes), str(group.objects), *map(percent, figures)])
    heads = [
        "class",
        "set",
        "learned from",
        "objects",
        "box AP",
        "AP50",
        "mask AP",
        "AP50",
        "mask IoU",
        "box fill",
    ]
    per_class = [heads]
    for one in results.classes:
        figures = [one.box_ap, one.box_ap50, one.mask_ap, one.mask_ap50, one.mask_iou, one.box_fill]
        per_class.append([one.name, _set_of(one), one.mask_source, str(one.objects), *map(percent, figures)])
    notes = [
        f"{results.images} images, up to {results.max_detections} detections of at least "
        f"{results.score_threshold:g} in each",
        "filled box: mask AP with every box filled; mask IoU and box fill: on ground-truth boxes",
    ]
    if results.skipped:
        notes.append(f"left out: {listed(results.skipped)}")
    parts = [rows, per_class, _sizes(results), *_boundary(groups)]
    parts += [*_keypoints(results.keypoints), *_cityscapes(results)]
    return "\n".join([text for part in parts for text in (aligned(part), "")] + notes)


def _set_of(one: ClassResults) -> str:
    return "A" if one.mask_supervised else "B"


def _sizes(results: Results) -> list[list[str]]:
    """Small, medium and large objects, and average recall; LVIS's groups of classes where it is LVIS."""
    columns = dict(SIZES)
    lvis = [results.all.box.ap_rare, results.all.box.ap_common, results.all.box.ap_frequent]
    if results.max_detections > 100 or any(value is not None for value in lvis):
        columns |= {head.format(most=results.max_detections): name for head, name in LVIS.items()}
    rows = [["", *(head.strip() for head in columns)]]

    def add(name: str, figures: AveragePrecision) -> None:
        rows.append([name, *(percent(getattr(figures, column)) for column in columns.values())])

    for name, group in (("A", results.a), ("B", results.b), ("all", results.all)):
        add(f"{name}, boxes", group.box)
        add(f"{name}, masks", group.mask)
        if group.boundary is not None:
            add(f"{name}, boundaries", group.boundary)
    return rows


def _keypoints(found: KeypointPrecision | None) -> list[list[list[str]]]:
    if found is None:
        return []
    heads = ["", "objects", "AP", "AP50", "AP75", "medium", "large", "AR", "AR50", "AR75", "medium", "large"]
    figures = [found.ap, found.ap50, found.ap75, found.ap_medium, found.ap_large]
    figures += [found.ar, found.ar50, found.ar75, found.ar_medium, found.ar_large]
    return [[heads, ["keypoints", str(found.objects), *map(percent, figures)]]]


def _boundary(groups: Sequence[tuple[str, GroupResults]]) -> list[list[list[str]]]:
    """Boundary AP, where it was made."""
    found = [(name, group.boundary) for name, group in groups if group.boundary is not None]
    rows = [[name, *map(percent, (one.ap, one.ap50, one.ap75))] for name, one in found]
    return [[["", "boundary AP", "AP50", "AP75"], *rows]] if rows else []


def _cityscapes(results: Results) -> list[list[list[str]]]:
    """Cityscapes' own figures of every class and of the groups, where they were made."""
    groups = [("all of set A", results.a), ("all of set B", results.b), ("all", results.all)]
    named = [
        *((one.name, one.cityscapes) for one in results.classes),
        *((n, g.cityscapes) for n, g in groups),
    ]
    rows = [[name, percent(one.ap), percent(one.ap50)] for name, one in named if one is not None]
    return [[["Cityscapes' own", "AP", "AP50%"], *rows]] if rows else []


def write_csv(path: Path, results: Results) -> None:
    """A line to each class, then to A, B and all of them: figures in [0, 1], empty where there is none.

    Those of boxes and masks, and of boundaries and Cityscapes' own where they were made.
    """
    kinds: dict[str, tuple[str, ...]] = dict.fromkeys(("box", "mask"), CSV_FIGURES)
    kinds |= {"boundary": CSV_FIGURES} if results.all.boundary is not None else {}
    kinds |= {"cityscapes": ("ap", "ap50")} if results.all.cityscapes is not None else {}
    columns = [f"{kind}_{name}" for kind, names in kinds.items() for name in names]
    groups = (("all of set A", "A", results.a), ("all of set B", "B", results.b), ("all", "", results.all))

    def line(one: ClassResults | GroupResults) -> list[float | None]:
        found = [getattr(getattr(one, kind), name) for kind, names in kinds.items() for name in names]
        return [*found, one.mask_iou, one.box_fill]

    with whole(path, mode="w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["category_id", "class", "set", "learned_from", "objects", *columns, "mask_iou", "box_fill"]
        )
        for one in results.classes:
            writer.writerow(
                [one.category_id, one.name, _set_of(one), one.mask_source, one.objects, *line(one)]
            )
        for name, of_set, group in groups:
            writer.writerow(["", name, of_set, "", group.objects, *line(group)])


def percent(value: float | None) -> str:
    """A figure in [0, 1] as "12.3"; "-" for None."""
    return "-" if value is None else f"{100 * value:.1f}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, the first to the left and the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)
