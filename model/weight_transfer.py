"""The weight transfer function T of Sec. 3.2: w_seg = T(w_det; theta), and its class-agnostic fallback."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class WeightTransfer(nn.Module):
    """T: `layers` fully connected layers from detection weights to mask weights (Table 1b).

    No activation follows the last layer. He initialisation (fan-in), zero biases, as the paper's own
    code has it; `zero_init` starts the last layer at zero, which the residual form needs.
    """

    def __init__(
        self, *, input_width: int, output_width: int, layers: int, relu: bool, zero_init: bool
    ) -> None:
        super().__init__()
        if not 1 <= layers <= 3:
            raise ValueError(
                f"transfer.layers is {layers}; the weight transfer function has 1, 2 or 3 layers"
            )
        widths = [input_width] + [output_width] * layers
        blocks: list[nn.Module] = []
        for i in range(layers):
            linear = nn.Linear(widths[i], widths[i + 1])
            nn.init.kaiming_normal_(linear.weight)
            nn.init.zeros_(linear.bias)
            if i:
                blocks.append(nn.ReLU() if relu else nn.LeakyReLU(0.1))
            blocks.append(linear)
        if zero_init:
            nn.init.zeros_(linear.weight)
        self.layers = nn.Sequential(*blocks)

    def forward(self, w_det_CI: Tensor) -> Tensor:
        """Detection weights [C, I] -> mask weights [C, F]."""
        w_seg: Tensor = self.layers(w_det_CI)
        return w_seg


def normalised(w_det_CI: Tensor) -> Tensor:
    """Row 0 (background) aside, centre the classes on their mean and give every class unit RMS.

    T then sees what tells a class from the others, and no class speaks louder because its scores are
    sharper. The background row is scaled with the same mean; with a single class there is no mean to
    take away.
    """
    foreground = w_det_CI[1:]
    if foreground.shape[0] > 1:
        w_det_CI = w_det_CI - foreground.mean(dim=0, keepdim=True)
    return w_det_CI / w_det_CI.square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-8)


class MaskWeights(nn.Module):
    """The table of mask weights: row c holds the weights of label c.

    Four forms: the class-agnostic baseline (every row the same learned vector), the paper's transfer
    w_seg = T(w_det), the residual transfer w_seg = w_agnostic + T(w_det), and for full supervision
    Mask R-CNN's own class-specific rows, each learned (with a bias each) from masks of its class, for
    which alone `num_classes` (without background) must be given.
    """

    def __init__(
        self,
        *,
        kind: str,
        input: str,
        box_width: int,
        mask_width: int,
        layers: int,
        relu: bool,
        stop_gradient: bool,
        normalise: bool,
        residual: bool,
        dropout: float,
        noise: float,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        self.use_cls = "cls" in input.split("+")
        self.use_box = "box" in input.split("+")
        self.stop_gradient = stop_gradient
        self.normalise = normalise
        self.dropout = dropout
        self.noise = noise
        self.transfer: WeightTransfer | None = None
        self.agnostic: nn.Parameter | None = None
        self.specific: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        if kind == "transfer":
            self.transfer = WeightTransfer(
                input_width=box_width * (int(self.use_cls) + 4 * int(self.use_box)),
                output_width=mask_width,
                layers=layers,
                relu=relu,
                zero_init=residual,
            )
        # Std 0.001 where fan-in initialisation diverges, as in the paper's own code.
        if kind == "class_specific":
            self.specific = nn.Parameter(torch.randn(num_classes + 1, mask_width) * 0.001)
            self.bias = nn.Parameter(torch.zeros(num_classes + 1))
        elif kind == "class_agnostic" or residual:
            self.agnostic = nn.Parameter(torch.randn(mask_width) * 0.001)
            self.bias = nn.Parameter(torch.zeros(()))

    def detection_weights(self, cls_weight_CD: Tensor, box_weight_4CD: Tensor) -> Tensor:
        """w_det [C, I]: class rows of the box head's last layer, cls first, then the class's four box rows."""
        classes = cls_weight_CD.shape[0]
        parts = []
        if self.use_cls:
            parts.append(cls_weight_CD)
        if self.use_box:
            parts.append(box_weight_4CD.reshape(classes, -1))
        if self.stop_gradient:
            parts = [part.detach() for part in parts]
        if self.normalise:
            parts = [normalised(part) for part in parts]
        return torch.cat(parts, dim=1)

    def forward(self, cls_weight_CD: Tensor, box_weight_4CD: Tensor) -> tuple[Tensor, Tensor]:
        """Mask weights [C, F] float32 of all classes (row 0 background), and the bias: one for all [], or [C].

        The predicted convolution of the paper has no bias: there the second answer is zero.
        """
        if self.specific is not None:
            assert self.bias is not None
            return self.specific, self.bias
        classes = cls_weight_CD.shape[0]
        bias = cls_weight_CD.new_zeros(()) if self.bias is None else self.bias
        if self.transfer is None:
            assert self.agnostic is not None
            return self.agnostic.expand(classes, -1), bias
        w_det = self.detection_weights(cls_weight_CD, box_weight_4CD)
        if self.training and self.noise > 0:
            scale = w_det.detach().square().mean().sqrt()
            w_det = w_det + torch.randn_like(w_det) * (self.noise * scale)
        w_det = nn.functional.dropout(w_det, self.dropout, self.training)
        w_seg = self.transfer(w_det).float()
        return (w_seg if self.agnostic is None else w_seg + self.agnostic), bias
