"""The drawn data set: same pixels for same seed, true COCO records, classes that decide what belongs."""

import hashlib
import json
import multiprocessing
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from training.drawn import shapes_drawing, write
from training.drawn.__main__ import main
from training.drawn.shapes import ShapesConfig, rectangles, run_lengths, write_shapes
from training.drawn.shapes_drawing import Drawing, box_iou, draw
from training.drawn.shapes_forms import CLASSES, COLOURS, FORMS
from training.drawn.write import SPLITS, mask_box

# Drawn anew from the same seed, these must come out the same on every machine. A wanted change of the
# drawing changes them.
PIXELS_OF_SEED_0 = "ad6f70b728c4c5d6f7b5463d66c873dc7fdbb45f6b5249d861086e8058556ba0"
MASKS_OF_SEED_0 = "583970f45fd13d470819a5cc3e6a26c52f15c6cfd4d0e27435efeb2016ca5f06"

# pycocotools 2.0.11 decodes by an array protocol that numpy 2 has marked as old.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SMALL = ShapesConfig(train=60, val=12, seed=0)


@pytest.fixture(scope="module")
def drawings() -> list[Drawing]:
    return [draw(seed=0, split=1, index=index, side=128, crowds=False) for index in range(150)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shapes") / "set"
    assert write_shapes(out, SMALL, workers=2)
    return out


def dense(segmentation: Any, size: int = 128) -> np.ndarray:
    """Any COCO segmentation as bool [size, size], by pycocotools."""
    if isinstance(segmentation, list):
        encoded = coco_mask.merge(coco_mask.frPyObjects(segmentation, size, size))
    elif isinstance(segmentation["counts"], list):
        encoded = coco_mask.frPyObjects(segmentation, size, size)
    else:
        encoded = segmentation
    return np.asarray(coco_mask.decode(encoded), dtype=bool)


def test_the_same_seed_gives_the_same_pixels_and_masks_on_every_machine() -> None:
    pixels, masks = hashlib.sha256(), hashlib.sha256()
    for index in range(12):
        drawing = draw(seed=0, split=0, index=index, side=128, crowds=True)
        pixels.update(drawing.pixels.tobytes())
        for drawn in drawing.objects:
            masks.update(f"{drawn.category.name} {drawn.pair} {drawn.crowd}".encode())
            masks.update(np.packbits(drawn.mask).tobytes())
    assert masks.hexdigest() == MASKS_OF_SEED_0
    assert pixels.hexdigest() == PIXELS_OF_SEED_0


@pytest.mark.parametrize("other", [{"seed": 1}, {"split": 1}, {"index": 8}])
def test_another_seed_split_or_index_gives_another_image(other: dict[str, int]) -> None:
    arguments = {"seed": 0, "split": 0, "index": 7}
    one = draw(**arguments, side=128, crowds=False)
    assert not np.array_equal(one.pixels, draw(**{**arguments, **other}, side=128, crowds=False).pixels)


def test_set_a_is_half_of_the_classes_and_meets_every_colour_and_form_equally() -> None:
    assert len(CLASSES) == len({c.id for c in CLASSES}) == len({c.name for c in CLASSES}) == 48
    set_a = [c for c in CLASSES if c.has_mask]
    assert Counter(c.colour for c in set_a) == dict.fromkeys(COLOURS, 3)
    assert Counter(c.form for c in set_a) == dict.fromkeys(FORMS, 4)


@pytest.mark.parametrize("has_mask", [True, False])
def test_each_set_hangs_together_through_shared_colours_and_forms(has_mask: bool) -> None:
    """A plain checkerboard would fall into two halves that share nothing."""
    classes = [c for c in CLASSES if c.has_mask is has_mask]
    reached = {classes[0].colour, classes[0].form}
    for _ in classes:
        for c in classes:
            if c.colour in reached or c.form in reached:
                reached |= {c.colour, c.form}
    assert reached == set(COLOURS) | set(FORMS)


def test_category_ids_have_holes() -> None:
    ids = [c.id for c in CLASSES]
    assert ids == sorted(ids) and max(ids) > len(ids)


def test_every_object_keeps_enough_visible_pixels_and_no_pixel_has_two_owners(
    drawings: list[Drawing],
) -> None:
    for drawing in drawings:
        owners = sum((drawn.mask.astype(int) for drawn in drawing.objects), np.zeros((128, 128), dtype=int))
        assert owners.max() <= 1
        assert all(drawn.mask.sum() >= shapes_drawing.MIN_PIXELS for drawn in drawing.objects)


def test_most_objects_come_in_pairs_of_different_colour_and_form_in_nearly_one_box(
    drawings: list[Drawing],
) -> None:
    paired = total = 0
    ious = []
    for drawing in drawings:
        total += len(drawing.objects)
        pairs: dict[int, list[shapes_drawing.DrawnObject]] = {}
        for drawn in drawing.objects:
            if drawn.pair is not None:
                pairs.setdefault(drawn.pair, []).append(drawn)
        for one, other in pairs.values():
            paired += 2
            assert one.category.colour != other.category.colour and one.category.form != other.category.form
            ious.append(box_iou(mask_box(one.mask), mask_box(other.mask)))
    assert 0.6 <= paired / total <= 0.75
    assert 0.7 <= float(np.mean(ious)) <= 0.9 and min(ious) > 0.5


def test_the_boxes_of_set_b_are_less_than_half_filled(drawings: list[Drawing]) -> None:
    fills = []
    for drawing in drawings:
        for drawn in drawing.objects:
            left, top, right, bottom = mask_box(drawn.mask)
            if not drawn.category.has_mask:
                fills.append(drawn.mask.sum() / ((right - left) * (bottom - top)))
    assert 0.3 < np.mean(fills) < 0.5


def test_objects_are_small_and_large_and_images_hold_none_to_six(drawings: list[Drawing]) -> None:
    counts = Counter(len(drawing.objects) for drawing in drawings)
    assert set(counts) <= {0, 1, 2, 3, 4, 5, 6} and counts[2] and counts[6]
    sides = [max(b[2] - b[0], b[3] - b[1]) for d in drawings for b in (mask_box(o.mask) for o in d.objects)]
    assert min(sides) < 24 and max(sides) > 80
    assert any(not draw(seed=0, split=0, index=i, side=128, crowds=False).objects for i in range(150))


def plain_shape(form: str, seed: int) -> shapes_drawing._Shape:
    random = np.random.Generator(np.random.PCG64(seed))
    return shapes_drawing._rasterise(form, shapes_drawing._Box(64.0, 64.0, 80.0, 80.0), 128, random)


def test_a_pane_belongs_to_the_window_but_not_to_the_ring_it_is_seen_through() -> None:
    panes = [plain_shape("ring", seed) for seed in range(12)]
    assert not any(ring.mask[64, 64] for ring in panes)
    assert any(ring.pane.max() == 1.0 for ring in panes) and any(ring.pane.max() == 0.0 for ring in panes)
    window = plain_shape("window", 0)
    assert window.mask[64, 64] and window.pane.max() == 1.0


def test_a_handle_belongs_to_the_cup_but_a_ball_of_its_colour_does_not_belong_to_the_gate() -> None:
    cup, gate = plain_shape("cup", 0), plain_shape("gate", 0)
    left, _, right, _ = mask_box(cup.mask)
    assert right - left >= 76  # the body alone is 0.68 of the 80 pixels
    assert gate.stray.max() == 1.0
    ball = np.zeros_like(gate.mask)
    ball[gate.window] = gate.stray > 0.5
    assert ball.sum() > 100 and not (ball & gate.mask).any()
    left, top, right, bottom = mask_box(ball)
    outer = mask_box(gate.mask)
    assert (
        outer[0] < left and outer[1] < top and right < outer[2] and bottom < outer[3]
    )  # the box does not tell


def test_run_lengths_and_rectangles_give_any_mask_back_exactly() -> None:
    random = np.random.default_rng(0)
    masks = [random.random((9, 7)) < share for share in (0.0, 0.2, 0.5, 0.9, 1.0)]
    for mask in masks:
        counts = run_lengths(mask)
        assert sum(counts) == mask.size
        assert np.array_equal(
            coco_mask.decode(coco_mask.frPyObjects({"size": [9, 7], "counts": counts}, 9, 7)), mask
        )
        if mask.any():
            polygons = coco_mask.frPyObjects(rectangles(mask), 9, 7)
            assert np.array_equal(coco_mask.decode(coco_mask.merge(polygons)), mask)
    assert rectangles(masks[0]) == []


@pytest.mark.parametrize("split", ["train", "val"])
def test_pycocotools_reads_what_was_drawn(folder: Path, split: str) -> None:
    coco = COCO(folder / f"{split}.json")
    number = SPLITS.index(split)
    assert len(coco.imgs) == getattr(SMALL, split)
    for image in coco.imgs.values():
        drawing = draw(seed=0, split=number, index=image["id"] - 1, side=128, crowds=split == "train")
        with Image.open(folder / split / image["file_name"]) as file:
            assert np.array_equal(np.asarray(file), drawing.pixels)
        annotations = coco.imgToAnns[image["id"]]
        assert len(annotations) == len(drawing.objects)
        for annotation, drawn in zip(annotations, drawing.objects, strict=True):
            assert np.array_equal(dense(annotation["segmentation"]), drawn.mask)
            left, top, right, bottom = mask_box(drawn.mask)
            assert annotation["bbox"] == [left, top, right - left, bottom - top]
            assert annotation["area"] == drawn.mask.sum()
            assert coco.cats[annotation["category_id"]]["name"] == drawn.category.name


def test_training_carries_every_form_of_segmentation_and_validation_compressed_run_lengths_only(
    folder: Path,
) -> None:
    def forms(split: str) -> set[str]:
        found = set()
        for a in json.loads((folder / f"{split}.json").read_text())["annotations"]:
            segmentation = a["segmentation"]
            kind = "polygon" if isinstance(segmentation, list) else type(segmentation["counts"]).__name__
            found.add("crowd" if a["iscrowd"] else kind)
        return found

    assert forms("train") == {"polygon", "list", "str", "crowd"}
    assert forms("val") == {"str"}


def test_mask_classes_lists_the_names_of_set_a(folder: Path) -> None:
    names = (folder / "mask_classes.txt").read_text().splitlines()
    assert names == [c.name for c in CLASSES if c.has_mask]


def test_the_number_of_processes_changes_nothing(folder: Path, tmp_path: Path) -> None:
    write_shapes(tmp_path / "alone", SMALL, workers=1)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert len(files) == 72 + 4
    assert all((folder / name).read_bytes() == (tmp_path / "alone" / name).read_bytes() for name in files)


def test_a_second_run_with_the_same_arguments_does_nothing_but_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["shapes", "--out", str(tmp_path / "set"), "--train", "2", "--val", "1", "--workers", "1"]
    assert main(arguments) == 0
    (tmp_path / "set" / "mark").touch()
    assert main(arguments) == 0
    assert (tmp_path / "set" / "mark").exists() and "nothing to do" in capsys.readouterr().out
    assert main([*arguments, "--seed", "5"]) == 0
    assert not (tmp_path / "set" / "mark").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_an_interrupted_run_leaves_the_earlier_data_set_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "set"
    write_shapes(out, ShapesConfig(train=2, val=1), workers=1)
    before = (out / "train.json").read_bytes()

    def interrupted(task: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(write, "_write_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_shapes(out, ShapesConfig(train=3, val=1), workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert (out / "train.json").read_bytes() == before
    assert multiprocessing.active_children() == []


def test_a_folder_that_is_no_drawn_data_set_is_never_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photo.jpg").touch()
    assert main(["shapes", "--out", str(tmp_path), "--train", "1", "--val", "1", "--workers", "1"]) == 2
    assert "is no drawn data set" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


@pytest.mark.parametrize("wrong", [{"train": 0}, {"val": 0}, {"seed": -1}, {"size": 32}])
def test_numbers_out_of_range_are_refused_by_name(wrong: dict[str, int]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        ShapesConfig(**wrong)


@pytest.mark.parametrize("side", [64, 200])
def test_other_sides_are_drawn_too(side: int) -> None:
    drawing = draw(seed=3, split=0, index=0, side=side, crowds=False)
    assert drawing.pixels.shape == (side, side, 3)
    assert all(drawn.mask.shape == (side, side) for drawn in drawing.objects)
