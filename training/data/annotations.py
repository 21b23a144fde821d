"""A COCO annotation file, read and checked: the one reader of training, validation and evaluation.

An error names the file, the entry and what was expected: JSON that does not parse, ids that are missing, repeated or of
an unknown category, images that are missing, broken or of another size. What does not stop the loading is counted by
kind: single annotations that cannot be used are left out or lose their mask.

Sizes: an image's `width` and `height` must be those of the image turned upright by its EXIF orientation, or else those
of its stored pixels. In the second case annotations were made on the unturned picture, which is then used unturned.
"""

import gc
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from maskx_image import MAX_PIXELS, MAX_SIDE
from model.classes import ClassTable
from training.data.findings import Overall, Tally, are_numbers, broken_json, is_id, refuse
from training.data.image_files import Progress, Size, check_image_files, is_a_size
from training.data.masks import Extent, SegmentationError, as_polygons, has_pixel, pack_segmentation
from training.data.tools import Document, Reading, as_coco, other_folder, other_format, other_text
from training.images.names import find_names

Box = tuple[float, float, float, float]


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


def read_annotations(path: Path, reading: Reading | None = None) -> dict[str, Any]:
    """The JSON of a COCO instances file, in COCO's own form where a tool writes another (`training.data.tools`).

    `reading`: how freely it is taken. ValueError names the file, and line and column of an error; or what the file is
    that is no COCO instances file, and what makes one of it.
    """
    if path.is_dir():
        raise ValueError(f"{path}: {other_folder(path)}")
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read the annotation file {path}: {error.strerror}") from error
    start = text[:4096]
    try:
        characters = text.decode(json.detect_encoding(text), "surrogatepass")  # as json.loads does
        del text  # as long as the characters, of hundreds of MB
        with without_collections():
            document = json.JSONDecoder().decode(characters)
    except RecursionError as error:
        raise ValueError(f"{path}: nested too deeply to be COCO annotations") from error
    except ValueError as error:
        raise ValueError(f"{path}: {other_text(start, path) or broken_json(error)}") from error
    if other := other_format(document):
        raise ValueError(f"{path}: {other}")
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
    with without_collections():
        return as_coco(document, reading)


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
        taken = as_coco(document)
        self.tally = taken.tally.copy()
        document = matched(taken, classes, self.tally)
        check_categories(document["categories"], classes, source)
        self.document, self.classes, self.source = document, classes, source
        """The document as it was taken: in COCO's own form, category ids those of `classes`."""
        self._guessed, self._reading = taken.guessed, taken.reading
        self.names, self.image_ids, self._stated = check_image_entries(document["images"], source)
        self.without_pixel = 0
        """Masks given by `mask` that hold no pixel, and so are none in a target."""
        self.sizes: list[Size] = []
        """Of every image; known after `check_files` or `take_stated_sizes`."""

    def check_files(self, images_dir: Path, progress: Progress | None = None) -> None:
        """Look at the headers of all images, and take the sizes of the pictures; see `check_image_files`.

        Where images are not to be opened (`Reading`), the sizes that the file states.
        """
        if not self._reading.open_images:
            self.take_stated_sizes(images_dir)
            return
        self._find_names(images_dir)
        self.sizes = check_image_files(
            self.names, self._stated, images_dir, self.tally, self.source, progress, self._reading
        )

    def take_stated_sizes(self, images_dir: Path | None) -> None:
        """Take the sizes of the pictures that the file states, and look at the images whose size it does not state.

        ValueError where one is no size of a picture, or not stated and not to be found in `images_dir`.
        """
        if images_dir is not None:
            self._find_names(images_dir)
        stated = list(zip(self.names, self.image_ids, self._stated, strict=True))
        problems = [
            f"image {image_id} ({name}): {size[1]} x {size[0]}; expected sides of 1 to {MAX_SIDE} and at most "
            f"{MAX_PIXELS} pixels"
            for name, image_id, size in stated
            if size is not None and not is_a_size(*size)
        ]
        unknown = [name for name, _, size in stated if size is None]
        looked: Iterator[Size] = iter(())
        if images_dir is None:
            problems += [
                f"{name}: no width and height that a picture can have; expected both" for name in unknown
            ]
        elif unknown:
            nothing = [None] * len(unknown)
            looked = iter(check_image_files(unknown, nothing, images_dir, self.tally, self.source, None))
        refuse(self.source, problems)
        self.sizes = [next(looked) if size is None else size for size in self._stated]

    def _find_names(self, images_dir: Path) -> None:
        find_names(self.names, self.image_ids, images_dir, self._guessed, self._reading, self.tally)

    def annotations(
        self,
        *,
        images: Collection[int] | None = None,
        labels: Collection[int] | None = None,
        boxes_of_b: bool = False,
    ) -> Iterator[Annotated]:
        """The annotations that can be used, in the order of the file; others are counted.

        With `images` or `labels` those of other images or classes are passed over once their ids were looked at.
        `boxes_of_b`: where an object of set B has no box, that of its mask is taken, as is that of an object of set A;
        its mask is read for it.

        Raises:
            ValueError: after the last one, where an annotation is no object or of an unknown category.
        """
        position = {image_id: row for row, image_id in enumerate(self.image_ids)}
        known = {category_id: label for label, category_id in enumerate(self.classes.ids, start=1)}
        strangers = {category["id"] for category in self.document["categories"]} - known.keys()
        expected = "expected that of a category" + (" in the set trained on" if strangers else "")
        seen: set[int] = set()
        problems = []
        overall = Overall()
        for number, entry in enumerate(self.document["annotations"], start=1):
            if not isinstance(entry, Mapping):
                problems.append(
                    f"annotation number {number}: {entry!r:.100}; expected an object with an 'id'"
                )
                continue
            annotation_id: Any = entry.get("id")
            image = position.get(_key(entry.get("image_id")))
            of_image = "" if image is None else f" of {self.names[image]}"
            where = f"annotation {annotation_id}{of_image}"
            label = known.get(_key(entry.get("category_id")))
            if not is_id(annotation_id) or annotation_id in seen:
                words = f"{where}: id {annotation_id!r:.50}; expected a whole number, each once"
                where = f"annotation number {number}{of_image}"
                self.tally.add("annotation id that is missing or repeated, numbered anew", "kept", words)
            seen.add(annotation_id if is_id(annotation_id) else -number)
            if label is None:
                problems.append(f"{where}: category_id {entry.get('category_id')!r}; {expected}")
            elif image is None:
                words = f"{where}: image_id {entry.get('image_id')!r}; expected that of an image"
                self.tally.add("annotation of an unknown image", "left out", words)
            elif (images is None or image in images) and (labels is None or label in labels):
                bbox: Any = entry.get("bbox")
                if bbox in (None, [], [0, 0, 0, 0]) and (
                    boxes_of_b or self.classes.true_masks_are_read(label)
                ):
                    bbox = self._box_of_mask(entry, *self.sizes[image], where)
                box = self._box(bbox, *self.sizes[image], where)
                if box is not None:
                    overall.add(entry, bbox, self.sizes[image], where)
                    yield Annotated(entry, image, label, box, where)
        refuse(self.source, problems)
        overall.tell(self.tally)

    def _box_of_mask(self, entry: Mapping[str, Any], height: int, width: int, where: str) -> Any:
        """[x, y, width, height] of an annotation's mask; its own bbox where it has no mask that can be read."""
        try:
            extent: Extent = pack_segmentation(as_polygons(entry.get("segmentation")), height, width)[2]
        except SegmentationError:
            return entry.get("bbox")
        words = f"{where}: bbox {entry.get('bbox')!r}; expected [x, y, width, height]"
        self.tally.add("object without a box, which is taken from its mask", "kept", words)
        x0, y0, x1, y1 = extent
        return [x0, y0, x1 - x0, y1 - y0]

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
        in its box is kept and counted, as evaluation wants it: LVIS has some, and judges by them; one of no pixel too.
        """
        segmentation, where = one.entry.get("segmentation"), one.where
        if segmentation is None or segmentation == []:
            words = f"{where}: expected polygons or an RLE"
            self.tally.add(missing, "kept without its mask", words)
            return None
        polygons = as_polygons(segmentation)
        if polygons is not segmentation:
            words = f"{where}: {str(segmentation)[:60]}; expected [[x, y, x, y, ...], ...]"
            self.tally.add("polygon that is no list of lists of numbers, taken as it is meant", "kept", words)
            segmentation = polygons
        height, width = self.sizes[one.image]
        box = one.box
        try:
            kind, data, extent, dropped = pack_segmentation(segmentation, height, width)
            if extent[0] >= box[2] or extent[1] >= box[3] or extent[2] <= box[0] or extent[3] <= box[1]:
                message = f"a mask from {extent[:2]} to {extent[2:]}; expected it inside its box {box}"
                if not outside_its_box:
                    raise SegmentationError("segmentation outside its box", message)
                self.tally.add("segmentation outside its box", "kept", f"{where}: {message}")
            if not outside_its_box and not has_pixel(kind, data, extent, box, height, width):
                message = f"a mask from {extent[:2]} to {extent[2:]}; expected at least one pixel in its box"
                self.tally.add("mask without a pixel", "kept without its mask", f"{where}: {message}")
                self.without_pixel += 1
        except SegmentationError as error:
            self.tally.add(error.kind, "kept without its mask", f"{where}: {error}")
            return None
        if dropped:
            words = f"{where}: {dropped} of {len(segmentation)} polygons; expected at least 3 points in each"
            self.tally.add("mask with some polygons of fewer than 3 points, which are dropped", "kept", words)
        return kind, data


def matched(document: Document, classes: ClassTable, tally: Tally) -> Mapping[str, Any]:
    """The document with the ids of `classes` for categories that have these under another id, told by their names.

    Categories with the id and name of a class, and those whose name no class has, stay.
    """
    ids = dict(zip(classes.names, classes.ids, strict=True))
    moved: dict[int, int] = {}
    for category in document["categories"]:
        if (
            isinstance(category, Mapping)
            and is_id(category.get("id"))
            and isinstance(category.get("name"), str)
        ):
            name, category_id = category["name"].strip(), category["id"]
            if ids.get(name, category_id) != category_id:
                moved[category_id] = ids[name]
                words = (
                    f"category {category_id} ({name!r}) is {ids[name]} in the set trained on; its name counts"
                )
                tally.add(
                    "category under another id than in the set trained on, taken by its name", "kept", words
                )
    if not moved:
        return document

    def renumbered(entry: Any, key: str) -> Any:
        if not isinstance(entry, Mapping):
            return entry
        value: Any = entry.get(key)
        if isinstance(value, list):
            return {**entry, key: [moved.get(_key(one), one) for one in value]}
        return {**entry, key: moved[value]} if _key(value) in moved else entry

    images = document["images"]
    for key in ("neg_category_ids", "not_exhaustive_category_ids"):
        images = [renumbered(entry, key) for entry in images]
    return {
        **document,
        "images": images,
        "annotations": [renumbered(entry, "category_id") for entry in document["annotations"]],
        "categories": [renumbered(entry, "id") for entry in document["categories"]],
    }


def _key(value: Any) -> Any:
    """An id to look up; None for what is not an id (a list could not be hashed, and True would be 1)."""
    return value if is_id(value) else None
