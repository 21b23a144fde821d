"""What a network says of a COCO set: its detections, and its masks on the ground-truth boxes and labels.

Several processes share a set by whole batches; the first joins what they say.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from model.classes import ClassTable
from model.dataclass_io import require_at_least
from model.files import one_line
from training.data.coco import read_picture
from training.data.findings import Tally
from training.data.image_files import check_image_files
from training.distributed import Group
from training.evaluate.precision import (
    MAX_DETECTIONS,
    coco_results,
    filled_boxes,
    mask_iou,
    masks_from_counts,
)
from training.evaluate.truth import GroundObject, GroundTruth, RunLengths
from training.images.names import is_there
from training.progress import counted, progress

Precision = Literal["float32", "bfloat16", "float16"]
SCORE_THRESHOLD = 0.05
"""Least score of a detection that is judged, as in the paper's own code."""
LEFT_OUT = "a figure over fewer images is another figure: mend the file, or leave such images out by --leave-out-broken"
LVIS_DETECTIONS = 300
"""Of an image are judged in LVIS."""


class Served(Protocol):
    """What evaluation asks of `model.inference.Inference`."""

    def __call__(
        self,
        images: list[Tensor],
        sizes: Tensor,
        score_threshold: Tensor,
        max_detections: Tensor,
        class_mask: Tensor,
        with_masks: Tensor,
    ) -> list[dict[str, Tensor]]: ...

    def masks_on_boxes(
        self, images: list[Tensor], boxes: list[Tensor], labels: list[Tensor]
    ) -> list[tuple[Tensor, Tensor]]: ...


class Evaluable(Protocol):
    """What evaluation asks of `model.network.MaskXRCNN`."""

    def inference(self) -> Served: ...


@dataclass(frozen=True, kw_only=True)
class ObjectMask:
    """A true object's mask, predicted on its own box and label: IoU with the true mask, and the filled box's."""

    image_id: int
    category_id: int
    iou: float
    box_fill: float


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a network said of a set of images, and the truth of the images that could be read."""

    truth: GroundTruth
    results: list[dict[str, Any]]
    """COCO results of all images."""
    object_masks: list[ObjectMask]
    max_detections: int = MAX_DETECTIONS
    """Of an image, at most."""


class NothingRead(ValueError):
    """No image of a set could be evaluated. `skipped`: what was left out, with counts."""

    def __init__(self, message: str, skipped: dict[str, int]) -> None:
        super().__init__(message)
        self.skipped = skipped


def require_images(truth: GroundTruth, images_dir: Path, source: str) -> None:
    """ValueError that lists the images which are not there, not to be read, or of another size than annotated.

    A look at the headers alone; what is broken behind them is found by `predict`.
    """
    names = [truth.file_names[image_id] for image_id in truth.image_ids]
    sizes = [truth.sizes[image_id] for image_id in truth.image_ids]
    try:
        check_image_files(names, sizes, images_dir, Tally(), source, counted("checking images"))
    except ValueError as error:
        raise ValueError(f"{error}\n({LEFT_OUT})") from error


def nothing_read(skipped: dict[str, int], images_dir: Path) -> NothingRead:
    """The error where no image of `images_dir` could be evaluated."""
    return NothingRead(f"no image under {images_dir} could be evaluated: {listed(skipped)}", skipped)


@torch.no_grad()
def predict(
    network: Evaluable,
    classes: ClassTable,
    images_dir: Path,
    truth: GroundTruth,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 8,
    score_threshold: float = SCORE_THRESHOLD,
    precision: Precision = "float32",
    detect: bool = True,
    max_detections: int | None = None,
    leave_out_broken: bool = True,
) -> Predictions:
    """Run the network over the images of `truth`: detections, and masks on the ground-truth boxes.

    With `detect` false only the latter. `max_detections` of an image are asked for; None: as many as the set is judged
    by, see `usual_detections`. Images that cannot be read, or whose size is not the annotated one,
    are left out and counted; without `leave_out_broken` the first of them is a ValueError that names it.
    """
    most = usual_detections(truth) if max_detections is None else max_detections
    require_at_least(1, batch_size=batch_size, max_detections=most)
    served = network.inference()
    skipped = dict(truth.skipped)
    done: list[int] = []
    results: list[dict[str, Any]] = []
    object_masks: list[ObjectMask] = []
    batches = _batches(images_dir, truth, batch_size, skipped, leave_out_broken=leave_out_broken)
    for batch in progress(
        batches, "evaluating", unit="batches", total=-(-len(truth.image_ids) // batch_size)
    ):
        ids = [image_id for image_id, _ in batch]
        images = [torch.from_numpy(pixels).permute(2, 0, 1).contiguous().to(device) for _, pixels in batch]
        sizes = [truth.sizes[image_id] for image_id in ids]
        with _autocast(device, precision):
            if detect:
                outputs = served(
                    images,
                    torch.tensor(sizes, dtype=torch.int64),
                    torch.full((len(ids),), score_threshold),
                    torch.full((len(ids),), most, dtype=torch.int64),
                    torch.ones((len(ids), classes.num_classes + 1), dtype=torch.bool),
                    torch.ones(len(ids), dtype=torch.bool),
                )
                for image_id, output, size in zip(ids, outputs, sizes, strict=True):
                    results += coco_results(image_id, output, size, classes)
            object_masks += _masks_on_truth(served, classes, images, ids, truth, device)
        done += ids
    if not done:
        raise nothing_read(skipped, images_dir)
    kept = replace(truth.only(set(done)), skipped=skipped)
    return Predictions(truth=kept, results=results, object_masks=object_masks, max_detections=most)


def usual_detections(truth: GroundTruth) -> int:
    """Detections of an image by which a set is judged: COCO's 100, or LVIS's 300 where it is federated as LVIS is."""
    return LVIS_DETECTIONS if truth.searched else MAX_DETECTIONS


def _masks_on_truth(
    served: Served,
    classes: ClassTable,
    images: list[Tensor],
    ids: list[int],
    truth: GroundTruth,
    device: torch.device | str,
) -> list[ObjectMask]:
    wanted: list[tuple[Tensor, int, list[tuple[GroundObject, RunLengths]]]] = []
    for image, image_id in zip(images, ids, strict=True):
        known = [(one, one.mask) for one in truth.objects[image_id] if one.mask is not None and not one.crowd]
        if known:
            wanted.append((image, image_id, known))
    if not wanted:
        return []
    boxes = [torch.tensor([one.box for one, _ in known], device=device) for _, _, known in wanted]
    labels = [
        torch.tensor([classes.label_of_id(one.category_id) for one, _ in known], device=device)
        for _, _, known in wanted
    ]
    answers = served.masks_on_boxes([image for image, _, _ in wanted], boxes, labels)
    found = []
    for (_, image_id, known), (counts, offsets) in zip(wanted, answers, strict=True):
        size = truth.sizes[image_id]
        filled = filled_boxes(np.array([one.box for one, _ in known]), *size)
        predicted = masks_from_counts(counts, offsets, *size)
        for (one, mask), mine, box in zip(known, predicted, filled, strict=True):
            found.append(
                ObjectMask(
                    image_id=image_id,
                    category_id=one.category_id,
                    iou=mask_iou(mine, mask),
                    box_fill=mask_iou(box, mask),
                )
            )
    return found


def _batches(
    images_dir: Path,
    truth: GroundTruth,
    batch_size: int,
    skipped: dict[str, int],
    *,
    leave_out_broken: bool,
) -> Iterator[list[tuple[int, np.ndarray]]]:
    """Batches of (image id, uint8 [h, w, 3]); the next images are decoded while the network works on these."""

    def read(image_id: int) -> np.ndarray | str:
        path = images_dir / truth.file_names[image_id]
        height, width = truth.sizes[image_id]
        try:
            return read_picture(path, width=width, height=height)
        except ValueError as error:
            if not leave_out_broken:
                raise ValueError(f"{one_line(error)}; {LEFT_OUT}") from error
            if not is_there(path):
                return "images that are missing"
            return "images that are broken or of another size than annotated"

    batch: list[tuple[int, np.ndarray]] = []
    waiting: deque[tuple[int, Future[np.ndarray | str]]] = deque()
    with ThreadPoolExecutor(max_workers=2) as pool:
        coming = iter(truth.image_ids)
        while True:
            for image_id in coming:
                waiting.append((image_id, pool.submit(read, image_id)))
                if len(waiting) > 2 * batch_size:
                    break
            if not waiting:
                break
            image_id, decoded = waiting.popleft()
            pixels = decoded.result()
            if isinstance(pixels, str):
                skipped[pixels] = skipped.get(pixels, 0) + 1
            else:
                batch.append((image_id, pixels))
            if len(batch) == batch_size:
                yield batch
                batch = []
    if batch:
        yield batch


def _autocast(device: torch.device | str, precision: Precision) -> AbstractContextManager[Any]:
    if precision == "float32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=getattr(torch, precision))


def predict_together(
    group: Group,
    truth: GroundTruth,
    images_dir: Path,
    predict_some: Callable[[GroundTruth], Predictions],
    *,
    batch_size: int,
) -> Predictions | None:
    """What `predict_some` says of all images of `truth`, as one process would; None in all processes but the first.

    Each process takes whole batches of `batch_size` images, so that every image has the same company as in one
    process (batches shift where images cannot be read).

    Raises:
        ValueError: in the first process, where another one or itself failed, or no image could be read.
        FailedElsewhere: in the others, where one of them failed.
    """
    if group.size == 1:
        return predict_some(truth)
    ids = truth.image_ids
    batches = [ids[start : start + batch_size] for start in range(0, len(ids), batch_size)]
    mine = truth.only({image_id for batch in group.share(batches) for image_id in batch})
    with group.together():
        predicted = _predicted(mine, predict_some)
    parts = group.collected(predicted)
    return _joined(truth, images_dir, parts) if parts else None


def _predicted(truth: GroundTruth, predict_some: Callable[[GroundTruth], Predictions]) -> Predictions:
    nothing = Predictions(truth=truth, results=[], object_masks=[])
    if not truth.image_ids:
        return nothing
    try:
        return predict_some(truth)
    except NothingRead as error:
        return replace(nothing, truth=replace(truth.only(()), skipped=error.skipped))


def _joined(truth: GroundTruth, images_dir: Path, parts: list[Predictions]) -> Predictions:
    skipped = Counter(truth.skipped)
    for part in parts:
        skipped.update(Counter(part.truth.skipped) - Counter(truth.skipped))
    position = {image_id: i for i, image_id in enumerate(truth.image_ids)}
    read = truth.only({image_id for part in parts for image_id in part.truth.image_ids})
    if not read.image_ids:
        raise nothing_read(dict(skipped), images_dir)
    return Predictions(
        truth=replace(read, skipped=dict(skipped)),
        results=sorted(
            (result for part in parts for result in part.results), key=lambda one: position[one["image_id"]]
        ),
        object_masks=sorted(
            (mask for part in parts for mask in part.object_masks), key=lambda one: position[one.image_id]
        ),
        max_detections=max(part.max_detections for part in parts if part.truth.image_ids),
    )


def listed(counts: dict[str, int]) -> str:
    """Counts of what was left out, in words."""
    return ", ".join(f"{count} {what}" for what, count in counts.items()) or "nothing was found"
