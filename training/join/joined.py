"""The whole of a join: from a finished run and a segmenter to masks for every object that has a box alone.

Everything is kept in the run's folder join/: mask branches, and the masks of every source in parts. What was killed
goes on there, to the same bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from model.checkpoint import load_checkpoint
from model.classes import ClassTable
from training.config import TrainingConfig, changed
from training.data.annotations import read_annotations
from training.data.coco import classes_of, training_set
from training.data.splits import AUTO
from training.distributed import chosen_device
from training.evaluate.truth import RunLengths
from training.experiments.variants import Train
from training.join.features import Floats
from training.join.grids import run_lengths
from training.join.heads import HeadMasks, likeness, train_heads
from training.join.objects import Objects, load_objects, require_truth
from training.join.sources import Said, SegmenterMasks, Source, asked
from training.join.trust import Evidence, Judged, Trust, fit_trust, mask_weights, true_ious
from training.prompt_masks.segmenter import Segmenter
from training.train import saved_config

_KEYS = ("mask_source", "mask_quality", "mask_weight")


@dataclass(frozen=True, kw_only=True)
class Join:
    """A fitted join: the rule, the objects of the training set it was fitted to, and what asks the sources."""

    config: TrainingConfig
    classes: ClassTable
    sources: Sequence[Source]
    objects: Objects
    trust: Trust
    evidence: Evidence
    judged: Judged
    """Of the training set's objects."""

    @property
    def judged_labels(self) -> set[int]:
        """Of the classes by whose true masks the rule was fitted."""
        return set(self.objects.labels[self.evidence.known].tolist())

    def masks_of(self, objects: Objects, images_dir: Path, folder: Path | None = None) -> "Masks":
        """The mask that the join takes for each of some objects, of whatever set of the same classes."""
        said = asked(self.sources, objects, images_dir, folder)
        return self.of_judged(self.trust.judge(said, objects), objects)

    def of_judged(self, judged: Judged, objects: Objects) -> "Masks":
        """The masks taken of what was judged."""
        chosen = self.trust.chosen(judged, objects.labels)
        return Masks(
            judged=judged,
            chosen=tuple(judged.sources[position] for position in chosen),
            quality=np.take_along_axis(judged.predicted, chosen[:, None], axis=1)[:, 0],
        )


@dataclass(frozen=True, kw_only=True)
class Masks:
    """For each of N objects the source whose mask is taken, and the IoU predicted for it."""

    judged: Judged
    chosen: tuple[str, ...]
    quality: Floats

    def said(self) -> Said:
        """The masks taken, and their predicted IoU."""
        rows = enumerate(self.chosen)
        return Said(np.stack([self.judged.said[name].maps[row] for row, name in rows]), self.quality)


def config_of_run(run: Path, changes: Sequence[str]) -> TrainingConfig:
    """The configuration of the run in a folder, changed; ValueError where there is no checkpoint."""
    path = run / "checkpoint.pt"
    if not path.is_file():
        raise ValueError(f"{path} is not there; --run is the folder of a finished training (its output.dir)")
    own = changed(saved_config(load_checkpoint(path), path), {"output.dir": str(run)})
    return changed(own, changes)


def join(
    config: TrainingConfig, segmenter: Segmenter, train: Train, *, max_images: int | None = None
) -> Join:
    """Ask all sources about the training set of `config`, and fit the rule to the objects whose masks are known.

    With `max_images` the sources are asked about the first so many images alone; branches are trained on all.

    Raises:
        ValueError: no object of set A has a mask, fewer classes than groups; see also `train_heads` and `asked`.
    """
    device = chosen_device(config.device)
    folder = Path(config.output.dir) / "join"
    annotations, images_dir = Path(config.data.train_annotations), Path(config.data.train_images)
    document = read_annotations(annotations, config.data.reading)
    classes = classes_of(document, config.data.mask_classes, annotations)
    if config.data.mask_classes == AUTO:
        classes = training_set(config).classes.with_few_masks_too()
    objects = load_objects(
        annotations, images_dir, classes, config.data.reading, truth_of=classes.set_a_labels()
    )
    judged = require_truth(objects, str(annotations))
    objects = objects.of_first(max_images)
    require_truth(objects, f"{annotations}, first {max_images} images")
    heads = train_heads(config, classes, judged, folder, train)
    masks_of_heads = HeadMasks(heads, device)
    sources: list[Source] = [masks_of_heads, SegmenterMasks(segmenter, after=masks_of_heads.identity)]
    said = asked(sources, objects, images_dir, folder / "masks")
    trust, evidence = fit_trust(said, objects, likeness(heads, classes))
    return Join(
        config=config,
        classes=classes,
        sources=sources,
        objects=objects,
        trust=trust,
        evidence=evidence,
        judged=trust.judge(said, objects),
    )


def document_with_masks(joined: Join) -> dict[str, Any]:
    """The training set's document, in which each object without a true mask has the one that the join takes.

    With it come `mask_source`, `mask_quality` (the predicted IoU) and `mask_weight`. A mask without a pixel is left
    out: the object keeps its box alone. What the file itself has as masks of set B, nobody has read.
    """
    objects = joined.objects
    masks = joined.of_judged(joined.judged, objects)
    taken, weights = masks.said().maps, mask_weights(masks.quality)
    annotations = list(objects.document["annotations"])
    for image, mine in objects.by_image():
        wanted = [position for position in mine if objects.objects[position].truth is None]
        found = run_lengths(taken[wanted], objects.boxes[wanted], *objects.sizes[image])
        for position, mask in zip(wanted, found, strict=True):
            number = objects.objects[position].annotation
            quality, weight = (round(float(share[position]), 4) for share in (masks.quality, weights))
            says = dict(zip(_KEYS, (masks.chosen[position], quality, weight), strict=True))
            annotations[number] = _with_mask(annotations[number], mask, says)
    return {**objects.document, "annotations": annotations}


def _with_mask(entry: Mapping[str, Any], mask: RunLengths, says: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in entry.items() if key not in ("segmentation", *_KEYS)}
    area = int(mask_utils.area(mask))
    if not area:
        return kept
    segmentation = {"size": list(mask["size"]), "counts": mask["counts"].decode()}
    return {**kept, "segmentation": segmentation, "area": area, **says}


@dataclass(frozen=True, kw_only=True)
class Checked:
    """Joined masks of objects whose truth is known, beside it: of N objects each source's true IoU [N, S]."""

    objects: Objects
    masks: Masks
    true: Floats


def checked(joined: Join, *, max_images: int | None = None) -> Checked:
    """The joined masks on the true boxes of the validation set, set B's too, beside the truth: for evaluation alone.

    Objects of set A are judged as if their class were in B, by the branches that have not learned it.
    """
    data, classes = joined.config.data, joined.classes
    every = range(1, classes.num_classes + 1)
    objects = load_objects(
        Path(data.val_annotations),
        Path(data.val_images),
        classes,
        data.reading,
        truth_of=every,
        only_with_truth=True,
    ).of_first(max_images)
    masks = joined.masks_of(objects, Path(data.val_images), Path(joined.config.output.dir) / "join" / "masks")
    positions = np.arange(len(objects.objects))
    of_each = [true_ious(one.maps, objects, positions) for one in masks.judged.said.values()]
    return Checked(objects=objects, masks=masks, true=np.stack(of_each, axis=1))
