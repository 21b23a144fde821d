"""An answer as typed values, whose masks become arrays only when they are asked for, and as a table for people."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from maskx_draw import Window, draw_detections, mask_window


@dataclass(frozen=True, kw_only=True)
class Detection:
    """One object. `bbox` is [x, y, width, height] in pixels of the upright image, of `height` x `width`.

    `area` is the mask's in pixels, or the box's where no mask was asked for. `mask_supervised` is true where the
    category had masks in training, of enough objects; `mask_source` says what its masks were learned from: "masks",
    "some_masks" (too few), "taught" (masks that no human made) or "boxes"; None: the model does not say.
    `segmentation` is as the server gave it, None without masks. `keypoints` are [x, y, score] of each one after the
    other, in pixels counted from 0; None where the category has none.
    """

    category_id: int
    category: str
    bbox: tuple[float, float, float, float]
    score: float
    area: float
    mask_supervised: bool
    segmentation: Any
    height: int
    width: int
    keypoints: tuple[float, ...] | None = None
    mask_source: str | None = None

    @property
    def window(self) -> Window | None:
        """The part of the image that the mask lies in; None where it has no pixel or no mask was asked for."""
        return mask_window(self.segmentation, height=self.height, width=self.width)

    @property
    def mask(self) -> np.ndarray | None:
        """The mask of the whole image, bool [height, width], made anew each time; None where none was asked for."""
        if self.segmentation is None:
            return None
        whole = np.zeros((self.height, self.width), dtype=bool)
        window = self.window
        if window is not None:
            rows, columns = window.pixels.shape
            whole[window.top : window.top + rows, window.left : window.left + columns] = window.pixels
        return whole

    def content(self) -> dict[str, Any]:
        """The detection in the form of the server's answer."""
        found: dict[str, Any] = {"category_id": self.category_id, "category": self.category}
        found |= {"bbox": list(self.bbox), "score": self.score, "area": self.area}
        found["mask_supervised"] = self.mask_supervised
        if self.mask_source is not None:
            found["mask_source"] = self.mask_source
        if self.segmentation is not None:
            found["segmentation"] = self.segmentation
        return found if self.keypoints is None else {**found, "keypoints": list(self.keypoints)}


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What one model found in one image, the best first."""

    model_name: str
    model_version: str
    height: int
    width: int
    detections: tuple[Detection, ...]

    def content(self) -> dict[str, Any]:
        """The server's answer to a single image."""
        return {
            "model": {"name": self.model_name, "version": self.model_version},
            "image": {"height": self.height, "width": self.width},
            "detections": [one.content() for one in self.detections],
        }

    def coco(self, image_id: int) -> list[dict[str, Any]]:
        """The detections as COCO results, which pycocotools' `loadRes` takes.

        Raises ValueError: masks as PNG, which COCO does not know.
        """
        return coco_results(self.content(), image_id)

    def overlay(self, image: Image.Image) -> Image.Image:
        """A new picture with the detections drawn over `image`, the upright one (see `images.upright`)."""
        return draw_detections(image, [one.content() for one in self.detections], legend=True)


def prediction_of(content: Mapping[str, Any], model: Mapping[str, Any]) -> Prediction:
    """The typed form of one image's content, `{"image", "detections"}`.

    Raises ValueError: it has another form, as the answer of another model or another version has.
    """
    try:
        height, width = int(content["image"]["height"]), int(content["image"]["width"])
        detections = tuple(
            Detection(
                category_id=int(one["category_id"]),
                category=str(one["category"]),
                bbox=_four(one["bbox"]),
                score=float(one["score"]),
                area=one["area"],
                mask_supervised=bool(one["mask_supervised"]),
                segmentation=one.get("segmentation"),
                height=height,
                width=width,
                keypoints=tuple(map(float, one["keypoints"])) if "keypoints" in one else None,
                mask_source=str(one["mask_source"]) if "mask_source" in one else None,
            )
            for one in content["detections"]
        )
        about = {"model_name": str(model["name"]), "model_version": str(model["version"])}
        return Prediction(height=height, width=width, detections=detections, **about)
    except (KeyError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"the answer is not one of maskx ({what}); {ANOTHER}") from error


ANOTHER = "is it another model or server that answers?"


def parsed(body: bytes) -> Mapping[str, Any]:
    """The body of an answer as JSON. Raises ValueError: it is not a JSON object."""
    try:
        content = json.loads(body)
    except ValueError as error:
        raise ValueError(f"the answer is not JSON ({error}); {ANOTHER}") from error
    if not isinstance(content, dict):
        raise ValueError(f"the answer is not a JSON object; {ANOTHER}")
    return content


def coco_results(content: Mapping[str, Any], image_id: int) -> list[dict[str, Any]]:
    """The detections of a content as COCO results: each with its `image_id`, all else as the server gave it.

    Raises ValueError: masks as PNG, which COCO does not know.
    """
    for one in content["detections"]:
        if "png" in (one.get("segmentation") or ()):
            raise ValueError("COCO knows no masks as PNG; ask for mask_format rle, polygon or none")
    return [{"image_id": image_id, **one} for one in content["detections"]]


_LEARNED = {"some_masks": "some masks*", "taught": "taught*", "boxes": "transferred*"}


def _four(values: Any) -> tuple[float, float, float, float]:
    x, y, width, height = values
    return x, y, width, height


def table(prediction: Prediction) -> str:
    """The detections as aligned columns, a line each, and what they are about."""
    about = (
        f"{len(prediction.detections)} detections in {prediction.width} x {prediction.height} pixels, by "
        f"{prediction.model_name} {prediction.model_version}"
    )
    head = ("category", "score", "x", "y", "width", "height", "area", "mask")
    rows: list[tuple[str, ...]] = [head]
    for one in prediction.detections:
        box = [f"{value:.1f}" for value in one.bbox]
        learned = "supervised" if one.mask_supervised else _LEARNED[one.mask_source or "boxes"]
        area = str(one.area) if isinstance(one.area, int) else f"{one.area:.1f}"
        rows.append((one.category, f"{one.score:.3f}", *box, area, learned))
    if len(rows) == 1:
        return about
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    left = (0, len(head) - 1)
    lines = [
        "  ".join(
            text.ljust(width) if column in left else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    starred = {one.mask_source or "boxes" for one in prediction.detections if not one.mask_supervised}
    if starred:
        never = "the class never had a mask in training"
        lines.append(
            f"* {never if starred == {'boxes'} else 'the class had few or no true masks in training'}"
        )
    return "\n".join([*lines, about])
