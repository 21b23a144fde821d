"""The weight transfer function T of Sec. 3.2: w_seg = T(w_det; theta), and its class-agnostic fallback."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from model.config import TransferConfig
from model.host import waiting

FEW_CLASSES = 128
"""Up to this many, background counted, T is computed for all of them in every step."""


class WeightTransfer(nn.Module):
    """T: `layers` fully connected layers from detection weights to mask weights (Table 1b).

    No activation follows the last layer; biases start at zero. Weights start normal with deviation sqrt(2 / fan),
    the fan being the layer's outputs ("fan_out": Caffe2's MSRAFill, as the paper's own code has it) or its inputs
    ("fan_in": He et al., 2015; ours). `zero_init` starts the last layer at zero, which the residual form needs.
    """

    def __init__(
        self,
        *,
        input_width: int,
        output_width: int,
        layers: int,
        relu: bool,
        zero_init: bool,
        init: Literal["fan_in", "fan_out"] = "fan_in",
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
            nn.init.kaiming_normal_(linear.weight, mode=init)
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


def class_mean(w_det_CI: Tensor) -> Tensor:
    """Mean [I] over the classes, row 0 (background) aside; a single class has none to take away: zeros."""
    foreground = w_det_CI[1:]
    return foreground.mean(dim=0) if foreground.shape[0] > 1 else torch.zeros_like(w_det_CI[0])


def normalised(w_det_CI: Tensor, mean_I: Tensor | None = None) -> Tensor:
    """Centre the classes on their mean (or on `mean_I`) and give every class unit RMS.

    T then sees what tells a class from the others, and no class speaks louder because its scores are
    sharper. The background row is scaled with the same mean.
    """
    w_det_CI = w_det_CI - (class_mean(w_det_CI) if mean_I is None else mean_I)
    return w_det_CI / w_det_CI.square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-8)


class MaskWeights(nn.Module):
    """The table of mask weights: row c holds the weights of label c.

    Four forms: the class-agnostic baseline (every row the same learned vector), the paper's transfer
    w_seg = T(w_det), the residual transfer w_seg = w_agnostic + T(w_det), and for full supervision
    Mask R-CNN's own class-specific rows, each learned (with a bias each) from masks of its class.

    In Table 1a T reads something else than w_det: `input` "random", a fixed row of `vector_width` random numbers
    for each class, or "words", the vectors of its name's words. Rows that names decide (`random_rows` "word" too) must
    be given by `set_rows` before anything is computed. All are buffers, so that a checkpoint holds them, with zeros for
    the background.

    Class-agnostic weights start with deviation 0.001, as in the paper's own code; class-specific ones too (ours), or
    where `init` is "fan_out" with sqrt(2 / (C + 1)), as there (0.157 at 80 classes).

    Args:
        config: which form, what T reads and how it is made. A kept mean is that which `keep_mean` took, whatever
            classes there are by then; kept rows stand in T's place, see `keep_rows`.
        num_classes: C, without background.
        box_width: D.
        mask_width: F.
    """

    rows: Tensor | None
    mean: Tensor | None
    is_kept: Tensor | None
    kept: Tensor | None
    kept_bias: Tensor | None

    def __init__(self, config: TransferConfig, *, num_classes: int, box_width: int, mask_width: int) -> None:
        super().__init__()
        kind, input = config.kind, config.input
        self.use_cls = "cls" in input.split("+")
        self.use_box = "box" in input.split("+")
        self.stop_gradient = config.stop_gradient
        self.normalise = config.normalise
        self.dropout = config.dropout
        self.noise = config.noise
        self.transfer: WeightTransfer | None = None
        self.agnostic: nn.Parameter | None = None
        self.specific: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        width = box_width * (int(self.use_cls) + 4 * int(self.use_box))
        rows = None
        if kind == "transfer" and input in ("random", "words"):
            width = config.vector_width
            # Until they are set words are NaN: nobody trains on words that were never read.
            rows = torch.full((num_classes + 1, width), torch.nan)
            if input == "random" and config.random_rows == "class":
                rows = torch.randn(num_classes + 1, width)
            rows[0] = 0.0
        self.register_buffer("rows", rows)
        self.register_buffer(
            "mean", torch.full((width,), torch.nan) if config.kept_mean and kind == "transfer" else None
        )
        keeps = config.kept_rows and kind == "transfer"
        labels = num_classes + 1
        self.register_buffer("is_kept", torch.zeros(labels, dtype=torch.bool) if keeps else None)
        self.register_buffer("kept", torch.zeros(labels, mask_width) if keeps else None)
        self.register_buffer("kept_bias", torch.zeros(labels) if keeps else None)
        if kind == "transfer":
            self.transfer = WeightTransfer(
                input_width=width,
                output_width=mask_width,
                layers=config.layers,
                relu=config.activation == "relu",
                zero_init=config.residual,
                init=config.init,
            )
        if kind == "class_specific":
            deviation = math.sqrt(2 / (num_classes + 1)) if config.init == "fan_out" else 0.001
            self.specific = nn.Parameter(torch.randn(num_classes + 1, mask_width) * deviation)
            self.bias = nn.Parameter(torch.zeros(num_classes + 1))
        elif kind == "class_agnostic" or config.residual:
            self.agnostic = nn.Parameter(torch.randn(mask_width) * 0.001)
            self.bias = nn.Parameter(torch.zeros(()))

    @torch.no_grad()
    def set_rows(self, vectors_CE: Tensor) -> None:
        """Give every class its row [C, E], background left out; for the inputs of Table 1a."""
        assert self.rows is not None
        if vectors_CE.shape != self.rows[1:].shape:
            raise ValueError(
                f"vectors of shape {list(vectors_CE.shape)}; {list(self.rows[1:].shape)} is wanted, one row a class"
            )
        self.rows[1:] = vectors_CE

    @torch.no_grad()
    def keep_mean(self, cls_weight_CD: Tensor, box_weight_4CD: Tensor, rows_CE: Tensor | None = None) -> None:
        """Take the mean over these classes, to be taken away from all that come later; `rows_CE` where T reads such."""
        assert self.mean is not None
        parts = self._parts(cls_weight_CD, box_weight_4CD) if rows_CE is None else [rows_CE]
        self.mean.copy_(torch.cat([class_mean(part) for part in parts]))

    @torch.no_grad()
    def keep_rows(self, labels: list[int], rows_LF: Tensor, bias_L: Tensor) -> None:
        """Let these labels have these mask weights and biases, whatever T says, and whatever classes come later."""
        assert self.is_kept is not None and self.kept is not None and self.kept_bias is not None
        self.is_kept[labels] = True
        self.kept[labels], self.kept_bias[labels] = rows_LF, bias_L

    def detection_weights(
        self, cls_weight_CD: Tensor, box_weight_4CD: Tensor, labels_L: Tensor | None = None
    ) -> Tensor:
        """w_det [C, I], what T reads: class rows of the box head's last layer, cls first, then the class's four
        box rows; or the fixed rows of Table 1a. Given labels, their rows alone [L, I]."""
        parts = self._parts(cls_weight_CD, box_weight_4CD)
        if self.stop_gradient:
            parts = [part.detach() for part in parts]
        if self.normalise and self.mean is not None:
            means = self.mean.split([part.shape[1] for part in parts])
        else:
            means = tuple(class_mean(part) for part in parts) if self.normalise else ()
        if labels_L is not None:
            parts = [part[labels_L] for part in parts]
        if self.normalise:
            parts = [normalised(part, mean) for part, mean in zip(parts, means, strict=True)]
        return torch.cat(parts, dim=1)

    def _parts(self, cls_weight_CD: Tensor, box_weight_4CD: Tensor) -> list[Tensor]:
        if self.rows is not None:
            return [self.rows]
        parts = [cls_weight_CD] if self.use_cls else []
        return parts + ([box_weight_4CD.reshape(cls_weight_CD.shape[0], -1)] if self.use_box else [])

    def forward(
        self, cls_weight_CD: Tensor, box_weight_4CD: Tensor, labels_L: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mask weights [C, F] float32 of all classes (row 0 background), and the bias: one for all [], or [C].

        The predicted convolution of the paper has no bias: there the second answer is zero. Labels may be given where
        T is, for their weights alone [L, F], and biases [] or [L].
        """
        assert labels_L is None or self.transfer is not None
        if self.specific is not None:
            assert self.bias is not None
            return self.specific, self.bias
        classes = cls_weight_CD.shape[0]
        bias = cls_weight_CD.new_zeros(()) if self.bias is None else self.bias
        if self.transfer is None:
            assert self.agnostic is not None
            return self.agnostic.expand(classes, -1), bias
        w_det = self.detection_weights(cls_weight_CD, box_weight_4CD, labels_L)
        if self.training and self.noise > 0:
            scale = w_det.detach().square().mean().sqrt()
            w_det = w_det + torch.randn_like(w_det) * (self.noise * scale)
        w_det = nn.functional.dropout(w_det, self.dropout, self.training)
        w_seg = self.transfer(w_det).float()
        if self.agnostic is not None:
            w_seg = w_seg + self.agnostic
        if self.is_kept is None or self.kept is None or self.kept_bias is None:
            return w_seg, bias
        is_kept, kept, kept_bias = self.is_kept, self.kept, self.kept_bias
        if labels_L is not None:
            is_kept, kept, kept_bias = is_kept[labels_L], kept[labels_L], kept_bias[labels_L]
        return torch.where(is_kept[:, None], kept, w_seg), torch.where(is_kept, kept_bias, bias)

    def of_labels(
        self, cls_weight_CD: Tensor, box_weight_4CD: Tensor, labels_R: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mask weights [R, F] of RoIs by their labels, and the bias: one for all [], or [R, 1, 1].

        Of more than `FEW_CLASSES` T is computed for the labels that occur alone: at 3 000 classes T on all of them
        takes longer than the masks. Not with noise, whose size is taken from all classes.
        """
        many = cls_weight_CD.shape[0] > FEW_CLASSES and self.transfer is not None
        if many and not (self.training and self.noise > 0):
            with waiting():
                labels_L, labels_R = torch.unique(labels_R, return_inverse=True)
            table, bias = self(cls_weight_CD, box_weight_4CD, labels_L)
        else:
            table, bias = self(cls_weight_CD, box_weight_4CD)
        return table[labels_R], bias if bias.dim() == 0 else bias[labels_R].view(-1, 1, 1)
