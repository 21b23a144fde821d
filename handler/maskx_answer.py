"""Detections -> the answer: compact JSON in ASCII, in the envelope that the request came in; or a picture.

The same detections always give the same bytes. Boxes are rounded to hundredths of a pixel, scores to millionths. A
mask comes in the form that the request asked for:

* `rle`: `{"size": [height, width], "counts": "..."}`, COCO's compressed run lengths; exact. No mask is ever drawn.
* `polygon`: `[[x, y, x, y, ...], ...]`, see maskx_polygons.
* `png`: `{"png": "<base64>", "bbox": [x, y, width, height]}`, see `maskx_masks.png_masks`; exact.
* `none`: no `segmentation`.

`area` is the number of the mask's pixels; without a mask it is that of the box, as in `pycocotools`.

Detections of a category with keypoints have `keypoints`, [x, y, score] of each one after the other, whatever the
mask_format.

The picture is the one that the client draws from the same answer, up to scale.

Knows nothing of the server. handler/README.md tells callers about both.
"""

import gzip
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from maskx_draw import draw_detections
from maskx_errors import ANSWER_TOO_LARGE, MaskxError
from maskx_json import Envelope
from maskx_masks import png_masks, run_length_strings
from maskx_parameters import Category
from maskx_polygons import polygons

LEAST_COMPRESSED = 1024
"""Bytes from which compressing an answer is worth its time."""

COMPRESSION_LEVEL = 1

OVERLAY_SIDE = 1600
"""Longer side of an overlay in pixels, at most."""

_LEAST_SIDE = 16
"""Pixels below which a picture shows nothing."""

_PNG_LEVEL = 3
"""Of zlib: a photograph of 1600 pixels takes 0.1 s; with 6, Pillow's own choice, 0.2 s and 2 % fewer bytes."""


@dataclass(frozen=True, kw_only=True)
class Detections:
    """What the model found in one image, in pixels of the upright original, the best first.

    boxes: float32 [D, 4] XYXY. scores: float32 [D]. labels: int64 [D], 1..C. rle_counts: int64, the masks'
    column-major run lengths one after the other, each beginning with background. rle_offsets: int64 [D+1]; those of
    mask d lie from rle_offsets[d] to rle_offsets[d+1]. keypoints: float32 [D, K, 3], x and y in pixels, the first of
    which goes from 0 to 1, and a score; None from a model without keypoints.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    rle_counts: np.ndarray
    rle_offsets: np.ndarray
    keypoints: np.ndarray | None = None


def image_content(
    detections: Detections, categories: Mapping[int, Category], *, height: int, width: int, mask_format: str
) -> dict[str, Any]:
    """`{"image": {"height", "width"}, "detections": [...]}` of one image; `categories` maps labels to what they mean.

    Args:
        height, width: of the upright image, in pixels.
        mask_format: "rle", "polygon", "png" or "none"; with "none" run lengths are not looked at.

    Raises:
        ValueError: run lengths that do not cover the image exactly.
    """
    boxes = detections.boxes.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    contents = []
    for label, (x, y, w, h), score in zip(
        detections.labels.tolist(), boxes.tolist(), detections.scores.tolist(), strict=True
    ):
        category = categories[label]
        w, h = round(w, 2), round(h, 2)
        contents.append(
            {
                "category_id": category.id,
                "category": category.name,
                "bbox": [round(x, 2), round(y, 2), w, h],
                "score": round(score, 6),
                "area": round(w * h, 4),  # hundredths by hundredths; no sum of powers of two shows
                "mask_supervised": category.mask_supervised,
                **({} if category.mask_source is None else {"mask_source": category.mask_source}),
            }
        )
    if mask_format != "none":
        areas = mask_areas(detections.rle_counts, detections.rle_offsets, height=height, width=width)
        segmentations = _segmentations(detections, mask_format, height=height, width=width)
        for one, area, segmentation in zip(contents, areas.tolist(), segmentations, strict=True):
            one["area"] = area
            one["segmentation"] = segmentation
    if detections.keypoints is not None:
        for one, label, keypoints in zip(
            contents, detections.labels.tolist(), detections.keypoints.tolist(), strict=True
        ):
            if categories[label].keypoints:
                one["keypoints"] = flat_keypoints(keypoints)
    return {"image": {"height": height, "width": width}, "detections": contents}


def flat_keypoints(keypoints: Sequence[Sequence[float]]) -> list[float]:
    """[x, y, score, x, y, score, ...] of one detection as COCO has it: a place is counted in whole pixels from 0, so
    that the middle of the first pixel is 0, not 0.5. Rounded as boxes and scores are."""
    return [
        value
        for x, y, score in keypoints
        for value in (round(x - 0.5, 2), round(y - 0.5, 2), round(score, 6))
    ]


def _segmentations(detections: Detections, mask_format: str, *, height: int, width: int) -> list[Any]:
    """What stands for each mask; none of the forms is ever a false value."""
    counts, offsets = detections.rle_counts, detections.rle_offsets
    match mask_format:
        case "rle":
            size = [height, width]
            return [{"size": size, "counts": text} for text in run_length_strings(counts, offsets)]
        case "polygon":
            return polygons(counts, offsets, height=height, width=width)
        case "png":
            return png_masks(counts, offsets, height=height)
    raise AssertionError(f"mask_format {mask_format!r}")


def answer_body(
    results: Sequence[Mapping[str, Any]], envelope: Envelope, *, model_name: str, model_version: str
) -> bytes:
    """The body of an answer.

    Args:
        results: for each image of the request, in order, its `image_content` or the content of its error.
        envelope: the form of the request; "single" has exactly one result.
    """
    model = {"name": model_name, "version": model_version}
    match envelope.kind:
        case "single":
            (result,) = results
            return compact(result if "error" in result else {"model": model, **result})
        case "several":
            return compact({"model": model, "results": results})
        case "v1":
            return compact({"predictions": results})
        case "columns":
            return compact({"outputs": results})
        case "v2":
            name = {"model_name": model_name, "model_version": model_version}
            id_ = {} if envelope.id is None else {"id": envelope.id}
            data = [compact(result).decode("ascii") for result in results]
            output = {"name": "detections", "datatype": "BYTES", "shape": [len(data)], "data": data}
            return compact({**name, **id_, "outputs": [output]})
    raise AssertionError(f"envelope {envelope.kind!r}")


def mask_areas(counts: np.ndarray, offsets: np.ndarray, *, height: int, width: int) -> np.ndarray:
    """Pixels of each mask, int64 [D], from run lengths as `Detections` has them.

    Raises ValueError: run lengths of a mask that do not cover the image exactly.
    """
    # Of the places before i, i // 2 are odd ones and (i + 1) // 2 even ones.
    odd = np.diff(_sums(counts[1::2])[offsets // 2])
    even = np.diff(_sums(counts[::2])[(offsets + 1) // 2])
    covered = odd + even
    wrong = covered[covered != height * width]
    if len(wrong) > 0:
        image = f"an image of {height} x {width} = {height * width}"
        raise ValueError(f"run lengths cover {wrong[0]} pixels of {image}")
    return np.where(offsets[:-1] % 2 == 0, odd, even)


def _sums(values: np.ndarray) -> np.ndarray:
    """Sums of the first 0, 1, ..., all values, int64."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(values, dtype=np.int64)])


def compact(content: Any) -> bytes:
    """JSON in ASCII without a blank; NaN and infinity, which JSON does not have, raise ValueError."""
    return json.dumps(content, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def compressed(body: bytes) -> bytes:
    """The body in gzip's format, the same bytes for the same body."""
    return gzip.compress(body, COMPRESSION_LEVEL, mtime=0)


def overlay_png(
    pixels: np.ndarray,
    content: dict[str, Any],
    *,
    height: int,
    width: int,
    max_bytes: int,
    lines: Sequence[tuple[int, int]] = (),
) -> bytes:
    """An image with its detections drawn over it, as PNG: at most OVERLAY_SIDE, smaller where `max_bytes` need it.

    Args:
        pixels: uint8 [h, w, 3], RGB, upright; perhaps scaled down.
        content: its `image_content`, in any of the mask formats.
        height, width: of the upright original, in pixels, which `content` is about.
        max_bytes: that the PNG may have.
        lines: pairs of keypoints to join.

    Raises:
        MaskxError: `max_bytes` is too few for a picture of any use.
    """
    image = Image.fromarray(pixels)
    side = min(max(image.size), OVERLAY_SIDE)
    enlarged_to = 640
    while side >= min(_LEAST_SIDE, *image.size):
        data = _drawn(image, side, content, (height, width), enlarged_to, lines)
        if len(data) <= max_bytes:
            return data
        # Bytes grow with the area. An image that had been enlarged stays as it is first.
        if max(image.size) >= enlarged_to:
            side = int(side * min(0.95 * (max_bytes / len(data)) ** 0.5, 0.95))
        enlarged_to = 0
    raise MaskxError(
        ANSWER_TOO_LARGE,
        f"an overlay has more than the {max_bytes} bytes that an answer may have; ask for output=json",
    )


def _drawn(
    image: Image.Image,
    side: int,
    content: dict[str, Any],
    size: tuple[int, int],
    enlarged_to: int,
    lines: Sequence[tuple[int, int]],
) -> bytes:
    scale = side / max(image.size)
    if scale < 1:
        smaller = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
        image = image.resize(smaller, Image.Resampling.BILINEAR, reducing_gap=2.0)
    found = content["detections"]
    drawn = draw_detections(image, found, min_side=enlarged_to, legend=True, size=size, lines=lines)
    file = io.BytesIO()
    drawn.save(file, "PNG", compress_level=_PNG_LEVEL)
    return file.getvalue()
