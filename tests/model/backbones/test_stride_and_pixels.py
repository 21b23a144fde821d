"""The stride in the first convolution of a bottleneck, and Detectron's statistics of pixels."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from model.backbones import build_backbone
from model.backbones.resnet import ResNet
from model.config import BackboneConfig, InputConfig, ModelConfig, model_config_from_dict
from tests.model.small_network import SMALL, small_network


def test_the_stride_moves_to_the_first_convolution_and_nothing_else_changes() -> None:
    there, here = ResNet("resnet50"), ResNet("resnet50", "1x1")
    strides = [
        {
            name: m.stride
            for name, m in body.named_modules()
            if isinstance(m, nn.Conv2d) and m.stride != (1, 1)
        }
        for body in (there, here)
    ]
    moved = {name.replace("conv2", "conv1"): stride for name, stride in strides[0].items()}
    assert strides[1] == moved and len(moved) == 7 and strides[0] != strides[1]
    here.load_state_dict(there.state_dict())
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, other = there.eval()(x), here.eval()(x)
    assert [level.shape for level in one.values()] == [level.shape for level in other.values()]
    assert torch.equal(one["0"], other["0"]) and not torch.allclose(one["1"], other["1"])


@pytest.mark.parametrize("name", ["resnet18", "small", "efficientnet_lite0"])
def test_a_backbone_without_bottlenecks_refuses_the_stride_in_1x1(name: str) -> None:
    config = BackboneConfig(name=name, weights="none", stride_in="1x1")
    with pytest.raises(ValueError, match="bottlenecks"):
        build_backbone(
            name=config.name, weights="none", fpn_channels=16, norm="frozen", trainable_layers=3,
            stride_in=config.stride_in,
        )  # fmt: skip


def test_pixels_are_normalised_by_the_statistics_of_the_backbone_or_of_detectron() -> None:
    image = torch.full((3, 64, 64), 130, dtype=torch.uint8)
    for pixels, expected in (
        ("backbone", [(130 - 127.5) / 64.0] * 3), ("detectron", [130 - 122.7717, 130 - 115.9465, 130 - 102.9801]),
    ):  # fmt: skip
        given: Any = pixels
        network = small_network(input=dataclasses.replace(SMALL.input, pixels=given))
        torch.testing.assert_close(network.canvas([image], 64, 64)[0, :, 0, 0], torch.tensor(expected))
    with pytest.raises(ValueError, match="expected one of 'backbone', 'detectron'"):
        model_config_from_dict({"input": {"pixels": "bgr"}})
    assert ModelConfig().input == InputConfig(pixels="backbone")
