"""RoIAlign that samples bicubically and RoIPool, as options beside RoIAlign."""

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_pool

from model.boxes.pooling import (
    PyramidBicubicRoIAlign,
    PyramidRoIAlign,
    PyramidRoIPool,
    gathered_roi_align,
    rois_of,
)
from tests.model.boxes.test_pooling import random_boxes
from tests.model.small_network import SMALL, image, same_when_scripted, small_network, target

FORMS = [PyramidBicubicRoIAlign, PyramidRoIPool]


def bicubic_roi_align(feature: Tensor, rois: Tensor, size: int, scale: float, ratio: int) -> Tensor:
    return gathered_roi_align(feature, rois, size, scale, ratio, cubic=True)


def dealt_out(boxes: Tensor, images: int) -> Tensor:
    return torch.cat([torch.arange(boxes.shape[0]).remainder(images)[:, None].float(), boxes], dim=1)


def test_bicubic_bins_are_means_of_torchs_bicubic_samples() -> None:
    """grid_sample with the border repeated: its pixel centres are RoIAlign's."""
    torch.manual_seed(0)
    feature, size, ratio, scale = torch.randn(2, 3, 24, 33), 5, 2, 0.25
    rois = dealt_out(random_boxes(30, least=8.0).clamp(0, 90), 2)
    ours = bicubic_roi_align(feature, rois, size, scale, ratio).permute(0, 3, 1, 2)
    step = (torch.arange(size * ratio) + 0.5) / (size * ratio)
    for roi, pooled in zip(rois, ours, strict=True):
        x0, y0, x1, y1 = roi[1:] * scale - 0.5
        x, y = (x0 + step * (x1 - x0)).clamp(0, 32), (y0 + step * (y1 - y0)).clamp(0, 23)
        grid = torch.stack(torch.meshgrid(y / 23 * 2 - 1, x / 32 * 2 - 1, indexing="ij")[::-1], dim=2)
        picture = feature[int(roi[0])][None]
        samples = F.grid_sample(
            picture, grid[None], mode="bicubic", padding_mode="border", align_corners=True
        )
        torch.testing.assert_close(pooled, F.avg_pool2d(samples, ratio)[0], atol=1e-4, rtol=1e-4)


def test_bicubic_keeps_what_is_flat_and_differs_from_bilinear_where_it_is_not() -> None:
    torch.manual_seed(1)
    rois = dealt_out(random_boxes(20).clamp(0, 60), 1)
    flat = bicubic_roi_align(torch.full((1, 2, 16, 16), 3.0), rois, 7, 0.25, 2)
    torch.testing.assert_close(flat, torch.full_like(flat, 3.0))
    feature = torch.randn(1, 2, 16, 16)
    difference = bicubic_roi_align(feature, rois, 7, 0.25, 2) - gathered_roi_align(feature, rois, 7, 0.25, 2)
    assert float(difference.abs().max()) > 0.05


def test_far_outside_there_is_nothing() -> None:
    rois = torch.tensor([[0.0, -300, -200, -290, -190], [0, 400, 500, 420, 520]])
    assert not bool(bicubic_roi_align(torch.ones(1, 2, 8, 8), rois, 3, 0.25, 2).any())


def test_the_gradient_of_bicubic_pooling_is_right() -> None:
    torch.manual_seed(2)
    feature = torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0.0, 1, 2, 17, 19], [0, 4, 3, 9, 22]], dtype=torch.float64)
    torch.autograd.gradcheck(lambda x: bicubic_roi_align(x, rois, 2, 0.25, 2), [feature])


def test_roi_pool_is_torchvisions_from_the_level_of_the_box() -> None:
    torch.manual_seed(3)
    pool = PyramidRoIPool(size=3, sampling_ratio=2, canonical_size=224)
    features = {str(k): torch.randn(2, 4, 64 >> k, 64 >> k) for k in range(4)}
    small, large = torch.tensor([[3.0, 5, 50, 40]]), torch.tensor([[10.0, 4, 250, 249]])
    answer = pool(features, rois_of([small, large]))
    assert torch.equal(answer[:1], roi_pool(features["0"][:1], [small], (3, 3), 1 / 4))
    assert torch.equal(answer[1:], roi_pool(features["2"][1:], [large], (3, 3), 1 / 16))


@pytest.mark.parametrize("form", FORMS)
def test_training_and_evaluation_pool_the_same_and_added_rows_are_zero(form: type[PyramidRoIAlign]) -> None:
    torch.manual_seed(4)
    pool = form(size=3, sampling_ratio=2, canonical_size=56)
    features = {str(k): torch.randn(2, 4, 32 >> k, 32 >> k) for k in range(4)}
    rois = rois_of([random_boxes(5).clamp(0, 128), torch.zeros(0, 4)])
    trained = pool.train()(features, rois)
    padded = pool.eval()(features, rois, 8)
    assert torch.equal(padded[:5], trained) and padded.shape[0] == 8
    assert bool(padded[:5].any()) and not bool(padded[5:].any())
    half = {name: level.bfloat16() for name, level in features.items()}
    low = pool(half, rois)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), trained, atol=0.05, rtol=0.01)
    assert pool(features, torch.zeros(0, 5)).shape == (0, 4, 3, 3)


@pytest.mark.parametrize(("form", "of"), [("bicubic", "box"), ("roi_pool", "mask")])
def test_a_network_with_another_pooling_learns_and_scripts_as_it_is(form: str, of: str) -> None:
    changes: dict[str, Any] = {of: dataclasses.replace(getattr(SMALL, of), pooling=form)}
    network = small_network(**changes)
    plain = small_network()
    pools = {"box": network.box_pool, "mask": network.mask_pool}
    assert type(pools.pop(of)) is {"bicubic": PyramidBicubicRoIAlign, "roi_pool": PyramidRoIPool}[form]
    assert type(next(iter(pools.values()))) is PyramidRoIAlign
    loss = f"loss_{'class' if of == 'box' else 'mask'}"
    losses = [n.train().losses([image()], [target(3)], seeds=[0])[loss] for n in (network, plain)]
    assert not torch.equal(*losses)
    losses[0].backward()  # type: ignore[no-untyped-call]
    gradient = network.backbone.body.conv1.weight.grad
    assert gradient is not None and bool(gradient.any())
    same_when_scripted(network.eval().inference())
