"""The mask branch: a head, the class's own mask weights as its last 1x1 convolution, and the MLP beside it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.backbones.convolution import he_initialised, with_winograd


def deconvolved(before: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 2x2 deconvolution of stride 2: [R, channels, S, S] -> [R, S, S, 2, 2, F].

    Where stride and kernel are equal a deconvolution is one matrix product a cell; its 2 x 2 answers of a cell
    stay together, for nothing after it looks at neighbours.
    """
    rois, channels, size = before.shape[0], before.shape[1], before.shape[2]
    width = weight.shape[1]
    assert bias is not None
    cells = before.permute(0, 2, 3, 1).reshape(rois * size * size, channels)
    after = torch.addmm(bias.repeat(4), cells, weight.permute(0, 2, 3, 1).reshape(channels, 4 * width))
    return after.view(rois, size, size, 2, 2, width)


class MaskHead(nn.Module):
    """The FCN `v1up4convs`: 3x3 convolutions with ReLU, then a 2x2 deconvolution of stride 2 (Mask R-CNN, Fig. 4)."""

    def __init__(self, *, channels: int, width: int, convolutions: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for i in range(convolutions):
            blocks += [nn.Conv2d(channels if i == 0 else width, width, 3, padding=1), nn.ReLU(inplace=True)]
        self.convs = nn.Sequential(*blocks)
        self.deconv = nn.ConvTranspose2d(width if convolutions else channels, width, 2, stride=2)
        he_initialised(self, mode="fan_in")
        with_winograd(self.convs, many=True)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled [R, channels, S, S] -> features before [R, F, S, S] and after the deconvolution [R, S, S, 2, 2, F]."""
        before = self.convs(pooled)
        return before, torch.relu(deconvolved(before, self.deconv.weight, self.deconv.bias))


class MLPMaskHead(nn.Module):
    """The fully connected mask head (Mask R-CNN, Table 2e): two hidden layers, then every pixel's features at once.

    The paper's last layer has a row of weights for each class and pixel. Here it gives F numbers for each pixel, which
    the class's mask weights mix, so that every kind of mask weights can stand behind it; with F = C it can be any
    last layer of the paper.

    Args:
        channels: of the pooled features; roi_size: S.
        hidden: width of the two hidden layers (1024 in the paper).
        width: F, the mask features of a pixel: (2 S)^2 x F rows of `hidden` weights.
    """

    def __init__(self, *, channels: int, roi_size: int, hidden: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.fc1 = nn.Linear(channels * roi_size**2, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.fc3 = nn.Linear(hidden, (2 * roi_size) ** 2 * width)
        for layer in (self.fc1, self.fc2):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
        nn.init.kaiming_normal_(self.fc3.weight, mode="fan_in", nonlinearity="linear")
        for layer in (self.fc1, self.fc2, self.fc3):
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled [R, channels, S, S] -> the same, and mask features [R, S, S, 2, 2, F] as of `MaskHead`."""
        size = pooled.shape[2]
        hidden = torch.relu(self.fc1(pooled.flatten(1)))
        after = self.fc3(torch.relu(self.fc2(hidden)))
        return pooled, after.view(pooled.shape[0], size, size, 2, 2, self.width)


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
    """The same view of the whole object at a sixtieth of the weights: 16 channels before the deconvolution.

    Of crops greater than 16 cells it sees means of 2 x 2 (4 x 4, ...) cells, and its logits are enlarged bilinearly.
    """

    def __init__(self, *, width: int, roi_size: int, channels: int = 16) -> None:
        super().__init__()
        self.shrink = max(roi_size // 16, 1)
        side = roi_size // self.shrink
        self.reduce = nn.Conv2d(width, channels, 1)
        self.fc = nn.Linear(channels * side**2, (2 * side) ** 2)
        nn.init.kaiming_normal_(self.reduce.weight, nonlinearity="relu")
        assert self.reduce.bias is not None
        nn.init.zeros_(self.reduce.bias)
        nn.init.normal_(self.fc.weight, std=0.001)
        nn.init.zeros_(self.fc.bias)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """Logits [R, M, M]."""
        size = 2 * before.shape[2]
        if self.shrink > 1:
            before = F.avg_pool2d(before, self.shrink)
        logits: Tensor = self.fc(torch.relu(self.reduce(before)).flatten(1))
        if self.shrink > 1:
            small = logits.view(before.shape[0], 1, 2 * before.shape[2], 2 * before.shape[2])
            logits = F.interpolate(small, size=[size, size], mode="bilinear", align_corners=False)
        return logits.view(before.shape[0], size, size)


class MaskBranch(nn.Module):
    """Mask logits of each RoI for one class: the channel of that class and no other is ever computed.

    Args:
        head: `MaskHead`, `MLPMaskHead` or `model.masks.hourglass.HourglassMaskHead`.
        mlp: added to every logit, or None.
    """

    def __init__(self, *, head: nn.Module, mlp: nn.Module | None) -> None:
        super().__init__()
        self.head = head
        self.mlp = mlp

    def forward(self, pooled: Tensor, weights_RF: Tensor, bias: Tensor) -> Tensor:
        """Pooled [R, channels, S, S], the mask weights of each RoI's class [R, F] -> logits [R, M, M] float32.

        The bias is one for all [] or one for each RoI [R, 1, 1]. The MLP's logits are added before the sigmoid
        (Sec. 3.4).
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

    @torch.jit.unused
    def of_all_labels(self, pooled: Tensor, table_CF: Tensor, bias_C: Tensor) -> Tensor:
        """Logits [R, C+1, M, M] float32 of every label, for the softmax over classes; the MLP speaks for the object,
        so its logits are added to all labels but the background."""
        before, after = self.head(pooled)
        rois, cells, width = after.shape[0], after.shape[1], after.shape[5]
        of_cells = (after.reshape(-1, width) @ table_CF.to(after.dtype).t()).float() + bias_C
        labels = table_CF.shape[0]
        split = of_cells.view(rois, cells, cells, 2, 2, labels).permute(0, 5, 1, 3, 2, 4)
        logits = split.reshape(rois, labels, 2 * cells, 2 * cells)
        if self.mlp is None:
            return logits
        of_object = self.mlp(before, after).float().unsqueeze(1)
        return torch.cat([logits[:, :1], logits[:, 1:] + of_object], dim=1)
