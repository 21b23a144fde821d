"""timm's models as backbones; skipped where timm is not installed (requirements/timm.txt)."""

import dataclasses
import importlib
import importlib.util
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn

from model.backbones import Backbone
from model.backbones.norms import FrozenBatchNorm2d
from model.config import model_config_from_dict, to_dict
from model.serving import fold_batch_norms
from tests.model.backbones import building
from tests.model.small_network import SMALL, image, same_when_scripted, small_network, target
from tests.model.test_serving import with_statistics

needs_timm = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="timm is not installed: requirements/timm.txt"
)
CONVOLUTIONS = ["test_resnet", "test_efficientnet"]
"""Of few weights, made for timm's own tests: the one with activations apart, the other with them in its norms."""


def build(name: str, **changes: object) -> Backbone:
    return building.build(f"timm:{name}", **changes)


@needs_timm
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_levels_are_timms_own_features_scripted_frozen_and_folded(name: str, tmp_path: Path) -> None:
    timm = importlib.import_module("timm")
    torch.manual_seed(0)
    reference = with_statistics(timm.create_model(name, features_only=True))
    classifier = with_statistics(timm.create_model(name))
    reference.load_state_dict(
        {k: v for k, v in classifier.state_dict().items() if k in reference.state_dict()}
    )
    torch.save(classifier.state_dict(), tmp_path / "weights.pth")
    backbone = build(name, weights=str(tmp_path / "weights.pth"), norm="frozen", trainable_layers=3).eval()
    x = torch.randn(1, 3, 97, 131)
    with torch.no_grad():
        expected = reference(x)[-4:]
        for features, level in zip(backbone.body(x).values(), expected, strict=True):
            torch.testing.assert_close(features, level, atol=1e-4 * float(level.abs().max()), rtol=1e-4)
        levels = backbone(x)
        assert [tuple(level.shape[2:]) for level in levels.values()] == [
            (25, 33), (13, 17), (7, 9), (4, 5), (2, 3)
        ]  # fmt: skip
        scripted = torch.jit.script(backbone)(x)
        assert all(torch.equal(scripted[key], level) for key, level in levels.items())
        fold_batch_norms(backbone, torch.zeros(1, 3, 64, 64))
        for key, level in backbone(x).items():
            torch.testing.assert_close(level, levels[key], atol=1e-4 * float(level.abs().max()), rtol=1e-4)
    assert not [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d)]


@needs_timm
@pytest.mark.parametrize("name", [*CONVOLUTIONS, "convnext_atto"])
def test_the_five_stages_hold_every_parameter_once_and_each_level_needs_its_own(name: str) -> None:
    """What a stage holds moves its own level and no finer one."""
    backbone = build(name, norm="batch").eval()
    stages = backbone.body.stages()
    held = [[p for m in stage for p in m.parameters(recurse=False)] for stage in stages]
    assert sorted(id(p) for stage in held for p in stage) == sorted(id(p) for p in backbone.body.parameters())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = backbone.body(x)
        for stage in (4, 3, 2, 1, 0):
            for p in held[stage]:
                p.add_(0.1 * torch.randn_like(p))
            after = backbone.body(x)
            changed = [not torch.equal(after[str(k)], before[str(k)]) for k in range(4)]
            assert changed == [k >= stage - 1 for k in range(4)]


@needs_timm
def test_stages_that_are_not_trained_are_frozen_with_their_norms() -> None:
    backbone = build("test_efficientnet", trainable_layers=2)
    stages = backbone.body.stages()
    trained = [any(p.requires_grad for m in stage for p in m.parameters()) for stage in stages]
    assert trained == [False, False, False, True, True]
    kinds = [
        {type(m) for m in stage if isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d)} for stage in stages
    ]
    assert kinds == [{FrozenBatchNorm2d}] * 3 + [{nn.BatchNorm2d}] * 2


@needs_timm
@pytest.mark.parametrize("norm", ["sync", "group"])
def test_a_network_on_timm_learns_and_scripts_as_it_is(norm: Literal["sync", "group"]) -> None:
    section = dataclasses.replace(SMALL.backbone, name="timm:test_efficientnet", norm=norm)
    network = small_network(backbone=section)
    assert (
        to_dict(dataclasses.replace(SMALL, backbone=section))["backbone"]["name"] == "timm:test_efficientnet"
    )
    assert network.canvas.mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
    losses = network.train().losses([image()], [target(3)], seeds=[0])
    sum(losses.values()).backward()  # type: ignore[union-attr]
    body = network.backbone.body
    assert all(p.grad is not None for stage in body.stages()[:4] for m in stage for p in m.parameters())
    same_when_scripted(network.eval().inference())


@needs_timm
def test_what_timm_does_not_know_or_has_no_levels_is_refused() -> None:
    with pytest.raises(ValueError, match="timm cannot make it .*Unknown model .no_such_model"):
        build("no_such_model")
    with pytest.raises(ValueError, match="timm:test_vit.* has maps of strides|timm cannot make it"):
        build("test_vit")
    with pytest.raises(ValueError, match="has 'imagenet', 'none' or a path"):
        build("test_resnet", weights="coco")


@needs_timm
def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = build("test_resnet").body.net.state_dict()
    del state["layer1.0.conv1.weight"]
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=r"1 missing \(net.layer1.0.conv1.weight\)"):
        build("test_resnet", weights=str(tmp_path / "bad.pth"))


def test_without_timm_the_requirement_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.import_module

    def absent(name: str, *rest: Any) -> Any:
        if name == "timm":
            raise ModuleNotFoundError("No module named 'timm'")
        return found(name, *rest)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ValueError, match=r"needs the package timm.*requirements/timm.txt"):
        build("test_resnet")


def test_a_name_that_is_neither_known_nor_timms_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"name is 'resnet5'; allowed are .*timm:NAME; did you mean 'resnet50'\?"
    ):
        model_config_from_dict({"backbone": {"name": "resnet5"}})
    assert model_config_from_dict({"backbone": {"name": "timm:x"}}).backbone.name == "timm:x"
