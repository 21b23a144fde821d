"""Visual Genome v1.4 as COCO files of the 3 000 most frequent synsets, COCO's 80 classes first (Sec. 5).

The rules are those of the paper's own code (seg_every_thing, steps 1 and 2 of lib/datasets/.../vg):
- Categories are the 3 000 synsets that are counted most often over all objects, an object with several synsets
  counting for each. Objects with none or several synsets, or one outside the list, are dropped.
- A synset's name without its ending (".n.01"), "_" read as a space, is compared with COCO's names; of several
  synsets of one name the more frequent one is taken. Then come the 18 pairs of `MANUAL`, which go before.
- COCO's 80 come first, so that weights are sliced by position (ids 1 to 80); the other synsets follow in
  alphabetical order. A manual pair's synset outside the 3 000 is a category too, but one without objects.
- val: images whose `coco_id` is in COCO's minival; test: the last 5 000 images without a `coco_id`; train: the rest.

Ours, where the source leaves it open or is not followed: synsets counted equally often are taken in the order
they come in the file (Python 2's order was arbitrary); the first 80 are called as COCO calls them, so that they
are matched by name ("person", not "person.n.01.coco"; `synset` keeps the rest); annotations are numbered anew.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from model.files import first_few
from training.data.annotations import is_id, refuse
from training.datasets.coco_2014 import COCO_NAMES
from training.datasets.files import CocoWriter, image_ids, items_of_list, require_files

CLASSES = 3000
TEST_IMAGES = 5000
PARTS = ("train", "val", "test")

MANUAL: Mapping[str, str] = {
    "fire hydrant": "water_faucet.n.01", "stop sign": "sign.n.02", "handbag": "bag.n.04",
    "suitcase": "bag.n.06", "skis": "ski.n.01", "sports ball": "ball.n.01", "wine glass": "wineglass.n.01",
    "orange": "orange.n.01", "hot dog": "hotdog.n.01", "donut": "doughnut.n.02", "couch": "sofa.n.01",
    "potted plant": "plant.n.01", "dining table": "dinner_table.n.01", "tv": "television.n.01",
    "remote": "remote_control.n.01", "cell phone": "cellular_telephone.n.01", "teddy bear": "teddy.n.01",
    "hair drier": "hand_blower.n.01",
}  # fmt: skip
"""COCO's name -> synset: the 18 manual pairs, all of them the source's
(seg_every_thing 0bd7b8b, vg/step_2_build_vg3k_cocoaligned_json.py); none is ours."""


def write_visual_genome(
    source: Path,
    minival: Path,
    out: Path,
    *,
    classes: int = CLASSES,
    test_images: int = TEST_IMAGES,
    progress: Callable[[int], None] = lambda _: None,
) -> list[str]:
    """Convert image_data.json and objects.json of the folder `source` to `out`/vg3k_{train,val,test}.json.

    mask_classes.txt beside them names COCO's 80, the set A of the paper's experiment; there is no mask in any
    of the files, so they train detectors only. File names begin with VG_100K/ or VG_100K_2/. objects.json is
    read twice, image by image, so that memory stays small.

    Args:
        minival: instances_val2017.json, instances_minival2014.json or a text file of COCO image ids.
        progress: called with the number of images read since the last call.

    Returns:
        Lines on what was written and what was left out.

    Raises:
        ValueError: a file is missing or not of Visual Genome v1.4, or a COCO class has no synset.
    """
    data, objects = source / "image_data.json", source / "objects.json"
    require_files([data, objects], "Visual Genome v1.4")
    images = read_images(data)
    part_of = split_images(images, image_ids(minival), test_images=test_images)
    counts = count_synsets(objects, progress)
    frequent = [synset for synset, _ in counts.most_common(classes)]
    categories = aligned_categories(frequent)
    of_synset = {category["synset"]: category["id"] for category in categories}
    category_of = {synset: of_synset[synset] for synset in frequent}

    dropped: Counter[str] = Counter()
    with ExitStack() as stack:
        writers = {}
        for part in PARTS:
            path = out / f"vg3k_{part}.json"
            writer = CocoWriter(path, categories, description=f"Visual Genome v1.4, {part}")
            writers[part] = stack.enter_context(writer)
        for image_id, image in images.items():
            writers[part_of[image_id]].add_image(image)
        for image_id, found in _objects(objects, progress):
            for one in found:
                synsets = one["synsets"]
                if len(synsets) != 1:
                    dropped["several" if synsets else "none"] += 1
                elif synsets[0] not in category_of:
                    dropped["rare"] += 1
                elif image_id not in images:
                    dropped["image"] += 1
                else:
                    annotation = _annotation(one, image_id, category_of[synsets[0]])
                    writers[part_of[image_id]].add(annotation)
    names = "".join(f"{name}\n" for name in COCO_NAMES)
    (out / "mask_classes.txt").write_text(names, encoding="utf-8")
    kept = sum(writer.annotations for writer in writers.values())
    tallies = (
        f"{len(categories)} classes; {kept} objects kept; left out: {dropped['none']} without a synset, "
        f"{dropped['several']} with several, {dropped['rare']} of rarer synsets, {dropped['image']} of no image in "
        "image_data.json"
    )
    return [tallies, *map(str, writers.values())]


def read_images(path: Path) -> dict[int, dict[str, Any]]:
    """COCO entries of image_data.json by image id, in the file's order, with `coco_id` (None where there is none)."""
    images: dict[int, dict[str, Any]] = {}
    problems = []
    for number, entry in enumerate(items_of_list(path), start=1):
        if not isinstance(entry, Mapping) or not all(
            is_id(entry.get(key)) for key in ("image_id", "width", "height")
        ):
            problems.append(f"item {number}: {entry!r:.100}; expected image_id, width and height")
            continue
        parts = urlsplit(str(entry.get("url", ""))).path.split("/")[-2:]
        if len(parts) != 2 or not parts[0].startswith("VG_100K") or not parts[1]:
            problems.append(f"item {number}: url {entry.get('url')!r:.100}; expected .../VG_100K.../NAME.jpg")
        elif entry["image_id"] in images:
            problems.append(f"item {number}: a second image of the id {entry['image_id']}")
        else:
            images[entry["image_id"]] = {
                "id": entry["image_id"],
                "file_name": "/".join(parts),
                "width": entry["width"],
                "height": entry["height"],
                "coco_id": entry.get("coco_id"),
            }
    refuse(str(path), problems)
    if not images:
        raise ValueError(f"{path}: lists no image")
    return images


def split_images(
    images: Mapping[int, Mapping[str, Any]], minival: set[int], *, test_images: int = TEST_IMAGES
) -> dict[int, str]:
    """The part ("train", "val", "test") of every image id."""
    part_of = {i: "val" if image["coco_id"] in minival else "train" for i, image in images.items()}
    strangers = [i for i, image in images.items() if image["coco_id"] is None]
    part_of.update((i, "test") for i in (strangers[-test_images:] if test_images else []))
    return part_of


def count_synsets(path: Path, progress: Callable[[int], None] = lambda _: None) -> Counter[str]:
    """How often every synset is used in objects.json, in the order of first use."""
    counts: Counter[str] = Counter()
    for _, found in _objects(path, progress):
        for one in found:
            counts.update(one["synsets"])
    return counts


def aligned_categories(frequent: Sequence[str]) -> list[dict[str, Any]]:
    """Categories {"id", "name", "synset"} of the synsets, given most frequent first: COCO's 80, then the others.

    ValueError names COCO's classes for which neither a synset of their name nor a manual pair is there.
    """
    synset_of: dict[str, str] = {}
    for synset in reversed(frequent):  # so that of one name the more frequent synset stays
        synset_of[plain_name(synset)] = synset
    aligned = {name: MANUAL.get(name, synset_of.get(name)) for name in COCO_NAMES}
    missing = [name for name, synset in aligned.items() if synset is None]
    if missing:
        raise ValueError(
            f"no synset for {len(missing)} of COCO's 80 classes among the {len(frequent)} most frequent: "
            f"{first_few(missing)}; is objects.json whole?"
        )
    taken = [str(synset) for synset in aligned.values()]
    named = [*zip(COCO_NAMES, taken, strict=True), *((s, s) for s in sorted(set(frequent) - set(taken)))]
    return [{"id": n, "name": name, "synset": synset} for n, (name, synset) in enumerate(named, start=1)]


def plain_name(synset: str) -> str:
    """ "traffic_light.n.01" -> "traffic light"."""
    return synset[: -len(".n.01")].replace("_", " ")


def _objects(path: Path, progress: Callable[[int], None]) -> Iterator[tuple[int, list[Mapping[str, Any]]]]:
    """(image id, its objects) of every item of objects.json; ValueError names the item that has no such form."""
    for number, item in enumerate(items_of_list(path), start=1):
        found = item.get("objects") if isinstance(item, Mapping) else None
        if not isinstance(found, list) or not is_id(item.get("image_id")):
            raise ValueError(
                f"{path}: item {number}: {json.dumps(item):.100}; expected image_id and objects (v1.4)"
            )
        for one in found:
            synsets = one.get("synsets") if isinstance(one, Mapping) else None
            if not isinstance(synsets, list) or not all(isinstance(name, str) for name in synsets):
                raise ValueError(
                    f"{path}: image {item['image_id']}: object {json.dumps(one):.100}; expected synsets (v1.4)"
                )
        yield item["image_id"], found
        progress(1)


def _annotation(one: Mapping[str, Any], image_id: int, category_id: int) -> dict[str, Any]:
    sides = [one.get(key) for key in ("x", "y", "w", "h")]
    if not all(type(side) in (int, float) for side in sides):
        raise ValueError(
            f"image {image_id} of objects.json: an object at {sides}; expected x, y, w, h in numbers"
        )
    x, y, w, h = sides
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x, y, w, h],
        "area": w * h,  # type: ignore[operator]
        "iscrowd": 0,
        "segmentation": [],
        "object_id": one.get("object_id"),
    }
