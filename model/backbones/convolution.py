"""3x3 convolutions that can be computed by Winograd's form, where whoever loads the network asks for it."""

import math

import torch
from torch import Tensor, nn


class WinogradConv2d(nn.Conv2d):
    """A 3x3 convolution of stride 1 that keeps the size; with `winograd` set, in float32 on a CPU, by Winograd's form.

    F(6x6, 3x3) (Lavin and Gray, 2016, arXiv:1509.09308) needs 5.06 times fewer multiplications; PyTorch brings it
    with NNPACK, in float32.

    Whether NNPACK runs here is for the process that loads the network to find out (`torch._nnpack_available()`, which
    also starts it): TorchScript would write the answer of the machine that exported into the file.

    Args:
        inputs, outputs: channels.
        bias: whether it has one.
        many: the maps are many and small (RoIs), so that they go through together; else they are few and large and
            go one by one, for a level of an image must not depend on the image's company.
    """

    winograd: bool
    many: bool

    def __init__(self, inputs: int, outputs: int, *, bias: bool, many: bool) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=bias)
        self.winograd = False
        self.many = many

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, K, H, W]."""
        quick = self.winograd and x.device.type == "cpu" and x.dtype == torch.float32
        if quick and not torch.is_grad_enabled():
            weight = self.weight.contiguous()  # NNPACK refuses channels_last
            # Below these sizes the transforms, of few tiles or of the weights, cost more than they save.
            if self.many and x.shape[0] >= 16:
                return torch._nnpack_spatial_convolution(x, weight, self.bias, [1, 1], [1, 1])
            if not self.many and x.shape[2] * x.shape[3] >= 144:
                answers: list[Tensor] = []
                for image in x.split(1):
                    answers.append(
                        torch._nnpack_spatial_convolution(image, weight, self.bias, [1, 1], [1, 1])
                    )
                return torch.cat(answers) if len(answers) > 1 else answers[0]
        return self._conv_forward(x, self.weight, self.bias)


def with_winograd(module: nn.Module, *, many: bool) -> None:
    """Makes every 3x3 convolution of stride 1 inside `module` a `WinogradConv2d` of the same parameters, in place."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Conv2d and (child.kernel_size, child.stride) == ((3, 3), (1, 1)):
                with torch.device("meta"):  # draws no random numbers: a seed gives the network it gave before
                    other = WinogradConv2d(
                        child.in_channels, child.out_channels, bias=child.bias is not None, many=many
                    )
                other.weight, other.bias = child.weight, child.bias
                setattr(parent, name, other)


def he_initialised(module: nn.Module, *, mode: str) -> None:
    """He's initialisation (fan_in or fan_out) of every convolution inside, and no bias."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight, mode=mode, nonlinearity="relu")  # type: ignore[arg-type]
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation (Wu and He, 2018, arXiv:1803.08494) with 16 channels to a group (Table 3), or as many of 16
    as divide `channels`."""
    return nn.GroupNorm(channels // math.gcd(channels, 16), channels)
