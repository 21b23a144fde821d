"""COCO results as shapes of an annotation tool: mask, polygons or box of each object, image by image."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskx_draw import Window, mask_window

from ..many.coco import images_list_of
from ..many.files import read_json

KINDS = ("auto", "mask", "box")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One object. Either `window` (its mask), or `polygons` ([x, y, x, y, ...] each, in pixels), or its box alone.

    `box` is left, top, right, bottom in pixels within the image. `transferred`: its class had no masks in training, or
    too few. `mask_source`: what its masks were learned from (`client.Detection`); empty: the results do not say.
    """

    category: str
    score: float
    transferred: bool
    mask_source: str = ""
    box: tuple[float, float, float, float]
    window: Window | None = None
    polygons: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image of the results with its shapes, in their order."""

    image_id: int
    file_name: str
    height: int
    width: int
    shapes: tuple[Shape, ...]


@dataclass(frozen=True)
class Results:
    """COCO results and the images and categories that they are about."""

    images: list[dict[str, Any]]
    categories: dict[int, str]
    by_image: dict[int, list[dict[str, Any]]]
    kind: str

    def pictures(self) -> Iterator[Picture]:
        """Every image of the list, also one without objects; masks are decoded for one image at a time."""
        for image in self.images:
            height, width = int(image["height"]), int(image["width"])
            found = self.by_image.get(int(image["id"]), [])
            yield Picture(
                image_id=int(image["id"]),
                file_name=str(image["file_name"]),
                height=height,
                width=width,
                shapes=tuple(self._read(one, height, width) for one in found),
            )

    def _read(self, one: Mapping[str, Any], height: int, width: int) -> Shape:
        try:
            return self._shape(one, height, width)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"a result of image {one['image_id']} cannot be read: {type(error).__name__}: {error}"
            ) from error

    def _shape(self, one: Mapping[str, Any], height: int, width: int) -> Shape:
        x, y, w, h = (float(value) for value in one["bbox"])
        box = (max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height)))
        segmentation = None if self.kind == "box" else one.get("segmentation")
        window: Window | None = None
        polygons: tuple[tuple[float, ...], ...] = ()
        if isinstance(segmentation, list) and self.kind == "auto":
            polygons = tuple(tuple(float(v) for v in part) for part in segmentation if len(part) >= 6)
        elif segmentation is not None:
            window = mask_window(segmentation, height=height, width=width)
        return Shape(
            category=self.categories[int(one["category_id"])],
            score=float(one["score"]),
            transferred=not one.get("mask_supervised", True),
            mask_source=str(one.get("mask_source", "")),
            box=box,
            window=window,
            polygons=polygons,
        )


def read_results(path: Path, images: Path | None, *, kind: str, min_score: float) -> Results:
    """COCO results, with the list of images beside them or the COCO file named.

    Args:
        path: the results.
        images: a COCO file with `images` and `categories`; None for the list that the run wrote.
        kind: auto (masks as masks, polygons as polygons, else boxes), mask (polygons too) or box.
        min_score: leaves out objects below.

    Raises:
        ValueError: a file is not as COCO has it, or a result is of an image that the list does not have.
    """
    beside = images or images_list_of(path)
    if not beside.is_file():
        raise ValueError(
            f"there is no {beside} with the images of the results; name a COCO file with --images"
        )
    results, about = read_json(path), read_json(beside)
    if not isinstance(results, list):
        raise ValueError(f"{path} does not hold COCO results; expected a list")
    by_image: dict[int, list[dict[str, Any]]] = {}
    try:
        categories = {int(one["id"]): str(one["name"]) for one in about["categories"]}
        listed = [dict(one) for one in about["images"]]
        known = {int(one["id"]): (int(one["height"]), int(one["width"]), one["file_name"]) for one in listed}
        for one in results:
            categories.setdefault(int(one["category_id"]), str(one.get("category", one["category_id"])))
            if int(one["image_id"]) not in known:
                raise ValueError(
                    f"{path} has a result of image {one['image_id']}, which {beside} does not have"
                )
            if float(one["score"]) >= min_score:
                by_image.setdefault(int(one["image_id"]), []).append(one)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} or {beside} is not as COCO has it: {type(error).__name__} {error}"
        ) from error
    if images is not None:  # a whole data set may be named, of which a part was asked for
        asked = {int(one["image_id"]) for one in results}
        listed = [one for one in listed if int(one["id"]) in asked]
    return Results(listed, categories, by_image, kind)
