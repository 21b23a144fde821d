"""Annotation files read and written piece by piece, since the whole of them may not fit the memory."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from model.files import whole

_CHUNK = 1 << 20
_SPACE = " \t\r\n"


def items_of_list(path: Path, *, chunk: int = _CHUNK) -> Iterator[Any]:
    """The items of a JSON file that holds one list, read `chunk` characters at a time.

    Raises:
        ValueError: no such file, not a list, or not valid JSON (with the item's number and its place in the file).
    """
    decoder = json.JSONDecoder()
    number, text, start, base = 1, "", 0, 0  # `text` begins at character `base` of the file
    try:
        with path.open(encoding="utf-8") as file:

            def skip(start: int) -> int:
                """The next character that is no white space, read on for where need be; len(text) at the end."""
                nonlocal text, base
                while True:
                    while start < len(text) and text[start] in _SPACE:
                        start += 1
                    if start < len(text) or not (more := file.read(chunk)):
                        return start
                    base, text, start = base + start, text[start:] + more, 0

            start = skip(0)
            if text[start : start + 1] != "[":
                raise ValueError(f"{path}: expected a JSON list, seen {text[start : start + 20]!r}")
            start = skip(start + 1)
            if text[start : start + 1] == "]":
                return
            while True:
                reason, end = "the list does not end", len(text)
                try:
                    item, end = decoder.raw_decode(text, start)
                except json.JSONDecodeError as error:
                    reason = error.msg
                # No whole item yet; and a number goes on after its point, though what was read ends there.
                if end == len(text) or text[end] in ".eE":
                    if more := file.read(max(chunk, len(text))):  # as much again: an item's cost stays linear
                        base, text, start = base + start, text[start:] + more, 0
                        continue
                    raise ValueError(f"{path}: item {number}, from character {base + start} on: {reason}")
                yield item
                start = skip(end)
                sign = text[start : start + 1]
                if sign == "]":
                    return
                if sign != ",":
                    raise ValueError(
                        f"{path}: after item {number}, at character {base + start}: "
                        f"expected a comma or the list's end, seen {sign or 'the end of the file'!r}"
                    )
                start = skip(start + 1)
                number += 1
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not valid JSON: {error.reason} in item {number}") from error


class CocoWriter:
    """A COCO instances file, written annotation by annotation; it has its name once it is complete.

    Annotations that have no id of their own are numbered in the order they come. Used as a context manager;
    what was written so far is removed where the block ends with an error.
    """

    def __init__(self, path: Path, categories: Sequence[Mapping[str, Any]], *, description: str) -> None:
        self.path = path
        self.images = 0
        self.annotations = 0
        self._images: list[Mapping[str, Any]] = []
        self._whole = ExitStack()
        self._file = self._whole.enter_context(whole(path, mode="w"))
        head = json.dumps({"info": {"description": description}, "categories": list(categories)})
        self._file.write(head[:-1] + ',\n"annotations": [')

    def add_image(self, image: Mapping[str, Any]) -> None:
        """An entry of the list of images: id, file_name, width, height."""
        self._images.append(image)
        self.images += 1

    def add(self, annotation: Mapping[str, Any]) -> None:
        """One annotation."""
        self._file.write(",\n" if self.annotations else "\n")
        self.annotations += 1
        self._file.write(json.dumps({"id": self.annotations, **annotation}))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: Any) -> None:
        if raised[0] is not None:
            self._whole.__exit__(*raised)
            return
        with self._whole:
            self._file.write('\n],\n"images": [')
            for number, image in enumerate(self._images):
                self._file.write(("," if number else "") + "\n" + json.dumps(image))
            self._file.write("\n]}\n")

    def __str__(self) -> str:
        return f"{self.path}: {self.images} images, {self.annotations} objects"


def image_ids(path: Path) -> set[int]:
    """Image ids of a COCO file, or of a text file with one id or file name (COCO_val2014_000000000042.jpg) to a line.

    ValueError: the file cannot be read, is empty, or has a line without a number.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot read the list of images {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected a COCO file or a text file of ids") from error
    if text.lstrip().startswith("{"):
        try:
            ids = {int(image["id"]) for image in json.loads(text)["images"]}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: expected a COCO file with images ({type(error).__name__}: {error})"
            ) from error
    else:
        ids = {_id_in(line, path) for line in text.splitlines() if line.strip()}
    if not ids:
        raise ValueError(f"{path}: lists no image")
    return ids


def _id_in(line: str, path: Path) -> int:
    stem = line.strip().rpartition("/")[2].partition(".")[0].rpartition("_")[2]
    if not stem.isdecimal():
        raise ValueError(f"{path}: expected an image's id or file name to a line, seen {line.strip()!r:.100}")
    return int(stem)


def annotations_of(document: Mapping[str, Any], source: Path) -> Iterator[Mapping[str, Any]]:
    """The annotations of a COCO document; ValueError with the number of one that has no image or category."""
    for number, annotation in enumerate(document["annotations"], start=1):
        if not isinstance(annotation, Mapping) or not {"image_id", "category_id"} <= annotation.keys():
            raise ValueError(
                f"{source}: annotation number {number}: {annotation!r:.100}; expected image_id and category_id"
            )
        yield annotation


def require_files(paths: Iterable[Path], what: str) -> None:
    """ValueError that names the files of a data set that are missing."""
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise ValueError(f"{what}: no such file: {', '.join(missing)}")
