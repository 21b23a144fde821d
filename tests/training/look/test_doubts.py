"""Every warning: none for a sound set, one for a set with its fault."""

import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

from tests.training.data.coco_set import annotation
from tests.training.look.made_set import SIDE, Document, MadeSets
from training.look import doubts
from training.look.doubts import twice


def test_of_sound_sets_nothing_is_warned(made: MadeSets, capsys: pytest.CaptureFixture[str]) -> None:
    assert made.warnings() == []
    assert "nothing to warn of" in capsys.readouterr().out


def without(*ids: int) -> Callable[[Document], None]:
    """Objects of these categories taken away."""

    def change(document: Document) -> None:
        document["annotations"] = [one for one in document["annotations"] if one["category_id"] not in ids]

    return change


def shifted(document: Document) -> None:
    for one in document["annotations"]:
        one["segmentation"] = [[v + 20 for v in one["segmentation"][0]]]


def shifted_runs(document: Document) -> None:
    for one in document["annotations"]:
        mask = np.zeros((SIDE, SIDE), np.uint8, order="F")
        x, y, w, h = map(int, one["bbox"])
        mask[max(y - 8, 0) : y + h, x : x + w] = 1
        counts = mask_utils.encode(mask)["counts"].decode()
        one["segmentation"] = {"size": [SIDE, SIDE], "counts": counts}


def one_class(document: Document) -> None:
    more = range(1000, 1400)
    document["annotations"] += [annotation(i, i % 6, 1, [5.0, 5.0, 20.0, 20.0]) for i in more]


def doubled(document: Document) -> None:
    document["annotations"].append(document["annotations"][4] | {"id": 900})


def outside(document: Document) -> None:
    for one in document["annotations"][::3]:
        one["bbox"][0] = 500.0


def maskless(document: Document) -> None:
    for one in document["annotations"][::3][:3]:  # three bricks
        one["segmentation"] = []


def no_mask_of_a_class(document: Document) -> None:
    for one in document["annotations"]:
        one["segmentation"] = [] if one["category_id"] == 2 else one["segmentation"]


def repeated(document: Document) -> None:
    document["images"].append({**document["images"][0], "id": 99})
    document["annotations"].append(annotation(500, 99, 1, [5.0, 5.0, 20.0, 20.0]))


FAULTS: list[tuple[str, dict[str, Any], list[str]]] = [
    ("no object of A", {"train": without(1)}, ["1 class has no object, so nothing is learnt of it: brick"]),
    ("no object of B", {"train": without(3)}, ["1 class has no object, so nothing is learnt of it: slab"]),
    ("no object of two", {"train": without(1, 3)}, ["2 classes have no object", "of set A: brick"]),
    ("no mask", {"train": no_mask_of_a_class}, ["1 class of set A has objects and not one mask: tile"]),
    ("lost masks", {"train": maskless}, ["training set: 25 % of the objects of classes with masks have none"]),
    ("lost boxes", {"val": outside}, ["validation set: 33 % of its annotations are left out"]),
    ("one class", {"train": one_class}, ["97 % of the objects are of one class, brick"]),
    ("masks shifted", {"train": shifted}, ["12 of 12 masks (100 %) leave their boxes; first: in image 0"]),
    ("runs shifted", {"val": shifted_runs}, ["validation set: 12 of 12 masks (100 %) leave their boxes"]),
    ("unseen", {"train": without(2)}, ["1 class has objects in validation and none in training: tile"]),
    ("unjudged", {"val": without(2)}, ["1 class has objects in training and none in validation", ": tile"]),
    ("more classes", {"train": lambda d: d["categories"].append({"id": 9, "name": "roof"})},
     ["only the training set lists roof (4 classes there, 3 in the validation set)"]),
    ("other classes", {"val": lambda d: d["categories"].append({"id": 9, "name": "roof"})},
     ["only the validation set lists roof (4 classes there, 3 in the training set)"]),
    ("objects repeated", {"train": doubled},
     ["1 of 19 objects have the class and box of another in their image; first: tile in image 1"]),
    ("entry repeated", {"train": repeated}, ["training set: 1 image is there more than once, under several"]),
    ("val repeated", {"val": repeated}, ["validation set: 1 image is there more than once, under several"]),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "words"), [fault[1:] for fault in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_fault_is_warned_of(made: MadeSets, changes: dict[str, Any], words: list[str]) -> None:
    said = made.warnings(**changes)
    for part in words:
        assert sum(part in one for one in said) == 1, said


def test_a_few_masks_beyond_their_boxes_are_no_convention(
    made: MadeSets, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slip(document: Document) -> None:
        document["annotations"][0]["segmentation"] = [[0, 0, 60, 0, 60, 60, 0, 60]]

    assert any("leave their boxes" in one for one in made.warnings(train=slip))  # 1 of 12
    monkeypatch.setattr(doubts, "LEAVING", 0.1)
    assert not made.warnings(train=slip)


def test_a_mask_cut_with_its_box_at_the_edge_of_the_image_does_not_leave_it(made: MadeSets) -> None:
    def over_the_edge(document: Document) -> None:
        for one in document["annotations"]:
            one.update(annotation(one["id"], one["image_id"], one["category_id"], [40.0, 10.0, 50.0, 20.0]))

    assert not any("leave their boxes" in one for one in made.warnings(train=over_the_edge))


def test_of_many_masks_a_sample_is_looked_at(made: MadeSets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doubts, "MASKS_LOOKED_AT", 5)
    assert any("5 of 5 masks looked at (100 %)" in one for one in made.warnings(train=shifted))


# ---- the same image twice ----


def test_files_of_the_same_bytes_are_found_within_a_set_and_across(made: MadeSets) -> None:
    shutil.copy(made.folder / "train" / "train0.png", made.folder / "train" / "train3.png")
    shutil.copy(made.folder / "train" / "train1.png", made.folder / "val" / "val5.png")
    said = made.warnings()
    assert len(said) == 2
    assert "training set: 1 image is there more than once, as files with the same bytes" in said[0]
    assert "train0.png" in said[0] and "train3.png" in said[0]
    assert "1 image of the validation set is in the training set too" in said[1]
    assert "val5.png is " in said[1] and "train1.png" in said[1]


def test_a_set_that_judges_itself_is_named_without_opening_an_image() -> None:
    said = twice(["/a/1.png", "/a/2.png"], ["/a/2.png", "/b/1.png"], open_images=False)
    assert len(said) == 1 and said[0].startswith("1 image of the validation set is in the training set too")
    assert said[0].endswith("first: /a/2.png")
    assert not twice(["/a/1.png", "/a/2.png"], ["/b/1.png"], open_images=False)


def test_files_of_one_length_and_end_that_differ_before_are_two_images(made: MadeSets) -> None:
    paths = [str(made.folder / name) for name in ("one", "other", "same")]
    for path, first in zip(paths, b"aba", strict=True):
        with open(path, "wb") as file:
            file.write(bytes([first]) + bytes(10_000))
    assert not twice(paths[:1], paths[1:2])
    assert len(twice(paths[:1], paths[1:])) == 1


def test_at_the_start_of_a_training_only_files_of_one_name_are_compared(made: MadeSets) -> None:
    train, val = made.folder / "train" / "train1.png", made.folder / "val"
    shutil.copy(train, val / "other.png")
    shutil.copy(train, val / "train1.png")
    for name, found in (("other.png", 0), ("train1.png", 1)):
        assert len(twice([str(train)], [str(val / name)], all_images=False)) == found
        assert len(twice([str(train)], [str(val / name)])) == 1


# ---- how bright pictures are ----


def redrawn(made: MadeSets, count: int, low: int, high: int, dtype: Any = np.uint8) -> None:
    random = np.random.default_rng(1)
    for number in range(count):
        shape = (SIDE, SIDE) if dtype is np.uint16 else (SIDE, SIDE, 3)
        pixels = random.integers(low, high, shape).astype(dtype)
        Image.fromarray(pixels).save(made.folder / "train" / f"train{number}.png")


def test_pictures_that_come_out_nearly_black_are_warned_of(made: MadeSets) -> None:
    redrawn(made, 4, 0, 4096, np.uint16)
    (said,) = made.warnings()
    assert "training set: 4 of 6 images looked at use a small part of their range" in said
    assert "nearly black" in said


def test_pale_pictures_too_and_a_few_dark_ones_are_nights(made: MadeSets) -> None:
    redrawn(made, 3, 0, 16)
    assert not made.warnings()
    redrawn(made, 4, 200, 216)
    (said,) = made.warnings()
    assert "4 of 6 images looked at use a small part of their range" in said and "little contrast" in said


def test_a_picture_of_one_colour_is_warned_of(made: MadeSets) -> None:
    Image.new("RGB", (SIDE, SIDE), (10, 90, 200)).save(made.folder / "train" / "train0.png")
    (said,) = made.warnings()
    assert "1 of 6 images looked at are of one colour throughout" in said and "train0.png" in said


def test_a_picture_that_does_not_decode_is_warned_of(made: MadeSets) -> None:
    path = made.folder / "val" / "val2.png"
    path.write_bytes(path.read_bytes()[:-3000])
    (said,) = made.warnings()
    assert "validation set: 1 of 6 images looked at do not decode; first: " in said and "val2.png" in said
