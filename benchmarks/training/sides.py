"""Both sides of `benchmarks.training`: a step of our training and the reference step of torchvision's own scripts.

Each lives in a process of its own (`benchmarks.worker`). Images, objects, schedule and the weights at the start are the
same; what differs is the code between them.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from benchmarks.speed.network import take_weights
from benchmarks.training.steps import StepSide
from model.backbones import Backbone, build_backbone
from model.build import build_network
from model.config import BoxConfig, InputConfig, MaskConfig, ModelConfig, TransferConfig
from model.targets import Target, mask_windows
from training.config import TrainingConfig, load_config
from training.data.coco import CocoDataset, Sample
from training.process import keep_freed_memory
from training.run import Run

WARM_UP, WARM_UP_START = 1000, 0.001
"""The reference's warm-up, steps and first share of the learning rate."""

Form = Literal["mask_rcnn", "maskx"]
"""Our network as torchvision's Mask R-CNN, with each class's own mask weights; or Mask^X R-CNN: T on cls+box in 2
layers, and the slim MLP."""


def model_config(network: str, form: Form, *, side: int) -> ModelConfig:
    """The network "resnet50" (our defaults, torchvision's sizes) or "shapes" (the preset's sizes) for images of `side`.

    Heads are Mask R-CNN's whatever the preset says.
    """
    if network == "resnet50":
        base = ModelConfig(input=InputConfig(min_size=side, max_size=math.ceil(side * 5 / 3)))
        base = replace(base, backbone=replace(base.backbone, weights="none"))
    elif network == "shapes":
        base = load_config("training/presets/shapes.toml").model
        base = replace(base, input=InputConfig(min_size=side, max_size=side))
    else:
        raise ValueError(f"network is {network!r}; there are resnet50 and shapes")
    sizes = {key: getattr(base.box, key) for key in ("width", "canonical_size", "rois_per_image")}
    box = BoxConfig(**sizes)
    if form == "mask_rcnn":
        mask, transfer = MaskConfig(width=base.mask.width, mlp="none"), TransferConfig(kind="class_specific")
    else:
        mask, transfer = MaskConfig(width=base.mask.width), TransferConfig()
    return replace(base, box=box, mask=mask, transfer=transfer)


def build_reference(config: ModelConfig, classes: int) -> MaskRCNN:
    """torchvision's Mask R-CNN of the same parts and sizes; with a backbone that it lacks, ours.

    With random weights its frozen normalisations are none at all: the last one of every block gets a small scale, or
    the features would grow from block to block.
    """
    if config.backbone.name.startswith("resnet"):
        name, layers = config.backbone.name, config.backbone.trainable_layers
        backbone: nn.Module = resnet_fpn_backbone(backbone_name=name, weights=None, trainable_layers=layers)
        for name, buffer in backbone.named_buffers():
            if name.endswith("bn3.weight"):
                buffer.fill_(0.2)
    else:
        backbone = built_backbone(config)
    levels, channels, mask = ["0", "1", "2", "3"], config.backbone.fpn_channels, config.mask
    ours = built_backbone(config)

    def pool(size: int, ratio: int) -> MultiScaleRoIAlign:
        return MultiScaleRoIAlign(levels, size, ratio, canonical_scale=config.box.canonical_size)

    return MaskRCNN(
        backbone,
        min_size=config.input.min_size,
        max_size=config.input.max_size,
        image_mean=[value / 255 for value in ours.pixel_mean],
        image_std=[value / 255 for value in ours.pixel_std],
        rpn_anchor_generator=AnchorGenerator(
            tuple((size,) for size in config.rpn.anchor_sizes), (config.rpn.aspect_ratios,) * 5
        ),
        rpn_pre_nms_top_n_train=config.rpn.before_nms(one_level=False)[0],
        rpn_post_nms_top_n_train=config.rpn.post_nms_train,
        rpn_batch_size_per_image=config.rpn.batch_per_image,
        box_roi_pool=pool(config.box.roi_size, config.box.sampling_ratio),
        box_head=TwoMLPHead(channels * config.box.roi_size**2, config.box.width),
        box_predictor=FastRCNNPredictor(config.box.width, classes + 1),
        box_batch_size_per_image=config.box.rois_per_image,
        box_positive_fraction=config.box.positive_fraction,
        mask_roi_pool=pool(mask.roi_size, mask.sampling_ratio),
        mask_head=MaskRCNNHeads(channels, (mask.width,) * mask.convolutions, 1),
        mask_predictor=MaskRCNNPredictor(mask.width, mask.width, classes + 1),
    )


def built_backbone(config: ModelConfig) -> Backbone:
    """Our backbone of a configuration."""
    made = config.backbone
    return build_backbone(
        name=made.name,
        weights=made.weights,
        norm=made.norm,
        fpn_channels=made.fpn_channels,
        trainable_layers=made.trainable_layers,
    )


def samples(folder: Path, count: int) -> tuple[list[Sample], int]:
    """The first `count` drawn images that have objects and no crowds, which the reference leaves out; all classes."""
    data = CocoDataset(folder / "train", folder / "train.json", mask_classes="all")
    found = []
    for row in range(len(data)):
        target = data.target(row)
        if len(target["labels"]) and not len(target["crowd_boxes"]) and bool(target["has_mask"].all()):
            found.append(data[row])
        if len(found) == count:
            return found, data.classes.num_classes
    raise ValueError(f"{folder} has {len(found)} fit images; {count} are needed: draw more")


def full_masks(image: Tensor, target: Target) -> Tensor:
    """The masks of the objects on the whole image, uint8 [N, h, w], as the reference's data set gives them."""
    height, width = image.shape[1:]
    masks = torch.zeros((len(target["masks"]), height, width), dtype=torch.uint8)
    windows = mask_windows(target["boxes"], height, width).tolist()
    for mask, crop, (x0, y0, x1, y1) in zip(masks, target["masks"], windows, strict=True):
        mask[y0:y1, x0:x1] = crop
    return masks


class OursStep(StepSide):
    """`training.run.Run`, end to end.

    Args:
        start: state dict of `build_reference`, for the same weights.
        precision, channels_last: as in `TrainingConfig`.
    """

    def __init__(
        self,
        data: str,
        start: str,
        network: str,
        form: Form,
        *,
        side: int,
        batch: int,
        batches: int,
        device: str = "cpu",
        precision: Literal["float32", "bfloat16"] = "float32",
        channels_last: bool = False,
        learning_rate: float = 0.02,
    ) -> None:
        self.device = torch.device(device)
        if self.device.type == "cpu":
            keep_freed_memory()  # as `training.train` does
        drawn, classes = samples(Path(data), batch * batches)
        model = model_config(network, form, side=side)
        config = training_config(model, batch=batch, learning_rate=learning_rate)
        config = replace(config, precision=precision, channels_last=channels_last)
        torch.manual_seed(0)
        made = build_network(config.model, num_classes=classes)
        peer = build_reference(model_config(network, "mask_rcnn", side=side), classes)
        peer.load_state_dict(torch.load(start, weights_only=True))
        last = take_weights(made, peer)
        specific, bias = made.mask_weights.specific, made.mask_weights.bias
        if specific is not None:
            assert bias is not None and last.bias is not None
            with torch.no_grad():
                specific.copy_(last.weight[:, :, 0, 0])
                bias.copy_(last.bias)
        del peer, last
        made = made.to(self.device)
        if channels_last:
            made = made.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        table = CocoDataset(Path(data) / "train", Path(data) / "train.json", mask_classes="all").classes
        self.run = Run(config=config, network=made, classes=table, images=batch * batches)
        self.run.begin("end_to_end")
        self.mask_module = made.mask_branch
        self.batches = [drawn[i * batch : (i + 1) * batch] for i in range(batches)]
        self._ready()

    def step(self, number: int) -> dict[str, float]:
        """One step; its figures."""
        pairs = self.batches[number % len(self.batches)]
        self.run.set_learning_rate()
        return self.run.train_on([image for image, _ in pairs], [target for _, target in pairs])


def training_config(model: ModelConfig, *, batch: int, learning_rate: float) -> TrainingConfig:
    """End to end by SGD, with the reference's schedule; so many steps that none of its drops comes."""
    base = TrainingConfig(model=model)
    warm_up: dict[str, Any] = {
        "end_to_end_steps": 100 * WARM_UP,
        "warmup_steps": WARM_UP,
        "warmup_start": WARM_UP_START,
    }
    schedule = replace(base.schedule, batch_size=batch, **warm_up)
    optimiser = replace(base.optimiser, learning_rate=learning_rate)
    return replace(base, schedule=schedule, optimiser=optimiser, seed=0)


class ReferenceStep(StepSide):
    """What `train_one_epoch` of torchvision's `references/detection` does between two batches, in one process.

    SGD with momentum 0.9 and decay 1e-4, the learning rate rising linearly over the first steps; the loss is looked at
    on the host in every step. Images come as float tensors and masks whole, as the reference's data set gives them.
    """

    def __init__(
        self,
        data: str,
        start: str,
        network: str,
        *,
        side: int,
        batch: int,
        batches: int,
        device: str = "cpu",
        learning_rate: float = 0.02,
    ) -> None:
        self.device = torch.device(device)
        drawn, classes = samples(Path(data), batch * batches)
        self.network = build_reference(model_config(network, "mask_rcnn", side=side), classes)
        self.network.load_state_dict(torch.load(start, weights_only=True))
        self.network.to(self.device).train()
        self.mask_module = self.network.roi_heads.mask_head
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.SGD(trained, lr=learning_rate, momentum=0.9, weight_decay=1e-4)
        warm_up: dict[str, Any] = {"start_factor": WARM_UP_START, "total_iters": WARM_UP}
        self.schedule = torch.optim.lr_scheduler.LinearLR(self.optimiser, **warm_up)
        pairs = []
        for image, target in drawn:
            given = {"boxes": target["boxes"], "labels": target["labels"], "masks": full_masks(image, target)}
            pairs.append((image.float() / 255, given))
        self.batches = [pairs[i * batch : (i + 1) * batch] for i in range(batches)]
        self._ready()

    def step(self, number: int) -> dict[str, float]:
        """One step; the sum of its losses."""
        pairs = self.batches[number % len(self.batches)]
        images = [image.to(self.device) for image, _ in pairs]
        targets = [{name: value.to(self.device) for name, value in target.items()} for _, target in pairs]
        losses: dict[str, Tensor] = self.network(images, targets)
        loss = torch.stack(list(losses.values())).sum()
        value = loss.item()
        if not math.isfinite(value):
            raise ValueError(f"the reference's loss is {value} in step {number + 1}")
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.schedule.step()
        return {"loss": value, **{name: float(one.detach()) for name, one in losses.items()}}


def write_start(data: str, network: str, *, side: int, out: str) -> None:
    """Writes the weights that both sides start from."""
    torch.manual_seed(0)
    classes = samples(Path(data), 1)[1]
    peer = build_reference(model_config(network, "mask_rcnn", side=side), classes)
    torch.save(peer.state_dict(), out)
