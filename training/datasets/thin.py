"""`python -m training.datasets thin`: a COCO file of which only a part of the objects keeps its mask, to see how many
masks a training needs.

    python -m training.datasets thin --annotations train.json --share 0.2 --seed 0 --out train_20.json
"""

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from model.files import command, exit_status, write_whole
from training.data.annotations import read_annotations
from training.data.findings import is_id


def thinned(document: Mapping[str, Any], share: float, seed: int) -> dict[str, Any]:
    """The document without the masks of a random part of the objects of each category.

    Of n objects with a mask that a human made round(n * share) keep it, at least one; a greater share keeps those of a
    smaller one and more. Boxes, areas, crowd regions and masks that have a `mask_source` stay. ValueError: the share is
    not from 0 to 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share is {share}; give a number from 0 to 1")
    return _keeping(document, seed, lambda _, masks: max(round(masks * share), 1))


def with_counts(document: Mapping[str, Any], counts: Mapping[int, int], seed: int) -> dict[str, Any]:
    """As `thinned`, with so many masks at most of each category's id; categories that are not named keep all."""
    return _keeping(document, seed, lambda category, masks: counts.get(category, masks))


def _keeping(document: Mapping[str, Any], seed: int, kept: Callable[[int, int], int]) -> dict[str, Any]:
    """Keeps of each category with so many masks the first `kept` of an order that the seed decides."""
    of_category: dict[int, list[int]] = {}
    for place, entry in enumerate(document["annotations"]):
        if _has_true_mask(entry):
            of_category.setdefault(entry["category_id"], []).append(place)
    losing: set[int] = set()
    for category, places in of_category.items():
        random.Random(f"{seed} {category}").shuffle(places)
        losing.update(places[kept(category, len(places)) :])
    annotations = [
        {key: value for key, value in entry.items() if key != "segmentation"} if place in losing else entry
        for place, entry in enumerate(document["annotations"])
    ]
    return {**document, "annotations": annotations}


def write_thinned(annotations: Path, out: Path, *, share: float, seed: int) -> str:
    """Write the file `annotations` `thinned` to `out`, the same bytes for the same arguments; a line on it.

    ValueError: as `read_annotations` and `thinned`, or both are one file.
    """
    if out.resolve() == annotations.resolve():
        raise ValueError(f"--out {out} is the file to be thinned; give another")
    before = read_annotations(annotations)
    after = thinned(before, share, seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, json.dumps(after) + "\n")
    kept, of = (sum(1 for _ in true_masks(one)) for one in (after, before))
    return f"{out}: {kept} of {of} objects with a mask keep it, {len({*true_masks(after)})} categories"


def true_masks(document: Mapping[str, Any]) -> Iterator[int]:
    """The category of each object that has a mask that a human made."""
    return (entry["category_id"] for entry in document["annotations"] if _has_true_mask(entry))


def _has_true_mask(entry: Any) -> bool:
    return (
        isinstance(entry, Mapping)
        and is_id(entry.get("category_id"))
        and bool(entry.get("segmentation"))
        and not entry.get("iscrowd")
        and entry.get("mask_source") is None
    )


def main(arguments: Sequence[str]) -> int:
    """The command line. 0: written; 2: a mistake, named."""
    parser = command("training.datasets thin", "Take the masks of a part of the objects out of a COCO file.")
    add = parser.add_argument
    add("--annotations", type=Path, required=True, help="COCO file")
    add(
        "--share",
        type=float,
        required=True,
        help="of each category's objects with a mask that keep it, 0 to 1",
    )
    add("--seed", type=int, default=0, help="of the choice (default: 0)")
    add("--out", type=Path, required=True, help="COCO file to write")
    options = parser.parse_args(arguments)
    with exit_status(interrupted="stopped") as status:
        print(write_thinned(options.annotations, options.out, share=options.share, seed=options.seed))
    return status.code
