"""Results -> tasks with predictions for Label Studio, and the labelling configuration that shows them.

A mask is a brush in Label Studio's own run-length format, a stream of bits, the highest first: 32 of the number of
values, 5 of the bits of a value less 1, four times 4 of the bits of a length less 1; then runs, each 1 bit (a run of
one value, not single values), 2 bits (which of the four sizes its length has), the length less 1, the value. The values
are the bytes of an RGBA image, row by row; those of the mask are 255, all others 0.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.etree import ElementTree as ET

import numpy as np

from maskx_draw import Window

from .shapes import Picture, Results, Shape

SERVED = re.compile(
    r"https?://|(s3|gs|azure-blob|azure[_-]spi)://|(/[^?]*)?/data/(upload/|local-files/\?(.*&)?d=)"
)
"""Addresses that Label Studio shows images by (its guide, "Tasks with local storage file references", "Sync data from
external storage"): on the web, in a bucket of one of its storages, or on its own server, perhaps below a path."""

LENGTH_BITS = (3, 4, 8, 16)
VALUE_BITS = 8
CHANNELS = 4
TAGS = {"brushlabels": "BrushLabels", "polygonlabels": "PolygonLabels", "rectanglelabels": "RectangleLabels"}


def write_label_studio(results: Results, path: Path, *, url_prefix: str, model_version: str) -> Path:
    """Writes the tasks; returns the path of the labelling configuration beside them.

    `url_prefix` comes before each file name, as Label Studio finds the images: "/data/local-files/?d=photos/", ... The
    names are percent-encoded where that makes an address (http://, /data/...), and not where it names a bucket (s3://).
    """
    used: set[str] = set()
    with path.open("w", encoding="utf-8") as file:
        file.write("[")
        for number, picture in enumerate(results.pictures()):
            task = _task(picture, url_prefix, model_version)
            used.update(one["type"] for one in task["predictions"][0]["result"])
            file.write((",\n" if number else "\n") + json.dumps(task, separators=(",", ":")))
        file.write("\n]\n")
    configuration = path.with_suffix(".config.xml")
    configuration.write_text(_configuration(results, used), encoding="utf-8")
    return configuration


def unserved(results: Results, url_prefix: str) -> str:
    """What to say of images that Label Studio would not show by their addresses; empty where it shows all."""
    addresses = [address_of(str(image["file_name"]), url_prefix) for image in results.images]
    wrong = [address for address in addresses if not SERVED.match(address)]
    if not wrong:
        return ""
    return (
        f"Label Studio does not serve {wrong[0]!r} ({len(wrong)} of {len(addresses)} images have such an address); "
        "it shows /data/local-files/?d=..., /data/upload/..., http://, https://, and with a storage of the project "
        "s3://, gs:// and azure-blob://. For files beside it give --url-prefix '/data/local-files/?d=FOLDER/', FOLDER "
        "counted from LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT, and add that folder under Settings, Cloud Storage"
    )


def brush_rle(window: Window, *, height: int, width: int) -> list[int]:
    """The mask as bytes of the stream; nothing of the image's size is made on the way."""
    bits = [f"{height * width * CHANNELS:032b}", f"{VALUE_BITS - 1:05b}"]
    bits += [f"{size - 1:04b}" for size in LENGTH_BITS]
    for value, length in _runs(window, height=height, width=width):
        for part in _parts(length * CHANNELS):
            which = next(i for i, size in enumerate(LENGTH_BITS) if part <= 1 << size)
            bits.append(f"1{which:02b}{part - 1:0{LENGTH_BITS[which]}b}{value:0{VALUE_BITS}b}")
    stream = "".join(bits)
    stream += "0" * (-len(stream) % 8)
    return list(int(stream, 2).to_bytes(len(stream) // 8, "big"))


def _parts(length: int) -> Iterator[int]:
    longest = 1 << LENGTH_BITS[-1]
    for _ in range(length // longest):
        yield longest
    if length % longest:
        yield length % longest


def _runs(window: Window, *, height: int, width: int) -> Iterator[tuple[int, int]]:
    """Value and number of pixels of each run, row by row over the whole image."""
    padded = np.pad(window.pixels.astype(np.int8), ((0, 0), (1, 1)))
    steps = np.diff(padded, axis=1)
    rows, begins = np.nonzero(steps == 1)
    ends = np.nonzero(steps == -1)[1]
    at = (rows + window.top) * width + window.left
    done = 0
    for begin, end in zip((at + begins).tolist(), (at + ends).tolist(), strict=True):
        if begin > done:
            yield 0, begin - done
        yield 255, end - begin
        done = end
    if done < height * width:
        yield 0, height * width - done


def _task(picture: Picture, url_prefix: str, model_version: str) -> dict[str, Any]:
    results = regions_of(picture)
    scores = [shape.score for shape in picture.shapes]
    score = round(sum(scores) / len(scores), 6) if scores else 0.0
    prediction = {"model_version": model_version, "score": score, "result": results}
    return {"data": {"image": address_of(picture.file_name, url_prefix)}, "predictions": [prediction]}


def address_of(file_name: str, prefix: str) -> str:
    """Where Label Studio finds an image."""
    return prefix + (quote(file_name) if re.match(r"/|https?://", prefix) else file_name)


def file_name_of(address: str, prefix: str) -> str:
    """The other way: what stands behind the prefix, else behind `?d=`, else the whole of a bucket's key or a path."""
    if prefix and address.startswith(prefix):
        rest = address[len(prefix) :]
        return unquote(rest) if re.match(r"/|https?://", prefix) else rest
    scheme = re.match(r"([a-z][a-z0-9+.-]*)://[^/]*/", address)
    if scheme and scheme[1] not in ("http", "https"):
        return address[scheme.end() :]
    if re.match(r"/|https?://", address):
        parts = urlsplit(address)
        uploaded = re.search(r"/data/upload/(?:\d+/)?(?:[0-9a-f]{8}-)?([^/]+)$", unquote(parts.path))
        if uploaded:  # Label Studio puts eight digits before the name
            return uploaded[1]
        return (parse_qs(parts.query).get("d") or [unquote(parts.path)])[0].lstrip("/")
    return address


def regions_of(
    picture: Picture, names: Mapping[str, str] | None = None, to_name: str = "image"
) -> list[dict[str, Any]]:
    """All regions of an image; the parts of one object after its first name that as their parent.

    `names`: of the controls, by the types of their regions ("brushlabels"); None for those of `_configuration`.
    """
    regions: list[dict[str, Any]] = []
    for shape in picture.shapes:
        parent: dict[str, Any] = {}
        for one in _results(shape, picture):
            name = _control(one["type"]) if names is None else names[one["type"]]
            region = {
                "id": f"{picture.image_id}-{len(regions)}",
                **one,
                "from_name": name,
                "to_name": to_name,
            }
            regions.append(region | parent)
            parent = parent or {"parentID": region["id"]}
    return regions


def _results(shape: Shape, picture: Picture) -> list[dict[str, Any]]:
    """One region, or one for each part of a polygon; coordinates are percents of the image's sides."""
    x, y = 100.0 / picture.width, 100.0 / picture.height
    values: list[tuple[str, dict[str, Any]]] = []
    if shape.window is not None:
        rle = brush_rle(shape.window, height=picture.height, width=picture.width)
        values.append(("brushlabels", {"format": "rle", "rle": rle}))
    for part in shape.polygons:
        points = [[round(a * x, 4), round(b * y, 4)] for a, b in zip(part[::2], part[1::2], strict=True)]
        values.append(("polygonlabels", {"points": points, "closed": True}))
    if not values:
        left, top, right, bottom = shape.box
        sides = {"x": left * x, "y": top * y, "width": (right - left) * x, "height": (bottom - top) * y}
        rounded = {name: round(value, 4) for name, value in sides.items()}
        values.append(("rectanglelabels", {**rounded, "rotation": 0}))
    told = ["transferred mask" if shape.transferred else "supervised mask"]
    told += [f"mask source: {shape.mask_source}"] if shape.mask_source else []
    return [
        {
            "type": kind,
            "from_name": _control(kind),
            "to_name": "image",
            "original_width": picture.width,
            "original_height": picture.height,
            "image_rotation": 0,
            "score": shape.score,
            "value": {**value, kind: [shape.category]},
            "meta": {"text": told},
        }
        for kind, value in values
    ]


def _control(kind: str) -> str:
    return kind.removesuffix("labels")


def _configuration(results: Results, used: set[str]) -> str:
    """Label Studio's labelling interface with the controls that the results need."""
    view = ET.Element("View")
    ET.SubElement(view, "Image", {"name": "image", "value": "$image", "zoom": "true"})
    for kind in sorted(used or {"brushlabels"}):
        control = ET.SubElement(view, TAGS[kind], {"name": _control(kind), "toName": "image"})
        for name in results.categories.values():
            ET.SubElement(control, "Label", {"value": name})
    ET.indent(view)
    return ET.tostring(view, encoding="unicode") + "\n"
