"""A COCO annotation file, read and checked against its images before training starts.

An error names the file, the entry and what was expected: JSON that does not parse, image ids that are
missing or repeated, images that are missing, broken or of another size. What does not stop the loading is
counted by kind.

Sizes: an image's `width` and `height` must be those of the image turned upright by its EXIF orientation, or
else those of its stored pixels. In the second case annotations were made on the unturned picture, which is
then used unturned.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from maskx_image import MAX_PIXELS, MAX_SIDE, ImageHeader, read_header
from model.classes import ClassTable

Outcome = Literal["left out", "kept without its mask", "kept without its keypoints", "kept"]
Progress = Callable[[int, int], None]
"""Called with (images checked, images in all), from the thread that loads."""

_SHOWN = 5
_CHUNK = 64


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One kind of trouble that did not stop the loading: what became of it, how often, the first in words."""

    kind: str
    outcome: Outcome
    count: int
    first: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a data set holds, and what of it could not be used."""

    source: str
    images: int
    images_without_objects: int
    objects: int
    objects_with_mask: int
    crowd_regions: int
    findings: tuple[Finding, ...]
    objects_with_keypoints: int | None = None
    """None where the network has no keypoints."""

    def __str__(self) -> str:
        keypoints = self.objects_with_keypoints
        lines = [
            f"{self.source}: {self.images} images ({self.images_without_objects} without objects), "
            f"{self.objects} objects ({self.objects_with_mask} with a mask"
            + (")" if keypoints is None else f", {keypoints} with keypoints)")
            + ", "
            f"{self.crowd_regions} crowd regions"
        ]
        lines += [f"  {f.count} x {f.kind} ({f.outcome}); first: {f.first}" for f in self.findings]
        return "\n".join(lines)


def read_annotations(path: Path) -> dict[str, Any]:
    """The JSON of a COCO instances file; ValueError names the file, and line and column of an error."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read the annotation file {path}: {error.strerror}") from error
    collecting = gc.isenabled()
    gc.disable()  # parsing makes millions of objects and no cycles; collections would double its time
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not valid JSON: byte {error.start} is not UTF-8") from error
    except RecursionError as error:
        raise ValueError(f"{path}: nested too deeply to be COCO annotations") from error
    finally:
        if collecting:
            gc.enable()
    if not isinstance(document, dict):
        raise ValueError(
            f"{path}: holds a JSON {type(document).__name__}; expected an object with images, "
            "annotations and categories (a list is what COCO uses for results)"
        )
    for key in ("images", "annotations", "categories"):
        if not isinstance(document.get(key), list):
            raise ValueError(
                f"{path}: no list {key!r}; a COCO instances file has images, annotations and categories"
            )
    return document


def annotated_size_is_upright(header: ImageHeader, width: int, height: int) -> bool | None:
    """Whether a picture annotated as width x height is the upright image, its stored pixels (False) or neither."""
    if header.upright_size == (width, height):
        return True
    return False if (header.width, header.height) == (width, height) else None


class Tally:
    """Counts trouble by kind and keeps the words of the first."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, Outcome], tuple[int, str]] = {}

    def add(self, kind: str, outcome: Outcome, words: str) -> None:
        count, first = self._seen.get((kind, outcome), (0, words))
        self._seen[kind, outcome] = (count + 1, first)

    def findings(self) -> tuple[Finding, ...]:
        return tuple(
            Finding(kind=kind, outcome=outcome, count=count, first=first)
            for (kind, outcome), (count, first) in self._seen.items()
        )


def refuse(source: str, problems: Sequence[str]) -> None:
    """ValueError that lists the first of `problems`; nothing where there are none."""
    if problems:
        more = f"\n  ... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ValueError(f"{source}:\n  " + "\n  ".join(problems[:_SHOWN]) + more)


def is_id(value: Any) -> bool:
    """Whether `value` is a whole number that fits int64; JSON's true and 1.0 are none."""
    return type(value) is int and -(2**63) <= value < 2**63


def check_categories(categories: Sequence[Any], classes: ClassTable, source: str) -> None:
    """Refuse categories that the table names otherwise; strangers matter only where they are used."""
    names = dict(zip(classes.ids, classes.names, strict=True))
    problems = []
    for category in categories:
        if (
            not isinstance(category, Mapping)
            or "id" not in category
            or not isinstance(category.get("name"), str)
        ):
            problems.append(f"category {category!r}; expected {{'id': ..., 'name': ...}}")
        elif category["id"] in names and names[category["id"]] != category["name"].strip():
            problems.append(
                f"category {category['id']} is called {category['name']!r}; expected "
                f"{names[category['id']]!r}, its name in the set trained on"
            )
    refuse(source, problems)


def check_image_entries(
    entries: Sequence[Any], source: str
) -> tuple[list[str], list[int], list[tuple[int, int] | None]]:
    """File names, ids and (height, width), None where the entry gives no size."""
    names: list[str] = []
    ids: dict[int, str] = {}
    sizes: list[tuple[int, int] | None] = []
    problems = []
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, Mapping) or not is_id(entry.get("id")) or not entry.get("file_name"):
            problems.append(
                f"image entry number {number}: {entry!r:.200}; expected a whole number 'id' and a 'file_name'"
            )
            continue
        image_id, name = entry["id"], str(entry["file_name"])
        height, width = entry.get("height"), entry.get("width")
        if image_id in ids:
            problems.append(f"two images have the id {image_id}: {ids[image_id]} and {name}")
        elif (height is None) != (width is None) or (
            height is not None and not (is_id(height) and is_id(width))
        ):
            problems.append(
                f"image {image_id} ({name}): width {width!r}, height {height!r}; expected whole numbers"
            )
        else:
            names.append(name)
            sizes.append(None if height is None or width is None else (height, width))
        ids[image_id] = name
    refuse(source, problems)
    if not names:
        raise ValueError(f"{source}: the list of images is empty")
    return names, list(ids), sizes


def check_image_files(
    names: Sequence[str],
    sizes: Sequence[tuple[int, int] | None],
    images_dir: Path,
    tally: Tally,
    source: str,
    progress: Progress | None,
) -> list[tuple[int, int]]:
    """(height, width) of every picture as annotated, after a look at all headers in parallel threads."""
    if not images_dir.is_dir():
        raise ValueError(f"no folder of images {images_dir}")
    checked: list[tuple[int, int]] = []
    problems = []
    for name, size, header in zip(names, sizes, _headers(names, images_dir, progress), strict=True):
        if isinstance(header, str):
            problems.append(header)
            continue
        width, height = header.upright_size
        upright = size is None or annotated_size_is_upright(header, size[1], size[0])
        if size is not None and upright is None:
            stored = f", {header.width} x {header.height} as stored" if header.orientation > 4 else ""
            problems.append(
                f"{images_dir / name}: is {width} x {height}{stored}; "
                f"expected {size[1]} x {size[0]}, as the annotation file says"
            )
        elif not upright:
            tally.add("picture annotated as stored, so not turned upright", "kept", f"{images_dir / name}")
        checked.append(size or (height, width))
    refuse(f"images of {source}", problems)
    return checked


def _headers(
    names: Sequence[str], images_dir: Path, progress: Progress | None
) -> Iterator[ImageHeader | str]:
    """Of every image its header, or what is wrong with it, in order."""
    chunks = [names[start : start + _CHUNK] for start in range(0, len(names), _CHUNK)]
    done = 0
    with ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1))) as pool:
        for headers in pool.map(
            lambda chunk: [_header_or_problem(images_dir / name) for name in chunk], chunks
        ):
            yield from headers
            done += len(headers)
            if progress is not None:
                progress(done, len(names))


def _header_or_problem(path: Path) -> ImageHeader | str:
    try:
        with path.open("rb") as file:
            header = read_header(file)
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror}); expected an image"
    except ValueError as error:  # ImageError, or a name that no file can have
        return f"{path}: {error}"
    if header.width * header.height > MAX_PIXELS or max(header.width, header.height) > MAX_SIDE:
        return (
            f"{path}: is {header.width} x {header.height}; "
            f"expected at most {MAX_PIXELS} pixels and {MAX_SIDE} to a side"
        )
    return header
