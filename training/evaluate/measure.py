"""How well a network detects and segments: average precision over sets A, B and all classes (Sec. 4), and
mask quality alone.

`python -m training.evaluate --checkpoint build/train/checkpoint.pt --images ... --annotations ... --out
build/evaluation` prints a table and writes `results.json` and `sheet.png`. The masks of set B are read
here, and nowhere in training.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from model.checkpoint import load_network
from model.classes import ClassTable
from model.config import model_config_from_dict
from model.dataclass_io import require_at_least, to_plain
from model.files import command, exit_status
from model.keypoints.layout import KeypointsConfig
from training.data.sides import sides
from training.data.splits import split_classes
from training.distributed import FailedElsewhere, Group, chosen_device, process_group
from training.evaluate.precision import (
    AveragePrecision,
    KeypointPrecision,
    PrecisionTable,
    box_precision,
    keypoint_precision,
    mask_precision,
    with_filled_boxes,
)
from training.evaluate.predictions import (
    MAX_DETECTIONS,
    SCORE_THRESHOLD,
    Evaluable,
    Precision,
    Predictions,
    listed,
    predict,
    predict_together,
)
from training.evaluate.sheet import write_sheet
from training.evaluate.truth import GroundTruth, load_ground_truth
from training.evaluate.views import Views, add_view_options, views_of


@dataclass(frozen=True, kw_only=True)
class GroupResults:
    """Figures over a group of classes, in [0, 1]; None where there is nothing to measure."""

    classes: int
    objects: int
    box: AveragePrecision
    mask: AveragePrecision
    filled_box: AveragePrecision
    """Mask AP of the same detections, each with every pixel of its box as the mask."""
    mask_iou: float | None
    """Mean over objects (no crowds) of the IoU of the mask predicted on the ground-truth box and label."""
    box_fill: float | None
    """The same for the filled ground-truth box."""


@dataclass(frozen=True, kw_only=True)
class ClassResults:
    """Figures of one class."""

    category_id: int
    name: str
    mask_supervised: bool
    objects: int
    box_ap: float | None
    box_ap50: float | None
    mask_ap: float | None
    mask_ap50: float | None
    mask_iou: float | None
    box_fill: float | None


@dataclass(frozen=True, kw_only=True)
class Results:
    """The outcome of one evaluation."""

    images: int
    score_threshold: float
    skipped: dict[str, int]
    a: GroupResults
    b: GroupResults
    all: GroupResults
    classes: tuple[ClassResults, ...]
    keypoints: KeypointPrecision | None = None
    """None where keypoints were not judged."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain: dict[str, Any] = to_plain(self)
        return plain


def evaluate_network(
    network: Evaluable,
    classes: ClassTable,
    images_dir: Path,
    annotations: Path,
    *,
    device: torch.device | str = "cpu",
) -> Results:
    """Evaluate `network`, which lies on `device`, on a COCO set; `classes` says which classes count as set A and B.

    Raises ValueError where the annotations cannot be used (see `load_ground_truth`) or no image can be read.
    """
    truth = load_ground_truth(annotations, classes, images_dir)
    return judge(predict(network, classes, images_dir, truth, device=device), classes)


def judge(
    predictions: Predictions,
    classes: ClassTable,
    *,
    score_threshold: float = SCORE_THRESHOLD,
    keypoints: KeypointsConfig | None = None,
) -> Results:
    """Average precisions and mean IoU of predictions, over set A, set B and all classes of `classes`; that of
    keypoints where `keypoints` says which there are."""
    truth = predictions.truth
    boxes = box_precision(truth, predictions.results, classes)
    masks = mask_precision(truth, predictions.results, classes)
    filled = mask_precision(truth, with_filled_boxes(predictions.results, truth), classes)
    in_a = {classes.id_of_label(label) for label in classes.set_a_labels()}
    in_b = {classes.id_of_label(label) for label in classes.set_b_labels()}

    def group(category_ids: set[int]) -> GroupResults:
        mine = [one for one in predictions.object_masks if one.category_id in category_ids]
        return GroupResults(
            classes=len(category_ids),
            objects=_objects(truth, category_ids),
            box=boxes.over(category_ids),
            mask=masks.over(category_ids),
            filled_box=filled.over(category_ids),
            mask_iou=_mean([one.iou for one in mine]),
            box_fill=_mean([one.box_fill for one in mine]),
        )

    return Results(
        images=len(truth.image_ids),
        score_threshold=score_threshold,
        skipped=truth.skipped,
        a=group(in_a),
        b=group(in_b),
        all=group(in_a | in_b),
        classes=_per_class(predictions, classes, boxes, masks),
        keypoints=keypoint_precision(truth, predictions.results, classes, keypoints)
        if keypoints is not None and keypoints.used
        else None,
    )


def _per_class(
    predictions: Predictions, classes: ClassTable, boxes: PrecisionTable, masks: PrecisionTable
) -> tuple[ClassResults, ...]:
    rows = []
    for category_id, name, has_mask in zip(classes.ids, classes.names, classes.has_mask, strict=True):
        box, mask = boxes.over({category_id}), masks.over({category_id})
        mine = [one for one in predictions.object_masks if one.category_id == category_id]
        rows.append(
            ClassResults(
                category_id=category_id,
                name=name,
                mask_supervised=has_mask,
                objects=_objects(predictions.truth, {category_id}),
                box_ap=box.ap,
                box_ap50=box.ap50,
                mask_ap=mask.ap,
                mask_ap50=mask.ap50,
                mask_iou=_mean([one.iou for one in mine]),
                box_fill=_mean([one.box_fill for one in mine]),
            )
        )
    return tuple(rows)


def _objects(truth: GroundTruth, category_ids: set[int]) -> int:
    return sum(
        not one.crowd and one.category_id in category_ids for found in truth.objects.values() for one in found
    )


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def table(results: Results) -> str:
    """The figures as an aligned table: the groups, then every class. AP and IoU in percent, "-" for no figure."""
    groups = [("A (with masks)", results.a), ("B (boxes only)", results.b), ("all", results.all)]
    heads = ["", "classes", "objects", "box AP", "AP50", "AP75", "mask AP", "AP50", "AP75"]
    rows = [[*heads, "filled box", "mask IoU", "box fill"]]
    for name, group in groups:
        figures = [each for one in (group.box, group.mask) for each in (one.ap, one.ap50, one.ap75)]
        figures += [group.filled_box.ap, group.mask_iou, group.box_fill]
        rows.append([name, str(group.classes), str(group.objects), *map(percent, figures)])
    heads = ["class", "set", "objects", "box AP", "AP50", "mask AP", "AP50", "mask IoU", "box fill"]
    per_class = [heads]
    for one in results.classes:
        figures = [one.box_ap, one.box_ap50, one.mask_ap, one.mask_ap50, one.mask_iou, one.box_fill]
        per_class.append(
            [one.name, "A" if one.mask_supervised else "B", str(one.objects), *map(percent, figures)]
        )
    notes = [
        f"{results.images} images, up to {MAX_DETECTIONS} detections of at least {results.score_threshold:g} in each",
        "filled box: mask AP with every box filled; mask IoU and box fill: on ground-truth boxes",
    ]
    if results.skipped:
        notes.append(f"left out: {listed(results.skipped)}")
    return "\n".join([aligned(rows), "", aligned(per_class), "", *_keypoint_rows(results), *notes])


def _keypoint_rows(results: Results) -> list[str]:
    found = results.keypoints
    if found is None:
        return []
    heads = ["", "objects", "AP", "AP50", "AP75", "medium", "large"]
    figures = [found.ap, found.ap50, found.ap75, found.ap_medium, found.ap_large]
    return [aligned([heads, ["keypoints", str(found.objects), *map(percent, figures)]]), ""]


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


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 where the evaluation could be made."""
    parser = command("training.evaluate", __doc__)
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="what training.train wrote")
    add("--images", type=Path, help="folder of images (default: the checkpoint's validation set)")
    add("--annotations", type=Path, help="their COCO file (default: the checkpoint's validation set)")
    add("--out", type=Path, default=Path("build/evaluation"), help="folder (default: %(default)s)")
    add("--mask-classes", help="judge by another split into A and B (default: the checkpoint's)")
    add("--device", default="auto", help="auto, cpu, cuda, ... (default: %(default)s)")
    add("--precision", choices=get_args(Precision), default="float32", help="(default: %(default)s)")
    add("--batch-size", type=int, default=8, help="images at a time (default: %(default)s)")
    add("--max-images", type=int, help="evaluate only the first so many images")
    add(
        "--score-threshold",
        type=float,
        default=SCORE_THRESHOLD,
        help="least score judged (default: %(default)s)",
    )
    add("--sheet-images", type=int, default=12, help="images on the sheet (default: %(default)s)")
    add("--sheet-threshold", type=float, default=0.5, help="least score drawn (default: %(default)s)")
    add_view_options(parser)
    options = parser.parse_args(arguments)

    def shown(error: BaseException) -> str:
        out_of_memory = isinstance(error, torch.OutOfMemoryError)
        return f"{error}. Try a smaller --batch-size" if out_of_memory else str(error)

    with exit_status(torch.OutOfMemoryError, shown=shown) as status:
        try:
            with process_group(options.device) as group, group.one_voice():
                _evaluate_checkpoint(options, group)
        except FailedElsewhere:
            return 2
    return status.code


def _evaluate_checkpoint(options: argparse.Namespace, group: Group) -> None:
    require_at_least(1, batch_size=options.batch_size)
    device = chosen_device(options.device)
    with group.together():
        network, classes, contents = load_network(options.checkpoint)
        data = contents["training_config"]["data"]
        images_dir = options.images or Path(data["val_images"])
        annotations = options.annotations or Path(data["val_annotations"])
        if options.annotations is None and not data["val_annotations"]:
            raise ValueError(f"{options.checkpoint} has no validation set; give --images and --annotations")
        if options.mask_classes is not None:
            categories = [{"id": i, "name": name} for i, name in zip(classes.ids, classes.names, strict=True)]
            classes = split_classes(categories, options.mask_classes)
        network = network.to(device)
        views = views_of(options)
        pairs = contents["training_config"].get("augment", {}).get("swapped_classes", ())
        swapped = sides(pairs, classes)
        of_sides = None if swapped is None else swapped.labels
        evaluable: Evaluable = Views(network, views, of_sides) if views.used else network
        truth = load_ground_truth(annotations, classes, images_dir, max_images=options.max_images)

    def predict_some(truth: GroundTruth) -> Predictions:
        return predict(
            evaluable,
            classes,
            images_dir,
            truth,
            device=device,
            batch_size=options.batch_size,
            score_threshold=options.score_threshold,
            precision=options.precision,
        )

    predictions = predict_together(group, truth, images_dir, predict_some, batch_size=options.batch_size)
    if predictions is None:
        return
    # Several views are merged without their keypoints.
    keypoints = None if views.used else model_config_from_dict(contents["model_config"]).keypoints
    results = judge(predictions, classes, score_threshold=options.score_threshold, keypoints=keypoints)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(
        json.dumps(results.to_dict() | ({"views": to_plain(views)} if views.used else {}), indent=1) + "\n",
        encoding="utf-8",
    )
    write_sheet(
        options.out / "sheet.png",
        images_dir,
        predictions.truth,
        predictions.results,
        classes,
        count=options.sheet_images,
        score_threshold=options.sheet_threshold,
    )
    print(table(results))
    for finding in truth.findings:
        print(f"  {finding}")
    print(f"{options.out / 'results.json'} and {options.out / 'sheet.png'} written")
