"""The classes of a data set: id <-> label <-> name, and sets A (masks) and B (boxes only) of Sec. 3.1."""

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


@dataclass(frozen=True, kw_only=True)
class ClassTable:
    """One entry per class, by ascending category id; position i has label i + 1, background has 0."""

    ids: tuple[int, ...]  # category ids of the data set, ascending, holes allowed
    names: tuple[str, ...]
    has_mask: tuple[bool, ...]  # true for set A

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.names) == len(self.has_mask):
            raise ValueError(
                f"{len(self.ids)} ids, {len(self.names)} names and {len(self.has_mask)} mask marks; "
                "there must be one of each to a class"
            )
        if not self.ids:
            raise ValueError("a class table needs at least one class")
        if list(self.ids) != sorted(set(self.ids)):
            raise ValueError(f"category ids must ascend without repeats, seen {_few(self.ids)}")

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

    def require_masks(self) -> None:
        """ValueError that names the classes of set B, where there are any."""
        if without := [name for name, mask in zip(self.names, self.has_mask, strict=True) if not mask]:
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
        marks = tuple(mask and label not in held_out for label, mask in enumerate(self.has_mask, start=1))
        return replace(self, has_mask=marks)

    def to_dict(self) -> dict[str, list[Any]]:
        """Lists of plain ints, strings and bools, for a checkpoint or JSON."""
        return {"ids": list(self.ids), "names": list(self.names), "has_mask": list(self.has_mask)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Sequence[Any]]) -> Self:
        """Inverse of `to_dict`; ValueError where keys are missing or unknown."""
        if set(values) != {"ids", "names", "has_mask"}:
            raise ValueError(f"a class table has the keys ids, names, has_mask; seen {sorted(values)}")
        return cls(
            ids=tuple(int(v) for v in values["ids"]),
            names=tuple(str(v) for v in values["names"]),
            has_mask=tuple(bool(v) for v in values["has_mask"]),
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
