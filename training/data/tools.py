"""COCO files as annotation tools write them, put into COCO's own form; files of other formats, named as what they are.

What is meant is taken where there is no doubt, and counted: ids as text or as 1.0, sizes of -1, categories that a tool
adds by itself (Roboflow's root, labelme's `_background_`, FiftyOne's filling of gaps), LVIS's `coco_url` in place of a
`file_name`. What is well-formed stays the very same objects.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PureWindowsPath
from typing import Any, Literal, Self
from urllib.parse import unquote, urlsplit

from training.data.findings import Tally, is_id

_NUMBER = re.compile(r"\s*([+-]?[0-9]{1,19})(\.0*)?\s*")
_BACKGROUND = ("background", "_background_", "__background__", "__ignore__")
_AS_NUMBER = "whole number written as text or as 1.0, taken for the number"
_ADDED = "category without an object, as tools add them"
_DATUM = "`datum convert -if {} -i FOLDER -f coco_instances -o OUT` (pip install datumaro) writes one"
_FROM_CLIENT = "`python -m client.convert FILE --from {} --out train.json` writes one"
_LISTS = ("images", "annotations", "categories")
_EXPECTED = "expected a COCO instances file (one JSON of images, annotations and categories)"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How freely an annotation file and the images it names are taken; all of it travels with the document."""

    crowd_as_objects: bool = False
    """No annotation is a crowd region, whatever its `iscrowd`."""
    names: Literal["exact", "lenient"] = "exact"
    """lenient: where an image's file is not there, the one file of a near name is taken (`training.images.names`)."""
    without_some: bool = False
    """A few images may be missing or broken, as those of a training that goes on (`training.images.broken`)."""
    open_images: bool = True
    """Without, no file of an image is opened but those of which the annotations do not state the size."""

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """What the table [data] of a configuration says, perhaps one of before some option was there."""
        return cls(**{field.name: data[field.name] for field in fields(cls) if field.name in data})


class Document(dict[str, Any]):
    """A COCO document in COCO's own form (`as_coco`)."""

    def __init__(
        self, content: Mapping[str, Any], tally: Tally, guessed: frozenset[str], reading: Reading
    ) -> None:
        super().__init__(content)
        self.reading = reading
        self.tally = tally
        """What was found on the way."""
        self.guessed = guessed
        """File names that the file does not state so; they may lie elsewhere in the folder (`found_name`)."""


def as_coco(document: Mapping[str, Any], reading: Reading | None = None) -> Document:
    """The document in COCO's own form, taken as `reading` says; one that was put into it before stays as it is."""
    if isinstance(document, Document):
        return document
    tally, reading = Tally(), reading or Reading()
    crowd_as_objects = reading.crowd_as_objects
    images = [_image(entry, tally) for entry in document["images"]]
    guessed = frozenset(
        new["file_name"]
        for new, old in zip(images, document["images"], strict=True)
        if new is not old and not old.get("file_name") and new.get("file_name")
    )
    categories = [_with_number(entry, ("id",), "category", tally) for entry in document["categories"]]
    known = {
        "image_id": {
            entry["id"] for entry in images if isinstance(entry, Mapping) and is_id(entry.get("id"))
        },
        "category_id": {
            entry["id"] for entry in categories if isinstance(entry, Mapping) and is_id(entry.get("id"))
        },
    }
    annotations = document["annotations"]
    if any(_is_odd(entry, crowd_as_objects) for entry in annotations):
        annotations = [
            _annotation(entry, known, crowd_as_objects, tally) if _is_odd(entry, crowd_as_objects) else entry
            for entry in annotations
        ]
    categories = _without_added(categories, annotations, tally)
    content = {**document, "images": images, "annotations": annotations, "categories": categories}
    return Document(content, tally, guessed, reading)


def whole_number(value: Any) -> int | None:
    """The whole number that `value` is or is written for, as "7", 7.0 or "7.0"; None where it is none."""
    if is_id(value):
        return int(value)
    if type(value) is float and value.is_integer() and abs(value) < 2**53:
        return int(value)
    match = _NUMBER.fullmatch(value) if type(value) is str else None
    number = None if match is None else int(match[1])
    return number if is_id(number) else None


def _with_number(entry: Any, keys: Sequence[str], what: str, tally: Tally) -> Any:
    """The entry with whole numbers under these keys where something else was written for one."""
    if not isinstance(entry, Mapping) or all(type(entry.get(key)) is int for key in keys):
        return entry
    changes = {}
    for key in keys:
        value = entry.get(key)
        number = whole_number(value)
        if type(value) is not int and number is not None:
            changes[key] = number
            words = f"{what} {entry.get('id')!r:.50}: {key} {value!r}, taken for {number}"
            tally.add(_AS_NUMBER, "kept", words)
    return {**entry, **changes} if changes else entry


def _image(entry: Any, tally: Tally) -> Any:
    entry = _with_number(entry, ("id",), "image", tally)
    if not isinstance(entry, Mapping):
        return entry
    address = entry.get("coco_url")
    if not entry.get("file_name") and isinstance(address, str) and (name := _name_in(address)):
        words = (
            f"image {entry.get('id')!r:.50}: {address:.100}, taken for {name}; "
            "`python -m training.datasets convert lvis_v1` writes files with names"
        )
        tally.add("image without a file_name, named by its coco_url", "kept", words)
        entry = {**entry, "file_name": name}
    sides = entry.get("width"), entry.get("height")
    if sides == (None, None) or all(is_id(side) and side > 0 for side in sides):
        return entry
    numbers = [whole_number(side) for side in sides]
    if any(side is not None and number is None for side, number in zip(sides, numbers, strict=True)):
        return entry  # which is refused by the reader
    if all(number is not None and number > 0 for number in numbers):
        return _with_number(entry, ("width", "height"), "image", tally)
    words = f"image {entry.get('id')!r:.50} ({entry.get('file_name')!s:.100}): width {sides[0]!r}, height {sides[1]!r}"
    tally.add("size that no picture has, read from the image", "kept", words)
    return {**entry, "width": None, "height": None}


def _name_in(address: str) -> str:
    """Folder and name at the end of an address, as in COCO's "http://images.cocodataset.org/train2017/NAME.jpg"."""
    try:
        path = unquote(urlsplit(address).path)
    except ValueError:  # no address
        return ""
    return "/".join(part for part in path.split("/")[-2:] if part)


def _is_odd(entry: Any, crowd_as_objects: bool) -> bool:
    return isinstance(entry, Mapping) and not (
        type(entry.get("id")) is int
        and type(entry.get("image_id")) is int
        and type(entry.get("category_id")) is int
        and type(crowd := entry.get("iscrowd")) is not str
        and not (crowd_as_objects and crowd)
    )


def _annotation(
    entry: Mapping[str, Any], known: Mapping[str, set[int]], crowd_as_objects: bool, tally: Tally
) -> Mapping[str, Any]:
    there = [key for key in known if whole_number(entry.get(key)) in known[key]]
    entry = _with_number(entry, ["id", *there], "annotation", tally)
    crowd = entry.get("iscrowd")
    if type(crowd) is str and crowd.strip().lower() in ("0", "0.0", "false", ""):
        entry = {**entry, "iscrowd": 0}
    elif crowd and crowd_as_objects:
        words = f"annotation {entry.get('id')!r:.50}: iscrowd {crowd!r:.50}"
        tally.add("iscrowd set aside, as data.crowd_as_objects says", "kept", words)
        entry = {**entry, "iscrowd": 0}
    return entry


def _without_added(entries: list[Any], annotations: Sequence[Any], tally: Tally) -> list[Any]:
    """The categories but for those that a tool added by itself and that no annotation has, and but for repetitions."""
    if not all(
        isinstance(one, Mapping) and is_id(one.get("id")) and isinstance(one.get("name"), str)
        for one in entries
    ):
        return entries  # which are refused by the reader
    kept: dict[tuple[int, str], Any] = {}
    for entry in entries:
        key = (entry["id"], entry["name"].strip())
        if key in kept:
            words = f"category {key[0]} ({key[1]!r}); expected each once"
            tally.add("category that is listed again", "passed over", words)
        else:
            kept[key] = entry
    entries = list(kept.values())
    ids_of: dict[str, list[int]] = {}
    for number, name in kept:
        ids_of.setdefault(name, []).append(number)
    root = _root(entries)
    numbered = {number for number, name in kept if name == str(number)}
    doubtful = {
        number
        for number, name in kept
        if len(ids_of[name]) > 1 or name.lower() in _BACKGROUND or number in numbered or number == root
    }
    if not doubtful:
        return entries
    used = {entry.get("category_id") for entry in annotations if _has_category(entry)}
    if numbered & used or len(numbered) == len(entries):
        doubtful -= {number for number in numbered if len(ids_of[str(number)]) == 1}  # digits as classes
    empty = doubtful - used
    for same in ids_of.values():  # where none of one name has an object, the last of them stays
        if len(same) > 1 and empty.issuperset(same):
            empty.discard(same[-1])
    left = [entry for entry in entries if entry["id"] not in empty]
    if not left:
        return entries
    for entry in entries:
        if entry["id"] in empty:
            words = f"category {entry['id']} ({entry['name']!r}): no annotation has it"
            tally.add(_ADDED, "passed over", words)
    return left


def _has_category(entry: Any) -> bool:
    return isinstance(entry, Mapping) and is_id(entry.get("category_id"))


def _root(entries: Sequence[Mapping[str, Any]]) -> int | None:
    """The id, 0, of the project's name above all other categories, where there is one (Roboflow)."""
    root = next((one for one in entries if one["id"] == 0), None)
    others = [one for one in entries if one["id"] != 0]
    if root is None or not others or root.get("supercategory") not in (None, "", "none"):
        return None
    return 0 if all(one.get("supercategory") == root["name"] for one in others) else None


def found_name(name: str, images_dir: Path) -> str:
    """Where a file of this name lies in the folder if not under it: with slashes, without leading folders; else `name`.

    For names of another machine, such as `C:\\photos\\images\\a.png`.
    """
    if _is_file(images_dir / name):
        return name
    return next((other for other in other_names(name) if _is_file(images_dir / other)), name)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long for one
        return False


def other_names(name: str) -> list[str]:
    """The name with slashes, then without each of its leading folders; none that leads out of the folder."""
    parts = [part for part in PureWindowsPath(name).parts if not part.endswith(("\\", "/", ":"))]
    return ["/".join(parts[start:]) for start in range(len(parts)) if ".." not in parts[start:]]


def other_text(text: bytes, path: Path) -> str | None:
    """What a file that is no JSON is instead, and what to do; None where it is not known."""
    start = text[:4096].lstrip()
    low = start.lower()
    lines = start.decode("utf-8", "replace").splitlines()[:20]
    if start.startswith(b"version https://git-lfs"):
        return f"a Git LFS pointer, not the file itself; {_EXPECTED}: `git lfs pull` fetches it"
    if start.startswith((b"PK\x03\x04", b"\x1f\x8b")):
        return f"an archive; {_EXPECTED}: unpack it and give the JSON inside"
    if low.startswith((b"<!doctype html", b"<html")):
        return f"an HTML page, perhaps of a login; {_EXPECTED}: download the file itself"
    if low.startswith(b"<"):
        if b"<image " in low or b"<meta>" in low:
            return f"XML of CVAT; {_EXPECTED}: export as COCO 1.0, or {_FROM_CLIENT.format('cvat')}"
        return f"XML, as PASCAL VOC has it; {_EXPECTED}: {_DATUM.format('voc')}"
    if path.suffix.lower() in (".yaml", ".yml") or any(
        re.match(r"(nc|names|train|val)\s*:", one) for one in lines
    ):
        return f"a YOLO data set's YAML; {_EXPECTED}: {_DATUM.format('yolo')}"
    if lines and all(
        re.fullmatch(r"\s*\d+(\s+-?\d*\.?\d+(e-?\d+)?){4,}\s*", one) for one in lines[:-1] or lines
    ):
        return f"a YOLO label file; {_EXPECTED}: {_DATUM.format('yolo')}"
    if path.suffix.lower() == ".csv" or (lines and lines[0].lstrip("#").startswith("filename,")):
        return f"a CSV table; {_EXPECTED}: in VIA, Annotation > Export Annotations (COCO format)"
    return "JSON Lines; " + _EXPECTED if len(lines) > 1 and _is_json(lines[0]) else None


def _is_json(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def other_folder(path: Path) -> str:
    """What to say of a folder in place of an annotation file."""
    inside = sorted(path.glob("*.json")) or sorted(path.glob("*/*.json"))
    if inside:
        names = ", ".join(str(one.relative_to(path)) for one in inside[:3])
        return f"a folder; {_EXPECTED}, such as one of those in it: {names}"
    if next(path.glob("*.y*ml"), None) or next(path.glob("**/*.txt"), None):
        return f"a folder, perhaps a YOLO data set; {_EXPECTED}: {_DATUM.format('yolo')}"
    return f"a folder; {_EXPECTED}"


def other_format(document: Any) -> str | None:
    """What parsed JSON is that is no COCO instances file, and what to do; None where it may be one."""
    is_coco = isinstance(document, dict) and all(isinstance(document.get(key), list) for key in _LISTS)
    for is_one, words in _KINDS_OF_COCO if is_coco else (*_KINDS_OF_COCO, *_FORMATS):
        if is_one(document):
            return words
    return None


def _keys(*keys: str) -> Callable[[Any], bool]:
    return lambda document: isinstance(document, dict) and set(keys) <= document.keys()


def _first(document: Any) -> Mapping[str, Any]:
    """The first entry of a list of objects."""
    return document[0] if isinstance(document, list) and document and isinstance(document[0], dict) else {}


def _annotations_of(document: Any) -> list[Mapping[str, Any]]:
    entries = document.get("annotations") if isinstance(document, dict) else None
    return [one for one in entries if isinstance(one, dict)] if isinstance(entries, list) else []


def _all_annotations(wanted: str, *absent: str) -> Callable[[Any], bool]:
    def is_one(document: Any) -> bool:
        if wanted not in _first(_annotations_of(document)):
            return False
        return all(
            wanted in one and not any(one.get(key) for key in absent) for one in _annotations_of(document)
        )

    return is_one


def _is_via_annotations(document: Any) -> bool:
    values = list(document.values()) if isinstance(document, dict) else []
    return bool(values) and all(
        isinstance(one, dict) and {"filename", "regions"} <= one.keys() for one in values
    )


def _is_label_studio(document: Any) -> bool:
    task = document if isinstance(document, dict) else _first(document)
    answers = ("annotations", "completions", "predictions")
    return "data" in task and any(isinstance(task.get(key), list) for key in answers)


_Formats = tuple[tuple[Callable[[Any], bool], str], ...]

_KINDS_OF_COCO: _Formats = (
    (
        _all_annotations("segments_info"),
        f"a panoptic file (annotations with segments_info); {_EXPECTED}: COCO has instances_*.json beside it, and "
        "panopticapi's converters/panoptic2detection_coco_format.py writes one",
    ),
    (
        _all_annotations("caption", "bbox"),
        f"a captions file; {_EXPECTED}: COCO has instances_*.json beside it",
    ),
    (
        _all_annotations("keypoints", "bbox", "segmentation"),
        "a keypoints file without boxes; expected a bbox [x, y, width, height] or a segmentation in each annotation: "
        "export boxes with the keypoints, or take COCO's person_keypoints_*.json",
    ),
)
_FORMATS: _Formats = (
    (
        _keys("_via_img_metadata"),
        f"a VIA project; {_EXPECTED}: in VIA, Annotation > Export Annotations (COCO format)",
    ),
    (
        _is_via_annotations,
        f"VIA's own JSON; {_EXPECTED}: in VIA, Annotation > Export Annotations (COCO format)",
    ),
    (
        _keys("shapes", "imagePath"),
        f"labelme's file of one image; {_EXPECTED}: its examples/instance_segmentation/labelme2coco.py writes one",
    ),
    (
        _is_label_studio,
        f"Label Studio's own JSON; {_EXPECTED}: export as COCO, or {_FROM_CLIENT.format('labelstudio')}",
    ),
    (_keys("items", "categories"), f"Datumaro's own JSON; {_EXPECTED}: {_DATUM.format('datumaro')}"),
    (
        lambda document: _keys("samples")(document) or _keys("classes", "labels")(document),
        f"FiftyOne's own JSON; {_EXPECTED}: "
        "`dataset.export(export_dir=..., dataset_type=fiftyone.types.COCODetectionDataset)` writes one",
    ),
    (_keys("assets", "tags"), f"a VoTT project; {_EXPECTED}: {_DATUM.format('vott_json')}"),
    (
        lambda document: {"image", "annotations"} <= _first(document).keys(),
        f"CreateML's JSON; {_EXPECTED}: export as COCO",
    ),
)
