"""Classes that have a side: a left light is a right light in a mirrored image (`augment.swapped_classes`)."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.classes import ClassTable
from model.targets import Target
from training.data.augment_config import AugmentConfig

Pairs = Sequence[tuple[str, str]]

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_OTHER = {"left": "right", "right": "left", "l": "r", "r": "l"}
_OTHER |= {spell(one): spell(other) for one, other in _OTHER.items() for spell in (str.title, str.upper)}


@dataclass(frozen=True, kw_only=True)
class Sides:
    """Which class an object has in a mirrored image.

    A mask follows its object: an object of set A whose class is of set B in the mirrored image brings that class its
    mask.
    """

    labels: Tensor  # int64 [C+1]; most classes stay what they are

    def mirrored(self, target: Target) -> Target:
        """A target that is mirrored already, with the labels of its objects changed."""
        return {**target, "labels": self.labels[target["labels"]]}


def sides(pairs: Pairs, classes: ClassTable) -> Sides | None:
    """What `augment.swapped_classes` means for these classes; None where no pair is named.

    Raises:
        ValueError: a name that no class has, with near ones.
    """
    if not pairs:
        return None
    labels = torch.arange(classes.num_classes + 1)
    for pair in pairs:
        try:
            one, other = (classes.label_of_name(name) for name in pair)
        except ValueError as error:
            raise ValueError(f"augment.swapped_classes: {error}") from error
        labels[one], labels[other] = other, one
    return Sides(labels=labels)


def suggested_pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Names that differ in the word left or right, or l or r, alone, left first.

    A word ends where letters end, and where a capital begins in the middle: `frontLeftDoor` has it, `bright` does not.
    """
    pairs, known = [], set(names)
    for name in names:
        other, words = _mirrored(name)
        if other != name and other in known and words[0] in ("left", "l"):
            pairs.append((name, other))
    return pairs


def _mirrored(name: str) -> tuple[str, list[str]]:
    """A name with left and right exchanged, and the words that were, in small letters."""
    words: list[str] = []

    def exchanged(match: re.Match[str]) -> str:
        word = match[0]
        if word in _OTHER:
            words.append(word.lower())
        return _OTHER.get(word, word)

    return _WORD.sub(exchanged, name), words


def hint(config: AugmentConfig, classes: ClassTable) -> str | None:
    """What to say at the start of a training about classes with sides; None: nothing."""
    if not config.horizontal_flip:
        return None
    marks = dict(zip(classes.names, classes.has_mask, strict=True))
    if config.swapped_classes:
        across = [pair for pair in config.swapped_classes if marks[pair[0]] != marks[pair[1]]]
        if not across:
            return None
        gets = [one if marks[other] else other for one, other in across]
        return (
            f"hint: {', '.join(gets)}: set B, but mirrored images bring masks of the other side; what is judged there "
            "is no transfer alone"
        )
    pairs = suggested_pairs(classes.names)
    sided = [name for name in classes.names if {"left", "right"} & set(_mirrored(name)[1])]
    if not sided and not pairs:
        return None
    if not pairs:
        return (
            f"hint: {_few(sided)}: a mirrored image shows the other side; if that is another class, set "
            "augment.horizontal_flip=0"
        )
    listed = json.dumps(pairs, ensure_ascii=False)
    return (
        "hint: images are mirrored, and left and right then become the same class; set\n"
        f"    augment.swapped_classes='{listed}'"
    )


def _few(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")
