"""Rows of a grid whose masks of set B come from joined sources (`training.join`): judged themselves, or taught.

A row names one above it, on whose run the sources are joined, and a source: one of theirs ("segmenter", "transfer",
...) for every object, or `CHOSEN`, what the rule of trust takes.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from model.checkpoint import load_network
from model.classes import ClassTable
from model.files import write_whole
from training.distributed import chosen_device
from training.evaluate.measure import Results, judge
from training.evaluate.predictions import ObjectMask, Predictions, predict
from training.evaluate.truth import GroundTruth, load_ground_truth
from training.experiments.variants import Train
from training.join.grids import run_lengths
from training.join.joined import Checked, Join, checked, config_of_run, document_with_masks, join
from training.join.kept import KeptSegmenter
from training.join.objects import Objects, Placed
from training.join.report import by_class, checked_table, summary
from training.join.trust import choice
from training.locks import locked
from training.prompt_masks import load_segmenter

CHOSEN = "chosen"
"""What the rule of trust takes, in place of the name of a source."""
DETECTIONS = 20
"""Of an image get a mask of a source, the best of them: each costs a run of the segmenter's decoder or two."""


class Joins:
    """The joins of a grid's runs, each made once.

    Args:
        segmenter: folder of a promptable segmenter; None: no row needs it.
        train: see `training.experiments.variants.Train`.
        kept: folder of what the segmenter says of images and boxes, whichever run asks (`training.join.kept`).
    """

    def __init__(self, segmenter: Path | None, train: Train, kept: Path) -> None:
        self._folder, self._train, self._kept = segmenter, train, kept
        self._made: dict[Path, Join] = {}

    def require_segmenter(self, row: str) -> None:
        """ValueError where `row` wants one, and none was given."""
        if self._folder is None:
            raise ValueError(
                f"row {row} takes masks of joined sources, a promptable segmenter among them; name its folder by "
                "--segmenter FOLDER (see training.prompt_masks), or leave the row out by --rows"
            )

    @property
    def segmenter(self) -> str:
        """The segmenter's folder as it was given, for the digest of a row."""
        return "" if self._folder is None else str(self._folder)

    def training_file(self, run: Path, source: str) -> Path:
        """The training set of `run` with masks of a source for the objects of set B, beside the run's own files.

        Masks of a single source teach like true ones; those that the rule takes by their weights.
        """
        path = run / "join" / f"taught_by_{source}.json"
        with self._join(run) as joined:
            if not path.is_file():
                document = document_with_masks(_by(joined, source))
                if source != CHOSEN:
                    document = {
                        **document,
                        "annotations": [_unweighted(one) for one in document["annotations"]],
                    }
                write_whole(path, json.dumps(document))
        return path

    def results(self, run: Path, source: str, judged_by: ClassTable) -> Results:
        """How good masks of a source are, of the detections and the true boxes of the validation set.

        Objects of set A are judged as if their class were in set B. Of `CHOSEN` the rule's own account, and how right
        it was, is written beside the join's files.
        """
        with self._join(run) as joined:
            mine = _by(joined, source)
            of_truth = checked(mine)
            if source == CHOSEN:
                path = run / "join" / "explained.txt"
                table = checked_table(of_truth, joined.judged_labels)
                write_whole(path, f"{summary(joined)}\n\n{by_class(joined)}\n\n{table}\n")
                print(f"{path} written", flush=True)
            return judge(_predictions(mine, run, of_truth), judged_by)

    @contextmanager
    def _join(self, run: Path) -> Iterator[Join]:
        """The join on a run, which no other process is at meanwhile."""
        assert self._folder is not None
        with locked(run / "join" / "lock", wait=True):
            if run not in self._made:
                config = config_of_run(run, [])
                segmenter = KeptSegmenter(load_segmenter(self._folder, device=config.device), self._kept)
                self._made[run] = join(config, segmenter, self._train)
            yield self._made[run]


def _by(joined: Join, source: str) -> Join:
    """The join that takes a source's mask for every object; ValueError where there is no such source."""
    if source == CHOSEN:
        return joined
    if source not in joined.judged.sources:
        known = ", ".join((CHOSEN, *joined.judged.sources))
        raise ValueError(f"source is {source!r}; there are {known}")
    return replace(joined, trust=replace(joined.trust, way=source))


def _unweighted(annotation: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in annotation.items() if key != "mask_weight"}


def _predictions(joined: Join, run: Path, of_truth: Checked) -> Predictions:
    """What the run's detector finds in the validation set, with the join's masks in place of its own."""
    network, classes, _ = load_network(run / "checkpoint.pt")
    data, device = joined.config.data, chosen_device(joined.config.device)
    images_dir = Path(data.val_images)
    truth = load_ground_truth(Path(data.val_annotations), classes, images_dir, reading=data.reading)
    found = predict(network.to(device), classes, images_dir, truth, device=device)
    kept = _best(found.results)
    objects = _as_objects(kept, found.truth, classes)
    results: list[dict[str, Any]] = []
    if not kept:
        return replace(found, results=results, object_masks=_object_masks(of_truth, joined, classes))
    maps = joined.masks_of(objects, images_dir, run / "join" / "masks").said().maps
    for image, mine in objects.by_image():
        masks = run_lengths(maps[mine], objects.boxes[mine], *objects.sizes[image])
        results += [{**kept[k], "segmentation": mask} for k, mask in zip(mine, masks, strict=True)]
    return replace(found, results=results, object_masks=_object_masks(of_truth, joined, classes))


def _best(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The `DETECTIONS` best of each image, image by image."""
    by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for one in results:
        by_image[one["image_id"]].append(one)
    return [
        one for mine in by_image.values() for one in sorted(mine, key=lambda one: -one["score"])[:DETECTIONS]
    ]


def _as_objects(results: Sequence[dict[str, Any]], truth: GroundTruth, classes: ClassTable) -> Objects:
    """Detections as objects that want a mask."""
    position = {image_id: i for i, image_id in enumerate(truth.image_ids)}
    placed = []
    for one in results:
        x, y, width, height = one["bbox"]
        label, image = classes.label_of_id(one["category_id"]), position[one["image_id"]]
        placed.append(Placed(0, image, label, (x, y, x + width, y + height), None))
    return Objects(
        document={},
        names=[truth.file_names[image_id] for image_id in truth.image_ids],
        sizes=[truth.sizes[image_id] for image_id in truth.image_ids],
        objects=tuple(placed),
    )


def _object_masks(of_truth: Checked, joined: Join, classes: ClassTable) -> list[ObjectMask]:
    """The IoU of the mask taken for each true object."""
    judged, labels = of_truth.masks.judged, of_truth.objects.labels
    taken = choice(joined.trust.way, judged.sources, judged.predicted, labels)
    filled = judged.sources.index("box")
    return [
        ObjectMask(
            image_id=one.image,
            category_id=classes.id_of_label(one.label),
            iou=float(of_truth.true[row, taken[row]]),
            box_fill=float(of_truth.true[row, filled]),
        )
        for row, one in enumerate(of_truth.objects.objects)
    ]
