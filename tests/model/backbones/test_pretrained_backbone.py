"""torchvision's weights for the backbones that it has, by name (here from a hub of the test's own) and by file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.mask_rcnn import MaskRCNN_ResNet50_FPN_V2_Weights

from model.backbones import COCO_WEIGHTS, Backbone
from model.backbones.resnet import IMAGENET_WEIGHTS, RESNETS
from tests.model.backbones import building
from tests.model.test_serving import with_statistics

Hub = Callable[[dict[str, Tensor]], list[str]]


def build(name: str, **changes: object) -> Backbone:
    return building.build(name, **({"norm": "frozen", "trainable_layers": 3} | changes))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub that gives one state dict whatever it is asked for, and the list of what it was asked for."""

    def giving(state: dict[str, Tensor]) -> list[str]:
        asked: list[str] = []

        def give(weights: WeightsEnum, *arguments: Any, **options: Any) -> dict[str, Tensor]:
            assert options["check_hash"] is True
            asked.append(str(weights))
            return state

        monkeypatch.setattr(WeightsEnum, "get_state_dict", give)
        return asked

    return giving


def detector_state(*, norm: Callable[..., nn.Module] | None, channels: int = 16) -> dict[str, Tensor]:
    """Body and pyramid of a torchvision detector on ResNet-18, as its second ones (norm) or its first."""
    torch.manual_seed(0)
    levels = {f"layer{k + 1}": str(k) for k in range(4)}
    whole = BackboneWithFPN(RESNETS["resnet18"](), levels, [64, 128, 256, 512], channels, norm_layer=norm)
    with_statistics(whole)
    state = {f"backbone.{key}": value for key, value in whole.state_dict().items()}
    state["roi_heads.box_head.fc6.weight"] = torch.zeros(1)  # of the rest of a detector
    reference.append(whole)
    return state


reference: list[BackboneWithFPN] = []


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_imagenet_weights_are_those_of_the_backbone_of_that_name(name: str, hub: Hub) -> None:
    torch.manual_seed(0)
    published = RESNETS[name]().state_dict()
    asked = hub(published)
    body = build(name, weights="imagenet").body.state_dict()
    assert asked == [f"{name.replace('resnet', 'ResNet')}_Weights.IMAGENET1K_V1"]
    assert all(torch.equal(value, published[key]) for key, value in body.items())
    assert {key for key in published if key not in body and "num_batches" not in key} == {
        "fc.weight",
        "fc.bias",
    }


def test_every_resnet_has_imagenet_weights_of_its_own() -> None:
    assert IMAGENET_WEIGHTS.keys() == RESNETS.keys()
    for name, weights in IMAGENET_WEIGHTS.items():
        assert type(weights).__name__.lower() == f"{name}_weights", name


def test_imagenet_weights_of_another_backbone_are_refused_by_their_keys(hub: Hub) -> None:
    hub(RESNETS["resnet34"]().state_dict())
    with pytest.raises(ValueError, match=r"do not fit ResNet: .* unexpected \(layer1\.2\.conv1\.weight"):
        build("resnet18", weights="imagenet")


@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d], ids=["first detectors", "second detectors"])
def test_a_detectors_file_gives_its_own_levels(norm: Callable[..., nn.Module] | None, tmp_path: Path) -> None:
    torch.save(detector_state(norm=norm), tmp_path / "detector.pth")
    backbone = build("resnet18", weights=str(tmp_path / "detector.pth")).eval()
    x = torch.randn(1, 3, 70, 65)
    with torch.no_grad():
        levels, expected = backbone(x), reference.pop()(x)
    assert list(levels) == list(expected)
    for key, level in expected.items():
        assert level.std() > 0.01
        torch.testing.assert_close(levels[key], level, rtol=1e-4, atol=1e-4)


def test_a_detectors_pyramid_of_another_width_is_refused(tmp_path: Path) -> None:
    torch.save(detector_state(norm=None, channels=24), tmp_path / "detector.pth")
    with pytest.raises(ValueError, match="bring a pyramid of 24 channels: fpn_channels is 16"):
        build("resnet18", weights=str(tmp_path / "detector.pth"))


def test_coco_weights_are_resnet_50s_and_come_in_two_editions(hub: Hub) -> None:
    assert COCO_WEIGHTS["coco_v2"] is MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1
    asked = hub(detector_state(norm=nn.BatchNorm2d, channels=256))
    with pytest.raises(
        ValueError, match="weights 'coco_v2' do not fit Backbone"
    ):  # the hub gives ResNet-18's
        build("resnet50", weights="coco_v2", fpn_channels=256)
    assert asked == ["MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1"]
    for name in ("resnet18", "small", "efficientnet_lite0"):
        with pytest.raises(ValueError, match="weights 'coco_v2'"):
            build(name, weights="coco_v2")
