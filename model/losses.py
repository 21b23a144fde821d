"""Losses of the box and mask branches (Fast R-CNN, Sec. 2.3; Learning to Segment Every Thing, Sec. 3.2)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

LossDivisor = Callable[["int | Tensor"], "float | Tensor"]
"""From a count in this batch (of RoIs, of anchors; a number or a scalar tensor) to what sums over them are divided by.

A batch may be one part of a step's images: others are worked through after it, or by other processes. Then it is
the count over all of them, at least 1, divided by the number of processes where their gradients are averaged. It is
asked in the same order by every part, also by those that count 0.
"""


def own_total(count: int | Tensor) -> float | Tensor:
    """`LossDivisor` where the batch is the whole step."""
    return count.clamp(min=1) if isinstance(count, Tensor) else float(max(count, 1))


def class_loss(logits: Tensor, labels: Tensor, sampled: float | Tensor) -> Tensor:
    """Cross-entropy over C+1 classes, divided by all sampled RoIs."""
    return F.cross_entropy(logits, labels, reduction="sum") / sampled


@dataclass(frozen=True)
class Focal:
    """Focal loss (Lin et al., 2017, eq. 5): the cross-entropy of what is right with probability p, by (1 - p)^gamma.

    Args:
        gamma: 0 for no focus.
        alpha: weight of foreground; that of background is 1 - alpha.
    """

    gamma: float
    alpha: float

    def of_classes(self, logits: Tensor, labels: Tensor, total: LossDivisor) -> Tensor:
        """Over the softmax of C+1 classes, logits [R, C+1], divided by the foreground RoIs."""
        log_p = F.log_softmax(logits, dim=1).gather(1, labels[:, None])[:, 0]
        weight = torch.where(labels > 0, self.alpha, 1 - self.alpha)
        wrong = (-torch.expm1(log_p)).clamp(min=1e-8)
        return -(weight * wrong**self.gamma * log_p).sum() / total((labels > 0).sum())

    def of_objects(self, logits: Tensor, labels: Tensor, foreground: float | Tensor) -> Tensor:
        """Over single logits with labels 1 or 0 of the same shape, divided by `foreground`; -1 is left out."""
        goal = labels.clamp(min=0).to(logits.dtype)
        loss: Tensor = sigmoid_focal_loss(logits, goal, self.alpha, self.gamma, reduction="none")
        return torch.where(labels >= 0, loss, 0.0).sum() / foreground


@dataclass(frozen=True, kw_only=True)
class HeadLosses:
    """How the losses of the box and mask branches are computed.

    Args:
        class_focal: of the classes of the RoIs; None: cross-entropy.
        box_beta: of `box_loss`.
        mask_softmax: classes compete for each pixel.
    """

    class_focal: Focal | None = None
    box_beta: float = 1 / 9
    mask_softmax: bool = False


def box_loss(deltas: Tensor, targets: Tensor, sampled: float | Tensor, beta: float = 1 / 9) -> Tensor:
    """Smooth L1 over the foreground's own class, divided by all sampled RoIs (Fast R-CNN, eq. 3).

    An error e costs e^2 / (2 beta) up to `beta`, and |e| - beta / 2 beyond: 1 in Fast R-CNN, 1/9 in torchvision.
    """
    return F.smooth_l1_loss(deltas, targets, beta=beta, reduction="sum") / sampled


def mask_loss(
    logits_RMM: Tensor, targets_RMM: Tensor, rois: float | Tensor, weights_R: Tensor | None = None
) -> Tensor:
    """Per-pixel binary cross-entropy over the RoIs with a mask, the only ones that get here (Sec. 3.2), times the
    weight of each one's mask (None: 1), divided by `rois`: by their number, so that a mask of less weight teaches less.

    With no RoI here the loss is a zero that still reaches every mask parameter, so that distributed workers
    do not wait for a gradient that never comes.
    """
    pixels = targets_RMM.shape[1] * targets_RMM.shape[2]
    weights = None if weights_R is None else weights_R[:, None, None]
    loss = F.binary_cross_entropy_with_logits(logits_RMM, targets_RMM, weights, reduction="sum")
    return loss / (rois * pixels)


def mask_softmax_loss(
    logits_RCMM: Tensor,
    targets_RMM: Tensor,
    labels_R: Tensor,
    rois: float | Tensor,
    weights_R: Tensor | None = None,
) -> Tensor:
    """Per-pixel softmax over the background and all classes (Mask R-CNN, Table 2b), weighted and divided as `mask_loss`
    is.

    A pixel of the object is of its RoI's class, any other background: classes compete for the pixel.
    """
    pixels = targets_RMM.shape[1] * targets_RMM.shape[2]
    goal = labels_R[:, None, None] * (targets_RMM >= 0.5)
    if weights_R is None:
        return F.cross_entropy(logits_RCMM, goal, reduction="sum") / (rois * pixels)
    of_pixels = F.cross_entropy(logits_RCMM, goal, reduction="none")
    return (of_pixels * weights_R[:, None, None]).sum() / (rois * pixels)
