"""A COCO annotation file, read and checked: the one reader of training, validation and evaluation.

An error names the file, the entry and what was expected: JSON that does not parse, ids that are missing, repeated or of
an unknown category, images that are missing, broken or of another size. What does not stop the loading is counted by
kind: single annotations that cannot be used are left out or lose their mask.

Sizes: an image's `width` and `height` must be those of the image turned upright by its EXIF orientation, or else those
of its stored pixels. In the second case annotations were made on the unturned picture, which is then used unturned.
"""

import gc
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from maskx_image import MAX_PIXELS, MAX_SIDE, ImageHeader, read_header
from model.classes import ClassTable
from training.data.findings import Tally, are_numbers, refuse
from training.data.masks import SegmentationError, pack_segmentation

Progress = Callable[[int, int], None]
"""Called with (images checked, images in all), from the thread that loads."""

Box = tuple[float, float, float, float]
Size = tuple[int, int]
"""(height, width) in pixels."""

_CHUNK = 64


@contextmanager
def without_collections() -> Iterator[None]:
    """What makes millions of objects and no cycles takes half the time without the garbage collector's rounds."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def read_annotations(path: Path) -> dict[str, Any]:
    """The JSON of a COCO instances file; ValueError names the file, and line and column of an error."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read the annotation file {path}: {error.strerror}") from error
    try:
        with without_collections():
            document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not valid JSON: byte {error.start} is not UTF-8") from error
    except RecursionError as error:
        raise ValueError(f"{path}: nested too deeply to be COCO annotations") from error
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


def is_id(value: Any) -> bool:
    """Whether `value` is a whole number that fits int64; JSON's true and 1.0 are not."""
    return type(value) is int and -(2**63) <= value < 2**63


def check_categories(categories: Sequence[Any], classes: ClassTable, source: str) -> None:
    """Refuse categories that the table names otherwise; strangers matter only where they are used."""
    names = dict(zip(classes.ids, classes.names, strict=True))
    problems = []
    for category in categories:
        if (
            not isinstance(category, Mapping)
            or not is_id(category.get("id"))
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
) -> tuple[list[str], list[int], list[Size | None]]:
    """File names, ids and (height, width), None where the entry gives no size."""
    names: list[str] = []
    ids: dict[int, str] = {}
    sizes: list[Size | None] = []
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
    sizes: Sequence[Size | None],
    images_dir: Path,
    tally: Tally,
    source: str,
    progress: Progress | None,
) -> list[Size]:
    """(height, width) of every picture as annotated, after a look at all headers in parallel threads."""
    if not images_dir.is_dir():
        raise ValueError(f"no folder of images {images_dir}")
    checked: list[Size] = []
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
    if progress is not None:
        progress(0, len(names))  # from here on the time counts
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
    if not _is_a_size(header.height, header.width):
        return (
            f"{path}: is {header.width} x {header.height}; "
            f"expected at most {MAX_PIXELS} pixels and {MAX_SIDE} to a side"
        )
    return header


def _is_a_size(height: int, width: int) -> bool:
    return min(height, width) > 0 and max(height, width) <= MAX_SIDE and height * width <= MAX_PIXELS


class Annotated(NamedTuple):
    """An annotation that passed the checks of `AnnotationFile`."""

    entry: Mapping[str, Any]
    image: int
    """Number of its image in the file's list, from 0."""
    label: int
    box: Box
    """XYXY in pixels, cut to the image."""
    where: str
    """Names it in messages."""


class AnnotationFile:
    """A parsed COCO instances file: its images, and its annotations as they are asked for.

    Args:
        document: see `read_annotations`.
        classes: the classes that the file may have, under these ids and names.
        source: names the file in messages.

    Raises:
        ValueError: categories that `classes` names otherwise, or image entries that cannot be used.
    """

    def __init__(self, document: Mapping[str, Any], classes: ClassTable, source: str) -> None:
        check_categories(document["categories"], classes, source)
        self.document, self.classes, self.source = document, classes, source
        self.names, self.image_ids, self._stated = check_image_entries(document["images"], source)
        self.sizes: list[Size] = []
        """Of every image; known after `check_files` or `take_stated_sizes`."""
        self.tally = Tally()

    def check_files(self, images_dir: Path, progress: Progress | None = None) -> None:
        """Look at the headers of all images, and take the sizes of the pictures; see `check_image_files`."""
        self.sizes = check_image_files(
            self.names, self._stated, images_dir, self.tally, self.source, progress
        )

    def take_stated_sizes(self, images_dir: Path | None) -> None:
        """Take the sizes of the pictures that the file states, and look at the images whose size it does not state.

        ValueError where one is no size of a picture, or not stated and not to be found in `images_dir`.
        """
        stated = list(zip(self.names, self.image_ids, self._stated, strict=True))
        problems = [
            f"image {image_id} ({name}): {size[1]} x {size[0]}; expected sides of 1 to {MAX_SIDE} and at most "
            f"{MAX_PIXELS} pixels"
            for name, image_id, size in stated
            if size is not None and not _is_a_size(*size)
        ]
        unknown = [name for name, _, size in stated if size is None]
        looked: Iterator[Size] = iter(())
        if images_dir is None:
            problems += [f"{name}: no width and height; expected both" for name in unknown]
        elif unknown:
            nothing = [None] * len(unknown)
            looked = iter(check_image_files(unknown, nothing, images_dir, self.tally, self.source, None))
        refuse(self.source, problems)
        self.sizes = [next(looked) if size is None else size for size in self._stated]

    def annotations(
        self, *, images: Collection[int] | None = None, labels: Collection[int] | None = None
    ) -> Iterator[Annotated]:
        """The annotations that can be used, in the order of the file; others are counted.

        With `images` or `labels` those of other images or classes are passed over once their ids were looked at.

        Raises:
            ValueError: after the last one, where ids are missing, repeated or of an unknown category.
        """
        position = {image_id: row for row, image_id in enumerate(self.image_ids)}
        known = {category_id: label for label, category_id in enumerate(self.classes.ids, start=1)}
        strangers = {category["id"] for category in self.document["categories"]} - known.keys()
        expected = "expected that of a category" + (" in the set trained on" if strangers else "")
        seen: set[int] = set()
        problems = []
        for number, entry in enumerate(self.document["annotations"], start=1):
            if not isinstance(entry, Mapping) or not is_id(entry.get("id")):
                problems.append(f"annotation number {number} has no whole number 'id'")
                continue
            annotation_id = entry["id"]
            image = position.get(_key(entry.get("image_id")))
            where = f"annotation {annotation_id}" + ("" if image is None else f" of {self.names[image]}")
            label = known.get(_key(entry.get("category_id")))
            if annotation_id in seen:
                problems.append(f"{where}: a second annotation of this id; expected each id once")
            elif label is None:
                problems.append(f"{where}: category_id {entry.get('category_id')!r}; {expected}")
            elif image is None:
                words = f"{where}: image_id {entry.get('image_id')!r}; expected that of an image"
                self.tally.add("annotation of an unknown image", "left out", words)
            elif (images is None or image in images) and (labels is None or label in labels):
                box = self._box(entry.get("bbox"), *self.sizes[image], where)
                if box is not None:
                    yield Annotated(entry, image, label, box, where)
            seen.add(annotation_id)
        refuse(self.source, problems)

    def _box(self, bbox: Any, height: int, width: int, where: str) -> Box | None:
        """XYXY cut to the image, from COCO's [x, y, width, height]; None, counted, where nothing is left of it."""
        if not isinstance(bbox, list) or len(bbox) != 4 or not are_numbers(bbox):
            words = f"{where}: bbox {bbox!r:.100}; expected [x, y, width, height] in numbers"
            self.tally.add("box that is not four numbers", "left out", words)
            return None
        x, y, w, h = map(float, bbox)
        if w <= 0 or h <= 0:
            words = f"{where}: bbox {bbox}; expected width and height above 0"
            self.tally.add("box of no area", "left out", words)
            return None
        if x >= width or y >= height or x + w <= 0 or y + h <= 0:
            words = f"{where}: bbox {bbox}; the image is {width} x {height}"
            self.tally.add("box outside the image", "left out", words)
            return None
        x0, y0, x1, y1 = max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))
        if x1 <= x0 or y1 <= y0:  # less than the distance of two floats there
            words = f"{where}: bbox {bbox}; expected more than 1/256 of a pixel"
            self.tally.add("box of no area", "left out", words)
            return None
        if min(x, y) < -1 or x + w > width + 1 or y + h > height + 1:
            words = f"{where}: bbox {bbox}; the image is {width} x {height}"
            self.tally.add("box that reaches out of the image, cut to it", "kept", words)
        return x0, y0, x1, y1

    def mask(
        self,
        one: Annotated,
        *,
        missing: str = "class with masks, but no segmentation",
        outside_its_box: bool = False,
    ) -> tuple[int, bytes] | None:
        """Kind and packed form of an annotation's mask (`training.data.masks`); None, counted, where it cannot be used.

        `missing`: as what is counted an annotation without a segmentation. `outside_its_box`: a mask that has nothing
        in its box is kept and counted, as evaluation wants it: LVIS has some, and judges by them.
        """
        segmentation, where = one.entry.get("segmentation"), one.where
        if segmentation is None or segmentation == []:
            words = f"{where}: expected polygons or an RLE"
            self.tally.add(missing, "kept without its mask", words)
            return None
        height, width = self.sizes[one.image]
        box = one.box
        try:
            kind, data, extent, dropped = pack_segmentation(segmentation, height, width)
            if extent[0] >= box[2] or extent[1] >= box[3] or extent[2] <= box[0] or extent[3] <= box[1]:
                message = f"a mask from {extent[:2]} to {extent[2:]}; expected it inside its box {box}"
                if not outside_its_box:
                    raise SegmentationError("segmentation outside its box", message)
                self.tally.add("segmentation outside its box", "kept", f"{where}: {message}")
        except SegmentationError as error:
            self.tally.add(error.kind, "kept without its mask", f"{where}: {error}")
            return None
        if dropped:
            words = f"{where}: {dropped} of {len(segmentation)} polygons; expected at least 3 points in each"
            self.tally.add("mask with some polygons of fewer than 3 points, which are dropped", "kept", words)
        return kind, data


def _key(value: Any) -> Any:
    """An id to look up; None for what is not an id (a list could not be hashed, and True would be 1)."""
    return value if is_id(value) else None
