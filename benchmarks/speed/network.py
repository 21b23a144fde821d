"""The network that is measured: R-50-FPN at 800 / 1333, the same calibrated weights for torchvision and in maskx.pt.

`prepare` writes a folder with `peer.pt` (torchvision's state dict), `maskx.pt` (what is served) and `about.json`.
"""

import io
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN

from benchmarks.speed.calibration import background_for, calibrate
from benchmarks.speed.floor import network_flops, run_eagerly
from benchmarks.speed.peer import SCORE_THRESHOLD, build_peer, decode_to_float, pixels_of
from export.files import METADATA_NAME
from export.metadata import build_metadata, metadata_json
from model.build import build_network
from model.classes import ClassTable
from model.config import BackboneConfig, InputConfig, MaskConfig, ModelConfig
from model.inference import Inference
from model.network import MaskXRCNN
from model.serving import prepared_for_serving

PAIRS = 600
"""(proposal, class) pairs above the threshold on the picture of the calibration."""

CONFIG = ModelConfig(
    backbone=BackboneConfig(name="resnet50", weights="none", norm="frozen"),
    # Mask R-CNN's FCN alone, as the peer has it.
    mask=MaskConfig(mlp="none"),
)


def class_names(count: int) -> ClassTable:
    """`count` classes, all with masks, under the names that the peer answers with."""
    ids = tuple(range(1, count + 1))
    return ClassTable(ids=ids, names=tuple(f"class {i}" for i in ids), has_mask=(True,) * count)


def config_of_size(min_size: int, max_size: int) -> ModelConfig:
    """The network of the bench for another input size."""
    return replace(CONFIG, input=InputConfig(min_size=min_size, max_size=max_size))


@torch.no_grad()
def take_weights(network: MaskXRCNN, peer: MaskRCNN) -> nn.Conv2d:
    """Gives `network` every weight of `peer` that has its like in it; returns the layer of the mask predictor that has
    none, with a mask of each class.

    Raises RuntimeError, from torch, where a weight has no counterpart of its shape.
    """
    own, given = network.backbone.state_dict(), peer.backbone.state_dict()
    kept = [name for name in given if name in own or not name.endswith("num_batches_tracked")]
    network.backbone.load_state_dict({name: given[name] for name in kept})
    network.rpn.head.load_state_dict(peer.rpn.head.state_dict())
    network.box_head.load_state_dict(peer.roi_heads.box_head.state_dict())
    network.box_predictor.load_state_dict(peer.roi_heads.box_predictor.state_dict())
    branches = (
        network.mask_branch.head,
        nn.Sequential(peer.roi_heads.mask_head, peer.roi_heads.mask_predictor),
    )
    ours, theirs = (
        [m for m in branch.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)] for branch in branches
    )
    last = theirs.pop()
    for mine, other in zip(ours, theirs, strict=True):
        mine.load_state_dict(other.state_dict())
    assert isinstance(last, nn.Conv2d) and last.bias is not None
    return last


@torch.no_grad()
def with_weights_of(peer: MaskRCNN, config: ModelConfig) -> Inference:
    """Our network with every weight of `peer`; the peer's mask predictor stands for the table that T is baked into."""
    classes = peer.roi_heads.box_predictor.cls_score.out_features - 1
    network = build_network(config, num_classes=classes).eval()
    last = take_weights(network, peer)
    served = network.inference()
    assert last.bias is not None
    served.mask_table.copy_(last.weight[:, :, 0, 0])
    served.mask_bias.copy_(last.bias[0])
    return served


def write_served(served: Inference, classes: ClassTable, config: ModelConfig, path: Path) -> None:
    """maskx.pt as `export.torchscript` writes it, without its verification."""
    metadata = build_metadata(
        classes,
        mask_size=2 * config.mask.roi_size,
        max_detections=config.box.detections_per_image,
        min_size=config.input.min_size,
        max_size=config.input.max_size,
    )
    scripted = torch.jit.script(prepared_for_serving(served))
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer, _extra_files={METADATA_NAME: metadata_json(metadata)})
    path.write_bytes(buffer.getvalue())


@torch.no_grad()
def with_as_many_pairs(served: Inference, pixels: Tensor, pairs: int) -> int:
    """Sets the background's logit so that `pairs` (proposal, class) pairs of an image pass; returns how many do.

    torchvision pools half a cell off (RoIAlign that is not aligned), so that the same weights give some 5 % fewer or
    more pairs; NMS and box decoding are to have the same work on both sides.
    """
    logits: list[Tensor] = []
    hook = served.box_predictor.register_forward_hook(lambda _m, _i, answer: logits.append(answer.clone()))
    try:
        run_eagerly(served, pixels)
    finally:
        hook.remove()
    background, reached = background_for(logits[0], SCORE_THRESHOLD, pairs)
    served.box_predictor.cls_score.bias[0] = background
    return reached


def prepare(
    folder: str | Path, picture: str | Path, classes: int, *, min_size: int = 800, max_size: int = 1333
) -> dict[str, Any]:
    """Calibrates a network on the image `picture` and writes it for both sides; returns what about.json holds."""
    folder, data = Path(folder), Path(picture).read_bytes()
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    peer = build_peer(classes, min_size=min_size, max_size=max_size)
    reached = calibrate(peer, decode_to_float(data), pairs=PAIRS)
    torch.save(peer.state_dict(), folder / "peer.pt")
    config = config_of_size(min_size, max_size)
    served = with_weights_of(peer, config)
    pairs_ours = with_as_many_pairs(served, pixels_of(data), PAIRS)
    write_served(served, class_names(classes), config, folder / "maskx.pt")
    asked: dict[str, Any] = {"classes": classes, "min_size": min_size, "max_size": max_size}
    asked |= {"score_threshold": SCORE_THRESHOLD, "pairs_asked": PAIRS}
    flops = network_flops(served, pixels_of(data))
    about = {**asked, **asdict(reached), "pairs_ours": pairs_ours, "flops": flops}
    (folder / "about.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return about


def prepare_small(path: str) -> None:
    """A small network for runs of many requests: SmallResNet at 128 pixels, random weights."""
    torch.manual_seed(0)
    config = ModelConfig(
        input=InputConfig(min_size=128, max_size=160),
        backbone=BackboneConfig(name="small", weights="none", norm="batch", fpn_channels=64),
        mask=MaskConfig(width=64, mlp="none"),
    )
    network = build_network(config, num_classes=20).eval()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_served(network.inference(), class_names(20), config, Path(path))
