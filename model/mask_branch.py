"""The mask branch: an FCN, the class's own mask weights as its last 1x1 convolution, and the MLP beside it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled [R, channels, S, S] -> features before [R, F, S, S] and after [R, F, 2S, 2S] the deconvolution."""
        before = self.convs(pooled)
        return before, torch.relu(self.deconv(before))


class OfficialMaskMLP(nn.Module):
    """The class-agnostic MLP as the paper's own code has it: one layer on the features after the deconvolution."""

    def __init__(self, *, width: int, mask_size: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width * mask_size**2, mask_size**2)
        nn.init.normal_(self.fc.weight, std=0.001)
        nn.init.zeros_(self.fc.bias)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Logits [R, M, M]."""
        size = after.shape[-1]
        logits: Tensor = self.fc(after.flatten(1))
        return logits.view(-1, size, size)


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
        size = after.shape[-1]
        logits: Tensor = self.fc(torch.relu(self.reduce(before)).flatten(1))
        return logits.view(-1, size, size)


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
        size = after.shape[-1]
        weights = weights_RF.to(after.dtype).unsqueeze(1)
        logits = torch.bmm(weights, after.flatten(2)).view(-1, size, size).float() + bias
        if self.mlp is not None:
            logits = logits + self.mlp(before, after).float()
        return logits
