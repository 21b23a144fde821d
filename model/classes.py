"""The classes of a data set: id <-> label <-> name, sets A (masks) and B (boxes only) of Sec. 3.1, and what taught the
masks of each."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

VOC_NAMES: tuple[str, ...] = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "boat", "bird", "cat",
    "dog", "horse", "sheep", "cow", "bottle", "chair", "couch", "potted plant", "dining table", "tv",
)  # fmt: skip
"""COCO's names of the 20 PASCAL VOC classes (ids 1-7, 9, 16-21, 44, 62-64, 67, 72): the paper's split."""

_VOC_SPELLINGS = {"motorbike", "aeroplane", "sofa", "pottedplant", "diningtable", "tvmonitor"}
_WORDS = ("all", "voc", "nonvoc")

MASK_SOURCES = ("masks", "some_masks", "taught", "boxes")
"""What the masks of a class are learned from: true masks, of enough objects (set A); true masks of fewer; masks that
something else than a human made; boxes alone."""


@dataclass(frozen=True, kw_only=True)
class ClassTable:
    """One entry per class, by ascending category id; position i has label i + 1, background has 0."""

    ids: tuple[int, ...]  # category ids of the data set, ascending, holes allowed
    names: tuple[str, ...]
    has_mask: tuple[bool, ...]  # true for set A
    mask_sources: tuple[str, ...] = ()
    """One of `MASK_SOURCES` to a class, "masks" exactly in set A. Not given: "masks" there, elsewhere "boxes"."""

    def __post_init__(self) -> None:
        if not self.mask_sources:
            sources = tuple("masks" if mask else "boxes" for mask in self.has_mask)
            object.__setattr__(self, "mask_sources", sources)
        if not len(self.ids) == len(self.names) == len(self.has_mask):
            raise ValueError(
                f"{len(self.ids)} ids, {len(self.names)} names and {len(self.has_mask)} mask marks; "
                "there must be one of each to a class"
            )
        if not self.ids:
            raise ValueError("a class table needs at least one class")
        if list(self.ids) != sorted(set(self.ids)):
            raise ValueError(f"category ids must ascend without repeats, seen {_few(self.ids)}")
        if strangers := set(self.mask_sources) - set(MASK_SOURCES):
            raise ValueError(f"a mask source is {strangers.pop()!r}; there are {', '.join(MASK_SOURCES)}")
        if self.has_mask != tuple(source == "masks" for source in self.mask_sources):
            raise ValueError(
                f"mask sources {_few(self.mask_sources)} of classes with mask marks {_few(self.has_mask)}; there must "
                'be one to a class, "masks" exactly where the mark is true'
            )

    @property
    def num_classes(self) -> int:
        """C, without background."""
        return len(self.ids)

    def label_of_id(self, category_id: int) -> int:
        """Label 1..C of a category id; ValueError where the table has no such id."""
        label = self._labels.get(category_id)
        if label is None:
            raise ValueError(f"no category has the id {category_id!r}; known are {_few(self.ids)}")
        return label

    def id_of_label(self, label: int) -> int:
        """Category id of a label 1..C."""
        return self.ids[self._position(label)]

    def name_of_label(self, label: int) -> str:
        """Name of a label 1..C."""
        return self.names[self._position(label)]

    def label_of_name(self, name: str) -> int:
        """Label of a class name; ValueError with near names where no class has it."""
        if name not in self.names:
            raise ValueError(_unknown([name], self.names))
        return self.names.index(name) + 1

    def set_a_labels(self) -> tuple[int, ...]:
        """Labels of the classes with masks."""
        return tuple(label for label, mask in enumerate(self.has_mask, start=1) if mask)

    def set_b_labels(self) -> tuple[int, ...]:
        """Labels of the classes with boxes only."""
        return tuple(label for label, mask in enumerate(self.has_mask, start=1) if not mask)

    def true_masks_are_read(self, label: int) -> bool:
        """Whether training reads the masks that humans made of a label's objects."""
        return self.mask_sources[self._position(label)] in ("masks", "some_masks")

    def with_sources(self, mask_sources: Sequence[str]) -> Self:
        """The table with these sources, and set A where they are "masks"."""
        return replace(
            self,
            has_mask=tuple(source == "masks" for source in mask_sources),
            mask_sources=tuple(mask_sources),
        )

    def with_few_masks_too(self) -> Self:
        """The table with every class in set A whose true masks are read, few as they may be."""
        return self.with_sources(["masks" if one == "some_masks" else one for one in self.mask_sources])

    def with_sources_of(self, other: "ClassTable") -> Self:
        """The table with the sources that classes of the same name have in another; those it does not know: "boxes"."""
        known = dict(zip(other.names, other.mask_sources, strict=True))
        return self.with_sources([known.get(name, "boxes") for name in self.names])

    def require_masks(self) -> None:
        """ValueError that names the classes of boxes alone, where there are any."""
        if without := [
            n for n, source in zip(self.names, self.mask_sources, strict=True) if source == "boxes"
        ]:
            raise ValueError(
                f"model.transfer.kind class_specific learns each class's masks from masks of that class, and "
                f"{len(without)} of {self.num_classes} have none ({_few(without)}): set data.mask_classes=all, or "
                "another kind"
            )

    def without_masks(self, labels: Iterable[int]) -> Self:
        """The table with `labels` (all of set A) moved to set B: the hold-out of an inner validation.

        ValueError where a label is not in set A or where set A would be left empty.
        """
        held_out = set(labels)
        strangers = held_out - set(self.set_a_labels())
        if strangers:
            raise ValueError(f"labels {sorted(strangers)} are not in set A ({_few(self.set_a_labels())})")
        if held_out == set(self.set_a_labels()):
            raise ValueError("all classes of set A held out: none is left to learn masks from")
        return self.with_sources(
            [
                "boxes" if label in held_out else source
                for label, source in enumerate(self.mask_sources, start=1)
            ]
        )

    def to_dict(self) -> dict[str, list[Any]]:
        """Lists of plain ints, strings and bools, for a checkpoint or JSON."""
        return {
            "ids": list(self.ids),
            "names": list(self.names),
            "has_mask": list(self.has_mask),
            "mask_sources": list(self.mask_sources),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Sequence[Any]]) -> Self:
        """Inverse of `to_dict`, or of one from before there were `mask_sources`; ValueError where keys are missing or
        unknown."""
        if set(values) - {"mask_sources"} != {"ids", "names", "has_mask"}:
            raise ValueError(
                f"a class table has the keys ids, names, has_mask, mask_sources; seen {sorted(values)}"
            )
        return cls(
            ids=tuple(int(v) for v in values["ids"]),
            names=tuple(str(v) for v in values["names"]),
            has_mask=tuple(bool(v) for v in values["has_mask"]),
            mask_sources=tuple(str(v) for v in values.get("mask_sources", ())),
        )

    @cached_property
    def _labels(self) -> dict[int, int]:
        return {category_id: label for label, category_id in enumerate(self.ids, start=1)}

    def _position(self, label: int) -> int:
        if not 1 <= label <= self.num_classes:
            raise ValueError(
                f"label {label} is not in 1..{self.num_classes} (0 is background and has no entry)"
            )
        return label - 1


def class_table(categories: Sequence[Mapping[str, Any]], mask_classes: str) -> ClassTable:
    """The table of COCO `categories` ({"id": int, "name": str}), with set A chosen by `mask_classes`.

    `mask_classes` is `all`; `voc` or `nonvoc` (the 20 PASCAL VOC classes by name, or all others; the
    paper's split); names separated by commas; or the path of a text file with one name to a line (blank
    lines and lines that begin with # are passed over). The three words come first, then names, then a file.

    ValueError: categories that are not such a list, repeated ids or names, an unknown name (with near
    ones), a set A without a class.
    """
    by_id: dict[int, str] = {}
    seen: set[str] = set()
    for number, category in enumerate(categories, start=1):
        category_id, name = _id_and_name(category, number)
        if category_id in by_id:
            raise ValueError(f"two categories have the id {category_id}: {by_id[category_id]!r} and {name!r}")
        if name in seen:
            raise ValueError(
                f"two categories have the name {name!r}: mask classes are chosen by name, so rename one"
            )
        by_id[category_id] = name
        seen.add(name)
    if not by_id:
        raise ValueError("the list of categories is empty; expected at least one {'id': ..., 'name': ...}")
    ids = tuple(sorted(by_id))
    names = tuple(by_id[i] for i in ids)
    chosen = _set_a_names(names, mask_classes)
    if not chosen:
        raise ValueError(
            f"--mask-classes {mask_classes!r} leaves no class with masks; at least one must have them"
        )
    return ClassTable(ids=ids, names=names, has_mask=tuple(name in chosen for name in names))


def _id_and_name(category: Any, number: int) -> tuple[int, str]:
    if not isinstance(category, Mapping) or "id" not in category or "name" not in category:
        raise ValueError(f"category number {number} is {category!r}; expected {{'id': ..., 'name': ...}}")
    category_id, name = category["id"], category["name"]
    if not isinstance(category_id, int) or isinstance(category_id, bool):
        raise ValueError(f"category number {number} has the id {category_id!r}; expected a whole number")
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"category {category_id} has the name {name!r}; expected a text")
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        raise ValueError(
            f"category {category_id} has the name {name!r}; expected Unicode, not half of a surrogate pair"
        )
    return category_id, name.strip()


def _set_a_names(names: Sequence[str], mask_classes: str) -> set[str]:
    word = mask_classes.strip()
    if word == "all":
        return set(names)
    if word in ("voc", "nonvoc"):
        voc = {name for name in names if name in VOC_NAMES or name in _VOC_SPELLINGS}
        if not voc:
            raise ValueError(
                f"--mask-classes {word}: none of the 20 PASCAL VOC classes is among {_few(names)}"
            )
        return voc if word == "voc" else set(names) - voc
    asked = [part.strip() for part in word.split(",") if part.strip()]
    unknown = [name for name in asked if name not in names]
    if not unknown:
        return set(asked)
    file = Path(word)
    if not file.is_file():
        advice = f"; nor is {word!r} a file with a name to a line, nor one of {', '.join(_WORDS)}"
        raise ValueError(f"--mask-classes: {_unknown(unknown, names)}{advice}")
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    asked = [line for line in lines if line and not line.startswith("#")]
    unknown = [name for name in asked if name not in names]
    if unknown:
        raise ValueError(f"--mask-classes: {word}: {_unknown(unknown, names)}")
    return set(asked)


def _unknown(unknown: Sequence[str], names: Sequence[str]) -> str:
    near = [match for name in unknown for match in difflib.get_close_matches(name, names, n=2)]
    hint = f"did you mean {_few(near)}?" if near else f"the classes are {_few(names)}"
    return f"no class is called {_few(unknown)} ({hint})"


def _few(values: Sequence[Any], most: int = 8) -> str:
    shown = ", ".join(repr(v) for v in values[:most])
    return shown if len(values) <= most else f"{shown}, ... ({len(values)} in all)"
