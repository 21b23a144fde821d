"""Losses from boxes and a teacher's masks against slow definitions, pixel by pixel in plain Python."""

import math

import pytest
import torch
from torch import Tensor

from model.losses import own_total
from model.masks.box_only import (
    cells_in_boxes,
    colours_of_rois,
    confidence,
    grown,
    lab_of_srgb,
    pairwise_loss,
    positions_among,
    projection_loss,
    pseudo_mask_loss,
    seen_in_rois,
)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def slow_lab(rgb: list[float]) -> list[float]:
    """CIE 1976 L*a*b* from IEC 61966-2-1 in scalars."""
    r, g, b = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in rgb))
    x = (0.4124564 * r + 0.3575761 * g + 0.1804375 * b) / 0.95047
    y = 0.2126729 * r + 0.7151522 * g + 0.0721750 * b
    z = (0.0193339 * r + 0.1191920 * g + 0.9503041 * b) / 1.08883
    fx, fy, fz = (v ** (1 / 3) if v > 216 / 24389 else (24389 / 27 * v + 16) / 116 for v in (x, y, z))
    return [116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)]


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 255, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
        ((255, 255, 255), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((119, 119, 119), (50.03, 0, 0)),
    ],
)
def test_lab_has_the_published_values_of_known_colours(rgb: tuple[int, ...], lab: tuple[float, ...]) -> None:
    got = lab_of_srgb(torch.tensor(rgb, dtype=torch.float32).view(1, 3, 1, 1)).flatten()
    torch.testing.assert_close(got, torch.tensor(lab, dtype=torch.float32), atol=0.02, rtol=0)


def test_lab_is_the_definition_for_every_colour_dark_ones_too() -> None:
    torch.manual_seed(0)
    pixels = torch.cat([torch.rand(1, 3, 20, 3) * 255, torch.rand(1, 3, 20, 3) * 12], dim=3)
    got = lab_of_srgb(pixels)[0].permute(1, 2, 0).reshape(-1, 3)
    wanted = [slow_lab(p) for p in pixels[0].permute(1, 2, 0).reshape(-1, 3).tolist()]
    torch.testing.assert_close(got, torch.tensor(wanted), atol=2e-3, rtol=1e-4)


def test_lab_is_as_exact_under_autocast() -> None:
    pixels = torch.rand(1, 3, 4, 4) * 255
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(lab_of_srgb(pixels), lab_of_srgb(pixels.clone()))
        under = lab_of_srgb(pixels)
    assert torch.equal(under, lab_of_srgb(pixels))


def slow_projection(logits: Tensor, inside: Tensor) -> float:
    total = 0.0
    rois, side, _ = logits.shape
    for r in range(rois):
        p = [[sigmoid(v) for v in row] for row in logits[r].tolist()]
        b = inside[r].tolist()
        for rows in (True, False):
            profile = [max(p[i][j] if rows else p[j][i] for j in range(side)) for i in range(side)]
            box = [float(any(b[i][j] if rows else b[j][i] for j in range(side))) for i in range(side)]
            both = sum(x * y for x, y in zip(profile, box, strict=True))
            total += 1 - 2 * both / (sum(x * x for x in profile) + sum(y * y for y in box))
    return total / rois


@pytest.mark.parametrize("side", [5, 8])
def test_the_projection_loss_is_its_definition(side: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, side, side) * 3
    rois = torch.tensor([[0.0, 0, 10, 10]]).repeat(3, 1)
    boxes = torch.tensor([[0.0, 0, 10, 10], [2, 3, 10, 6], [-4, -4, 5, 20]])
    inside = cells_in_boxes(rois, boxes, side)
    got = projection_loss(logits, inside, 3.0)
    assert float(got) == pytest.approx(slow_projection(logits, inside), rel=1e-5)


def test_the_projection_loss_is_least_for_a_mask_that_touches_every_side_of_its_box_and_leaves_none() -> None:
    inside = cells_in_boxes(torch.tensor([[0.0, 0, 8, 8]]), torch.tensor([[2.0, 2, 6, 6]]), 8)
    cross = torch.full((1, 8, 8), -20.0)
    cross[0, 2:6, 4] = cross[0, 3, 2:6] = 20.0
    beyond = cross.clone()
    beyond[0, 3, 6] = 20.0
    short = cross.clone()
    short[0, 5, 4] = -20.0
    assert float(projection_loss(cross, inside, 1.0)) == pytest.approx(0, abs=1e-6)
    assert float(projection_loss(beyond, inside, 1.0)) > 0.05
    assert float(projection_loss(short, inside, 1.0)) > 0.05


def slow_pairwise(
    logits: Tensor, colours: Tensor, inside: Tensor, visible: Tensor, threshold: float
) -> float:
    """Every unordered pair of cells two apart in a 3 x 3 window of dilation 2, found by looking at all pairs."""
    total, pairs = 0.0, 0
    rois, side, _ = logits.shape
    cells = [(i, j) for i in range(side) for j in range(side)]
    for r in range(rois):
        for a, (i, j) in enumerate(cells):
            for k, m in cells[a + 1 :]:
                if abs(i - k) not in (0, 2) or abs(j - m) not in (0, 2):
                    continue
                if not (inside[r, i, j] or inside[r, k, m]) or not (visible[r, i, j] and visible[r, k, m]):
                    continue
                pairs += 1
                if (
                    math.exp(-math.dist(colours[r, :, i, j].tolist(), colours[r, :, k, m].tolist()) / 2)
                    < threshold
                ):
                    continue
                p, q = sigmoid(float(logits[r, i, j])), sigmoid(float(logits[r, k, m]))
                total -= math.log(p * q + (1 - p) * (1 - q))
    return total / pairs


@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0])
def test_the_pairwise_loss_is_its_definition(threshold: float) -> None:
    torch.manual_seed(1)
    logits = torch.randn(2, 6, 6) * 2
    colours = torch.randint(0, 3, (2, 3, 6, 6)).float()
    inside, visible = torch.rand(2, 6, 6) > 0.4, torch.rand(2, 6, 6) > 0.2
    got = pairwise_loss(logits, colours, inside, visible, threshold, own_total)
    wanted = slow_pairwise(logits, colours, inside, visible, threshold)
    assert wanted > 0
    assert float(got) == pytest.approx(wanted, rel=1e-5)


def test_the_pairwise_loss_stays_finite_where_the_labels_are_sure() -> None:
    logits = torch.tensor([[[200.0, 0, -200.0], [0, 0, 0], [-200.0, 0, 200.0]]], requires_grad=True)
    every = torch.ones(1, 3, 3, dtype=torch.bool)
    loss = pairwise_loss(logits, torch.zeros(1, 3, 3, 3), every, every, 0.5, own_total)
    loss.backward()
    assert logits.grad is not None
    assert bool(loss.isfinite()) and bool(logits.grad.isfinite().all()) and float(loss.detach()) > 50


def test_losses_over_no_roi_are_zero_and_reach_the_logits() -> None:
    logits = torch.zeros((0, 6, 6), requires_grad=True)
    none = torch.zeros((0, 6, 6), dtype=torch.bool)
    count = own_total(0)
    losses = [
        projection_loss(logits, none, count),
        pairwise_loss(logits, torch.zeros(0, 3, 6, 6), none, none, 0.3, own_total),
        pseudo_mask_loss(logits, none.float(), torch.zeros(0), count),
    ]
    for loss in losses:
        assert loss.item() == 0
        assert loss.requires_grad
    sum(losses, torch.zeros(())).backward()
    assert logits.grad is not None


def share_right_of_a_disc(margin: float) -> float:
    """Cells of a disc on another colour that a small model gets right, learnt from its box and the picture alone.

    `margin` is how far the RoI reaches beyond the box; the pairwise loss rises as in training.
    """
    at = torch.arange(28) + 0.5 - 14
    radius = 14 / (1 + 2 * margin)
    disc = (at[:, None] ** 2 + at[None, :] ** 2 <= radius**2)[None]
    colours = torch.where(disc[:, None], 60.0, 20.0).expand(1, 3, 28, 28)
    box = torch.tensor([[-radius, -radius, radius, radius]])
    inside = cells_in_boxes(grown(box, margin), box, 28)
    across = at.abs().expand(28, 28) / 14
    seen = torch.stack([colours[0, 0] / 40 - 1, across, across.T, torch.ones(28, 28)])
    weights = torch.zeros(4, requires_grad=True)
    optimiser = torch.optim.Adam([weights], lr=0.1)
    for step in range(300):
        logits = torch.einsum("f,fij->ij", weights, seen)[None]
        right = float(((logits.detach() > 0) == disc).float().mean())
        optimiser.zero_grad()
        pairs = pairwise_loss(logits, colours, inside, torch.ones_like(inside), 0.3, own_total)
        (projection_loss(logits, inside, 1.0) + pairs * min(step / 150, 1)).backward()
        optimiser.step()
    return right


def test_projection_and_colour_find_a_disc_without_ever_seeing_its_mask() -> None:
    assert share_right_of_a_disc(0.1) > 0.98


def test_a_roi_that_shows_no_background_lets_the_mask_fill_its_box() -> None:
    """Why the RoIs are grown: where every cell lies in the box, a full mask has neither loss."""
    assert share_right_of_a_disc(0.0) == pytest.approx(math.pi / 4, abs=0.02)


# ---- where cells lie ----


def test_a_grown_roi_reaches_beyond_every_side_by_its_share() -> None:
    rois = torch.tensor([[10.0, 20, 30, 60]])
    assert grown(rois, 0.1).tolist() == [[8.0, 16, 32, 64]]
    assert torch.equal(grown(rois, 0.0), rois)


def test_the_cells_inside_a_box_are_those_whose_centre_is() -> None:
    got = cells_in_boxes(torch.tensor([[0.0, 0, 4, 8]]), torch.tensor([[1.0, 0, 4, 5]]), 4)[0]
    # columns have their centres at 0.5 .. 3.5, rows at 1, 3, 5, 7
    assert got.tolist() == [[False, True, True, True]] * 3 + [[False] * 4]


def test_colours_are_those_of_the_image_at_the_roi_and_the_padding_is_not_seen() -> None:
    mean, std = torch.tensor([100.0, 110, 120]).view(3, 1, 1), torch.tensor([50.0, 60, 70]).view(3, 1, 1)
    pixels = torch.zeros(2, 3, 32, 32)
    pixels[0, 0] = 200.0
    pixels[1, :, :, :16], pixels[1, :, :, 16:] = 40.0, 220.0
    canvas = (pixels - mean) / std
    rois = torch.tensor([[0.0, 4, 4, 12, 12], [1, 8, 0, 24, 16], [1, 24, 24, 36, 36]])
    colours, visible = colours_of_rois(canvas, mean, std, rois, torch.full((2, 2), 32), 4)
    assert colours.shape == (3, 3, 4, 4) and visible.shape == (3, 4, 4)
    red, dark, bright = (
        torch.tensor(slow_lab([float(v) for v in rgb])) for rgb in ((200, 0, 0), (40,) * 3, (220,) * 3)
    )
    torch.testing.assert_close(colours[0], red.view(3, 1, 1).expand(3, 4, 4), atol=1e-2, rtol=0)
    torch.testing.assert_close(colours[1, :, :, 0], dark.view(3, 1).expand(3, 4), atol=1e-2, rtol=0)
    torch.testing.assert_close(colours[1, :, :, 3], bright.view(3, 1).expand(3, 4), atol=1e-2, rtol=0)
    assert visible[:2].all()
    assert visible[2].tolist() == [[True, True, True, False]] * 3 + [[False] * 4]


def test_a_map_seen_from_its_own_box_is_itself() -> None:
    torch.manual_seed(0)
    maps, boxes = torch.rand(3, 7, 7), torch.tensor([[1.0, 2, 30, 17], [0, 0, 7, 7], [5, 5, 6, 25]])
    torch.testing.assert_close(seen_in_rois(maps, boxes, boxes), maps, atol=1e-5, rtol=0)


def test_a_map_seen_from_another_roi_lies_where_its_box_does() -> None:
    maps = torch.zeros(1, 4, 4)
    maps[0, 0, 1] = 1.0  # first row, second column
    got = seen_in_rois(maps, torch.tensor([[4.0, 0, 8, 4]]), torch.tensor([[0.0, 0, 8, 8]]))[0]
    # the RoI's cells are two wide: cell (0, 2) lies over the map's columns 0 and 1, rows 0 and 1
    wanted = torch.zeros(4, 4)
    wanted[0, 2] = 0.25
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
    assert seen_in_rois(torch.zeros(0, 4, 4), torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 4, 4)


# ---- the teacher's masks ----


def test_confidence_is_the_mean_probability_of_the_foreground() -> None:
    maps = torch.tensor([[[0.9, 0.7], [0.2, 0.1]], [[0.4, 0.3], [0.2, 0.1]], [[0.5, 0.0], [0.0, 0.0]]])
    torch.testing.assert_close(confidence(maps, 0.5), torch.tensor([0.8, 0.0, 0.5]))


def test_positions_count_the_chosen_objects_of_all_images() -> None:
    chosen = torch.tensor([[True, False, True], [False, False, False], [False, True, False]])
    assert positions_among(chosen, torch.tensor([2, 0, 2, 7])).tolist() == [1, 0, 1, 2]


def test_the_pseudo_mask_loss_weighs_each_roi_and_divides_by_their_number() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(3, 4, 4), (torch.rand(3, 4, 4) > 0.5).float()
    weights = torch.tensor([0.9, 0.0, 0.6])
    wanted = 0.0
    for logit, target, weight in zip(logits.tolist(), targets.tolist(), weights.tolist(), strict=True):
        for row, goals in zip(logit, target, strict=True):
            for x, t in zip(row, goals, strict=True):
                wanted -= weight * (t * math.log(sigmoid(x)) + (1 - t) * math.log(1 - sigmoid(x))) / 16
    assert float(pseudo_mask_loss(logits, targets, weights, 3.0)) == pytest.approx(wanted / 3, rel=1e-5)
