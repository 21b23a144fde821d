"""The network prepared for serving gives the answers of the network that was trained."""

import pytest
import torch
from torch import nn

from model.backbones import build_backbone
from model.backbones.norms import FrozenBatchNorm2d
from model.serving import fold_batch_norms, prepared_for_serving
from tests.model.small_network import ASKED, small_network


def with_statistics(module: nn.Module) -> nn.Module:
    """Normalisations that do something: nothing in them is 0 or 1."""
    generator = torch.Generator().manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d | FrozenBatchNorm2d):
            shape = norm.running_mean.shape
            norm.running_mean.copy_(torch.randn(shape, generator=generator) * 0.1)
            norm.running_var.copy_(torch.rand(shape, generator=generator) + 0.5)
            norm.weight.data.copy_(torch.rand(shape, generator=generator) + 0.5)
            norm.bias.data.copy_(torch.randn(shape, generator=generator) * 0.1)
    return module.eval()


@pytest.mark.parametrize("name", ["resnet50", "efficientnet_lite0", "small"])
@pytest.mark.parametrize("norm", ["batch", "frozen"])
@torch.no_grad()
def test_folded_backbones_give_the_same_features_without_any_normalisation(name: str, norm: str) -> None:
    torch.manual_seed(0)
    backbone = with_statistics(
        build_backbone(name=name, weights="none", fpn_channels=8, norm=norm, trainable_layers=5)
    )
    x = torch.randn(1, 3, 64, 96)
    expected = backbone(x)
    fold_batch_norms(backbone, torch.zeros(1, 3, 64, 64))
    assert not [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d)]
    for level, features in backbone(x).items():
        scale = float(expected[level].abs().max())
        torch.testing.assert_close(features, expected[level], atol=1e-4 * scale, rtol=0)


def test_a_normalisation_without_a_convolution_before_it_is_named() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)).eval()
    with pytest.raises(ValueError, match="2 does not normalise the answer of a convolution"):
        fold_batch_norms(module, torch.zeros(1, 3, 4, 4))


@torch.no_grad()
def test_the_prepared_network_answers_as_before_and_the_trained_one_is_untouched() -> None:
    network = with_statistics(small_network())
    before = {key: value.clone() for key, value in network.state_dict().items()}
    inference = network.inference()
    prepared = prepared_for_serving(inference)
    (a,), (b,) = inference(*ASKED), prepared(*ASKED)
    torch.testing.assert_close(a["scores"], b["scores"], atol=1e-5, rtol=0)
    torch.testing.assert_close(a["boxes"], b["boxes"], atol=1e-2, rtol=0)
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())
    assert prepared.box_head.cell_by_cell and not network.box_head.cell_by_cell
