"""RoIAlign over a pyramid, and its form as matrix products, against torchvision's operator."""

import itertools

import pytest
import torch
from torchvision.ops import roi_align

from model.boxes.pooling import (
    PyramidRoIAlign,
    bucket_of,
    gathered_roi_align,
    rois_of,
    separable_roi_align,
    with_cells,
)


def random_boxes(count: int, *, least: float = 1.0) -> torch.Tensor:
    corner = torch.rand(count, 2) * 140 - 20
    return torch.cat([corner, corner + least + torch.rand(count, 2) * 90], dim=1)


@pytest.mark.parametrize("size", [7, 14])
def test_matrix_products_equal_the_operator_and_its_gradient(size: int) -> None:
    torch.manual_seed(0)
    feature = torch.randn(5, 24, 33, requires_grad=True)
    boxes = random_boxes(40)
    ours = separable_roi_align(feature, boxes, size, 0.25, 2)
    theirs = roi_align(feature[None], [boxes], (size, size), 0.25, 2, aligned=True)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    grad = torch.randn_like(ours)
    (a,) = torch.autograd.grad(ours, feature, grad)
    (b,) = torch.autograd.grad(theirs, feature, grad)
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_training_and_evaluation_pool_the_same_numbers_in_the_same_order() -> None:
    torch.manual_seed(1)
    pool = PyramidRoIAlign(size=7, sampling_ratio=2, canonical_size=56)
    features = {str(k): torch.randn(3, 4, 32 >> k, 32 >> k) for k in range(4)}
    boxes = [random_boxes(20).clamp(0, 128), torch.zeros(0, 4), random_boxes(9).clamp(0, 128)]
    torch.testing.assert_close(
        pool.train()(features, rois_of(boxes)), pool.eval()(features, rois_of(boxes)), atol=1e-4, rtol=1e-4
    )


def test_a_box_is_pooled_from_the_level_of_its_size() -> None:
    """FPN, eq. 1 with canonical size 224: 224 px from stride 16, 112 px from stride 8, tiny ones from stride 4."""
    pool = PyramidRoIAlign(size=1, sampling_ratio=2, canonical_size=224)
    features = {str(k): torch.full((1, 1, 128 >> k, 128 >> k), float(k)) for k in range(4)}
    sides = torch.tensor([8.0, 111, 113, 223, 225, 447, 449])
    boxes = torch.stack([torch.zeros(7), torch.zeros(7), sides, sides], dim=1)
    assert pool.eval()(features, rois_of([boxes])).flatten().tolist() == [0, 0, 1, 1, 2, 2, 3]


def test_no_boxes_give_no_rows() -> None:
    pool = PyramidRoIAlign(size=7, sampling_ratio=2, canonical_size=224)
    for side in (16, 72):  # above `SMALL_LEVEL` by torchvision's operator
        features = {str(k): torch.randn(1, 3, side >> k, side >> k) for k in range(4)}
        for training, pool.batched in itertools.product((True, False), repeat=2):
            assert pool.train(training)(features, torch.zeros(0, 5)).shape == (0, 3, 7, 7)


@pytest.mark.parametrize("size", [7, 14])
@pytest.mark.parametrize("scale", [0.25, 1 / 32])
def test_gathered_cells_equal_the_operator(size: int, scale: float) -> None:
    torch.manual_seed(2)
    feature = torch.randn(3, 6, 24, 33).contiguous(memory_format=torch.channels_last)
    far = torch.tensor(
        [[-300.0, -300, -200, -200], [-50, -60, 400, 500], [5, 5, 5, 5], [131.9, 95.9, 400, 400]]
    )
    boxes = torch.cat([random_boxes(40), far])
    rois = torch.cat([torch.randint(0, 3, (44, 1)).float(), boxes], dim=1)
    ours = gathered_roi_align(feature, rois, size, scale, 2).permute(0, 3, 1, 2)
    theirs = roi_align(feature, rois, (size, size), scale, 2, aligned=True)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_in_bfloat16_only_the_last_bits_are_lost() -> None:
    torch.manual_seed(3)
    feature = torch.randn(1, 6, 24, 33)
    rois = torch.cat([torch.zeros(40, 1), random_boxes(40).clamp(0, 90)], dim=1)
    exact = gathered_roi_align(feature, rois, 7, 0.25, 2)
    low = gathered_roi_align(feature.bfloat16(), rois, 7, 0.25, 2)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), exact, atol=0.03, rtol=0)


def test_rows_come_in_few_counts_and_what_is_added_is_zero() -> None:
    counts = [bucket_of(rows) for rows in range(2001)]
    assert all(rows <= bucket <= max(1.2 * rows, rows + 3) for rows, bucket in enumerate(counts))
    assert len(set(counts)) < 90 and {100, 300, 1000, 2000} < set(counts) and counts[0] == 0
    torch.manual_seed(4)
    pool = PyramidRoIAlign(size=3, sampling_ratio=2, canonical_size=56).eval()
    features = {str(k): torch.randn(1, 4, 32 >> k, 32 >> k) for k in range(4)}
    rois = rois_of([random_boxes(5)])
    padded = pool(features, rois, 8)
    assert padded.shape[0] == 8 and torch.equal(padded[:5], pool(features, rois))
    assert padded[5:].abs().max() == 0


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("levels", [1, 4])
def test_rois_of_all_levels_at_once_equal_those_of_each_level(levels: int, aligned: bool) -> None:
    torch.manual_seed(5)
    pool = PyramidRoIAlign(size=5, sampling_ratio=2, canonical_size=40, levels=levels, aligned=aligned).eval()
    features = {str(k): torch.randn(3, 6, 64 >> k, 96 >> k) for k in range(levels)}
    corner = torch.rand(60, 2) * torch.tensor([300.0, 200.0])
    boxes = torch.cat([corner, corner + torch.rand(60, 2) ** 3 * 200], dim=1)
    boxes[0], boxes[1] = torch.tensor([0.0, 0, 384, 256]), torch.tensor([-90.0, -90, 500, 700])
    rois = rois_of([boxes[:20], boxes[20:20], boxes[20:]])
    apart = pool(features, rois, 64)
    at_once = pool(with_cells(features, levels), rois, 64)
    assert len(pool.placed(rois)[1].unique()) == levels
    assert at_once.shape == apart.shape == (64, 6, 5, 5)
    torch.testing.assert_close(at_once[:60], apart[:60], atol=1e-6, rtol=0)


def test_pooling_at_once_equals_the_operator_level_by_level_and_so_does_its_gradient() -> None:
    """Levels above `SMALL_LEVEL`, so that the other way is torchvision's operator."""
    generator = torch.Generator().manual_seed(0)
    pool = PyramidRoIAlign(size=5, sampling_ratio=2, canonical_size=40).train()
    features = {
        str(k): torch.randn(2, 3, 72 >> k, 80 >> k, generator=generator, requires_grad=True) for k in range(4)
    }
    corner = torch.rand(60, 2, generator=generator) * 200 - 20
    side = 8 * 30 ** torch.rand(60, 2, generator=generator)
    rois = rois_of(list(torch.cat([corner, corner + side], dim=1).split([45, 15])))
    assert pool.placed(rois)[1].unique().numel() == 4
    found = []
    for batched in (False, True):
        pool.batched = batched
        pooled = pool(features, rois)
        upstream = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(1))
        found.append([pooled, *torch.autograd.grad(pooled, list(features.values()), upstream)])
    assert all(bool(gradient.any()) for gradient in found[0])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
