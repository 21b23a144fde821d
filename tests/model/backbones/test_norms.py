"""The normalisations of a backbone: over processes, frozen, over groups; ResNeXt beside them."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torchvision.models as classifiers
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from model.backbones.norms import FrozenBatchNorm2d, SyncBatchNorm2d, replace_norms, synchronised
from model.backbones.resnet import IMAGENET_WEIGHTS, RESNETS, BasicBlock, ResNet
from model.serving import fold_batch_norms
from tests.model.backbones.building import build
from tests.model.test_serving import with_statistics

OTHER_PROCESS = """
import sys
from tests.model.backbones.test_norms import normalise_share
normalise_share(1, sys.argv[1])
"""


def normalise_share(rank: int, path: str) -> None:
    """What process `rank` of two does: its share forward and backward, and what came of it to a file."""
    dist.init_process_group("gloo", init_method=f"file://{path}.store", rank=rank, world_size=2)
    try:
        given = torch.load(path, weights_only=True)
        norm = SyncBatchNorm2d(3)
        norm.load_state_dict(given["norm"])
        x = given["shares"][rank].requires_grad_(True)
        y = norm.train()(x)
        y.backward(given["gradients"][rank])
        assert norm.weight.grad is not None and norm.bias.grad is not None
        found = dict(norm.state_dict()), y.detach(), x.grad, norm.weight.grad, norm.bias.grad
        torch.save(found, f"{path}.{rank}")
        norm.eval()(x)  # asks for no other process, or this would wait for ever
    finally:
        dist.destroy_process_group()


def test_two_processes_normalise_and_learn_as_one_with_both_their_images(tmp_path: Path) -> None:
    """One image here and two there; statistics, answers and all gradients are those of batch normalisation of three."""
    torch.manual_seed(0)
    norm = with_statistics(nn.BatchNorm2d(3)).train()
    x, gradient = torch.randn(3, 3, 4, 5) * 2 + 1, torch.randn(3, 3, 4, 5)
    path = tmp_path / "given.pt"
    torch.save(
        {"norm": norm.state_dict(), "shares": x.split([1, 2]), "gradients": gradient.split([1, 2])}, path
    )
    other = subprocess.Popen([sys.executable, "-c", OTHER_PROCESS, str(path)])
    try:
        normalise_share(0, str(path))
    finally:
        status = other.wait(timeout=120)
    assert status == 0
    whole = x.clone().requires_grad_(True)
    expected = norm(whole)
    expected.backward(gradient)
    (state, y, of_x, of_weight, of_bias), (state_b, y_b, of_x_b, of_weight_b, of_bias_b) = (
        torch.load(f"{path}.{rank}", weights_only=True) for rank in (0, 1)
    )
    for key, value in norm.state_dict().items():
        torch.testing.assert_close(state[key], value)
        assert torch.equal(state[key], state_b[key])
    torch.testing.assert_close(torch.cat([y, y_b]), expected.detach())
    torch.testing.assert_close(torch.cat([of_x, of_x_b]), whole.grad)
    torch.testing.assert_close(of_weight + of_weight_b, norm.weight.grad)
    torch.testing.assert_close(of_bias + of_bias_b, norm.bias.grad)


def test_alone_a_synchronised_norm_is_batch_normalisation_and_scripts_as_it() -> None:
    norm = nn.BatchNorm2d(4)
    with_statistics(norm)
    other = synchronised(norm).train()
    norm.train()
    x = torch.randn(3, 4, 5, 5)
    assert isinstance(other, SyncBatchNorm2d)
    assert torch.equal(other(x), norm(x))
    assert other.running_mean is not None and norm.running_mean is not None
    assert torch.equal(other.running_mean, norm.running_mean) and bool(norm.running_mean.any())
    with torch.no_grad():
        assert torch.equal(torch.jit.script(other.eval())(x), norm.eval()(x))


def test_only_trained_stages_are_synchronised_and_served_as_plain_convolutions() -> None:
    torch.manual_seed(0)
    backbone = with_statistics(build("small", norm="sync", trainable_layers=3)).eval()
    assert isinstance(backbone.body.bn1, FrozenBatchNorm2d)
    assert isinstance(backbone.body.layer4[0].bn1, SyncBatchNorm2d)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = backbone(x)
        fold_batch_norms(backbone, x)
        after = backbone(x)
    assert not [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d)]
    for key in before:
        torch.testing.assert_close(after[key], before[key], atol=1e-5, rtol=1e-4)


def test_group_normalisation_replaces_every_batch_norm_and_follows_every_pyramid_convolution() -> None:
    backbone = build("small", norm="group")
    plain = build("small")
    assert not [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d)]
    norms = {n for n, m in backbone.body.named_modules() if isinstance(m, nn.GroupNorm)}
    assert norms == {n for n, m in plain.body.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert sum(isinstance(m, nn.GroupNorm) for m in backbone.fpn.modules()) == 8
    block = backbone.body.layer2[0]
    assert isinstance(block, BasicBlock) and not bool(block.bn2.weight.any())  # still begins at zero


def test_with_group_normalisation_an_image_does_not_depend_on_its_company() -> None:
    x = torch.randn(2, 3, 64, 64)
    differences = []
    for norm in ("group", "batch"):
        backbone = build("small", norm=norm).train()
        with torch.no_grad():
            differences.append(float((backbone(x)["0"][:1] - backbone(x[:1])["0"]).abs().max()))
    assert differences[0] < 1e-5 < differences[1]


@pytest.mark.parametrize("weights", ["imagenet", "coco"])
def test_weights_of_batch_normalisation_are_refused_for_groups(weights: str) -> None:
    with pytest.raises(ValueError, match="were trained with batch normalisation, and norm is group"):
        build("resnet50", norm="group", weights=weights)


@pytest.mark.parametrize(
    ("name", "groups", "width"), [("resnext101_32x8d", 32, 8), ("resnext101_64x4d", 64, 4)]
)
def test_resnext_has_the_groups_and_widths_of_its_name(name: str, groups: int, width: int) -> None:
    """Xie et al. 2017, Table 1: C groups of d channels in conv2, twice as many from stage to stage."""
    with torch.device("meta"):
        body = ResNet(name)
        levels = body(torch.zeros(1, 3, 97, 131))
    assert [tuple(x.shape[1:]) for x in levels.values()] == [
        (256, 25, 33), (512, 13, 17), (1024, 7, 9), (2048, 4, 5)
    ]  # fmt: skip
    assert [len(layer) for layer in (body.layer1, body.layer2, body.layer3, body.layer4)] == [3, 4, 23, 3]
    for stage, layer in enumerate((body.layer1, body.layer2, body.layer3, body.layer4)):
        for block in layer:
            assert block.conv2.groups == groups
            assert block.conv2.in_channels == groups * width * 2**stage
    assert len(body.stages()) == 5
    assert IMAGENET_WEIGHTS.keys() == RESNETS.keys()


def test_torchvision_resnext_state_dict_gives_torchvisions_own_features_scripted_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one block to a stage, else as torchvision's."""

    def short(weights: None) -> classifiers.ResNet:
        return classifiers.ResNet(Bottleneck, [1, 1, 1, 1], groups=32, width_per_group=8)

    monkeypatch.setitem(RESNETS, "resnext101_32x8d", short)
    torch.manual_seed(0)
    r = short(None)
    with_statistics(r)
    torch.save(r.state_dict(), tmp_path / "resnext.pth")
    backbone = build("resnext101_32x8d", weights=str(tmp_path / "resnext.pth"), norm="frozen").eval()
    x = torch.randn(1, 3, 33, 40)
    with torch.no_grad():
        found: Tensor = backbone.body(x)["3"]
        stem = r.maxpool(r.relu(r.bn1(r.conv1(x))))
        expected = r.layer4(r.layer3(r.layer2(r.layer1(stem))))
        scripted = torch.jit.script(backbone)(x)
        for key, level in backbone(x).items():
            assert torch.equal(scripted[key], level)
    assert float(expected.std()) > 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_only_the_norms_asked_for_are_replaced() -> None:
    module = nn.Sequential(nn.BatchNorm2d(2), nn.Sequential(nn.BatchNorm2d(2)))
    replace_norms(module, {module[0]}, synchronised)
    assert isinstance(module[0], SyncBatchNorm2d) and type(module[1][0]) is nn.BatchNorm2d
