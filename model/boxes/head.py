"""The box branch: class scores and class-wise boxes of each RoI; its last layer holds w_det.

What it finds in an image (Mask R-CNN, Sec. 3.1): classes are filtered first, then the best K (proposal, class) pairs
above the threshold are decoded, then come suppression within each class and the best `most`.

Boxes are offsets from proposals (R-CNN, appendix C) with the weights (10, 10, 5, 5) of Fast R-CNN: `encode_boxes` and
`decode_boxes`, plain functions over two tensors of equal length, for the coder that torchvision ships decodes every
class of every proposal.
"""

import itertools
import math

import torch
from torch import Tensor, nn

from model.backbones.convolution import group_norm, with_winograd
from model.boxes.suppression import kept_by_operator, kept_in_groups, nms_by_class

LARGEST_LOG_SCALE = math.log(1000.0 / 16)
"""Decoded sides are kept below 62.5 times the proposal's, as Detectron does."""


class BoxHead(nn.Module):
    """Of the pooled features of RoIs [R, F, S, S] one row each, [R, D].

    What it lends to the mask branch, which is nothing but in one row of one table each: its convolutions (`for_masks`)
    or a map of where it sees the class (`prior`).
    """

    __constants__ = ("has_prior",)
    has_prior = False
    crop_step = 1
    """Cells of a mask crop along a side that `for_masks` makes one of."""

    def weight_type(self) -> torch.dtype:
        """The type that it computes in."""
        raise NotImplementedError

    def for_masks(self, pooled: Tensor) -> Tensor:
        """What the mask head sees of a crop [R, F, S, S]."""
        return pooled

    def prior(self, pooled: Tensor, w_cls_RD: Tensor, size: int) -> Tensor:
        """A map [R, size, size] of each RoI, of its box crop and its class's weights, to be added to its mask crop."""
        raise NotImplementedError


class FCBoxHead(BoxHead):
    """Two fully connected layers on the pooled features of an RoI (FPN's box head)."""

    def __init__(self, *, channels: int, roi_size: int, width: int) -> None:
        super().__init__()
        self.fc6 = nn.Linear(channels * roi_size**2, width)
        self.fc7 = nn.Linear(width, width)
        self.cell_by_cell = False
        """Whether fc6 wants all channels of a cell together; so it is in the network as it is served."""

    def weight_type(self) -> torch.dtype:
        return self.fc6.weight.dtype

    def forward(self, pooled: Tensor) -> Tensor:
        """Pooled features [R, F, S, S] -> [R, D]."""
        if self.cell_by_cell:
            pooled = pooled.permute(0, 2, 3, 1)
        x = torch.relu(self.fc6(pooled.flatten(1)))
        return torch.relu(self.fc7(x))


class ConvBoxHead(BoxHead):
    """Four 3x3 convolutions and their mean over the cells (OPMask): the classifier reads a mean, so its weights on a
    single cell say how much that cell speaks for the class (`model.masks.object_prior`).

    The last convolution widens to D. Groups of channels are normalised where OPMask normalises over the batch.
    """

    def __init__(self, *, channels: int, width: int) -> None:
        super().__init__()
        widths = [channels, channels, channels, channels, width]
        blocks: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_in", nonlinearity="relu")
            blocks += [convolution, group_norm(outputs), nn.ReLU(inplace=True)]
        self.convs = nn.Sequential(*blocks)
        with_winograd(self.convs, many=True)

    def weight_type(self) -> torch.dtype:
        return self.convs[9].weight.dtype  # type: ignore[return-value]

    def maps(self, pooled: Tensor) -> Tensor:
        """Pooled features [R, F, S, S] -> [R, D, S, S], before the mean."""
        maps: Tensor = self.convs(pooled)
        return maps

    def forward(self, pooled: Tensor) -> Tensor:
        """Pooled features [R, F, S, S] -> [R, D]."""
        return self.maps(pooled).mean(dim=[2, 3])


class ConvFCBoxHead(BoxHead):
    """Four 3x3 convolutions and one fully connected layer: the box head of torchvision's second detectors (v2)."""

    def __init__(self, *, channels: int, roi_size: int, width: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for _ in range(4):
            convolution = nn.Conv2d(channels, channels, 3, padding=1)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_in", nonlinearity="relu")
            assert convolution.bias is not None
            nn.init.zeros_(convolution.bias)
            blocks += [convolution, nn.ReLU(inplace=True)]
        self.convs = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels * roi_size**2, width)
        with_winograd(self.convs, many=True)

    def weight_type(self) -> torch.dtype:
        return self.fc.weight.dtype

    def forward(self, pooled: Tensor) -> Tensor:
        """Pooled features [R, F, S, S] -> [R, D]."""
        return torch.relu(self.fc(self.convs(pooled).flatten(1)))


@torch.no_grad()
def xavier_filled(head: nn.Module) -> None:
    """Start the fully connected layers inside as Caffe2's XavierFill: weights uniform in +-sqrt(3 / fan-in), biases 0
    (Detectron's box heads; torch's own are uniform in +-sqrt(1 / fan-in), biases too)."""
    for layer in head.modules():
        if isinstance(layer, nn.Linear):
            bound = math.sqrt(3 / layer.in_features)
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.zeros_(layer.bias)


class BoxPredictor(nn.Module):
    """Class logits and class-wise box deltas. The rows of the two weights are the paper's w_cls and w_box.

    Args:
        prior: of all classes together, with which they begin (focal loss: Lin et al. 2017, Sec. 4.1).
        nms_iou: of the suppression within a class.
        candidates_per_image: K.
    """

    def __init__(
        self,
        *,
        width: int,
        num_classes: int,
        nms_iou: float,
        candidates_per_image: int,
        prior: float | None = None,
    ) -> None:
        super().__init__()
        self.nms_iou = nms_iou
        self.candidates_per_image = candidates_per_image
        self.cls_score = nn.Linear(width, num_classes + 1)
        self.bbox_pred = nn.Linear(width, 4 * (num_classes + 1))
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.cls_score.bias)
        nn.init.zeros_(self.bbox_pred.bias)
        if prior is not None:
            nn.init.constant_(self.cls_score.bias[:1], math.log(num_classes * (1 - prior) / prior))

    def forward(self, features_RD: Tensor) -> Tensor:
        """Class logits [R, C+1] float32; the boxes are asked for by `deltas_of`."""
        logits: Tensor = self.cls_score(features_RD)
        return logits.float()

    def deltas_of(self, features_RD: Tensor, labels_R: Tensor) -> Tensor:
        """Box deltas [R, 4] float32 of one class per row: nothing of the size classes x RoIs is made.

        Gathered weights cost R x 4 x D numbers and pay where classes outnumber rows; else the whole
        layer is one matrix product and its rows are picked.
        """
        rows = features_RD.shape[0]
        weight = self.bbox_pred.weight
        classes = weight.shape[0] // 4
        if rows * 4 > features_RD.shape[1] and classes <= 256:
            deltas = self.bbox_pred(features_RD).view(rows, classes, 4)
            return deltas[torch.arange(rows, device=labels_R.device), labels_R].float()
        of_class = weight.view(classes, 4, -1)[labels_R]
        bias = self.bbox_pred.bias.view(classes, 4)[labels_R]
        picked = torch.bmm(of_class.to(features_RD.dtype), features_RD.unsqueeze(2)).squeeze(2)
        return picked.float() + bias.float()

    def found_in_image(
        self,
        proposals: Tensor,
        hidden_RD: Tensor,
        logits: Tensor,
        size: Tensor,
        threshold: float,
        most: int,
        asked: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes [D, 4], scores [D] and labels [D] of one image, the best first.

        Args:
            proposals: [R, 4] XYXY in pixels of the canvas, of the box head's answers `hidden_RD` and class logits.
            size: float32 [2], height and width of the image on the canvas.
            threshold: least class probability.
            most: at most so many.
            asked: bool [C+1], the labels asked for; entry 0 (background) is never answered.
        """
        scores = torch.softmax(logits, dim=1)
        asked = asked.clone()
        asked[0] = False
        pair = torch.where(((scores > threshold) & asked[None, :]).flatten())[0]
        flat = scores.flatten()[pair]
        if flat.numel() > self.candidates_per_image:
            flat, best = torch.topk(flat, self.candidates_per_image)
            pair = pair[best]
        proposal = torch.div(pair, scores.shape[1], rounding_mode="floor")
        label = pair - proposal * scores.shape[1]
        deltas = self.deltas_of(hidden_RD[proposal], label)
        box = within(decode_boxes(deltas, proposals[proposal]), size)
        real = torch.where(has_area(box))[0]
        box, flat, label = box[real], flat[real], label[real]
        keep = nms_by_class(box, flat, label, self.nms_iou)[: max(most, 0)]
        return box[keep], flat[keep], label[keep]

    def candidates_of(
        self, proposals: Tensor, hidden_RD: Tensor, scores_NP: Tensor, sizes_N2: Tensor, count: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The best (proposal, class) pairs of each image of a batch, decoded: boxes [N, K, 4], scores [N, K] (those
        below 0 do not count), labels [N, K].

        Args:
            proposals: [N * P, 4], of the box head's answers `hidden_RD`.
            scores_NP: of all pairs, proposal after proposal, below 0 where a pair is not to be taken.
            sizes_N2: float32, height and width of each image on the canvas.
            count: K.
        """
        images, classes = sizes_N2.shape[0], self.cls_score.weight.shape[0]
        score, pair = scores_NP.topk(count, dim=1)
        of_image = torch.arange(images, device=pair.device).unsqueeze(1) * scores_NP.shape[1]
        pair = (pair + of_image).flatten()
        proposal = torch.div(pair, classes, rounding_mode="floor")
        label = pair - proposal * classes
        if classes <= 256:  # as in `deltas_of`
            deltas = self.bbox_pred(hidden_RD).view(-1, 4)[pair].float()
        else:
            deltas = self.deltas_of(hidden_RD[proposal], label)
        box = decode_boxes(deltas, proposals[proposal]).view(images, count, 4)
        box = within(box, sizes_N2.unsqueeze(1))
        return box, torch.where(has_area(box), score, -1.0), label.view(images, count)

    def found_together(
        self,
        proposals: Tensor,
        hidden_RD: Tensor,
        logits: Tensor,
        sizes_N2: Tensor,
        thresholds_N: Tensor,
        most: list[int],
        asked: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, list[int]]:
        """`found_in_image` of all images of a batch at once, for which the host waits twice.

        Args:
            proposals: [N * P, 4], as many of each image; boxes of zeros are no proposals.
            thresholds_N: float32; most, asked: of each image.

        Returns:
            boxes [S, 4], scores [S], labels [S] and image [S] of all of them, image after image, and on the host how
            many each has.
        """
        images = sizes_N2.shape[0]
        scores = self.pair_scores(proposals, logits, thresholds_N, asked)
        count = min(int((scores >= 0).sum(1).max()), self.candidates_per_image)
        count = max(count, 1)  # a batch in which nothing is found goes the same way
        box, score, label = self.candidates_of(proposals, hidden_RD, scores, sizes_N2, count)
        keep, counts = kept_in_groups(box, score >= 0, self.nms_iou, label)
        total = 0
        for i in range(images):
            counts[i] = max(min(counts[i], most[i]), 0)
            total += counts[i]
        most_N = torch.tensor(most).to(keep.device, non_blocking=True)
        kept = (keep & (keep.cumsum(1) <= most_N.unsqueeze(1))).flatten()
        # The places of what is kept, in order; those of the rest fall behind the end.
        place = torch.where(kept, kept.cumsum(0) - 1, total)
        index = torch.zeros([total + 1], dtype=torch.int64, device=place.device)
        index = index.scatter_(0, place, torch.arange(images * count, device=place.device))[:total]
        image = torch.div(index, count, rounding_mode="floor")
        return box.view(-1, 4)[index], score.flatten()[index], label.flatten()[index], image, counts

    def pair_scores(self, proposals: Tensor, logits: Tensor, thresholds_N: Tensor, asked: Tensor) -> Tensor:
        """Scores [N, P * (C+1)] of all (proposal, class) pairs; -1 of those that are not above their image's threshold,
        not asked for, background, or of a box of zeros."""
        images, classes = asked.shape[0], asked.shape[1]
        scores = torch.softmax(logits, dim=1).view(images, -1, classes)
        foreground = torch.arange(classes, device=asked.device) > 0
        taken = (scores > thresholds_N.view(-1, 1, 1)) & (asked & foreground).unsqueeze(1)
        taken = taken & (proposals[:, 2] > proposals[:, 0]).view(images, -1, 1)
        return torch.where(taken, scores, -1.0).flatten(1)

    @torch.jit.unused
    def found_at_most(
        self,
        proposals: Tensor,
        hidden_RD: Tensor,
        logits: Tensor,
        sizes_N2: Tensor,
        thresholds_N: Tensor,
        most: int,
        asked: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`found_together` with a size that is known: boxes [N, most, 4], scores and labels [N, most], counts [N].

        The places behind an image's count hold zeros. Nothing here depends on the numbers, so that it can be exported.
        """
        scores = self.pair_scores(proposals, logits, thresholds_N, asked)
        count = fewer(self.candidates_per_image, scores.shape[1])
        box, score, label = self.candidates_of(proposals, hidden_RD, scores, sizes_N2, count)
        keep = kept_by_operator(box, score >= 0, self.nms_iou, label)
        score, index = torch.where(keep, score, -1.0).topk(most, dim=1)
        real = score >= 0
        box = box.gather(1, index.unsqueeze(2).expand(-1, -1, 4))
        return (
            torch.where(real.unsqueeze(2), box, 0.0),
            score.clamp(min=0),
            torch.where(real, label.gather(1, index), 0),
            real.sum(1),
        )


def has_area(boxes: Tensor) -> Tensor:
    """Whether both sides of boxes [..., 4] are a hundredth of a pixel or more; what is smaller is no detection."""
    return ((boxes[..., 2:] - boxes[..., :2]) >= 0.01).all(-1)


def encode_boxes(boxes: Tensor, proposals: Tensor) -> Tensor:
    """Deltas [R, 4] that bring each proposal to its box (both XYXY, [R, 4])."""
    size_p = proposals[:, 2:] - proposals[:, :2]
    size_b = boxes[:, 2:] - boxes[:, :2]
    centre_p = proposals[:, :2] + 0.5 * size_p
    centre_b = boxes[:, :2] + 0.5 * size_b
    return torch.cat([10.0 * (centre_b - centre_p) / size_p, 5.0 * torch.log(size_b / size_p)], dim=1)


def decode_boxes(deltas: Tensor, proposals: Tensor) -> Tensor:
    """Boxes XYXY [R, 4] of the deltas [R, 4] from the proposals [R, 4]."""
    return moved_boxes(torch.cat([deltas[:, :2] / 10.0, deltas[:, 2:] / 5.0], dim=1), proposals)


def moved_boxes(deltas: Tensor, boxes: Tensor, largest_log_scale: float = LARGEST_LOG_SCALE) -> Tensor:
    """Boxes XYXY [..., 4] of deltas [..., 4] with the weights (1, 1, 1, 1), as an RPN has them."""
    size = boxes[..., 2:] - boxes[..., :2]
    centre = deltas[..., :2] * size + (boxes[..., :2] + 0.5 * size)
    half = 0.5 * torch.exp(deltas[..., 2:].clamp(max=largest_log_scale)) * size
    return torch.cat([centre - half, centre + half], dim=-1)


def within(boxes: Tensor, size: Tensor) -> Tensor:
    """Boxes [..., 4] cut at the border of an image of `size` [..., 2], height and width."""
    limit = size.flip(-1)
    return torch.minimum(boxes.clamp(min=0), torch.cat([limit, limit], dim=-1))


def fewer(one: int, other: int) -> int:
    """The lesser of two counts, which in a network that is exported may be unknown as yet."""
    if torch.jit.is_scripting():
        return min(one, other)
    return torch.sym_min(one, other)  # type: ignore[return-value]
