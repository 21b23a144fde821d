"""Random weights that behave like trained ones, for torchvision's Mask R-CNN; ours takes them over.

What a detector's time depends on is set on one picture, layer by layer: activations of order one, the sizes of its
boxes (COCO's), the number of (proposal, class) pairs above the threshold, and masks that are blobs of about half their
box. A network with plain random weights has none of these.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers

Layer = nn.Conv2d | nn.ConvTranspose2d | nn.Linear

COCO_SIZES = (0.41, 0.34, 0.24)
"""Share of small, medium and large objects in COCO (Lin et al. 2014); the rest is rounding."""
COCO_SHORT_SIDE = 480
"""Shorter side of most of COCO's images, in whose pixels an object is small below 32^2 and large above 96^2."""
LEVEL_SHARES = (0.41, 0.17, 0.17, 0.24)
"""Proposals of the anchors of 32, 64, 128, and of 256 and 512 pixels, so that their sizes are COCO's."""

LEVEL_CHANNEL, ONE_CHANNEL = 0, 1
"""Two pyramid channels that hold constants: the level's advantage in objectness, and a one, from which the mask branch
makes a mound that is highest in the middle of its box. A trained network has learnt both."""
CORRECTIONS = 3
CLASS_SPREAD = 6.0
"""Standard deviation of the class logits, large enough that each proposal has one to three classes worth naming."""
MOUND = 6.0
"""Height of the mound beside the standard deviation 1 of the rest of a mask's logits."""
MASK_SHARE = 0.55
"""Share of its box that a COCO object's mask covers."""


@dataclass(frozen=True, kw_only=True)
class Reached:
    """What the calibrated network does on the picture it was calibrated on.

    pairs: (proposal, class) pairs above the threshold. small, medium, large: shares of the detections by COCO's sizes.
    mask_share: share of the masks' cells that are object.
    """

    proposals: int
    pairs: int
    detections: int
    small: float
    medium: float
    large: float
    mask_share: float


@torch.no_grad()
def calibrate(network: MaskRCNN, picture: Tensor, *, pairs: int, seed: int = 0) -> Reached:
    """Sets every weight of `network`, in evaluation mode, by what `picture` (float [3, h, w] in 0..1) does in it.

    `pairs` is the number of (proposal, class) pairs that are to pass the network's score threshold.
    """
    torch.manual_seed(seed)
    network.eval()
    steps = _Calibration(network, network.transform([picture])[0])
    # Large proposals do not become large detections one to one; a few corrections bring the sizes to COCO's.
    shares = list(LEVEL_SHARES)
    for turn in range(CORRECTIONS + 1):
        steps.set_level_advantages(shares)
        if turn == 0:
            steps.calibrate_box_head()
        reached_pairs = steps.set_background(pairs)
        boxes, labels = steps.detect()
        small, medium, large = coco_size_shares(boxes, min(steps.sizes[0]))
        if turn < CORRECTIONS:
            shares = _corrected(shares, (small, medium, large))
    return Reached(
        proposals=len(steps.proposals[0]),
        pairs=reached_pairs,
        detections=len(boxes),
        small=small,
        medium=medium,
        large=large,
        mask_share=steps.calibrate_mask_branch(boxes, labels),
    )


def coco_size_shares(boxes: Tensor, short_side: int) -> tuple[float, float, float]:
    """Shares of small, medium and large boxes [D, 4], seen as if the image's shorter side had COCO's 480 pixels."""
    if not len(boxes):
        return 0.0, 0.0, 0.0
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt() * (COCO_SHORT_SIDE / short_side)
    small, large = (side < 32).float().mean().item(), (side >= 96).float().mean().item()
    return round(small, 3), round(1 - small - large, 3), round(large, 3)


def standardise(layer: Layer, outputs: list[Tensor], std: float | Tensor = 1.0) -> None:
    """Scales and shifts `layer` so that each channel of what it gives has mean 0 and standard deviation `std`.

    `outputs`, channels second, are what it gives now. A channel that is constant is only shifted.
    """
    values = torch.cat([y.transpose(0, 1).flatten(1) for y in outputs], dim=1)
    deviation = values.std(dim=1)
    scale = torch.where(deviation > 1e-6, std / deviation, torch.ones_like(deviation))
    shape = [1] * layer.weight.dim()
    shape[1 if isinstance(layer, nn.ConvTranspose2d) else 0] = -1
    layer.weight.mul_(scale.view(shape))
    assert layer.bias is not None
    layer.bias.copy_((layer.bias - values.mean(dim=1)) * scale)


def bisect(count: Callable[[float], float], wanted: float, low: float, high: float, steps: int = 40) -> float:
    """The argument in [low, high] where the falling function `count` comes to at most `wanted`."""
    for _ in range(steps):
        middle = (low + high) / 2
        if count(middle) > wanted:
            low = middle
        else:
            high = middle
    return high


def background_for(logits: Tensor, threshold: float, pairs: int) -> tuple[float, int]:
    """The background's logit at which at most `pairs` probabilities pass, and how many do.

    `logits` [R, C+1] of the proposals; its column of the background is overwritten.
    """

    def passing(background: float) -> int:
        logits[:, 0] = background
        return int((torch.softmax(logits, dim=1)[:, 1:] > threshold).sum())

    highest = float(logits[:, 1:].abs().max())
    chosen = bisect(passing, pairs, -highest, highest + 10)
    return chosen, passing(chosen)


def _corrected(shares: list[float], sizes: tuple[float, float, float]) -> list[float]:
    small, medium, large = (
        wanted / max(found, 0.02) for wanted, found in zip(COCO_SIZES, sizes, strict=True)
    )
    moved = [
        share * min(max(factor, 0.4), 2.5)
        for share, factor in zip(shares, (small, medium, medium, large), strict=True)
    ]
    return [share / sum(moved) for share in moved]


class _Calibration:
    """The network, the picture on its canvas, what the calibrated parts make of it so far."""

    def __init__(self, network: MaskRCNN, images: ImageList) -> None:
        self.network, self.images, self.sizes = network, images, images.image_sizes
        self.features = self._calibrate_backbone()
        self._calibrate_rpn()
        self.proposals: list[Tensor] = []

    def pooled(self) -> Tensor:
        """Features of the proposals."""
        found: Tensor = self.network.roi_heads.box_roi_pool(self.features, self.proposals, self.sizes)
        return found

    def _calibrate_backbone(self) -> dict[str, Tensor]:
        """Batch statistics of this picture, pyramid outputs of deviation 1, and the two constant channels."""
        norms = [
            module for module in self.network.backbone.body.modules() if isinstance(module, nn.BatchNorm2d)
        ]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        self.network.backbone.body(self.images.tensors)
        for norm in norms:
            norm.momentum = 0.1
            norm.eval()
        stages = self.network.backbone.body(self.images.tensors)
        pyramid = self.network.backbone.fpn
        for block in pyramid.inner_blocks:
            nn.init.kaiming_normal_(block[0].weight, nonlinearity="linear")
        features = list(pyramid(stages).values())
        for block, y in zip(pyramid.layer_blocks, features, strict=False):
            standardise(block[0], [y])
            block[0].weight[:2] = 0
            block[0].bias[LEVEL_CHANNEL] = 0
            block[0].bias[ONE_CHANNEL] = 1
        calibrated: dict[str, Tensor] = pyramid(stages)
        return calibrated

    def _calibrate_rpn(self) -> None:
        """Objectness of deviation 1 on every level, anchors moved by a tenth and scaled by a third."""
        head, levels = self.network.rpn.head, list(self.features.values())
        conv = head.conv[0][0]
        nn.init.kaiming_normal_(conv.weight)
        conv.weight[:, :2] = 0
        standardise(conv, [conv(x) for x in levels])
        conv.weight[LEVEL_CHANNEL] = 0
        conv.weight[LEVEL_CHANNEL, LEVEL_CHANNEL, 1, 1] = 1
        conv.bias[LEVEL_CHANNEL] = 0
        hidden = [head.conv(x) for x in levels]
        for layer, std in (
            (head.cls_logits, torch.ones(3)),
            (head.bbox_pred, torch.tensor([0.1, 0.1, 0.3, 0.3] * 3)),
        ):
            nn.init.normal_(layer.weight)
            layer.weight[:, LEVEL_CHANNEL] = 0
            standardise(layer, [layer(x) for x in hidden], std)
        head.cls_logits.weight[:, LEVEL_CHANNEL] = 1

    def set_level_advantages(self, shares: list[float]) -> None:
        """Shifts each level's objectness so that the proposals that are kept come from the levels in these shares.

        Within a level nothing changes order, so what survives NMS is known: the k-th best of every level is brought to
        the same height. The two deepest levels share their features' channel. Then the proposals are made anew.
        """
        levels = list(self.features.values())
        for level in levels:
            level[:, LEVEL_CHANNEL] = 0
        rpn = self.network.rpn
        logits, deltas = rpn.head(levels)
        counts = [logit[0].numel() for logit in logits]
        flat_logits, flat_deltas = concat_box_prediction_layers(logits, deltas)
        anchors = rpn.anchor_generator(self.images, levels)
        decoded = rpn.box_coder.decode(flat_deltas, anchors).view(-1, 4)
        kept: list[Tensor] = []
        for boxes, scores in zip(decoded.split(counts), flat_logits.flatten().split(counts), strict=True):
            _, probabilities = rpn.filter_proposals(boxes[None], scores[None], self.sizes, [len(boxes)])
            kept.append(torch.logit(probabilities[0]))
        kept = [*kept[:3], torch.cat(kept[3:]).sort(descending=True).values]
        total = rpn.post_nms_top_n()
        last = [
            float(scores[min(max(round(share * total), 1), len(scores)) - 1])
            for scores, share in zip(kept, shares, strict=True)
        ]
        advantage = [max(last) - value for value in last]
        for block, level, value in zip(
            self.network.backbone.fpn.layer_blocks, levels, advantage, strict=False
        ):
            block[0].bias[LEVEL_CHANNEL] = value
            level[:, LEVEL_CHANNEL] = value
        levels[4][:, LEVEL_CHANNEL] = advantage[3]
        self.proposals = rpn(self.images, self.features)[0]

    def calibrate_box_head(self) -> None:
        """Hidden features and class logits that differ between proposals; boxes near their proposals."""
        heads = self.network.roi_heads
        pooled = self.pooled()
        fc6, fc7 = heads.box_head.fc6, heads.box_head.fc7
        cells = pooled.shape[2] * pooled.shape[3]
        fc6.weight[:, : 2 * cells] = 0
        x = pooled.flatten(1)
        for layer in (fc6, fc7):
            standardise(layer, [layer(x)])
            x = torch.relu(layer(x))
        score, box = heads.box_predictor.cls_score, heads.box_predictor.bbox_pred
        for layer, std in (
            (score, torch.full((score.out_features,), CLASS_SPREAD)),
            (box, torch.full((box.out_features,), 0.5)),
        ):
            nn.init.normal_(layer.weight)
            standardise(layer, [layer(x)], std)
        score.weight[0] = 0
        score.bias[0] = 0

    def set_background(self, pairs: int) -> int:
        """The background's logit at which `pairs` (proposal, class) pairs pass the threshold; returns how many do."""
        heads = self.network.roi_heads
        hidden = heads.box_head(self.pooled())
        logits = heads.box_predictor.cls_score(hidden)
        background, reached = background_for(logits, heads.score_thresh, pairs)
        heads.box_predictor.cls_score.bias[0] = background
        return reached

    def detect(self) -> tuple[Tensor, Tensor]:
        """Boxes in the resized image's pixels, and labels."""
        heads = self.network.roi_heads
        hidden = heads.box_head(self.pooled())
        boxes, _, labels = heads.postprocess_detections(
            *heads.box_predictor(hidden), self.proposals, self.sizes
        )
        return boxes[0], labels[0]

    def calibrate_mask_branch(self, boxes: Tensor, labels: Tensor) -> float:
        """Masks that are one blob each, with an uneven edge: a mound under smooth noise; the share covered."""
        heads = self.network.roi_heads
        x = heads.mask_roi_pool(self.features, [boxes], self.sizes)
        for block in heads.mask_head:
            conv = block[0]
            conv.weight[:, :2] = 0
            conv.weight.copy_(conv.weight.mean(dim=(2, 3), keepdim=True).expand_as(conv.weight))
            standardise(conv, [conv(x)])
            conv.weight[ONE_CHANNEL] = 0
            conv.weight[ONE_CHANNEL, ONE_CHANNEL] = 1 / 9
            conv.bias[ONE_CHANNEL] = 0
            x = block(x)
        deconv, last = heads.mask_predictor.conv5_mask, heads.mask_predictor.mask_fcn_logits
        deconv.weight[:2] = 0
        deconv.weight.copy_(deconv.weight.mean(dim=(2, 3), keepdim=True).expand_as(deconv.weight))
        standardise(deconv, [deconv(x)])
        deconv.weight[:, ONE_CHANNEL] = 0
        deconv.weight[ONE_CHANNEL, ONE_CHANNEL] = 1
        deconv.bias[ONE_CHANNEL] = 0
        after = torch.relu(deconv(x))
        # Class by class the noise has its own weights; all classes share the bias, as ours has one alone.
        channels = after.shape[1]
        nn.init.normal_(last.weight, std=1 / math.sqrt(channels))
        last.weight[:, ONE_CHANNEL] = 0
        last.bias.zero_()
        of_label = last.weight[labels, :, 0, 0]
        noise = torch.einsum("df,dfyx->dyx", of_label, after)
        last.weight.mul_(1 / noise.std(dim=(1, 2)).mean())
        # A relu's features have a mean; without it no class would be all object or none.
        mean = after.mean(dim=(0, 2, 3))
        mean[ONE_CHANNEL] = 0
        last.weight.sub_(
            (last.weight[:, :, 0, 0] @ mean / mean.dot(mean))[:, None, None, None] * mean[None, :, None, None]
        )
        last.weight[:, ONE_CHANNEL] = MOUND
        logits = torch.einsum("df,dfyx->dyx", last.weight[labels, :, 0, 0], after)
        threshold = bisect(lambda value: float((logits >= value).float().mean()), MASK_SHARE, -50.0, 50.0)
        last.bias.fill_(-threshold)
        return round(float((logits >= threshold).float().mean()), 3)
