"""Polygons of masks, against COCO's own rasteriser and against the masks."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from maskx_masks import column_intervals
from maskx_polygons import MAX_TOLERANCE, NARROW, NO_PIXELS, WIDE, outlines, polygons
from tests.handler.masks import blob, drawn_masks, run_lengths_of


def of(mask: np.ndarray) -> list[list[float]]:
    counts, offsets = run_lengths_of([mask])
    return polygons(counts, offsets, height=mask.shape[0], width=mask.shape[1])[0]


def corners_of(mask: np.ndarray) -> np.ndarray:
    """Where its exact outlines turn, int64 [P, 2]."""
    counts, offsets = run_lengths_of([mask])
    rings = outlines(column_intervals(counts, offsets, height=mask.shape[0]))
    return np.stack([rings.x, rings.y], axis=1)


def rasterised(found: list[list[float]], height: int, width: int) -> np.ndarray:
    whole: np.ndarray = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(found, height, width)))
    return whole.astype(bool)


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def area_of(polygon: list[float]) -> float:
    x, y = np.array(polygon[0::2]), np.array(polygon[1::2])
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def mask_of(*rows: str) -> np.ndarray:
    return np.array([[pixel == "#" for pixel in row] for row in rows])


@settings(max_examples=400)
@given(drawn_masks())
def test_pycocotools_draws_the_very_mask_from_the_polygons_of_any_small_or_narrow_one(
    masks: list[np.ndarray],
) -> None:
    """Nothing of 13 x 13 pixels is as wide as what is simplified."""
    height, width = masks[0].shape if masks else (1, 1)
    counts, offsets = run_lengths_of(masks)
    found = polygons(counts, offsets, height=height, width=width)
    assert len(found) == len(masks)
    for mask, one in zip(masks, found, strict=True):
        assert (rasterised(one, height, width) == mask).all()


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(20, 150), st.integers(20, 150), st.integers(2, 9))
def test_simplified_polygons_of_wide_masks_are_the_mask_nearly(
    seed: int, height: int, width: int, coarse: int
) -> None:
    mask = blob(seed, height, width, coarse)
    assert not mask.any() or overlap(rasterised(of(mask), height, width), mask) > 0.95


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 120), st.integers(1, 120), st.integers(2, 40))
@example(1, 150, 220, 4)  # sides of this one and of those below would meet beyond the edge
@example(13, 150, 220, 6)
@example(19, 150, 220, 7)
@example(66, 150, 220, 4)
def test_polygons_are_lists_of_at_least_three_points_within_the_image_in_tenths_of_a_pixel(
    seed: int, height: int, width: int, coarse: int
) -> None:
    found = of(blob(seed, height, width, coarse))
    assert found == json.loads(json.dumps(found, allow_nan=False))
    for one in found:
        assert len(one) >= 6 and len(one) % 2 == 0
        assert all(0 <= x <= width for x in one[0::2]) and all(0 <= y <= height for y in one[1::2])
        assert all(round(v * 10) / 10 == v and (type(v) is int) == (v % 1 == 0) for v in one)


@pytest.mark.parametrize(("seed", "coarse"), [(1, 6), (2, 6), (2, 10)])
def test_sides_that_are_nearly_parallel_do_not_meet_far_from_the_mask(seed: int, coarse: int) -> None:
    mask = blob(seed, 150, 220, coarse)
    corners = corners_of(mask)
    points = np.concatenate([np.reshape(one, (-1, 2)) for one in of(mask)])
    assert np.hypot(*np.moveaxis(points[:, None] - corners, 2, 0)).min(axis=1).max() < 2.1


COLUMNS = np.repeat([[False] * 10 + [True] * 30 + [False] * 30], 50, axis=0)


@pytest.mark.parametrize(
    ("mask", "polygon"),
    [
        (mask_of("...", "..#"), [2, 1, 3, 1, 3, 2, 2, 2]),  # clockwise on the screen
        (mask_of("#"), [0, 0, 1, 0, 1, 1, 0, 1]),
        (np.ones((900, 1), bool), [0, 0, 1, 0, 1, 900, 0, 900]),
        (np.ones((1, 900), bool), [0, 0, 900, 0, 900, 1, 0, 1]),
        (np.ones((50, 70), bool), [0, 0, 70, 0, 70, 50, 0, 50]),  # runs that never end
        (COLUMNS, [10, 0, 40, 0, 40, 50, 10, 50]),
    ],
)
def test_a_rectangle_of_one_pixel_or_many_is_the_four_corners_of_its_edges(
    mask: np.ndarray, polygon: list[int]
) -> None:
    assert of(mask) == [polygon]


def test_runs_with_no_background_between_them_are_one() -> None:
    counts, offsets = np.array([0, 2, 0, 1, 3, 0, 3]), np.array([0, 7])  # the first of three columns of 3
    assert polygons(counts, offsets, height=3, width=3) == [[[0, 0, 1, 0, 1, 3, 0, 3]]]


def test_a_mask_without_a_pixel_has_a_polygon_without_area_that_pycocotools_reads() -> None:
    empty = np.zeros((4, 5), bool)
    assert of(empty) == NO_PIXELS
    assert not rasterised(NO_PIXELS, 4, 5).any()
    one = mask_of(".....", ".#...", ".....", ".....")
    counts, offsets = run_lengths_of([empty, one, empty])
    found = polygons(counts, offsets, height=4, width=5)
    assert found[0] == found[2] == NO_PIXELS and found[1] == of(one)
    assert polygons(np.zeros(0, np.int64), np.zeros(1, np.int64), height=4, width=5) == []


def test_each_piece_is_a_polygon_and_pieces_that_touch_at_a_corner_are_one() -> None:
    assert len(of(mask_of("##..#", "##..#", ".....", "##.##"))) == 4
    assert len(of(mask_of("##..#", "##.#.", "..#..", "##.##"))) == 1
    assert len(of(mask_of("#..#", ".##.", "#..#"))) == 1


def test_a_hole_is_cut_out_with_the_other_sense_and_an_island_in_it_is_a_polygon_of_its_own() -> None:
    mask = mask_of("#######", "#.....#", "#.###.#", "#.#.#.#", "#.###.#", "#.....#", "#######")
    found = of(mask)
    assert len(found) == 2
    assert sorted(area_of(one) for one in found) == [8, 24]  # nonzero filling leaves the holes open as well
    assert (rasterised(found, 7, 7) == mask).all()


def test_many_holes_are_all_cut_out_of_the_piece_around_them() -> None:
    y, x = np.indices((31, 47))
    mask = ~((y % 4 == 2) & (x % 4 == 2))
    found = of(mask)
    assert len(found) == 1 and area_of(found[0]) == mask.sum()
    assert (rasterised(found, *mask.shape) == mask).all()


@settings(max_examples=100)
@given(drawn_masks())
def test_outlines_hold_the_area_and_the_length_of_each_mask(masks: list[np.ndarray]) -> None:
    if not masks:
        return
    counts, offsets = run_lengths_of(masks)
    rings = outlines(column_intervals(counts, offsets, height=masks[0].shape[0]))
    padded = [np.pad(mask, 1) for mask in masks]
    lengths = [int(np.diff(one, axis=0).sum() + np.diff(one, axis=1).sum()) for one in padded]
    assert np.bincount(rings.masks, rings.areas, len(masks)).tolist() == [one.sum() for one in masks]
    assert np.bincount(rings.masks, rings.lengths, len(masks)).tolist() == lengths
    assert (rings.areas[rings.outer] > 0).all()
    assert (rings.masks[rings.outer] == rings.masks).all()


def test_a_large_rectangle_keeps_its_corners_and_a_straight_slope_becomes_one_side() -> None:
    mask = np.zeros((200, 300), bool)
    mask[20:150, 30:260] = True
    assert of(mask) == [[30, 20, 260, 20, 260, 150, 30, 150]]
    y, x = np.indices((200, 300))
    (triangle,) = of((y + 0.5) * 3 > (x + 0.5) * 2)
    assert len(triangle) <= 10
    assert area_of(triangle) == pytest.approx(200 * 300 / 2, rel=0.01)


def disc(radius: float) -> np.ndarray:
    side = int(2 * radius) + 5
    y, x = np.indices((side, side)) + 0.5 - side / 2
    return y * y + x * x < radius * radius


def test_a_disc_is_exact_while_it_is_small_and_simplified_without_bias_when_it_is_large() -> None:
    (small,) = of(disc(8))
    assert small == corners_of(disc(8)).reshape(-1).tolist()
    for radius in (20, 50, 120):
        mask = disc(radius)
        (simple,) = of(mask)
        assert len(simple) < corners_of(mask).size / 3
        assert area_of(simple) == pytest.approx(mask.sum(), rel=0.02)
        x, y = np.array(simple[0::2]) - mask.shape[1] / 2, np.array(simple[1::2]) - mask.shape[0] / 2
        assert np.abs(np.hypot(x, y) - radius).max() < MAX_TOLERANCE + 1
        assert overlap(rasterised([simple], *mask.shape), mask) > 0.97


def test_no_corner_that_is_left_out_lies_farther_from_the_simplified_outline_than_is_said() -> None:
    """A corner is at most the tolerance from a side before it is fitted; fitting moves it less than that again."""
    for seed in range(5):
        mask = blob(seed, 150, 220, 6)
        corners = corners_of(mask)
        nearest = np.full(len(corners), np.inf)
        for one in of(mask):
            begin = np.reshape(one, (-1, 2)).astype(float)
            along = np.roll(begin, -1, axis=0) - begin
            apart = corners[:, None] - begin
            share = np.clip((apart * along).sum(2) / np.maximum((along * along).sum(1), 1e-9), 0, 1)
            distance = np.hypot(*np.moveaxis(apart - share[..., None] * along, 2, 0))
            nearest = np.minimum(nearest, distance.min(axis=1))
        assert nearest.max() <= 2 * MAX_TOLERANCE


def test_a_narrow_part_of_a_mask_makes_it_exact_and_a_speckle_beside_a_wide_piece_stays() -> None:
    ring = disc(60) & ~np.pad(disc(58), 2)[: disc(60).shape[0], : disc(60).shape[1]]
    assert ring.sum() / 2 / np.pi / 59 / 2 < NARROW
    assert (rasterised(of(ring), *ring.shape) == ring).all()
    wide = np.zeros((120, 120), bool)
    wide[5:80, 5:90] = True
    wide[100, 100] = True
    wide[40, 40] = False
    assert (rasterised(of(wide), 120, 120) == wide).all()


def test_what_is_a_little_wider_than_narrow_is_simplified_by_less() -> None:
    """Of such masks an outline holds much for their area, so that errors of a pixel cost most IoU."""
    y, x = np.mgrid[:130, :130] - 64.5
    overlaps = []
    for angle in np.linspace(0, np.pi, 13):
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        for width in (11, 13, 15, 17, 20):
            waves = 1 + 0.25 * np.sin(along / 7)
            mask = (abs(along) < 50) & (abs(across) < width / 2 * waves)
            ring = outlines(column_intervals(*run_lengths_of([mask]), height=130))
            assert NARROW < ring.areas[0] / ring.lengths[0] < WIDE
            overlaps.append(overlap(rasterised(of(mask), 130, 130), mask))
    assert min(overlaps) > 0.978 and np.mean(overlaps) > 0.993


def test_polygons_of_one_mask_do_not_depend_on_the_others() -> None:
    masks = [blob(seed, 90, 130, coarse) for seed, coarse in ((1, 3), (2, 20), (3, 5), (4, 60))]
    counts, offsets = run_lengths_of(masks)
    together = polygons(counts, offsets, height=90, width=130)
    assert together == [of(mask) for mask in masks]


def test_photographs_masks_come_back_nearly_and_small_ones_exactly(coco_mini: Any) -> None:
    document = json.loads((coco_mini / "instances_val2017.json").read_text())
    sizes = {one["id"]: (one["height"], one["width"]) for one in document["images"]}
    overlaps = []
    for one in [one for one in document["annotations"] if not one["iscrowd"]][:250]:
        height, width = sizes[one["image_id"]]
        mask = rasterised(one["segmentation"], height, width)
        if mask.any():
            overlaps.append((mask.sum(), overlap(rasterised(of(mask), height, width), mask)))
    assert len(overlaps) > 200
    assert min(value for area, value in overlaps if area < 100) == 1.0
    assert min(value for _, value in overlaps) > 0.97
    assert np.mean([value for _, value in overlaps]) > 0.99
