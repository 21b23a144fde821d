"""Hostile COCO files: small valid ones with one thing changed, and whole texts that are none; the same ones every time.

What is changed stands in the case's name: the place in the document, and the value that came there. The pictures are
those of `tests.training.tiny_set`.
"""

import gzip
import io
import json
import random
import zipfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

from pycocotools import mask as mask_utils

from tests.training.tiny_set import NAMES, SIDE

WORKS, REFUSED, EITHER = "works", "refused", "either"
"""What a case expects of training: that it starts, that it says why not, or one of the two."""

SEED = 14
MIXED = 300
"""Files of `mixed`."""
ABSENT = object()
"""In place of a value: the key is taken out."""


@dataclass(frozen=True, kw_only=True)
class HostileFile:
    """An annotation file. `name` is unique.

    data: makes its bytes. expect: see above. place: what a refusal must name besides the file, as a regular expression.
    keypoints: for a network that has some. large: takes minutes or gigabytes.
    """

    group: str
    name: str
    data: Callable[[], bytes]
    expect: str = EITHER
    place: str = "image|annotation|categor|class|object"
    keypoints: bool = False
    large: bool = False


def base() -> dict[str, Any]:
    """A valid document of every kind of entry that is read: polygons, both RLEs, a crowd, keypoints, a taught mask,
    LVIS's and Cityscapes' keys."""
    size = {"size": [SIDE, SIDE]}
    square = [[4.0, 4.0, 24.0, 4.0, 24.0, 24.0, 4.0, 24.0]]
    runs = [4 * SIDE + 4, *([20, SIDE - 20] * 20)]
    runs.append(SIDE * SIDE - sum(runs))
    text = mask_utils.frPyObjects(size | {"counts": runs}, SIDE, SIDE)["counts"].decode()
    common = {"image_id": 100, "iscrowd": 0, "area": 400, "bbox": [4, 4, 20, 20]}
    return {
        "info": {"year": 2026},
        "licenses": [],
        "images": [
            {"id": 100 + number, "file_name": f"{number}.png", "width": SIDE, "height": SIDE}
            | ({"neg_category_ids": [3], "not_exhaustive_category_ids": [], "void": None} if number else {})
            for number in range(3)
        ],
        "categories": [
            {"id": number, "name": name, "supercategory": "wall", "frequency": "f", "keypoints": ["a", "b"]}
            for number, name in enumerate(NAMES, start=1)
        ],
        "annotations": [
            common | {"id": 1, "category_id": 1, "segmentation": square, "keypoints": [9, 9, 2, 0, 0, 0]},
            common | {"id": 2, "category_id": 2, "segmentation": size | {"counts": runs}},
            common | {"id": 3, "category_id": 2, "segmentation": size | {"counts": text}, "image_id": 101},
            common | {"id": 4, "category_id": 1, "iscrowd": 1, "segmentation": size | {"counts": runs}},
            common | {"id": 5, "category_id": 3, "segmentation": [], "image_id": 102},
            common
            | {"id": 6, "category_id": 3, "segmentation": square, "image_id": 102}
            | {"mask_source": "segmenter", "mask_quality": 0.9, "mask_weight": 0.5},
        ],
    }


def text_of(document: Any) -> bytes:
    """As JSON, with NaN and Infinity as Python writes them."""
    return json.dumps(document).encode()


def nested(depth: int) -> bytes:
    """A list in a list in a list."""
    return b"[" * depth + b"]" * depth


PLACES: tuple[tuple[str | int, ...], ...] = (
    ("images",), ("annotations",), ("categories",), ("info",), ("images", 0), ("annotations", 0), ("categories", 0),
    ("images", 0, "id"), ("images", 0, "file_name"), ("images", 0, "width"), ("images", 0, "height"),
    ("images", 1, "neg_category_ids"), ("images", 1, "not_exhaustive_category_ids"), ("images", 1, "void"),
    ("categories", 0, "id"), ("categories", 2, "name"), ("categories", 0, "supercategory"),
    ("categories", 0, "frequency"), ("categories", 0, "keypoints"),
    ("annotations", 0, "id"), ("annotations", 0, "image_id"), ("annotations", 0, "category_id"),
    ("annotations", 0, "iscrowd"), ("annotations", 0, "area"), ("annotations", 0, "bbox"),
    ("annotations", 0, "bbox", 0), ("annotations", 0, "bbox", 2), ("annotations", 0, "segmentation"),
    ("annotations", 0, "segmentation", 0), ("annotations", 0, "segmentation", 0, 2),
    ("annotations", 1, "segmentation", "size"), ("annotations", 1, "segmentation", "size", 0),
    ("annotations", 1, "segmentation", "counts"), ("annotations", 1, "segmentation", "counts", 1),
    *(("annotations", 5, key) for key in ("mask_source", "mask_quality", "mask_weight")),
    ("annotations", 2, "segmentation", "counts"), ("annotations", 0, "keypoints"), ("annotations", 0, "keypoints", 0),
    ("annotations", 0, "keypoints", 2), ("annotations", 4, "segmentation"),
)  # fmt: skip

VALUES: dict[str, Any] = {
    "nothing": ABSENT, "null": None, "true": True, "text": "brick", "a number's text": "7", "empty text": "",
    "empty list": [], "empty object": {}, "a list in a list": [[]], "an object": {"a": 1}, "900 levels": "@900@",
    "NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf"), "1e308": 1e308, "5e-324": 5e-324,
    "-0.0": -0.0, "0": 0, "-1": -1, "0.5": 0.5, "2^31": 2**31, "2^63": 2**63, "-2^63": -(2**63), "10^400": 10**400,
    "2 MB of text": "x" * 2_000_000, "a surrogate alone": "\ud800", "NUL": "a\0b", "lines": "a\nb\r\x1b[31m",
    "a path upwards": "../../etc/passwd", "letters of the right to left": "\u202e\u05d0",
    "a million": [1.5] * 1_000_000,
}  # fmt: skip

_LEFT_OUT = {(place, value) for place in PLACES[:7] for value in VALUES if value not in (
    "nothing", "null", "true", "text", "empty list", "empty object", "900 levels", "NaN", "a list in a list",
    "0")}  # fmt: skip
"""In whole lists and entries one number is as good as another."""


def swapped() -> Iterator[HostileFile]:
    """Every value in every place."""
    for place in PLACES:
        for word, value in VALUES.items():
            if (place, word) in _LEFT_OUT:
                continue
            where = ".".join(map(str, place))
            yield HostileFile(
                group="one value",
                name=f"{where} = {word}",
                data=partial(with_value, place, value),
                place=".",
                keypoints="keypoints" in place,
            )


def with_value(place: tuple[str | int, ...], value: Any) -> bytes:
    """The valid document with another value in a place."""
    document = deepcopy(base())
    inside: Any = document
    for step in place[:-1]:
        inside = inside[step]
    if value is ABSENT:
        del inside[place[-1]]
    else:
        inside[place[-1]] = value
    return text_of(document).replace(b'"@900@"', nested(900))


def texts() -> Iterator[HostileFile]:
    """Files that are broken JSON, odd JSON or no JSON."""
    good = text_of(base())
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("train.json", good)
    generator = random.Random(SEED)
    refused: dict[str, bytes] = {
        "empty": b"", "spaces": b" \n\t ", "a BOM alone": b"\xef\xbb\xbf", "gzip": gzip.compress(good, mtime=0),
        "zip": packed.getvalue(), "null": b"null", "a number": b"5", "text": b'"images"', "true": b"true",
        "NaN": b"NaN",
        "a list": b"[" + good + b"]", "an empty list": b"[]", "an empty object": b"{}", "numbers": b"[1, 2]",
        "10^5 lists": nested(100_000), "10^5 lists, not closed": b"[" * 100_000, "10^5 objects": b'{"a":' * 100_000,
        "10^5 lists in info": good.replace(b'{"year": 2026}', nested(100_000)),
        "10^5 lists in a bbox": good.replace(b"[4, 4, 20, 20]", nested(100_000), 1),
        "a number of 5000 digits": good.replace(b"2026", b"7" * 5000),
        "an id of 5000 digits": good.replace(b'"id": 1,', b'"id": ' + b"7" * 5000 + b","),
        "single quotes": good.replace(b'"', b"'"), "a comma too many": good[:-1] + b",}", "two documents": good + good,
        "a comment": b"/* COCO */" + good, "more behind it": good + b"x", "a NUL behind it": good + b"\0",
        "NULs alone": bytes(1000), "a byte that is not UTF-8": good.replace(b"brick", b"br\xffck"),
        "Latin-1": good.replace(b"brick", "brück".encode("latin-1")),
        "half of UTF-16": good.decode().encode("utf-16")[:-1],
        "a surrogate as UTF-8": good.replace(b"brick", b"br\xed\xa0\x80k"),
        "a control character": good.replace(b"brick", b"br\1"),
        "random bytes": generator.randbytes(5000), "a PNG": b"\x89PNG\r\n\x1a\n" + bytes(50),
        "HTML": b"<!DOCTYPE html><p>",
        "JSON Lines": b'{"a": 1}\n{"a": 2}\n', "a line of 2 MB": b"x" * 2_000_000,
        "Infinity for a list": b'{"images": Infinity}',
        "objects for lists": text_of({key: {"1": {}} for key in ("images", "annotations", "categories")}),
        "empty lists": text_of({key: [] for key in ("images", "annotations", "categories")}),
        "lists of lists": text_of({key: [[]] for key in ("images", "annotations", "categories")}),
        "a whole document as images": good.replace(b'"images": [', b'"images": ' + good + b', "x": ['),
        "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
    }  # fmt: skip
    for cut in sorted(generator.sample(range(2, len(good) - 1), 12)):
        refused[f"cut after {cut} of {len(good)} bytes"] = good[:cut]
    for number in range(12):
        at = generator.randrange(len(good))
        refused[f"flipped byte {number}"] = (
            good[:at] + bytes([good[at] ^ (1 << generator.randrange(8))]) + good[at + 1 :]
        )
    for name, data in refused.items():
        expect = EITHER if name.startswith("flipped") else REFUSED
        yield HostileFile(group="text", name=name, data=partial(bytes, data), expect=expect, place=".")
    taken: dict[str, bytes] = {
        "a BOM": b"\xef\xbb\xbf" + good, "UTF-16": good.decode().encode("utf-16"),
        "UTF-32": good.decode().encode("utf-32"),
        "other keys twice": good.replace(b'"info"', b'"info": 5, "info"'),
        "an id twice": good.replace(b'"id": 1,', b'"id": 9, "id": 1,'),
        "annotations twice": good.replace(b'"annotations"', b'"annotations": [], "annotations"'),
        "1e99999": good.replace(b'"area": 400', b'"area": 1e99999'),
        "spaces around": b"\n" * 10_000 + good + b" " * 10_000,
        "10 MB of info": good.replace(b'{"year": 2026}', b'"' + b"i" * 10_000_000 + b'"'),
    }  # fmt: skip
    for name, data in taken.items():
        yield HostileFile(group="text", name=name, data=partial(bytes, data), expect=WORKS)


def lies() -> Iterator[HostileFile]:
    """Sizes, run lengths, polygons, names and keypoints that do not say the truth."""
    width = {"a width of 10^9": (10**9, SIDE), "one more": (SIDE + 1, SIDE), "two swapped": (SIDE // 2, SIDE * 2),
             "a height of 2^62": (SIDE, 2**62), "both 10^6": (10**6, 10**6)}  # fmt: skip
    for name, (wide, high) in width.items():
        document = base()
        document["images"][0] |= {"width": wide, "height": high}
        yield _case("size", name, document, expect=REFUSED, place=r"0\.png")
    masks: dict[str, Any] = {
        "size of 10^9": {"size": [10**9, 10**9], "counts": [0, 10**18]}, "counts of 2^63": _rle([2**63]),
        "counts below 0": _rle([-5, SIDE * SIDE + 5]), "counts of floats": _rle([0.0, float(SIDE * SIDE)]),
        "counts that are short": _rle([5, 5]), "counts that are long": _rle([SIDE * SIDE, SIDE * SIDE]),
        "counts of 10^6 zeros": _rle([0] * 10**6), "counts of 10^6 and the rest": _rle([0] * 10**6 + [SIDE * SIDE]),
        "text of 10^6 o": _rle("o" * 10**6), "text of 10^6 0": _rle("0" * 10**6), "text of 10^6 P": _rle("P" * 10**6),
        "text that overflows": _rle("oooooooo1"), "text of 7 digits": _rle("oooooo?" * 1000),
        "text outside ASCII": _rle("\u00e9\ud800"),
        "text of spaces": _rle("   "), "text of NUL": _rle("\0\0"), "text of a list": _rle(["T4d0l0"]),
        "no counts": {"size": [SIDE, SIDE]},
        "an RLE in an RLE": _rle(_rle([5])),
        "three polygons, one broken": [[1, 2, 3, 4, 5, 6], [1], [float("nan")] * 6],
        "an odd count": [[1, 1, 20, 1, 20, 20, 5]], "one point": [[5, 5]], "no points": [[]] * 1000,
        "far away": [[-1e8, 0, 1e8, 0, 0, 1e8]],
        "at 1e308": [[1e308] * 6], "at 10^400": [[10**400] * 6], "a point a million times": [[5.5, 5.5] * 10**6],
        "zigzag of 10^5 points": [[v for i in range(10**5) for v in (i % SIDE, i * 7 % SIDE)]],
        "10^5 polygons": [[4, 4, 20, 4, 20, 20]] * 10**5, "points of texts": [["4", "4", "20", "4", "20", "20"]],
        "points of pairs": [[4, 4], [20, 4], [20, 20]], "points of triples": [[4, 4, 1], [20, 4, 1], [20, 20, 1]],
        "points of objects": [{"x": 4, "y": 4}], "numbers and lists": [4, [4, 20]],
        "lists and an object": [[4, 4, 20, 4, 20, 20], {}],
        "rings with an empty one": [[[4, 4], [20, 4], [20, 20]], []],
        "null among polygons": [None, [4, 4, 20, 4, 20, 20]],
    }  # fmt: skip
    for name, mask in masks.items():
        document = base()
        document["annotations"][0]["segmentation"] = mask
        yield _case("mask", name, document, expect=WORKS)
        document = base()
        document["images"][1]["void"] = mask
        yield _case("void", name, document)
    for points in (0, 1, 2, 5, 7, 9, 10**5):
        document = base()
        document["annotations"][0]["keypoints"] = [9.0, 9.0, 2][: points % 3] + [9.0, 9.0, 2] * (points // 3)
        yield _case("keypoints", f"{points} numbers of 6", document, keypoints=True)
    names: dict[str, str] = {
        "5000 letters": "x" * 5000, "300 letters": "x" * 300 + ".png", "3000 folders": "a/" * 3000 + "0.png",
        "5000 letters and a backslash": "x\\" + "y" * 5000, "folders and back": "a/../" * 1000 + "0.png",
        "a newline": "a\nb.png",
        "a NUL": "a\0.png", "a NUL and a backslash": "a\\b\0.png", "a surrogate": "\ud800.png",
        "a byte of another encoding": "\udcff.png",
        "an escape": "\x1b[2J.png", "the folder": ".", "above": "..", "a slash": "/", "a device": "/dev/zero",
        "no file at all": "/dev/null",
        "a pipe": "pipe", "an address": "http://127.0.0.1:9/0.png",
        "a drive": "C:\\0.png\\", "percent": "%00.png", "a home": "~/0.png",
        "a text": "notes.txt", "an empty file": "empty.png", "spaces": "   ", "a paragraph": "\u2029.png",
    }  # fmt: skip
    for name, file_name in names.items():
        document = base()
        document["images"][0]["file_name"] = file_name
        # The way back leads through a folder that is not there; of another machine's drive the name is found.
        yield _case("file name", name, document, expect=WORKS if name == "a drive" else REFUSED)
    document = base()
    document["images"][0] |= {"file_name": "", "coco_url": "http://[" + "x" * 10**6}
    yield _case("file name", "an address of a megabyte", document, expect=REFUSED)
    for name, category in {"a name of 1 MB": "n" * 10**6, "a name of lines": "a\nb", "a surrogate": "\ud800",
    "a comma": "a,b",
                           "spaces": "  ", "another's name": "tile"}.items():  # fmt: skip
        document = base()
        document["categories"][2]["name"] = category
        yield _case("category", name, document)


def mixed() -> Iterator[HostileFile]:
    """Two to five changes at once, anywhere: a value, a part of the document in another's place, one less, one more."""
    small = [value for value in VALUES.values() if value is not ABSENT and len(str(value)) < 1000]
    for number in range(MIXED):
        generator = random.Random(SEED + number)
        document = base()
        for _ in range(generator.randint(2, 5)):
            inside, key = generator.choice(_parts(document))
            change = generator.randrange(5)
            if change == 0:
                del inside[key]
            elif change == 1 and isinstance(inside, list):
                inside.insert(generator.randint(0, len(inside)), deepcopy(inside[key]))
            elif change == 2:
                other, place = generator.choice(_parts(document))
                inside[key] = deepcopy(other[place])
            elif change == 3:
                inside[key] = [inside[key]]
            else:
                inside[key] = generator.choice(small)
        yield _case("mixed", f"{number}", document, place=".", keypoints=number % 4 == 0)


def _parts(document: Any) -> list[tuple[Any, Any]]:
    """(list or object, place in it) of everything inside, the long lists of numbers aside."""
    if not isinstance(document, (list, dict)):
        return []
    places = list(document) if isinstance(document, dict) else range(min(len(document), 8))
    return [part for key in places for part in ((document, key), *_parts(document[key]))]


def many() -> Iterator[HostileFile]:
    """More of everything than there ever is."""
    image, annotation = base()["images"][0], base()["annotations"][0]
    kinds: dict[str, tuple[str, Callable[[int], Any], str, int]] = {
        "categories": ("categories", lambda i: {"id": i, "name": f"c{i}"}, EITHER, 10**5),
        "images that are not there": (
            "images", lambda i: image | {"id": i, "file_name": f"none/{i}.png"}, REFUSED, 10**5),
        "images of one file": ("images", lambda i: image | {"id": i}, WORKS, 10**5),
        "annotations of no category": (
            "annotations", lambda i: annotation | {"id": i, "category_id": 99}, REFUSED, 10**5),
        "annotations of no image": ("annotations", lambda i: annotation | {"id": i, "image_id": i}, WORKS, 10**5),
        "annotations that are texts": ("annotations", str, REFUSED, 10**5),
        "annotations of one id": ("annotations", lambda i: annotation, REFUSED, 20_000),
        "objects in one image": ("annotations", lambda i: annotation | {"id": i}, REFUSED, 20_000),
    }  # fmt: skip
    for name, (key, entry, expect, count) in kinds.items():
        yield HostileFile(
            group="many",
            name=f"{count} {name}",
            data=partial(_with_more, key, entry, count),
            expect=expect,
            large=True,
        )
    yield HostileFile(group="many", name="10^6 objects", data=_million, expect=WORKS, large=True)


def _with_more(key: str, entry: Callable[[int], Any], count: int) -> bytes:
    document = base()
    document[key] += [entry(1000 + i) for i in range(count)]
    return text_of(document)


def _million() -> bytes:
    """10^6 objects in 1000 images; as text, which needs less memory than the reading that is looked at."""
    document = base()
    image, annotation = document["images"][0], text_of(document["annotations"][0])
    document["images"] += [image | {"id": 1000 + i} for i in range(1000)]
    document["annotations"] = ["@"]
    assert annotation.count(b'"id": 1,') == annotation.count(b'"image_id": 100,') == 1
    start = annotation.replace(b'"id": 1,', b'"id": %d,').replace(b'"image_id": 100,', b'"image_id": %d,')
    assert start.index(b'"image_id"') < start.index(b'"id"')
    objects = b",".join(start % (1000 + i % 1000, i) for i in range(10**6))
    return text_of(document).replace(b'"@"', objects)


def _rle(counts: Any) -> dict[str, Any]:
    return {"size": [SIDE, SIDE], "counts": counts}


def _case(group: str, name: str, document: dict[str, Any], **others: Any) -> HostileFile:
    return HostileFile(group=group, name=name, data=lambda: text_of(document), **others)


def all_files() -> list[HostileFile]:
    """All of them; every (group, name) once."""
    found = [*texts(), *lies(), *swapped(), *mixed(), *many()]
    assert len({(one.group, one.name) for one in found}) == len(found)
    return found


def some_files(count: int) -> list[HostileFile]:
    """A seeded part of those that are not large, of every group."""
    generator = random.Random(SEED)
    groups: dict[str, list[HostileFile]] = {}
    for one in all_files():
        if not one.large:
            groups.setdefault(one.group, []).append(one)
    for files in groups.values():
        generator.shuffle(files)
    longest = max(map(len, groups.values()))
    turns = [files[turn] for turn in range(longest) for files in groups.values() if turn < len(files)]
    return turns[:count]
