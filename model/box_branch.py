"""The box branch: class scores and class-wise boxes of each RoI; its last layer holds w_det."""

import itertools
import math

import torch
from torch import Tensor, nn

from model.convolution import group_norm, with_winograd


class BoxHead(nn.Module):
    """Two fully connected layers on the pooled features of an RoI (FPN's box head)."""

    def __init__(self, *, channels: int, roi_size: int, width: int) -> None:
        super().__init__()
        self.fc6 = nn.Linear(channels * roi_size**2, width)
        self.fc7 = nn.Linear(width, width)
        self.cell_by_cell = False
        """Whether fc6 wants all channels of a cell together; so it is in the network as it is served."""

    def weight_type(self) -> torch.dtype:
        """The type that it computes in."""
        return self.fc6.weight.dtype

    def forward(self, pooled: Tensor) -> Tensor:
        """Pooled features [R, F, S, S] -> [R, D]."""
        if self.cell_by_cell:
            pooled = pooled.permute(0, 2, 3, 1)
        x = torch.relu(self.fc6(pooled.flatten(1)))
        return torch.relu(self.fc7(x))


class ConvBoxHead(nn.Module):
    """Four 3x3 convolutions and their mean over the cells (OPMask): the classifier reads a mean, so its weights on a
    single cell say how much that cell speaks for the class (`model.object_prior`).

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
        """The type that it computes in."""
        return self.convs[9].weight.dtype  # type: ignore[return-value]

    def maps(self, pooled: Tensor) -> Tensor:
        """Pooled features [R, F, S, S] -> [R, D, S, S], before the mean."""
        maps: Tensor = self.convs(pooled)
        return maps

    def forward(self, pooled: Tensor) -> Tensor:
        """Pooled features [R, F, S, S] -> [R, D]."""
        return self.maps(pooled).mean(dim=[2, 3])


class ConvFCBoxHead(nn.Module):
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
        """The type that it computes in."""
        return self.fc.weight.dtype

    def forward(self, pooled: Tensor) -> Tensor:
        """Pooled features [R, F, S, S] -> [R, D]."""
        return torch.relu(self.fc(self.convs(pooled).flatten(1)))


class BoxPredictor(nn.Module):
    """Class logits and class-wise box deltas. The rows of the two weights are the paper's w_cls and w_box.

    With `prior` all classes together begin with that probability (focal loss: Lin et al. 2017, Sec. 4.1).
    """

    def __init__(self, *, width: int, num_classes: int, prior: float | None = None) -> None:
        super().__init__()
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
