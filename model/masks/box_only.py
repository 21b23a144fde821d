"""What objects without masks (set B) teach the mask branch in a step, by what a box alone says about its mask.

Projection and pairwise colour loss: BoxInst (Tian et al., 2021, Sec. 3), from the paper's text. Pseudo-masks of a
teacher, weighted by its confidence: BoxTeacher (Cheng et al., 2023). Maps are [R, M, M], one RoI to a row, M of any
side. Without an RoI each loss is a zero that still reaches every mask parameter, as in `model.losses.mask_loss`.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from model.boxes.ground_truth import Batch
from model.boxes.rois import RoIs
from model.canvas import Canvas
from model.losses import LossDivisor

COLOUR_DISTANCE = 2.0
"""theta of BoxInst: colours so far apart in CIE Lab have a similarity of 1/e."""
NEIGHBOURS = ((0, 2), (2, 0), (2, 2), (2, -2))
"""Steps (down, right) from a cell to its pairs: the 3 x 3 window of dilation 2, each pair once."""


class Segmenter(Protocol):
    """What is asked of a network (`model.network.MaskXRCNN`)."""

    canvas: Canvas

    def mask_logits(self, features: dict[str, Tensor], rois: Tensor, labels: Tensor) -> Tensor:
        """Mask logits [R, M, M] of RoIs [R, 5] (image, then XYXY in pixels of the canvas), each for its label [R]."""

    def object_masks(
        self, features: dict[str, Tensor] | None, canvas: Tensor, rois: Tensor, labels: Tensor
    ) -> Tensor:
        """Mask probabilities [R, M, M] without gradients; features None: computed from the canvas."""


@dataclass(frozen=True, kw_only=True)
class BoxOnly:
    """Which losses; by default none."""

    colour_threshold: float | None = None
    """Of the projection and pairwise losses; None: neither."""
    margin: float = 0.0
    """How far the RoIs of these objects reach beyond themselves, as a fraction of their sides."""
    teacher: Segmenter | None = None
    """Whose masks of these objects become targets: in evaluation mode; None: no such targets."""
    mask_threshold: float = 0.5
    """Probability from which a pixel belongs to the teacher's mask."""


def box_only_losses(
    network: Segmenter, box_only: BoxOnly, batch: Batch, rois: RoIs, *, same_features: bool
) -> dict[str, Tensor]:
    """Losses over the foreground RoIs whose own object has no mask. No target's mask gets here.

    Args:
        network: under training; its features are the batch's.
        same_features: the teacher's features are these too, its detector being the same frozen one.

    Returns:
        `loss_projection` and `loss_pairwise` where there is a colour threshold, `loss_pseudo_mask` where there is a
        teacher, who looks at the ground-truth boxes.
    """
    mine, truth = rois.without_mask, batch.truth
    every = grown(rois.boxes[mine], box_only.margin)
    objects, images, label = rois.objects[mine], rois.images[mine], rois.labels[mine]
    own = truth.boxes.view(-1, 4)[objects]
    placed = torch.cat([images.to(every.dtype).unsqueeze(1), every], dim=1)
    logits = network.mask_logits(batch.features, placed, label)
    side = logits.shape[-1]
    count = batch.total(every.shape[0])
    losses: dict[str, Tensor] = {}
    if box_only.colour_threshold is not None:
        inside = cells_in_boxes(every, own, side)
        own_canvas = network.canvas
        colours, visible = colours_of_rois(
            batch.canvas, own_canvas.mean, own_canvas.std, placed, truth.sizes, side
        )
        losses["loss_projection"] = projection_loss(logits, inside, count)
        losses["loss_pairwise"] = pairwise_loss(
            logits, colours, inside, visible, box_only.colour_threshold, batch.total
        )
    if box_only.teacher is not None:
        of_image = torch.div(truth.without, truth.boxes.shape[1], rounding_mode="floor")
        boxes = truth.boxes.view(-1, 4)[truth.without]
        seen = box_only.teacher.object_masks(
            batch.features if same_features else None,
            batch.canvas,
            torch.cat([of_image.to(boxes.dtype).unsqueeze(1), boxes], dim=1),
            truth.labels.view(-1)[truth.without],
        )
        theirs = seen[positions_among((truth.labels > 0) & ~truth.has_mask, objects)]
        targets = seen_in_rois(theirs, own, every) >= box_only.mask_threshold
        weights = confidence(theirs, box_only.mask_threshold)
        losses["loss_pseudo_mask"] = pseudo_mask_loss(logits, targets.to(logits.dtype), weights, count)
    return losses


def cell_centres(rois: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Centres of the M x M cells of RoIs [R, 4] XYXY: x of each column [R, M] and y of each row [R, M]."""
    at = (torch.arange(side, device=rois.device, dtype=rois.dtype) + 0.5) / side
    x = rois[:, 0:1] + at * (rois[:, 2:3] - rois[:, 0:1])
    y = rois[:, 1:2] + at * (rois[:, 3:4] - rois[:, 1:2])
    return x, y


def cells_in_boxes(rois: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Which cells of each RoI [R, 4] have their centre in the box [R, 4] beside it: bool [R, M, M]."""
    x, y = cell_centres(rois, side)
    columns = (x >= boxes[:, 0:1]) & (x <= boxes[:, 2:3])
    rows = (y >= boxes[:, 1:2]) & (y <= boxes[:, 3:4])
    return rows[:, :, None] & columns[:, None, :]


def grown(rois: Tensor, margin: float) -> Tensor:
    """RoIs [R, 4] that reach beyond each of their sides by `margin` of its length."""
    if margin == 0:
        return rois
    side = (rois[:, 2:] - rois[:, :2]) * margin
    return torch.cat([rois[:, :2] - side, rois[:, 2:] + side], dim=1)


def projection_loss(logits: Tensor, inside: Tensor, rois: float | Tensor) -> Tensor:
    """L_proj of BoxInst: dice loss between the projections of mask and box on both axes, divided by `rois`.

    A projection is the maximum over a row or a column. `inside` bool [R, M, M] is the object's box in its RoI. A
    proposal that cuts the box is held to the part it sees, though the object need not touch its edges there.
    """
    mask, box = torch.sigmoid(logits), inside.to(logits.dtype)
    return (_dice(mask.amax(1), box.amax(1)) + _dice(mask.amax(2), box.amax(2))).sum() / rois


def _dice(predicted: Tensor, wanted: Tensor) -> Tensor:
    """1 - 2 sum(p g) / (sum(p^2) + sum(g^2)) of each row (V-Net, Sec. 3, with squares below)."""
    both = (predicted * wanted).sum(1)
    return 1.0 - 2.0 * both / (predicted.square().sum(1) + wanted.square().sum(1)).clamp(min=1e-5)


def pairwise_loss(
    logits: Tensor, colours: Tensor, inside: Tensor, visible: Tensor, threshold: float, total: LossDivisor
) -> Tensor:
    """L_pairwise of BoxInst: neighbours of like colour have the same label, both object or both background.

    The sum, over the pairs of which at least one cell is inside the box (E_in), of -log P(same label) where the
    similarity exp(-|c_i - c_j| / theta) is at least `threshold`, divided by the `total` of all these pairs: N of the
    paper. BoxTeacher's code divides by the pairs of like colour alone.

    Args:
        logits: [R, M, M].
        colours: CIE Lab [R, 3, M, M].
        inside: bool [R, M, M], the object's box.
        visible: bool [R, M, M], cells inside the image; a pair with another one does not count.
        threshold: tau of BoxInst, in [0, 1].
    """
    loss = logits.sum() * 0.0
    pairs = torch.zeros((), device=logits.device)
    for down, right in NEIGHBOURS:
        first, second = _pairs(logits, down, right)
        same = torch.logaddexp(
            F.logsigmoid(first) + F.logsigmoid(second), F.logsigmoid(-first) + F.logsigmoid(-second)
        )
        here, there = _pairs(colours, down, right)
        alike = torch.exp(-(here - there).square().sum(1).sqrt() / COLOUR_DISTANCE) >= threshold
        one, other = _pairs(inside, down, right)
        seen, seen_too = _pairs(visible, down, right)
        counted = (one | other) & seen & seen_too
        loss = loss - (same * (counted & alike)).sum()
        pairs = pairs + counted.sum()
    return loss / total(pairs)


def _pairs(maps: Tensor, down: int, right: int) -> tuple[Tensor, Tensor]:
    """Two views of maps [..., M, M]: every cell that has a neighbour at that step, and the neighbour."""
    height, width = maps.shape[-2], maps.shape[-1]
    left, to = max(-right, 0), width - max(right, 0)
    first = maps[..., : height - down, left:to]
    second = maps[..., down:, left + right : to + right]
    return first, second


def lab_of_srgb(pixels: Tensor) -> Tensor:
    """sRGB in [0, 255] as CIE Lab (D65; L in [0, 100]); the channel is axis 1 of any number of axes."""
    share = (pixels / 255.0).clamp(0.0, 1.0)  # resampling may overshoot by a rounding error
    linear = torch.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    red, green, blue = linear.unbind(1)
    # X, Y, Z over the white point; IEC 61966-2-1. By hand: autocast would round a matrix product to bfloat16.
    x = (0.4124564 * red + 0.3575761 * green + 0.1804375 * blue) / 0.95047
    y = 0.2126729 * red + 0.7151522 * green + 0.0721750 * blue
    z = (0.0193339 * red + 0.1191920 * green + 0.9503041 * blue) / 1.08883
    fx, fy, fz = (_lab_curve(v) for v in (x, y, z))
    return torch.stack([116.0 * fy - 16.0, 500.0 * (fx - fy), 200.0 * (fy - fz)], dim=1)


def _lab_curve(share: Tensor) -> Tensor:
    edge = 6.0 / 29.0
    return torch.where(
        share > edge**3, share.clamp(min=edge**3) ** (1.0 / 3.0), share / (3 * edge**2) + 4.0 / 29.0
    )


def colours_of_rois(
    canvas: Tensor, mean: Tensor, std: Tensor, rois: Tensor, sizes: Tensor, side: int
) -> tuple[Tensor, Tensor]:
    """CIE Lab of the image at each cell of each RoI [R, 3, M, M], and which cells lie inside their image [R, M, M].

    Args:
        canvas: normalised images [N, 3, H, W]; `mean` and `std` [3, 1, 1] bring them back to [0, 255].
        rois: [R, 5], the image, then XYXY in pixels of the canvas.
        sizes: int64 [N, 2], height and width of what each image fills of the canvas.
        side: M.
    """
    # As many samples to a cell as it has pixels: the mean colour of the cell (BoxInst takes an average pool).
    pooled = roi_align(canvas.float(), rois, (side, side), 1.0, -1, aligned=True)
    ends = sizes[rois[:, 0].to(torch.int64)].flip(1).to(rois.dtype)
    visible = cells_in_boxes(rois[:, 1:], torch.cat([torch.zeros_like(ends), ends], dim=1), side)
    return lab_of_srgb(pooled * std + mean), visible


def confidence(probabilities: Tensor, threshold: float) -> Tensor:
    """How sure a teacher is of each mask [N, M, M]: the mean probability of its foreground [N]; 0 where that is empty.

    BoxTeacher's mask-aware confidence without its factor for the class, which is given here as the box is, and without
    the square root of their product: an unsure mask counts a little less than there.
    """
    foreground = probabilities >= threshold
    total = (probabilities * foreground).sum((1, 2))
    return total / foreground.sum((1, 2)).clamp(min=1)


def seen_in_rois(maps: Tensor, boxes: Tensor, rois: Tensor) -> Tensor:
    """Maps [R, M, M] that lie on boxes [R, 4], sampled (bilinear) at the cells of RoIs [R, 4]; 0 beyond the box."""
    side = maps.shape[-1]
    x, y = cell_centres(rois, side)
    # In [-1, 1] over the box, as grid_sample has it with align_corners=False.
    x = 2.0 * (x - boxes[:, 0:1]) / (boxes[:, 2:3] - boxes[:, 0:1]) - 1.0
    y = 2.0 * (y - boxes[:, 1:2]) / (boxes[:, 3:4] - boxes[:, 1:2]) - 1.0
    grid = torch.stack([x[:, None, :].expand(-1, side, -1), y[:, :, None].expand(-1, -1, side)], dim=3)
    sampled = F.grid_sample(
        maps[:, None].float(), grid.float(), mode="bilinear", padding_mode="zeros", align_corners=False
    )
    return sampled[:, 0]


def positions_among(chosen: Tensor, objects: Tensor) -> Tensor:
    """Where `objects`, int64 [R] among N * G, all of them `chosen`, bool [N, G], stand in a list of all chosen ones."""
    return (chosen.view(-1).cumsum(0) - 1)[objects]


def pseudo_mask_loss(logits: Tensor, targets: Tensor, weights: Tensor, rois: float | Tensor) -> Tensor:
    """Per-pixel binary cross-entropy to the pseudo-masks [R, M, M], times each RoI's weight [R], divided by `rois`.

    By the number of RoIs and not by the sum of the weights: an unsure teacher teaches less. BoxTeacher has a dice loss
    here, that of its mask branch; this is the loss of ours. Its affinity between the teacher's pixels is left out.
    """
    of_cells = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (of_cells.mean((1, 2)) * weights).sum() / rois
