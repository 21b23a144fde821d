"""Anchors as torchvision, detectron2 and Detectron have them."""

import dataclasses
from typing import Any

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator

from model.boxes.anchors import anchor_generator, detectron_anchors, exact_anchors
from tests.model.small_network import SMALL, small_network

SIZES, RATIOS = ((32,), (64,), (128,), (256,), (512,)), (0.5, 1.0, 2.0)
MATLAB = [
    [-83, -39, 100, 56], [-175, -87, 192, 104], [-359, -183, 376, 200],
    [-55, -55, 72, 72], [-119, -119, 136, 136], [-247, -247, 264, 264],
    [-35, -79, 52, 96], [-79, -167, 96, 184], [-167, -343, 184, 360],
]  # fmt: skip
"""Of a cell of 16 pixels in py-faster-rcnn and Detectron, as both list them to check theirs: pixels counted from 1, the
last one inside the box."""


def test_detectrons_anchors_are_those_of_its_listing() -> None:
    found = detectron_anchors((128, 256, 512), RATIOS, 16)
    # From the pixels' middles, counted from 1, to where a pixel begins and ends, counted from 0.
    expected = torch.tensor(MATLAB).float() + torch.tensor([-1.0, -1.0, 0.0, 0.0])
    torch.testing.assert_close(found, expected)


def test_exact_anchors_have_the_areas_and_ratios_asked_for() -> None:
    found = exact_anchors((32, 100), RATIOS)
    width, height = (found[:, 2:] - found[:, :2]).unbind(1)
    torch.testing.assert_close(width * height, torch.tensor([32.0, 100.0]).square().repeat(3))
    torch.testing.assert_close(height / width, torch.tensor(RATIOS).repeat_interleave(2))
    assert (found[:, :2] + found[:, 2:]).abs().max() < 1e-5


def test_rounded_anchors_are_torchvisions_and_the_others_lie_as_far_off_as_is_said() -> None:
    theirs = AnchorGenerator(SIZES, (RATIOS,) * 5).cell_anchors
    rounded, exact, detectron = (
        anchor_generator(SIZES, RATIOS, form, 4).cell_anchors for form in ("rounded", "exact", "detectron")
    )
    assert all(torch.equal(a, b) for a, b in zip(rounded, theirs, strict=True))
    assert max(float((a - b).abs().max()) for a, b in zip(rounded, exact, strict=True)) <= 0.5
    for level, (one, other) in enumerate(zip(exact, detectron, strict=True)):
        middle = (other[:, :2] + other[:, 2:]) / 2
        assert (middle == 2 * 2**level).all()
        longer = (other[:, 2:] - other[:, :2]) / (one[:, 2:] - one[:, :2]) - 1
        assert longer.abs().max() <= 0.0607 and longer[1].abs().max() < 1e-6
    first = (detectron[0][0, 2:] - detectron[0][0, :2]) / (exact[0][0, 2:] - exact[0][0, :2])
    assert first.max() > 1.06


@pytest.mark.parametrize("form", ["rounded", "exact", "detectron"])
def test_the_network_proposes_from_the_anchors_of_the_configuration(form: Any) -> None:
    network = small_network(rpn=dataclasses.replace(SMALL.rpn, anchors=form))
    expected = anchor_generator([(size,) for size in SMALL.rpn.anchor_sizes], RATIOS, form, 4).cell_anchors
    assert all(
        torch.equal(a, b) for a, b in zip(network.rpn.anchor_generator.cell_anchors, expected, strict=True)
    )
