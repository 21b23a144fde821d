"""Predictions of a set of images made by several processes, each with its own batches, joined in the first one."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from training.distributed import Group
from training.evaluate.precision import GroundTruth
from training.evaluate.predictions import NothingRead, Predictions, nothing_read


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
    )
