"""The C4 form: everything read off conv4, conv5 as the head of each RoI, shared with the mask branch."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models as classifiers
from torch import nn
from torchvision.ops import roi_align

from model.backbones.c4 import C4Backbone, Res5BoxHead, build_c4
from model.backbones.norms import FrozenBatchNorm2d
from model.boxes.pooling import rois_of
from model.build import build_network
from model.config import BackboneConfig, BoxConfig, MaskConfig, ModelConfig, RpnConfig
from model.network import MaskXRCNN
from model.serving import prepared_for_serving
from tests.model.backbones.building import build
from tests.model.small_network import ASKED, SMALL, image, same_when_scripted, target
from tests.model.test_serving import with_statistics

SMALL_C4 = dataclasses.replace(
    SMALL,
    backbone=dataclasses.replace(SMALL.backbone, norm="group"),
    box=dataclasses.replace(SMALL.box, head="res5", width=192, roi_size=8),
    mask=MaskConfig(head="res5", width=16, roi_size=4),
)


def network(config: ModelConfig = SMALL_C4) -> MaskXRCNN:
    torch.manual_seed(0)
    return build_network(config, num_classes=5)


def changed(**sections: dict[str, Any]) -> ModelConfig:
    """SMALL_C4 with fields of its sections changed."""
    return dataclasses.replace(
        SMALL_C4,
        **{name: dataclasses.replace(getattr(SMALL_C4, name), **fields) for name, fields in sections.items()},
    )


def test_conv4_and_conv5_on_a_crop_are_those_of_torchvisions_resnet(tmp_path: Path) -> None:
    """Trunk and head together hold every weight of the classifier's body once, and compute what it computes."""
    torch.manual_seed(0)
    reference = classifiers.resnet18(weights=None)
    with_statistics(reference)
    torch.save(reference.state_dict(), tmp_path / "resnet18.pth")
    whole = build("resnet18", weights=str(tmp_path / "resnet18.pth"), norm="frozen")
    trunk, head = build_c4(whole, name="resnet18", width=512)
    convolutions = sum(p.numel() for n, p in reference.named_parameters() if p.dim() == 4)
    assert sum(p.numel() for p in [*trunk.parameters(), *head.parameters()]) == convolutions
    x, crop = torch.randn(1, 3, 97, 131), torch.randn(3, 256, 14, 14)
    r = reference
    with torch.no_grad():
        c4 = trunk(x)["0"]
        expected = r.layer3(r.layer2(r.layer1(r.maxpool(r.relu(r.bn1(r.conv1(x)))))))
        assert c4.shape == (1, 256, 7, 9)
        torch.testing.assert_close(c4, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(head.maps(crop), r.layer4(crop), rtol=1e-4, atol=1e-4)
        assert head.maps(crop).shape == (3, 512, 7, 7)
        assert torch.equal(head(crop), head.maps(crop).mean(dim=[2, 3]))


@pytest.mark.parametrize("trained", [0, 1, 3])
def test_conv5_counts_as_the_deepest_stage_in_what_is_trained(trained: int) -> None:
    whole = build("resnet18", norm="frozen", trainable_layers=trained)
    trunk, head = build_c4(whole, name="resnet18", width=512)
    assert all(p.requires_grad for p in head.parameters()) == (trained >= 1)
    stages = [any(p.requires_grad for p in part.parameters()) for part in trunk.body]
    assert stages == [False, False, trained >= 3, trained >= 2]
    assert not [m for m in head.modules() if isinstance(m, nn.BatchNorm2d)]


def test_all_anchor_sizes_stand_on_the_one_level() -> None:
    net = network()
    assert isinstance(net.backbone, C4Backbone) and isinstance(net.box_head, Res5BoxHead)
    assert net.rpn.anchor_generator.num_anchors_per_location() == [15]
    assert net.rpn.head.cls_logits.out_channels == 15
    with torch.no_grad():
        levels = net.eval().backbone(torch.zeros(1, 3, 64, 96))
    assert {name: tuple(level.shape) for name, level in levels.items()} == {"0": (1, 128, 4, 6)}


def test_every_box_is_pooled_from_conv4_whatever_its_size() -> None:
    net = network().eval()
    features = {"0": torch.randn(1, 4, 8, 8)}
    boxes = torch.tensor([[0.0, 0, 10, 12], [3, 5, 120, 100]])
    expected = roi_align(features["0"], [boxes], (8, 8), 1 / 16, 2, aligned=True)
    torch.testing.assert_close(net.box_pool(features, rois_of([boxes])), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        net.train().box_pool(features, rois_of([boxes])), expected, atol=1e-5, rtol=1e-4
    )


def test_every_part_learns_and_masks_train_the_shared_conv5() -> None:
    net = network().train()
    losses = net.losses([image(), image(seed=1)], [target(3), target(2, seed=1)], seeds=[0, 1])
    assert set(losses) == {"loss_objectness", "loss_rpn_box", "loss_class", "loss_box", "loss_mask"}
    losses["loss_mask"].backward(retain_graph=True)
    assert any(p.grad is not None and bool(p.grad.any()) for p in net.box_head.parameters())
    sum(losses.values()).backward()
    unreached = [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None]
    assert unreached == []


def test_without_any_mask_the_shared_conv5_still_gets_a_gradient_from_the_mask_loss() -> None:
    net = network().train()
    net.losses([image()], [target(2, with_masks=False)], seeds=[0])["loss_mask"].backward()
    grads = [p.grad for p in net.box_head.parameters()]
    assert all(g is not None and not bool(g.any()) for g in grads)


def test_the_mask_stage_leaves_conv5_as_the_detector_has_it() -> None:
    net = network()
    net.set_stage("mask")
    assert not any(p.requires_grad for p in net.box_head.parameters())
    net.losses([image()], [target(2)], seeds=[0])["loss_mask"].backward()
    assert all(p.grad is None for p in net.box_head.parameters())
    assert any(p.grad is not None and bool(p.grad.any()) for p in net.mask_branch.parameters())


@pytest.mark.parametrize("mask", [SMALL_C4.mask, MaskConfig(width=16, convolutions=1, roi_size=7)])
def test_scripted_answers_equal_the_eager_ones_at_the_heads_own_side(mask: MaskConfig) -> None:
    """Fig. 4, left: a crop of 14 cells, 7 of conv5, a mask of 14; an FCN on conv4 has its own crop."""
    net = network(dataclasses.replace(SMALL_C4, mask=mask)).eval()
    assert net.mask_size == 2 * mask.roi_size
    served = net.inference()
    features = {"0": torch.randn(1, 128, 4, 4)}
    boxes, labels = torch.tensor([[2.0, 3, 40, 50]]), torch.tensor([2])
    with torch.no_grad():
        probabilities = served.mask_probabilities(features, rois_of([boxes]), labels)
        assert probabilities.shape == (1, net.mask_size, net.mask_size)
        own = torch.sigmoid(net.mask_logits(features, rois_of([boxes]), labels))
        torch.testing.assert_close(probabilities, own, atol=1e-5, rtol=1e-4)
        assert same_when_scripted(served)[0]["labels"].shape == (20,)


@torch.no_grad()
def test_served_conv5_has_no_normalisation_left_and_the_answers_stay() -> None:
    config = changed(backbone={"norm": "frozen"})
    net = with_statistics(network(config))
    assert isinstance(net, MaskXRCNN)
    inference = net.inference()
    prepared = prepared_for_serving(inference)
    norms = nn.BatchNorm2d | FrozenBatchNorm2d
    assert [m for m in inference.box_head.modules() if isinstance(m, norms)]
    assert not [m for m in prepared.modules() if isinstance(m, norms)]
    (a,), (b,) = inference(*ASKED), prepared(*ASKED)
    torch.testing.assert_close(a["scores"], b["scores"], atol=1e-5, rtol=0)
    torch.testing.assert_close(a["boxes"], b["boxes"], atol=1e-2, rtol=0)
    for part in (prepared.backbone, prepared.rpn.head, prepared.box_head, prepared.mask_branch):
        part.to(torch.bfloat16)
    assert prepared(*ASKED)[0]["boxes"].dtype == torch.float32


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"box": {"width": 64}}, "set box.width to 192"),
        ({"box": {"roi_size": 7}}, "model.box.roi_size is 7"),
        ({"box": {"head": "fc"}}, "model.mask.head is res5"),
        ({"backbone": {"norm": "batch"}}, "set it to frozen (Mask R-CNN) or group"),
        ({"backbone": {"name": "efficientnet_lite0"}}, "efficientnet_lite0 has no conv5"),
    ],
)
def test_what_does_not_go_with_c4_is_refused_by_name(
    sections: dict[str, dict[str, Any]], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        network(changed(**sections))


def test_the_papers_form_is_a_configuration_and_its_sizes_are_those_of_fig_4() -> None:
    config = ModelConfig(
        backbone=BackboneConfig(name="resnet50", weights="none"),
        rpn=RpnConfig(anchor_sizes=(32, 64, 128, 256, 512)),
        box=BoxConfig(head="res5", width=2048, roi_size=14, rois_per_image=64),
        mask=MaskConfig(head="res5", roi_size=7, mlp="none"),
    )
    with torch.device("meta"):
        net = build_network(config, num_classes=80)
    assert isinstance(net.backbone, C4Backbone)
    assert (net.backbone.out_channels, net.mask_size, net.box_pool.size) == (1024, 14, 14)
    assert net.mask_branch.head.deconv.weight.shape == (2048, 256, 2, 2)
    assert net.box_predictor.cls_score.weight.shape == (81, 2048)
