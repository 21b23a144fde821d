"""Small data sets in their original formats: COCO 2014, LVIS v1, PASCAL VOC 2012, Visual Genome v1.4, Cityscapes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.training.data.coco_set import annotation
from training.datasets.coco_2014 import COCO_NAMES
from training.datasets.visual_genome import MANUAL

WIDTH, HEIGHT = 80, 64
Json = Any
COCO_IDS = tuple(i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
"""Category ids of COCO's 80 classes: 1 to 90 with ten holes."""


def write_json(path: Path, contents: Json) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(contents), encoding="utf-8")
    return path


def write_picture(path: Path, seed: int = 0) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def object_of(number: int, image: int, category: int, x: int = 10, y: int = 8, side: int = 20) -> Json:
    return annotation(number, image, category, [x, y, side, side])


COCO_CATEGORIES = [
    {"id": i, "name": name, "supercategory": "thing"} for i, name in zip(COCO_IDS, COCO_NAMES, strict=True)
]


def write_coco_2014(root: Path) -> None:
    """`root`/coco: train2014 with images 1 and 2, val2014 with 3, 4 and 5, of which 2017's val has 4."""
    folder = root / "coco"
    for part, numbers in (("train2014", (1, 2)), ("val2014", (3, 4, 5))):
        images = []
        for number in numbers:
            name = f"COCO_{part}_{number:012d}.jpg"
            write_picture(folder / part / name, number)
            images.append({"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT})
        found = [object_of(100 + number, number, COCO_IDS[number]) for number in numbers]
        contents = {"images": images, "annotations": found, "categories": COCO_CATEGORIES}
        write_json(folder / "annotations" / f"instances_{part}.json", contents)
    write_json(folder / "annotations" / "instances_val2017.json", {"images": [{"id": 4}]})


def write_lvis(root: Path) -> None:
    """`root`/lvis: train with an image of train2017, val with one of each of COCO's folders."""
    categories = [
        {"id": 1, "name": "aerosol_can", "synset": "aerosol.n.02", "frequency": "c"},
        {"id": 793, "name": "person", "synset": "person.n.01", "frequency": "f"},
    ]
    for part, places in (("train", {9: "train2017"}), ("val", {25: "train2017", 139: "val2017"})):
        images = []
        for number, folder in places.items():
            name = f"{folder}/{number:012d}.jpg"
            write_picture(root / "coco" / name, number)
            images.append(
                {"id": number, "coco_url": f"http://images.cocodataset.org/{name}", "width": WIDTH, "height": HEIGHT,
                 "neg_category_ids": [1], "not_exhaustive_category_ids": []}
            )  # fmt: skip
        found = []
        for count, number in enumerate(places, start=1):
            one = object_of(count, number, 793)
            del one["iscrowd"]
            found.append(one)
        write_json(
            root / "lvis" / f"lvis_v1_{part}.json",
            {"images": images, "annotations": found, "categories": categories, "licenses": [], "info": {}},
        )


# ---- PASCAL VOC ----

VOC_PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0] + [224, 224, 192] * 252


def bordered(indices: NDArray[np.uint8], x: int, y: int, width: int, height: int, index: int) -> None:
    """A filled rectangle of an index with a border of 255, one pixel wide, around it."""
    indices[y - 1 : y + height + 1, x - 1 : x + width + 1] = 255
    indices[y : y + height, x : x + width] = index


def write_indices(path: Path, indices: NDArray[np.uint8]) -> None:
    picture = Image.frombytes("P", (indices.shape[1], indices.shape[0]), indices.tobytes())
    picture.putpalette(VOC_PALETTE)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def voc_object(name: str, x0: int, y0: int, x1: int, y1: int, more: str = "") -> str:
    return (
        f"<object><name>{name}</name><pose>Left</pose><truncated>0</truncated>"
        f"<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>{more}"
        f"<bndbox><xmax>{x1}</xmax><xmin>{x0}</xmin><ymax>{y1}</ymax><ymin>{y0}</ymin></bndbox></object>"
    )


def voc_xml(stem: str, objects: list[str]) -> str:
    return (
        f"<annotation><folder>VOC2012</folder><filename>{stem}.jpg</filename>"
        f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size><segmented>1</segmented>"
        f"{''.join(objects)}</annotation>"
    )


def write_voc(root: Path) -> Path:
    """`root`/VOCdevkit/VOC2012: 2007_000027 (a person before a dog, a difficult chair) and 2008_000002 (a boat, no mask
    picture) in train, 2009_000001 (a cat) in val. Returns the devkit's folder.
    """
    devkit = root / "VOCdevkit" / "VOC2012"
    pictures = {
        "2007_000027": [
            voc_object("person", 11, 9, 30, 40),
            voc_object("dog", 41, 21, 60, 50, "<difficult>0</difficult>"),
            voc_object("chair", 66, 6, 75, 15, "<difficult>1</difficult>"),
        ],
        "2008_000002": [voc_object("boat", 5, 5, 40, 40)],
        "2009_000001": [voc_object("cat", 11, 11, 50, 50)],
    }
    for number, (stem, objects) in enumerate(pictures.items()):
        write_picture(devkit / "JPEGImages" / f"{stem}.jpg", number)
        (devkit / "Annotations").mkdir(parents=True, exist_ok=True)
        (devkit / "Annotations" / f"{stem}.xml").write_text(voc_xml(stem, objects))
    # Palette indices of classes: person 15, dog 12, chair 9, cat 8.
    masks = {
        "2007_000027": [(15, (12, 10, 17, 29)), (12, (42, 22, 17, 27)), (9, (67, 7, 7, 7))],
        "2009_000001": [(8, (12, 12, 37, 37))],
    }
    for stem, drawn in masks.items():
        instances, classes = np.zeros((2, HEIGHT, WIDTH), np.uint8)
        for index, (category, place) in enumerate(drawn, start=1):
            bordered(instances, *place, index)
            bordered(classes, *place, category)
        write_indices(devkit / "SegmentationObject" / f"{stem}.png", instances)
        write_indices(devkit / "SegmentationClass" / f"{stem}.png", classes)
    for image_set, train in (("Segmentation", ["2007_000027"]), ("Main", ["2007_000027", "2008_000002"])):
        folder = devkit / "ImageSets" / image_set
        folder.mkdir(parents=True)
        (folder / "train.txt").write_text("".join(f"{stem}\n" for stem in train))
        (folder / "val.txt").write_text("2009_000001\n")
    return devkit


# ---- Visual Genome ----


def vg_object(number: int, synsets: list[str], x: int = 10, y: int = 8, side: int = 20) -> Json:
    return {"object_id": number, "synsets": synsets, "names": ["thing"], "merged_object_ids": [],
            "x": x, "y": y, "w": side, "h": side}  # fmt: skip


def vg_synsets() -> list[str]:
    """One synset for each of COCO's classes, in COCO's order: the manual pair's, or that of the name."""
    return [MANUAL.get(name, f"{name.replace(' ', '_')}.n.01") for name in COCO_NAMES]


def write_visual_genome(root: Path, *, images: int = 8) -> None:
    """`root`/vg: every image has one object of each of COCO's 80 classes; trees in all, a rare dune in one.

    Image 1 is COCO's 4 (minival), image 2 COCO's 77, the others are not in COCO. Pictures of odd numbers lie in
    VG_100K_2.
    """
    folder = root / "vg"
    data, objects = [], []
    count = 0
    for number in range(1, images + 1):
        place = f"{'VG_100K_2' if number % 2 else 'VG_100K'}/{number}.jpg"
        write_picture(folder / place, number)
        url, coco_id = f"https://cs.stanford.edu/people/rak248/{place}", {1: 4, 2: 77}.get(number)
        ids = {"image_id": number, "coco_id": coco_id, "flickr_id": None}
        data.append({**ids, "url": url, "width": WIDTH, "height": HEIGHT})
        synsets = [[synset] for synset in vg_synsets()] + [["tree.n.01"]] * 3
        synsets += [[], ["tree.n.01", "plant.n.02"]]
        synsets += [["dune.n.01"]] if number == 3 else []
        found = []
        for place_of, names in enumerate(synsets):
            count += 1
            found.append(vg_object(count, names, x=place_of % 50, y=place_of % 40, side=12 + place_of % 8))
        objects.append({"image_id": number, "objects": found, "image_url": data[-1]["url"]})
    write_json(folder / "image_data.json", data)
    write_json(folder / "objects.json", objects)


def write_cityscapes(root: Path) -> None:
    """`root`/cityscapes: two images of aachen to train on, one of lindau as val; made-up ids."""
    for part, city, number in (("train", "aachen", 0), ("train", "aachen", 1), ("val", "lindau", 0)):
        stem = f"{city}/{city}_{number:06d}_000019"
        folder = root / "cityscapes"
        write_picture(folder / "leftImg8bit" / part / f"{stem}_leftImg8bit.png", number)
        ids = np.full((HEIGHT, WIDTH), 7, np.uint16)  # road
        ids[:, :3] = 1  # the own car: void
        ids[50:60, 10:30] = 26  # a group of cars
        ids[20:40, 5:25] = 26000  # a car
        ids[24:36, 30:42] = 24000 + number  # a person
        ids[20:24, 60:70] = 29001  # a caravan, which is not evaluated
        path = folder / "gtFine" / part / f"{stem}_gtFine_instanceIds.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ids).save(path)
