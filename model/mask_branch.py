"""The mask branch: an FCN, the class's own mask weights as its last 1x1 convolution, and the MLP beside it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.convolution import with_winograd


class MaskHead(nn.Module):
    """The FCN `v1up4convs`: 3x3 convolutions with ReLU, then a 2x2 deconvolution of stride 2 (Mask R-CNN, Fig. 4)."""

    def __init__(self, *, channels: int, width: int, convolutions: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for i in range(convolutions):
            blocks += [nn.Conv2d(channels if i == 0 else width, width, 3, padding=1), nn.ReLU(inplace=True)]
        self.convs = nn.Sequential(*blocks)
        self.deconv = nn.ConvTranspose2d(width if convolutions else channels, width, 2, stride=2)
        for module in [*self.convs, self.deconv]:
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        with_winograd(self.convs, many=True)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled [R, channels, S, S] -> features before [R, F, S, S] and after the deconvolution [R, S, S, 2, 2, F].

        Where stride and kernel are equal a deconvolution is one matrix product a cell; its 2 x 2 answers of a cell
        stay together, for nothing after it looks at neighbours.
        """
        before = self.convs(pooled)
        rois, channels, size = before.shape[0], before.shape[1], before.shape[2]
        weight = self.deconv.weight
        width = weight.shape[1]
        bias = self.deconv.bias
        assert bias is not None
        cells = before.permute(0, 2, 3, 1).reshape(rois * size * size, channels)
        after = torch.addmm(bias.repeat(4), cells, weight.permute(0, 2, 3, 1).reshape(channels, 4 * width))
        return before, torch.relu(after).view(rois, size, size, 2, 2, width)


class OfficialMaskMLP(nn.Module):
    """The class-agnostic MLP as the paper's own code has it: one layer on the features after the deconvolution."""

    def __init__(self, *, width: int, mask_size: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width * mask_size**2, mask_size**2)
        nn.init.normal_(self.fc.weight, std=0.001)
        nn.init.zeros_(self.fc.bias)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Logits [R, M, M]."""
        rois, cells, width = after.shape[0], after.shape[1], after.shape[5]
        as_channels = after.permute(0, 5, 1, 3, 2, 4).reshape(rois, width * 4 * cells * cells)
        logits: Tensor = self.fc(as_channels)
        return logits.view(rois, 2 * cells, 2 * cells)


class SlimMaskMLP(nn.Module):
    """The same view of the whole object at a sixtieth of the weights: 16 channels before the deconvolution."""

    def __init__(self, *, width: int, roi_size: int, channels: int = 16) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(width, channels, 1)
        self.fc = nn.Linear(channels * roi_size**2, (2 * roi_size) ** 2)
        nn.init.kaiming_normal_(self.reduce.weight, nonlinearity="relu")
        assert self.reduce.bias is not None
        nn.init.zeros_(self.reduce.bias)
        nn.init.normal_(self.fc.weight, std=0.001)
        nn.init.zeros_(self.fc.bias)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Logits [R, M, M]."""
        size = 2 * before.shape[2]
        logits: Tensor = self.fc(torch.relu(self.reduce(before)).flatten(1))
        return logits.view(before.shape[0], size, size)


class MaskBranch(nn.Module):
    """Mask logits of each RoI for one class: the channel of that class and no other is ever computed."""

    def __init__(self, *, head: MaskHead, mlp: nn.Module | None) -> None:
        super().__init__()
        self.head = head
        self.mlp = mlp

    def forward(self, pooled: Tensor, weights_RF: Tensor, bias: Tensor) -> Tensor:
        """Pooled [R, channels, S, S], the mask weights of each RoI's class [R, F] -> logits [R, M, M] float32.

        The MLP's logits are added before the sigmoid (Sec. 3.4).
        """
        before, after = self.head(pooled)
        rois, cells, width = after.shape[0], after.shape[1], after.shape[5]
        weights = weights_RF.to(after.dtype).unsqueeze(2)
        of_cells = torch.bmm(after.view(rois, cells * cells * 4, width), weights).float() + bias
        logits = (
            of_cells.view(rois, cells, cells, 2, 2).permute(0, 1, 3, 2, 4).reshape(rois, 2 * cells, 2 * cells)
        )
        if self.mlp is not None:
            logits = logits + self.mlp(before, after).float()
        return logits
