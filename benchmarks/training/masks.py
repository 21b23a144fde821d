"""The mask loss by itself, from mask features and detection weights to every gradient, in three ways.

"ours" is the code of the training: T, then the channel of each RoI's own class. "picked" computes every class's channel
and takes the RoI's own, as torchvision does. "ignored" also computes every channel and has a target for each pixel of
each, -1 in all but the own, where the loss is left out: the paper's own code (seg_every_thing, `mask_rcnn.py`). All
three are the same number with the same gradients.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.training.steps import StepSide
from model.config import TransferConfig
from model.losses import mask_loss
from model.masks.head import MaskBranch
from model.masks.weight_transfer import MaskWeights
from training.process import keep_freed_memory

Way = Literal["ours", "picked", "ignored"]
IGNORED = -1


class _Given(nn.Module):
    """A mask head whose features are there already."""

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return features, features


class MaskLossSide(StepSide):
    """T and the mask loss of some RoIs, forward and backward.

    Args:
        classes: without background.
        rois: of the mask loss, their labels spread over the classes.
        width: F; cells: S, half the mask's side; box_width: D.
    """

    def __init__(
        self,
        way: Way,
        classes: int,
        rois: int,
        *,
        width: int = 256,
        cells: int = 14,
        box_width: int = 1024,
        device: str = "cpu",
    ) -> None:
        if way not in ("ours", "picked", "ignored"):
            raise ValueError(f"way is {way!r}; there are ours, picked and ignored")
        self.way = way
        self.device = torch.device(device)
        if way == "ours" and self.device.type == "cpu":
            keep_freed_memory()  # as `training.train` does
        drawn = torch.Generator().manual_seed(0)
        self.labels = torch.randint(1, classes + 1, (rois,), generator=drawn).to(self.device)
        side = 2 * cells
        targets = torch.rand(rois, side, side, generator=drawn) < 0.5
        self.targets = targets.float().to(self.device)
        features = torch.randn(rois, width, side, side, generator=drawn).relu()
        if way == "ours":
            # The form in which our mask head hands them on: the 2 x 2 pixels of a cell together, channels last.
            features = features.view(rois, width, cells, 2, cells, 2).permute(0, 2, 4, 3, 5, 1).contiguous()
        self.features = features.to(self.device).requires_grad_()
        self.cls = (torch.randn(classes + 1, box_width, generator=drawn) * 0.01).to(self.device)
        self.box = (torch.randn(4 * (classes + 1), box_width, generator=drawn) * 0.001).to(self.device)
        torch.manual_seed(0)
        self.weights = MaskWeights(
            TransferConfig(), num_classes=classes, box_width=box_width, mask_width=width
        ).to(self.device)
        self.branch = MaskBranch(head=_Given(), mlp=None)
        self._ready()

    def loss(self) -> Tensor:
        """The mask loss, its graph behind it."""
        rois = self.labels.numel()
        if self.way == "ours":
            weights, bias = self.weights.of_labels(self.cls, self.box, self.labels)
            return mask_loss(self.branch(self.features, weights, bias), self.targets, rois)
        table, _ = self.weights(self.cls, self.box)
        logits = F.conv2d(self.features, table[:, :, None, None])
        if self.way == "picked":
            own = logits[torch.arange(rois, device=self.device), self.labels]
            return F.binary_cross_entropy_with_logits(own, self.targets)
        return ignored_loss(logits, self.labels, self.targets)

    def step(self, number: int) -> dict[str, float]:
        """Forward and backward."""
        self.features.grad = None
        self.weights.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()  # type: ignore[no-untyped-call]
        return {"loss": float(loss.detach())}


def ignored_loss(logits_RCMM: Tensor, labels_R: Tensor, targets_RMM: Tensor) -> Tensor:
    """Sigmoid cross-entropy over all channels whose targets are not `IGNORED`, the mean over those that count."""
    rois = labels_R.numel()
    goals = torch.full(logits_RCMM.shape, IGNORED, dtype=torch.int32, device=logits_RCMM.device)
    goals[torch.arange(rois, device=goals.device), labels_R] = targets_RMM.to(torch.int32)
    counted = (goals != IGNORED).float()
    losses = F.binary_cross_entropy_with_logits(logits_RCMM, goals.float(), weight=counted, reduction="sum")
    return losses / counted.sum()
