"""What is surely, or almost surely, wrong in a set or between two: one line of warning for each."""

from collections.abc import Sequence

import numpy as np

from training.data.findings import OF_THE_WHOLE_SET
from training.data.masks import NO_MASK, packed_extent
from training.look.facts import Facts, counted, few, percent
from training.look.pictures import sampled
from training.look.twins import of_one_name, same, same_contents

MASKS_LOOKED_AT = 20_000
LEAVES_BY = (2.0, 0.1)
"""A mask leaves its box where it reaches beyond by more pixels than the first and more of the side than the second."""
LEAVING = 0.01
"""Share of such masks from which they are named: annotators' slips are fewer, another convention of boxes is more."""
DOMINANT = 0.95
DOUBLED = 0.01
"""Share of objects that repeat another, from which they are named; COCO's own files have a few."""
LOST = 0.1
"""Share of annotations, or of masks, left out, from which it is named."""
NAMES_LOOKED_AT = 1000


def doubts_of(facts: Facts, seed: int, *, learns_masks: bool = False) -> list[str]:
    """Of one set; `learns_masks`: a network learns masks from it."""
    whole = [
        f"{facts.name}: {one.kind}, as told above"
        for one in facts.report.findings
        if one.kind in OF_THE_WHOLE_SET
    ]
    return [
        *whole,
        *_lost(facts),
        *_without_objects(facts, learns_masks),
        *_dominant(facts),
        *_doubled(facts),
        *_leaving(facts, seed),
    ]


def _lost(facts: Facts) -> list[str]:
    report, said = facts.report, []
    if report.left_out > LOST * report.annotations:
        said.append(
            f"{facts.name}: {percent(report.left_out, report.annotations)} of its annotations are left out, "
            "as told above"
        )
    maskless = sum(one.count for one in report.findings if one.outcome == "kept without its mask")
    wanted = int(facts.objects[facts.in_a].sum())
    if maskless > LOST * wanted:
        said.append(
            f"{facts.name}: {percent(maskless, wanted)} of the objects of classes with masks have none that can be "
            "used, as told above"
        )
    return said


def _without_objects(facts: Facts, learns_masks: bool) -> list[str]:
    if not learns_masks:
        return []
    said = []
    if none := facts.names(facts.objects == 0):
        of_a = facts.names((facts.objects == 0) & facts.in_a)
        said.append(
            f"{facts.name}: {_classes(none)} no object, so nothing is learnt of {'it' if len(none) == 1 else 'them'}: "
            f"{few(none)}" + (f"; of set A: {few(of_a)}" if 0 < len(of_a) < len(none) else "")
        )
    if maskless := facts.names((facts.masks == 0) & (facts.objects > 0) & facts.in_a):
        said.append(
            f"{facts.name}: {_classes(maskless, ' of set A')} objects and not one mask: {few(maskless)}; their "
            "masks come from the weight transfer alone: name in data.mask_classes those that have masks, "
            "or set it to auto"
        )
    return said


def _dominant(facts: Facts) -> list[str]:
    total, most = int(facts.objects.sum()), int(facts.objects.argmax())
    if facts.classes.num_classes == 1 or facts.objects[most] < DOMINANT * total:
        return []
    share = percent(int(facts.objects[most]), total)
    return [f"{facts.name}: {share} of the objects are of one class, {facts.classes.names[most]}"]


def _doubled(facts: Facts) -> list[str]:
    """Objects of one class with one and the same box in an image: exports joined twice, images that lost their ids."""
    packed = facts.packed
    rows = np.repeat(np.arange(len(packed.image_ids)), np.diff(packed.object_starts))
    keys = np.column_stack([rows, packed.labels, packed.boxes])
    _, firsts, numbers = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    again = np.ones(len(keys), dtype=bool)
    again[firsts] = False
    if again.sum() <= DOUBLED * len(keys):
        return []
    first = int(firsts[numbers.reshape(-1)[int(again.argmax())]])
    name, image_id = facts.classes.name_of_label(int(packed.labels[first])), packed.image_ids[rows[first]]
    return [
        f"{facts.name}: {int(again.sum())} of {len(keys)} objects have the class and box of another in their image; "
        f"first: {name} in image {image_id} at {np.round(packed.boxes[first], 1).tolist()}. Was a file joined twice, "
        "or did annotations lose their image_id?"
    ]


def _leaving(facts: Facts, seed: int) -> list[str]:
    """Masks that reach out of their boxes, of a sample."""
    packed = facts.packed
    places = np.flatnonzero(packed.mask_kinds != NO_MASK)
    places = places[sampled(MASKS_LOOKED_AT, len(places), seed)]
    if not len(places):
        return []
    rows = np.searchsorted(packed.object_starts, places, side="right") - 1
    sizes = packed.sizes[rows].astype(np.float64)
    extents = np.array(
        [
            packed_extent(
                int(packed.mask_kinds[at]),
                packed.mask_data[packed.mask_starts[at] : packed.mask_ends[at]].tobytes(),
                int(height),
            )
            for at, height in zip(places, packed.sizes[rows, 0], strict=True)
        ]
    )
    extents = extents.clip(0, sizes[:, [1, 0, 1, 0]])
    boxes = packed.boxes[places].astype(np.float64)
    allowed = np.maximum(LEAVES_BY[0], LEAVES_BY[1] * (boxes[:, 2:] - boxes[:, :2]))
    beyond = np.concatenate([boxes[:, :2] - extents[:, :2], extents[:, 2:] - boxes[:, 2:]], axis=1)
    leaves = (beyond > np.tile(allowed, 2)).any(axis=1)
    if leaves.sum() <= LEAVING * len(places):
        return []
    first = int(leaves.argmax())
    box, extent = (np.round(one[first], 1).tolist() for one in (boxes, extents))
    of = "masks" if len(places) < MASKS_LOOKED_AT else "masks looked at"
    return [
        f"{facts.name}: {int(leaves.sum())} of {len(places)} {of} ({percent(int(leaves.sum()), len(places))}) leave "
        f"their boxes; first: in image {packed.image_ids[rows[first]]}, box from {box[:2]} to {box[2:]}, mask from "
        f"{extent[:2]} to {extent[2:]}. Is bbox [x, y, width, height], and of the object of its segmentation?"
    ]


def doubts_between(train: Facts, val: Facts) -> list[str]:
    """Of a training set and the set that is to judge it."""
    said = []
    if unseen := val.names((val.objects > 0) & (train.objects == 0)):
        said.append(
            f"{_classes(unseen)} objects in validation and none in training: {few(unseen)}; they will be "
            "judged and cannot be found"
        )
    if unjudged := val.names((val.objects == 0) & (train.objects > 0)):
        said.append(
            f"{_classes(unjudged)} objects in training and none in validation, so nothing judges them: "
            f"{few(unjudged)}"
        )
    for one, other in ((train, val), (val, train)):
        theirs = set(other.listed)
        if more := [name for name in one.listed if name not in theirs]:
            said.append(
                f"the class lists differ: only the {one.name} lists {few(more)} ({len(one.listed)} classes there, "
                f"{len(other.listed)} in the {other.name})"
            )
    return said


def twice(
    train: Sequence[str], val: Sequence[str], *, open_images: bool = True, all_images: bool = True
) -> list[str]:
    """Images, given by their files, that are in a set twice or in both.

    By path; with `open_images` by content too, and of those only images of one name in both sets without `all_images`.
    """
    said = []
    groups: list[list[str]] = [[train[group[0]]] * len(group) for group in same(train)]
    if groups:
        said.append(_repeated("training set", groups, "under several image entries"))
    if val and (again := [[val[group[0]]] * len(group) for group in same(val)]):
        said.append(_repeated("validation set", again, "under several image entries"))
    train, val = list(dict.fromkeys(train)), list(dict.fromkeys(val))
    leaked = sorted(set(train) & set(val))
    leaks = [(path, path) for path in leaked]
    if open_images:
        both = set(leaked)
        if not all_images:
            train, val = of_one_name(train, val, NAMES_LOOKED_AT)
        paths = [*train, *(path for path in val if path not in both)]
        found = [[paths[at] for at in group] for group in same_contents(paths)]
        of_train = set(train)
        for name, inside in (("training set", True), ("validation set", False)):
            copies = [[path for path in group if (path in of_train) is inside] for group in found]
            if all_images and (copies := [group for group in copies if len(group) > 1]):
                said.append(_repeated(name, copies, "as files with the same bytes"))
        for group in found:
            mine = [path for path in group if path in of_train]
            if mine:
                leaks += [(path, mine[0]) for path in group if path not in of_train]
    if leaks:
        one, other = leaks[0]
        pair = one if one == other else f"{one} is {other}"
        are = "is" if len(leaks) == 1 else "are"
        said.append(
            f"{counted(len(leaks), 'image')} of the validation set {are} in the training set too, so validation will "
            f"say too much; first: {pair}"
        )
    return said


def _repeated(name: str, groups: Sequence[Sequence[str]], how: str) -> str:
    first = groups[0]
    pair = first[0] if first[0] == first[1] else f"{first[0]} is {first[1]}"
    return (
        f"{name}: {counted(len(groups), 'image')} {'is' if len(groups) == 1 else 'are'} there more than once, {how}; "
        f"first: {pair}. What one entry has annotated is background in the others"
    )


def _classes(names: Sequence[str], of: str = "") -> str:
    return counted(len(names), f"class{of} has", f"classes{of} have")
