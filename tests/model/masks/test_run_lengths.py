"""Run lengths against the dense definition: bilinear sampling in float64 of the same float32 boxes."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from torch import Tensor

from model.masks.run_lengths import mask_run_lengths
from tests.model.operations import LargestTensor

TIE = 1e-4


def dense_probabilities(mask_MM: Tensor, box: Tensor, height: int, width: int) -> Tensor:
    """The definition, float64 [height, width]; zero for a box without area."""
    x0, y0, x1, y1 = box.float().double().tolist()
    if not (all(map(math.isfinite, (x0, y0, x1, y1))) and x1 > x0 and y1 > y0):
        return torch.zeros(height, width, dtype=torch.float64)
    x = (torch.arange(width, dtype=torch.float64) + 0.5 - x0) / (x1 - x0) * 2 - 1
    y = (torch.arange(height, dtype=torch.float64) + 0.5 - y0) / (y1 - y0) * 2 - 1
    # Far outside there are only zeros, and grid_sample's integers do not reach as far as floats do.
    grid = torch.stack(torch.meshgrid(y.clamp(-9, 9), x.clamp(-9, 9), indexing="ij")[::-1], dim=-1)
    image = mask_MM.double()[None, None]
    return F.grid_sample(image, grid[None], mode="bilinear", padding_mode="zeros", align_corners=False)[0, 0]


def decode(counts: Tensor, height: int, width: int) -> Tensor:
    """Bool [height, width] from column-major run lengths."""
    values = torch.arange(counts.numel()) % 2 == 1
    return torch.repeat_interleave(values, counts).reshape(width, height).T


def areas(counts: Tensor, offsets: Tensor) -> list[int]:
    """Pixels of each mask: the sum of its every second run."""
    return [int(runs[1::2].sum()) for runs in counts.tensor_split(offsets[1:-1])]


def differing_pixels(masks: Tensor, boxes: Tensor, height: int, width: int) -> tuple[int, int]:
    """Checks form and content of every mask; returns how many pixels differ (ties, all of them) of how many."""
    counts, offsets = mask_run_lengths(masks, boxes, height, width)
    assert counts.dtype == offsets.dtype == torch.int64
    assert offsets.shape == (len(boxes) + 1,)
    assert offsets[0] == 0
    assert offsets[-1] == counts.numel()
    different = 0
    for d in range(len(boxes)):
        runs = counts[offsets[d] : offsets[d + 1]]
        assert runs.numel() >= 1
        assert runs.sum() == height * width
        assert (runs[1:] > 0).all(), "runs that touch were not joined, or zeros were written at the end"
        mine = decode(runs, height, width)
        probability = dense_probabilities(masks[d], boxes[d], height, width)
        wrong = mine != (probability >= 0.5)
        assert ((probability[wrong] - 0.5).abs() < TIE).all(), f"box {boxes[d].tolist()}"
        different += int(wrong.sum())
    return different, len(boxes) * height * width


def require_dense(masks: Tensor, boxes: Tensor, height: int, width: int) -> None:
    """But for a pixel in 100 000 they are the dense definition's."""
    different, pixels = differing_pixels(masks, boxes, height, width)
    assert different <= pixels / 100_000


def smooth_masks(detections: int, side: int, seed: int) -> Tensor:
    """Masks like a network's: a few blobs each, values from 0 to 1."""
    noise = torch.randn(detections, 1, side, side, generator=torch.Generator().manual_seed(seed))
    return torch.sigmoid(8 * F.avg_pool2d(noise, 5, 1, 2, count_include_pad=False))[:, 0]


def random_boxes(detections: int, height: int, width: int, seed: int) -> Tensor:
    """Boxes of all sizes around the image, some partly or wholly outside."""
    generator = torch.Generator().manual_seed(seed)
    extent = torch.tensor([width, height], dtype=torch.float32)
    centre = (torch.rand(detections, 2, generator=generator) * 1.4 - 0.2) * extent
    half = extent * torch.rand(detections, 2, generator=generator) ** 3 * 0.7 + 0.05
    return torch.cat([centre - half, centre + half], dim=1)


@pytest.mark.parametrize("smooth", [True, False], ids=["smooth", "noise"])
@pytest.mark.parametrize(
    ("height", "width", "side"), [(120, 160, 28), (37, 301, 14), (211, 40, 7), (64, 64, 1)]
)
def test_random_masks_equal_the_dense_definition(height: int, width: int, side: int, smooth: bool) -> None:
    generator = torch.Generator().manual_seed(side)
    masks = smooth_masks(150, side, side) if smooth else torch.rand(150, side, side, generator=generator)
    require_dense(masks, random_boxes(150, height, width, 3), height, width)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_masks_are_computed_in_float32(dtype: torch.dtype) -> None:
    masks = torch.rand(100, 28, 28, generator=torch.Generator().manual_seed(1)).to(dtype)
    boxes = random_boxes(100, 150, 150, 5)
    require_dense(masks, boxes, 150, 150)
    same = mask_run_lengths(masks.float(), boxes, 150, 150)
    assert all(torch.equal(a, b) for a, b in zip(mask_run_lengths(masks, boxes, 150, 150), same, strict=True))


@pytest.mark.parametrize(("height", "width"), [(40, 20_000), (20_000, 40)])
def test_small_boxes_at_the_far_end_of_a_20000_pixel_image_are_exact(height: int, width: int) -> None:
    """float32 rounds absolute coordinates there to 0.002 pixels."""
    masks = torch.rand(30, 28, 28, generator=torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(3)
    far = torch.tensor([width - 40.0, height - 40.0])
    corner = far + torch.rand(30, 2, generator=generator) * 10
    boxes = torch.cat([corner, corner + 3 + 25 * torch.rand(30, 2, generator=generator)], dim=1)
    different, _pixels = differing_pixels(masks, boxes, height, width)
    assert different <= 30 * 40 * 40 / 100_000


@pytest.mark.parametrize(
    ("height", "width", "dtype"),
    [
        (40, 20_000, torch.float32),
        (20_000, 40, torch.float32),
        (40, 20_000, torch.float16),
        (40, 20_000, torch.bfloat16),
    ],
)
def test_huge_boxes_in_a_20000_pixel_image_equal_the_dense_definition(
    height: int, width: int, dtype: torch.dtype
) -> None:
    require_dense(smooth_masks(20, 28, 4).to(dtype), random_boxes(20, height, width, 7), height, width)


def test_boxes_of_about_one_pixel_equal_the_dense_definition() -> None:
    generator = torch.Generator().manual_seed(23)
    corner = torch.rand(400, 2, generator=generator) * 22 - 1
    corner[::2] = corner[::2].floor()
    extent = 0.5 + torch.rand(400, 2, generator=generator)
    extent[::4] = 1.0
    masks = torch.rand(400, 28, 28, generator=generator)
    require_dense(masks, torch.cat([corner, corner + extent], dim=1), 20, 20)


@pytest.mark.parametrize("whole", [True, False], ids=["whole pixels", "any place"])
def test_masks_from_the_top_to_the_bottom_row_equal_the_dense_definition(whole: bool) -> None:
    """Their runs go on in the next column; here and there a hole or a border parts them."""
    height, width = 24, 90
    generator = torch.Generator().manual_seed(24)
    x = torch.rand(200, 2, generator=generator).sort(dim=1)[0] * width
    y = torch.tensor([-0.4, height + 0.4]) * (1 + torch.rand(200, 1, generator=generator))
    y[::2] = torch.tensor([0.0, height])
    boxes = torch.stack([x[:, 0], y[:, 0], x[:, 1] + 1, y[:, 1]], dim=1)
    masks = 1 - smooth_masks(200, 14, 25) * (torch.rand(200, 1, 1, generator=generator) < 0.7)
    boxes = boxes.round() if whole else boxes
    require_dense(masks, boxes, height, width)
    counts, offsets = mask_run_lengths(masks, boxes, height, width)
    longest = torch.stack([counts[a + 1 : b : 2].max() for a, b in itertools.pairwise(offsets.tolist())])
    assert (longest > 3 * height).sum() > 50, "hardly a run goes on in the next column"


def test_boxes_beyond_every_border_are_cut_and_not_moved() -> None:
    height, width = 50, 70
    boxes = [
        [-20.3, 5.2, 20.1, 30.7],
        [50.5, 5.1, 99.2, 30.3],
        [10.2, -30.9, 40.6, 20.4],
        [10.7, 30.2, 40.1, 90.8],
    ]
    boxes += [
        [-50.2, -60.1, 130.4, 120.3],
        [-1e4, -1e4, 1e4, 1e4],
        [-9.5, -9.5, 10.5, 10.5],
        [60.0, 40.0, 80.0, 60.0],
    ]
    boxes += [
        [-30.0, 5.0, -10.0, 20.0],
        [80.0, 5.0, 90.0, 20.0],
        [5.0, -30.0, 20.0, -10.0],
        [5.0, 60.0, 20.0, 80.0],
    ]
    masks = smooth_masks(len(boxes), 28, 6)
    require_dense(masks, torch.tensor(boxes), height, width)
    counts, offsets = mask_run_lengths(masks, torch.tensor(boxes), height, width)
    assert areas(counts, offsets)[8:] == [0, 0, 0, 0]


def test_a_full_mask_on_whole_pixels_is_exactly_the_box() -> None:
    boxes = torch.tensor(
        [[3.0, 2.0, 4.0, 3.0], [0.0, 0.0, 1.0, 1.0], [9.0, 7.0, 10.0, 8.0], [2.0, 1.0, 6.0, 8.0]]
    )
    counts, offsets = mask_run_lengths(torch.ones(4, 28, 28), boxes, 8, 10)
    for d, (x0, y0, x1, y1) in enumerate(boxes.int().tolist()):
        expected = torch.zeros(8, 10, dtype=torch.bool)
        expected[y0:y1, x0:x1] = True
        assert torch.equal(decode(counts[offsets[d] : offsets[d + 1]], 8, 10), expected)


def test_sub_pixel_boxes_own_a_pixel_only_over_its_centre() -> None:
    boxes = torch.tensor(
        [[3.4, 2.4, 3.6, 2.6], [3.1, 2.1, 3.4, 2.4], [3.6, 2.6, 4.4, 3.4], [3.49, 0.0, 3.51, 8.0]]
    )
    counts, offsets = mask_run_lengths(torch.ones(4, 28, 28), boxes, 8, 10)
    assert areas(counts, offsets) == [1, 0, 0, 8]
    assert counts[offsets[0] : offsets[1]].tolist() == [3 * 8 + 2, 1, 80 - 27]


def test_a_pixel_whose_centre_lies_on_the_border_of_a_full_mask_belongs_to_it() -> None:
    """Its value is exactly 0.5, at each of the four borders."""
    counts, offsets = mask_run_lengths(torch.ones(1, 28, 28), torch.tensor([[0.5, 1.5, 7.5, 8.5]]), 12, 10)
    expected = torch.zeros(12, 10, dtype=torch.bool)
    expected[1:9, 0:8] = True
    # But for the corners, where half of a half is left.
    expected[[1, 1, 8, 8], [0, 7, 0, 7]] = False
    assert torch.equal(decode(counts[offsets[0] : offsets[1]], 12, 10), expected)


def test_degenerate_boxes_are_empty() -> None:
    inf, nan = float("inf"), float("nan")
    boxes = [[3.0, 3.0, 3.0, 6.0], [3.0, 3.0, 6.0, 3.0], [6.0, 6.0, 3.0, 3.0], [nan, 0.0, 5.0, 5.0]]
    boxes += [[-inf, 0.0, 5.0, 5.0], [0.0, 0.0, inf, inf], [-3e38, -3e38, 3e38, 3e38], [0.0, nan, 5.0, 5.0]]
    counts, offsets = mask_run_lengths(torch.ones(8, 28, 28), torch.tensor(boxes), 8, 10)
    assert counts.tolist() == [80] * 8
    assert offsets.tolist() == list(range(9))


def test_a_mask_from_bottom_to_top_of_neighbouring_columns_is_one_run() -> None:
    counts, offsets = mask_run_lengths(torch.ones(1, 28, 28), torch.tensor([[2.0, 0.0, 5.0, 8.0]]), 8, 10)
    assert counts.tolist() == [16, 24, 40]
    assert offsets.tolist() == [0, 3]
    # Column 3 is the top half, column 2 the bottom half: the run ends one column and begins the next.
    mask = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    counts, _ = mask_run_lengths(mask, torch.tensor([[2.0, 0.0, 4.0, 8.0]]), 8, 10)
    assert counts.tolist() == [20, 8, 52]


def test_a_mask_that_ends_at_the_last_pixel_does_not_join_the_next_detection_at_the_first() -> None:
    boxes = torch.tensor([[8.0, 4.0, 10.0, 8.0], [0.0, 0.0, 1.0, 2.0]])
    counts, offsets = mask_run_lengths(torch.ones(2, 28, 28), boxes, 8, 10)
    assert counts.tolist() == [68, 4, 4, 4, 0, 2, 78]
    assert offsets.tolist() == [0, 4, 7]


def test_an_empty_mask_is_one_run_and_a_full_image_has_no_zeros() -> None:
    boxes = torch.tensor([[1.0, 1.0, 6.0, 6.0], [0.0, 0.0, 10.0, 8.0], [-90.0, -90.0, 90.0, 90.0]])
    masks = torch.stack([torch.full((28, 28), 0.49), torch.ones(28, 28), torch.full((28, 28), 0.51)])
    counts, offsets = mask_run_lengths(masks, boxes, 8, 10)
    assert counts.tolist() == [80, 0, 80, 0, 80]
    assert offsets.tolist() == [0, 1, 3, 5]


def test_a_mask_of_exactly_one_half_belongs_to_the_object() -> None:
    counts, offsets = mask_run_lengths(
        torch.full((1, 28, 28), 0.5), torch.tensor([[1.3, 1.3, 90.7, 80.7]]), 80, 90
    )
    # All but the half sample at the box's border, where the value falls to zero.
    assert areas(counts, offsets) == [86 * 76]


def test_full_masks_over_the_whole_image_and_beyond_equal_the_dense_definition() -> None:
    boxes = torch.tensor([[0.0, 0.0, 50.0, 40.0], [-3.3, -7.7, 51.2, 40.1], [-1e6, -1e6, 1e6, 1e6]])
    for full in (torch.ones(3, 28, 28), torch.zeros(3, 28, 28)):
        assert differing_pixels(full, boxes, 40, 50)[0] == 0


def test_a_sample_that_is_not_a_number_counts_as_zero() -> None:
    masks, boxes = smooth_masks(20, 28, 26), random_boxes(20, 60, 80, 27)
    broken = masks.masked_fill(masks > 0.9, float("nan"))
    mended = masks.masked_fill(masks > 0.9, 0.0)
    assert (masks > 0.9).any()
    same = mask_run_lengths(mended, boxes, 60, 80)
    assert all(torch.equal(a, b) for a, b in zip(mask_run_lengths(broken, boxes, 60, 80), same, strict=True))


def test_a_mask_that_falls_below_one_half_at_a_single_pixel_centre_has_no_run_of_no_pixels() -> None:
    """Above and below that centre both runs end there, in float32 both on it: a tie, and neither is counted twice."""
    below = torch.nextafter(torch.tensor(0.5), torch.tensor(0.0)).item()
    mask = torch.ones(1, 5, 5)
    mask[:, 2] = below
    different, _ = differing_pixels(mask, torch.tensor([[0.0, 0.0, 5.0, 5.0]]), 5, 5)
    counts, _ = mask_run_lengths(mask, torch.tensor([[0.0, 0.0, 5.0, 5.0]]), 5, 5)
    assert different in (0, 5)
    assert counts.sum() == 25


def test_no_detections_have_no_counts() -> None:
    counts, offsets = mask_run_lengths(torch.zeros(0, 28, 28), torch.zeros(0, 4), 8, 10)
    assert counts.tolist() == []
    assert offsets.tolist() == [0]


def test_counts_are_those_that_pycocotools_writes() -> None:
    masks, boxes = smooth_masks(40, 28, 8), random_boxes(40, 60, 80, 9)
    counts, offsets = mask_run_lengths(masks, boxes, 60, 80)
    for d in range(40):
        runs = counts[offsets[d] : offsets[d + 1]]
        theirs = coco_mask.encode(np.asfortranarray(decode(runs, 60, 80).numpy().astype(np.uint8)))
        mine = coco_mask.frPyObjects({"size": [60, 80], "counts": runs.tolist()}, 60, 80)
        assert mine == theirs


def test_chunks_do_not_change_the_answer() -> None:
    masks, boxes = smooth_masks(30, 28, 10), random_boxes(30, 60, 80, 11)
    whole = mask_run_lengths(masks, boxes, 60, 80)
    for max_elements in (1, 300, 5000, 2**40):
        parts = mask_run_lengths(masks, boxes, 60, 80, max_elements)
        assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


@pytest.mark.parametrize("detections", [0, 1, 30])
def test_scripted_equals_eager(detections: int) -> None:
    masks, boxes = smooth_masks(detections, 28, 12), random_boxes(detections, 60, 80, 13)
    scripted = torch.jit.script(mask_run_lengths)
    eager = mask_run_lengths(masks, boxes, 60, 80)
    assert all(torch.equal(a, b) for a, b in zip(scripted(masks, boxes, 60, 80), eager, strict=True))


def test_memory_does_not_grow_with_the_area_of_the_image() -> None:
    """The greatest tensor has the size of the chunk, for one thin box in a gigapixel image as for any."""
    boxes = torch.tensor([[5.0, 0.0, 105.0, 30_000.0], [0.0, 0.0, 30_000.0, 30_000.0]])
    with LargestTensor() as largest:
        counts, _ = mask_run_lengths(smooth_masks(2, 28, 14), boxes, 30_000, 30_000, 30 * 1000)
    assert 30 * 1000 <= largest.numel < 20 * 30_100
    assert counts.sum() == 2 * 30_000**2


@pytest.mark.parametrize(
    ("masks", "boxes", "height", "message"),
    [
        ((3, 28, 14), (3, 4), 8, r"\[3, 28, 14\]"),
        ((3, 28), (3, 4), 8, r"\[3, 28\]"),
        ((3, 28, 28), (2, 4), 8, r"\[2, 4\].*\[3, 4\]"),
        ((3, 28, 28), (3, 5), 8, r"\[3, 5\].*\[3, 4\]"),
        ((3, 28, 28), (3, 4), 0, "0 x 10"),
    ],
)
def test_shapes_that_do_not_fit_are_named(
    masks: tuple[int, ...], boxes: tuple[int, ...], height: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        mask_run_lengths(torch.zeros(masks), torch.zeros(boxes), height, 10)


coordinates = st.one_of(
    st.integers(-30, 70).map(float),
    st.integers(-30, 70).map(lambda v: v + 0.5),
    st.floats(-200, 250, width=32),
    st.floats(-1e7, 1e7, width=32),
)
values = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.floats(0, 1, width=32))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.integers(1, 5).flatmap(lambda m: st.lists(values, min_size=m * m, max_size=m * m)),
    st.tuples(coordinates, coordinates, coordinates, coordinates),
    st.integers(1, 40),
    st.integers(1, 40),
)
def test_every_pixel_is_right_but_for_ties(
    mask: list[float], box: tuple[float, float, float, float], height: int, width: int
) -> None:
    side = math.isqrt(len(mask))
    differing_pixels(torch.tensor(mask).reshape(1, side, side), torch.tensor([box]), height, width)


corners = st.tuples(coordinates, coordinates)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(corners, st.floats(0.25, 80, width=32), st.floats(0.25, 80, width=32)), max_size=6),
    st.sampled_from([2, 7, 28]),
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(0, 1000),
)
def test_every_pixel_of_several_detections_is_right_but_for_ties(
    placed: list[tuple[tuple[float, float], float, float]], side: int, height: int, width: int, seed: int
) -> None:
    boxes = torch.tensor([[x, y, x + w, y + h] for (x, y), w, h in placed]).reshape(-1, 4)
    differing_pixels(smooth_masks(len(boxes), side, seed), boxes, height, width)
