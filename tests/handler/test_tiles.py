"""Large images in tiles: where tiles lie, and that an object which their borders cut is found once and whole."""

import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from maskx_answer import Detections, mask_areas
from maskx_errors import MaskxError
from maskx_parameters import Tiling
from maskx_service import Service
from maskx_settings import Limits
from maskx_tiles import Tile, joined, tiles_of
from tests.served.standin import png, scene

HEIGHT, WIDTH = 300, 420
TILING = Tiling(128, 40)


def run_lengths(mask: np.ndarray) -> np.ndarray:
    flat = np.concatenate([[0], mask.T.reshape(-1).astype(np.int8), [2]])
    borders = np.flatnonzero(np.diff(flat))
    if mask.T.reshape(-1)[-1] == 0:
        borders = np.append(borders[borders < mask.size], mask.size)
    return np.diff(borders, prepend=0)


def detections(masks: Sequence[np.ndarray], labels: Sequence[int], scores: Sequence[float]) -> Detections:
    """What a network that makes no mistakes says of masks."""
    boxes = []
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    counts = [run_lengths(mask) for mask in masks]
    return Detections(
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        scores=np.array(scores, np.float32),
        labels=np.array(labels, np.int64),
        rle_counts=np.concatenate([np.zeros(0, np.int64), *counts]),
        rle_offsets=np.cumsum([0, *map(len, counts)]),
    )


def seen_in(tile: Tile, masks: Sequence[np.ndarray], labels: Sequence[int]) -> Detections:
    """What that network says of a tile: the parts of at least 12 pixels that it sees."""
    parts = [mask[tile.top : tile.bottom, tile.left : tile.right] for mask in masks]
    there = [i for i, part in enumerate(parts) if part.sum() >= 12]
    scores = [parts[i].sum() / masks[i].sum() * 0.9 for i in there]
    return detections([parts[i] for i in there], [labels[i] for i in there], scores)


def drawn(found: Detections) -> list[np.ndarray]:
    masks = []
    for begin, end in itertools.pairwise(found.rle_offsets):
        counts = found.rle_counts[begin:end]
        inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
        masks.append(inside.reshape(WIDTH, HEIGHT).T)
    return masks


def ellipse(x: float, y: float, a: float, b: float) -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return ((columns - x) / a) ** 2 + ((rows - y) / b) ** 2 <= 1


@pytest.mark.parametrize(
    ("height", "width", "tiling", "count"),
    [(100, 90, Tiling(128, 16), 1), (128, 129, Tiling(128, 16), 2), (1000, 3000, Tiling(1000, 100), 4)],
)
def test_tiles_cover_the_image_with_the_overlap_that_was_asked_for(
    height: int, width: int, tiling: Tiling, count: int
) -> None:
    tiles = tiles_of(height, width, tiling, most=100)
    assert len(tiles) == count
    covered = np.zeros((height, width), np.int64)
    for tile in tiles:
        assert 0 <= tile.top < tile.bottom <= height and 0 <= tile.left < tile.right <= width
        covered[tile.top : tile.bottom, tile.left : tile.right] += 1
    assert covered.min() == 1
    for one, other in itertools.pairwise(tiles):
        if one.top == other.top:
            assert one.right - other.left >= tiling.overlap


@pytest.mark.parametrize("seed", range(8))
def test_every_object_is_found_once_with_the_very_mask_that_it_has(seed: int) -> None:
    random = np.random.default_rng(seed)
    places = [(x, y) for x in range(35, WIDTH, 70) for y in range(35, HEIGHT, 75)]
    masks = [
        ellipse(x + random.uniform(-5, 5), y + random.uniform(-5, 5), *random.uniform(6, 28, 2))
        for x, y in places
    ]
    labels = random.integers(1, 4, len(masks)).tolist()
    tiles = tiles_of(HEIGHT, WIDTH, TILING, most=100)
    found = joined(
        [seen_in(tile, masks, labels) for tile in tiles], tiles, height=HEIGHT, width=WIDTH, most=100
    )
    assert len(found.scores) == len(masks)
    assert np.all(np.diff(found.scores) <= 0)
    assert mask_areas(found.rle_counts, found.rle_offsets, height=HEIGHT, width=WIDTH).sum() > 0
    whole = {mask.tobytes(): label for mask, label in zip(masks, labels, strict=True)}
    assert {
        mask.tobytes(): label for mask, label in zip(drawn(found), found.labels.tolist(), strict=True)
    } == whole


def test_an_object_over_many_tiles_is_one_and_has_a_box_around_all_of_it() -> None:
    mask = ellipse(210, 150, 190, 120)
    tiles = tiles_of(HEIGHT, WIDTH, TILING, most=100)
    assert len(tiles) > 9
    found = joined([seen_in(t, [mask], [2]) for t in tiles], tiles, height=HEIGHT, width=WIDTH, most=100)
    (whole,) = drawn(found)
    assert np.array_equal(whole, mask)
    assert np.array_equal(found.boxes, detections([mask], [2], [1]).boxes)


def test_neighbours_of_one_category_that_overlap_in_the_zone_alone_by_their_boxes_stay_two() -> None:
    left, right = ellipse(98, 60, 20, 18), ellipse(139, 60, 20, 18)
    tiles = tiles_of(HEIGHT, WIDTH, TILING, most=100)
    found = joined(
        [seen_in(t, [left, right], [1, 1]) for t in tiles], tiles, height=HEIGHT, width=WIDTH, most=100
    )
    assert len(found.scores) == 2


def test_a_piece_that_a_tile_cut_off_and_called_by_another_name_is_left_out() -> None:
    mask = ellipse(120, 60, 30, 20)  # its left end alone, in the overlap, lies in the first tile
    tiles = [Tile(0, 0, 300, 110), Tile(0, 70, 300, 420)]
    piece = seen_in(tiles[0], [mask], [1])
    whole = seen_in(tiles[1], [mask], [2])
    found = joined([piece, whole], tiles, height=HEIGHT, width=WIDTH, most=10)
    assert found.labels.tolist() == [2]
    apart = joined([whole], tiles[1:], height=HEIGHT, width=WIDTH, most=10)
    assert apart is whole


def test_another_category_in_the_same_place_stays_where_no_border_cut_it() -> None:
    person, shirt = ellipse(100, 60, 14, 22), ellipse(100, 62, 13, 15)
    tiles = [Tile(0, 0, 300, 150), Tile(0, 60, 300, 420)]
    found = joined(
        [seen_in(t, [person, shirt], [1, 2]) for t in tiles], tiles, height=HEIGHT, width=WIDTH, most=10
    )
    assert sorted(found.labels.tolist()) == [1, 2]


def test_no_more_than_the_best_that_were_asked_for_come_back() -> None:
    masks = [ellipse(x, 60, 12, 12) for x in (60, 160, 260)]
    tiles = tiles_of(HEIGHT, WIDTH, TILING, most=100)
    found = joined([seen_in(t, masks, [1, 2, 3]) for t in tiles], tiles, height=HEIGHT, width=WIDTH, most=2)
    assert len(found.scores) == 2 and len(found.rle_offsets) == 3


def test_boxes_alone_are_joined_where_no_masks_were_asked_for() -> None:
    mask = ellipse(120, 60, 60, 30)
    tiles = tiles_of(HEIGHT, WIDTH, TILING, most=100)
    parts = []
    for tile in tiles:
        part = seen_in(tile, [mask], [1])
        none = np.zeros(0, np.int64)
        parts.append(
            Detections(
                boxes=part.boxes,
                scores=part.scores,
                labels=part.labels,
                rle_counts=none,
                rle_offsets=np.zeros(len(part.scores) + 1, np.int64),
            )
        )
    found = joined(parts, tiles, height=HEIGHT, width=WIDTH, most=10)
    assert np.array_equal(found.boxes, detections([mask], [1], [1]).boxes)
    assert len(found.rle_counts) == 0 and found.rle_offsets.tolist() == [0, 0]


# ---- through the service


def asked(service: Service, image: bytes, **fields: str) -> dict[str, Any]:
    (answer,) = service.answer([{"data": image, **{name: value.encode() for name, value in fields.items()}}])
    content: dict[str, Any] = json.loads(answer.body)
    return content


LARGE = scene(width=420, height=300, red=(60, 40, 150, 90), green=(260, 150, 100, 120), blue=(5, 200, 40, 40))


def test_an_image_in_tiles_has_the_objects_of_the_whole_image_each_once(service: Service) -> None:
    whole, tiled = asked(service, png(LARGE)), asked(service, png(LARGE), tiles="128,32")
    assert whole["image"] == tiled["image"]
    assert len(whole["detections"]) == 3
    of_whole = {one["category"]: one for one in whole["detections"]}
    of_tiles = {one["category"]: one for one in tiled["detections"]}
    assert len(tiled["detections"]) == 3 and of_whole.keys() == of_tiles.keys()
    for name, one in of_tiles.items():
        masks = [mask_utils.decode(found["segmentation"]) for found in (one, of_whole[name])]
        assert (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum() > 0.9, name
        assert one["area"] == masks[0].sum()


@pytest.mark.parametrize("form", ["polygon", "png", "none"])
def test_tiles_go_with_every_form_of_masks(service: Service, form: str) -> None:
    tiled = asked(service, png(LARGE), tiles="128,32", mask_format=form)
    assert len(tiled["detections"]) == 3


def test_a_small_image_in_tiles_is_answered_as_without(service: Service) -> None:
    image = png(scene(red=(1, 1, 9, 9)))
    assert asked(service, image, tiles="512") == asked(service, image)


def test_more_tiles_than_are_allowed_are_refused_with_what_to_do(service: Service) -> None:
    image = png(np.zeros((1600, 1600, 3), np.uint8))
    error = asked(service, image, tiles="128,64")["error"]
    assert error["type"] == "ImageTooLarge" and "576 of an image of 1600 x 1600" in error["message"]
    assert "larger tiles" in error["message"]
    with pytest.raises(MaskxError, match="at most 64"):
        tiles_of(1600, 1600, Tiling(128, 64), most=Limits().max_tiles)


@pytest.mark.parametrize(
    "value", ["", "64", "128,", "128,0", "128,65", "128,16,1", "1e9", "a", "9000", "128.5"]
)
def test_what_is_no_tiling_is_refused_by_its_name_and_an_example(service: Service, value: str) -> None:
    error = asked(service, png(scene()), tiles=value)["error"]
    assert (
        error["type"] == "InvalidRequest"
        and "tiles is" in error["message"]
        and '"1024,128"' in error["message"]
    )
