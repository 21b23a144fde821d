"""Mask heads, class-specific weights, the softmax over classes: each trains, and is served as it was trained."""

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model.backbones.convolution import WinogradConv2d, group_norm
from model.boxes.pooling import rois_of
from model.build import build_network
from model.config import BoxConfig, MaskConfig, ModelConfig, TransferConfig, model_config_from_dict, to_dict
from model.losses import mask_softmax_loss
from model.masks.head import MaskBranch, MaskHead, MLPMaskHead, OfficialMaskMLP, SlimMaskMLP
from model.masks.hourglass import HourglassMaskHead, Residual, hourglass_20, hourglass_52
from model.network import MaskXRCNN
from model.serving import REDUCIBLE, prepared_for_serving
from tests.model.operations import LargestTensor
from tests.model.small_network import SMALL, asked, image, same_when_scripted, small_network, target

CLASSES = 5
TWO = asked([image(90, 70), image(64, 96, seed=1)], most=9)


def small(kind: str = "transfer", box_head: str = "fc", **mask: Any) -> MaskXRCNN:
    """The small network with a mask branch of 16 channels."""
    return small_network(
        CLASSES,
        mask=MaskConfig(**({"width": 16, "convolutions": 1, "roi_size": 8} | mask)),
        box=dataclasses.replace(SMALL.box, head=box_head),  # type: ignore[arg-type]
        transfer=TransferConfig(kind=kind, layers=1),  # type: ignore[arg-type]
    )


PRIOR = {"prior": "cam", "box_head": "conv"}
VARIANTS: dict[str, dict[str, Any]] = {
    "8 convolutions": {"convolutions": 8},
    "no convolution": {"convolutions": 0},
    "mlp head": {"head": "mlp", "mlp": "none"},
    "mlp head, class-specific": {"head": "mlp", "mlp": "none", "kind": "class_specific"},
    "hourglass-20": {"head": "hourglass20"},
    "hourglass-20 without MLP": {"head": "hourglass20", "mlp": "none", "kind": "class_agnostic"},
    "hourglass-52": {"head": "hourglass52", "roi_size": 32},
    "class-specific with MLP": {"kind": "class_specific"},
    "class-specific without MLP": {"kind": "class_specific", "mlp": "none"},
    "class-specific with the official MLP": {"kind": "class_specific", "mlp": "official"},
    "softmax with MLP": {"kind": "class_specific", "loss": "softmax"},
    "softmax without MLP": {"kind": "class_specific", "loss": "softmax", "mlp": "none"},
    "prior": {**PRIOR, "convolutions": 7},
    "prior, class-specific": {**PRIOR, "kind": "class_specific", "loss": "softmax"},
    "convolutional box head": {"box_head": "conv"},
}
SERVED = [
    "8 convolutions",
    "mlp head, class-specific",
    "hourglass-20",
    "hourglass-52",
    "softmax with MLP",
    "prior",
]
every_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


@torch.enable_grad()
def steps(network: MaskXRCNN, count: int, stage: str) -> list[float]:
    """Mask losses of `count` steps on one image."""
    network.set_stage(stage)  # type: ignore[arg-type]
    network.train()
    trained = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=3e-3)
    wanted = target(4)
    for mask in wanted["masks"]:
        mask.copy_(torch.ones_like(mask).triu())
    found = []
    for _ in range(count):
        losses = network.losses([image()], [wanted])
        optimiser.zero_grad()
        sum(losses.values(), torch.zeros(())).backward()
        optimiser.step()
        found.append(float(losses["loss_mask"].detach()))
    return found


@every_variant
@pytest.mark.parametrize("stage", ["end_to_end", "mask"])
def test_every_variant_learns_masks_and_reaches_each_of_its_weights(
    variant: dict[str, Any], stage: str
) -> None:
    network = small(**variant, train_on="ground_truth")
    before = copy.deepcopy(network.state_dict())
    found = steps(network, 6, stage)
    assert all(math.isfinite(loss) for loss in found) and found[-1] < found[0]
    changed = {n for n, value in network.state_dict().items() if not torch.equal(value, before[n])}
    mask_side = {n for n, _ in network.named_parameters() if n.startswith(("mask_branch.", "mask_weights."))}
    assert mask_side <= changed
    if stage == "mask":
        assert changed <= mask_side


@every_variant
@pytest.mark.parametrize("count", [0, 1, 3])
def test_no_object_of_set_a_is_a_zero_that_reaches_every_mask_parameter(
    variant: dict[str, Any], count: int
) -> None:
    network = small(**variant).train()
    loss = network.losses([image()], [target(count, with_masks=False)])["loss_mask"]
    loss.backward()
    assert float(loss.detach()) == 0.0
    for name, parameter in network.named_parameters():
        if name.startswith(("mask_branch.", "mask_weights.")):
            assert parameter.grad is not None and not parameter.grad.any(), name


def test_an_hourglass_trains_on_a_single_object() -> None:
    """At the bottom of hourglass-52 that is one cell, of which batch statistics could not be taken."""
    network = small(head="hourglass52", roi_size=32, train_on="ground_truth").train()
    network.losses([image()], [target(1)])["loss_mask"].backward()
    bottom = network.mask_branch.get_submodule("head.bottom.0.conv1")
    assert bottom.weight.grad is not None and bool(bottom.weight.grad.isfinite().all())  # type: ignore[union-attr]


@pytest.mark.parametrize("variant", SERVED)
@torch.no_grad()
def test_every_variant_is_served_scripted_and_in_bfloat16(variant: str) -> None:
    network = small(**VARIANTS[variant])
    steps(network, 2, "end_to_end")  # so that nothing is as it was initialised, batch statistics included
    inference = network.eval().inference()
    served = prepared_for_serving(inference)
    plain, eager = inference(*TWO), same_when_scripted(served, TWO)
    side = 2 * network.mask_pool.size
    assert network.mask_size == side
    for a, b in zip(plain, eager, strict=True):
        torch.testing.assert_close(a["scores"], b["scores"], atol=1e-4, rtol=0)
        assert b["rle_offsets"][-1] == b["rle_counts"].numel() > 0
    for name in REDUCIBLE:
        served.get_submodule(name).to(torch.bfloat16)
    left = {name.partition(".")[0] for name, p in served.named_parameters() if p.dtype == torch.float32}
    assert left == {"box_predictor"}
    frozen = torch.jit.freeze(torch.jit.script(served))
    for answer in frozen(*TWO):
        assert answer["boxes"].dtype == answer["scores"].dtype == torch.float32
        assert answer["labels"].shape == (9,)
        assert answer["rle_offsets"][-1] == answer["rle_counts"].numel() > 0


@pytest.mark.parametrize("given", ["fcn", "mlp", "hourglass20"])
def test_served_masks_are_those_of_training(given: str) -> None:
    """With the sigmoid and with the softmax over the class and the background, on the same boxes."""
    for loss in ("sigmoid", "softmax"):
        network = small("class_specific", head=given, mlp="none" if given == "mlp" else "slim", loss=loss)
        steps(network, 3, "end_to_end")
        network.eval()
        boxes, labels = target(4)["boxes"], target(4)["labels"]
        canvas = network.canvas([image()], 64, 64)
        with torch.no_grad():
            expected = network.object_masks(None, canvas, rois_of([boxes]), labels)
            features = network.inference().for_pooling(network.backbone(canvas))
            got = network.inference().mask_probabilities(features, rois_of([boxes]), labels)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
        assert got.shape == (4, 16, 16)


# ---- the heads themselves ----


def longest_path(head: HourglassMaskHead) -> int:
    """Convolutions one after the other through the bottom: what the number in an hourglass's name counts."""
    through = [head.stem, *head.downs, head.bottom, *head.ups, head.out]
    blocks = [m for part in through for m in part.modules() if isinstance(m, Residual)]
    return 2 * len(blocks) + sum(
        type(part[0]) in (nn.Conv2d, WinogradConv2d) for part in (head.stem, head.out)
    )


def test_hourglasses_have_as_many_convolutions_as_their_names_say() -> None:
    with torch.device("meta"):
        shallow = hourglass_20(channels=256, width=256, roi_size=32)
        deep = hourglass_52(channels=256, width=256, roi_size=32)
    assert (longest_path(shallow), longest_path(deep)) == (20, 52)
    assert [len(list(part.children())) for part in deep.besides] == [2, 2, 2, 2, 2] and len(deep.bottom) == 4
    widths = [part[0].conv2.out_channels for part in deep.besides] + [deep.bottom[0].conv2.out_channels]
    assert widths == [128, 128, 192, 192, 192, 256]


def test_the_number_of_weights_of_every_head() -> None:
    with torch.device("meta"):
        heads = {
            "fcn 4": MaskHead(channels=256, width=256, convolutions=4),
            "fcn 8": MaskHead(channels=256, width=256, convolutions=8),
            "hourglass-20": hourglass_20(channels=256, width=256, roi_size=32),
            "hourglass-52": hourglass_52(channels=256, width=256, roi_size=32),
            "mlp, 80": MLPMaskHead(channels=256, roi_size=14, hidden=1024, width=80),
            "slim MLP at 14": SlimMaskMLP(width=256, roi_size=14),
            "slim MLP at 32": SlimMaskMLP(width=128, roi_size=32),
            "official MLP": OfficialMaskMLP(width=256, mask_size=28),
        }
    assert {name: sum(p.numel() for p in head.parameters()) for name, head in heads.items()} == {
        "fcn 4": 4 * (256 * 256 * 9 + 256) + 256 * 256 * 4 + 256,
        "fcn 8": 8 * (256 * 256 * 9 + 256) + 256 * 256 * 4 + 256,
        "hourglass-20": 5_780_992,
        "hourglass-52": 23_704_960,
        "mlp, 80": (256 * 196 + 1) * 1024 + 1025 * 1024 + 1025 * 784 * 80,
        "slim MLP at 14": 257 * 16 + (16 * 196 + 1) * 784,
        "slim MLP at 32": 129 * 16 + (16 * 256 + 1) * 1024,
        "official MLP": 157_352_720,
    }


def test_an_hourglass_sees_the_whole_crop_from_every_cell() -> None:
    head = hourglass_20(channels=2, width=16, roi_size=8).eval()
    pooled = torch.randn(1, 2, 8, 8, requires_grad=True)
    head(pooled)[1][0, 0, 0].square().sum().backward()
    assert pooled.grad is not None and bool(pooled.grad.abs().sum(1).ne(0).all())


def test_the_norm_after_the_hourglass_is_that_of_the_deconvolved_map() -> None:
    torch.manual_seed(0)
    head = hourglass_20(channels=3, width=16, roi_size=8)
    nn.init.normal_(head.deconv_norm.weight)
    before, after = head(torch.randn(2, 3, 8, 8))
    expected = torch.relu(head.deconv_norm(head.deconv(before)))
    torch.testing.assert_close(after.permute(0, 5, 1, 3, 2, 4).reshape(2, 16, 16, 16), expected)


def test_groups_of_a_norm_have_16_channels_or_what_divides_them() -> None:
    norms = [group_norm(channels) for channels in (128, 192, 24, 6)]
    assert [norm.num_channels // norm.num_groups for norm in norms] == [16, 16, 8, 2]


def test_the_slim_mlp_of_a_large_crop_sees_means_of_cells_and_enlarges_its_logits() -> None:
    mlp = SlimMaskMLP(width=3, roi_size=32)
    nn.init.normal_(mlp.fc.weight)
    x = torch.randn(2, 3, 16, 16)
    small_logits = mlp.fc(torch.relu(mlp.reduce(x)).flatten(1)).view(2, 1, 32, 32)
    got = mlp(x.repeat_interleave(2, 2).repeat_interleave(2, 3), x)
    expected = F.interpolate(small_logits, scale_factor=2, mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


# ---- mask weights of each class ----


def test_class_specific_masks_are_those_of_mask_rcnns_last_convolution() -> None:
    network = small("class_specific", mlp="none").eval()
    weights = network.mask_weights
    assert weights.specific is not None and weights.bias is not None and weights.transfer is None
    nn.init.normal_(weights.specific)
    nn.init.normal_(weights.bias)
    last = nn.Conv2d(16, CLASSES + 1, 1)
    last.load_state_dict({"weight": weights.specific[:, :, None, None], "bias": weights.bias})
    labels = torch.tensor([1, 5, 3])
    head = network.mask_branch.head
    with torch.no_grad():
        table, bias = network.mask_table()
        pooled = torch.randn(3, 16, 8, 8)
        got = network.mask_branch(pooled, table[labels], bias[labels].view(-1, 1, 1))
        deconvolved = torch.relu(head.deconv(head.convs(pooled)))  # type: ignore[operator]
        torch.testing.assert_close(got, last(deconvolved)[torch.arange(3), labels], atol=1e-5, rtol=1e-4)


def test_a_class_specific_mask_moves_its_own_row_alone_by_the_sigmoid_and_every_row_by_the_softmax() -> None:
    wanted = target(3)
    wanted["labels"] = torch.tensor([2, 2, 4])
    for loss, rows in (("sigmoid", {2, 4}), ("softmax", {0, 1, 2, 3, 4, 5})):
        network = small("class_specific", loss=loss, train_on="ground_truth").train()
        network.losses([image()], [wanted])["loss_mask"].backward()
        for parameter in (network.mask_weights.specific, network.mask_weights.bias):
            assert parameter is not None and parameter.grad is not None
            moved = parameter.grad.view(CLASSES + 1, -1).abs().sum(1).nonzero().flatten().tolist()
            assert set(moved) == rows, loss


def test_the_softmax_of_a_class_against_the_background_is_the_sigmoid_of_what_is_served() -> None:
    torch.manual_seed(0)
    network = small("class_specific", loss="softmax").train()
    assert network.mask_weights.specific is not None and network.mask_weights.bias is not None
    nn.init.normal_(network.mask_weights.specific)
    nn.init.normal_(network.mask_weights.bias)
    pooled, labels = torch.randn(3, 16, 8, 8), torch.tensor([1, 5, 3])
    raw = network.mask_weights.specific, network.mask_weights.bias
    of_all = network.mask_branch.of_all_labels(pooled, *raw)
    assert of_all.shape == (3, CLASSES + 1, 16, 16)
    pair = torch.stack([of_all[:, 0], of_all[torch.arange(3), labels]], dim=1)
    table, bias = network.mask_table()
    served = torch.sigmoid(network.mask_branch(pooled, table[labels], bias[labels].view(-1, 1, 1)))
    torch.testing.assert_close(served, pair.softmax(1)[:, 1])


def test_the_mlp_speaks_for_the_object_whatever_its_class() -> None:
    network = small("class_specific", loss="softmax")
    branch = network.mask_branch
    assert isinstance(branch.mlp, SlimMaskMLP)
    nn.init.zeros_(branch.mlp.fc.weight)
    nn.init.constant_(branch.mlp.fc.bias, 3.0)
    pooled, table, bias = torch.randn(2, 16, 8, 8), torch.randn(CLASSES + 1, 16), torch.randn(CLASSES + 1)
    without = MaskBranch(head=branch.head, mlp=None).of_all_labels(pooled, table, bias)
    more = branch.of_all_labels(pooled, table, bias) - without
    torch.testing.assert_close(more[:, 0], torch.zeros(2, 16, 16))
    torch.testing.assert_close(more[:, 1:], torch.full((2, CLASSES, 16, 16), 3.0))


def test_the_softmax_loss_is_the_cross_entropy_of_own_class_inside_and_background_outside() -> None:
    logits = torch.randn(2, 4, 3, 3)
    inside = torch.rand(2, 3, 3) > 0.5
    labels = torch.tensor([3, 1])
    share = logits.softmax(1)
    own = share[torch.arange(2), labels]
    expected = -torch.where(inside, own, share[:, 0]).log().mean()
    torch.testing.assert_close(mask_softmax_loss(logits, inside.float(), labels, 2.0), expected)


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
@torch.no_grad()
def test_a_served_mask_costs_one_dot_product_a_pixel_however_many_classes(loss: str) -> None:
    largest = []
    for classes in (5, 2000):
        network = small_network(
            classes,
            mask=MaskConfig(width=16, convolutions=1, roi_size=8, mlp="none", loss=loss),  # type: ignore[arg-type]
            transfer=TransferConfig(kind="class_specific"),
        ).eval()
        inference = network.inference()
        features = inference.for_pooling(network.backbone(network.canvas([image()], 64, 64)))
        with LargestTensor() as counted:
            inference.mask_probabilities(
                features, rois_of([target(40)["boxes"]]), torch.arange(1, 41) % classes
            )
        largest.append(counted.numel)
    assert largest[0] == largest[1] >= 40 * 16 * 16 * 16


# ---- what is refused ----


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"mask": {"loss": "softmax"}},
            "mask.loss is softmax.*transfer.kind is transfer; set it to class_specific",
        ),
        ({"mask": {"prior": "cam"}}, "mask.prior is cam.*box.head is fc; set it to conv"),
        ({"mask": {"head": "hourglass52"}}, "roi_size is 14; head hourglass52 .* multiple of 32"),
        (
            {"mask": {"head": "hourglass20", "roi_size": 14}},
            "roi_size is 14; head hourglass20 .* multiple of 4",
        ),
        ({"mask": {"head": "hourglass20", "roi_size": 32, "width": 20}}, "width is 20; .* multiple of 8"),
        (
            {"mask": {"head": "hourglass52", "roi_size": 32, "mlp": "official"}},
            "official has 256 x 4096 x 4096 weights",
        ),
        ({"mask": {"head": "mlp"}}, "mlp is slim, but head mlp is one already; set mlp to none"),
        ({"mask": {"convolutions": -1}}, "convolutions -1"),
        ({"mask": {"head": "hourglass"}}, "expected one of 'fcn', 'mlp', 'hourglass20', 'hourglass52'"),
        ({"transfer": {"kind": "class specific"}}, "did you mean 'class_specific'"),
    ],
)
def test_senseless_combinations_are_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_config_from_dict(values)


def test_an_older_configuration_gives_the_network_that_it_gave() -> None:
    plain = to_dict(ModelConfig())
    for section, keys in (("mask", ("head", "loss", "prior")), ("box", ("head",))):
        for key in keys:
            del plain[section][key]
    assert model_config_from_dict(plain) == ModelConfig()
    config = dataclasses.replace(SMALL, box=BoxConfig(width=32), transfer=TransferConfig())
    names = {name.rpartition(".")[0] for name in build_network(config, num_classes=2).state_dict()}
    assert {n for n in names if n.startswith(("mask_", "box_head"))} == {
        "box_head.fc6",
        "box_head.fc7",
        "mask_branch.head.convs.0",
        "mask_branch.head.deconv",
        "mask_branch.mlp.reduce",
        "mask_branch.mlp.fc",
        "mask_weights.transfer.layers.0",
        "mask_weights.transfer.layers.2",
    }
