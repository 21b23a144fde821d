"""Normalisations of a backbone: over one process's batch or all processes', frozen, or over groups of channels."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d as ReferenceFrozenBatchNorm2d

from model.backbones.convolution import group_norm

NORMS = ("batch", "frozen", "sync", "group")


class FrozenBatchNorm2d(ReferenceFrozenBatchNorm2d):
    """torchvision's FrozenBatchNorm2d computed by one kernel, which keeps the input's dtype.

    The reference multiplies by float32 buffers, so a bfloat16 input leaves it as float32: twice the
    memory under autocast, and an error in the next layer where the convolutions were cast to bfloat16.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )


class _Sum(torch.autograd.Function):
    """The sum over all processes, whose gradient is that sum of the gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradients[0].contiguous())


def summed(values: Tensor) -> Tensor:
    """The sum of a tensor over all processes, through which gradients flow."""
    total: Tensor = _Sum.apply(values)  # type: ignore[no-untyped-call]
    return total


class SyncBatchNorm2d(nn.SyncBatchNorm, nn.BatchNorm2d):
    """Batch normalisation over the images of all processes that train together (MegDet: Peng et al. 2018).

    torch's own on a GPU; torch has none for a CPU, where sums over the processes (gloo) do the same. With one
    process, in evaluation and in TorchScript it is `nn.BatchNorm2d`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, H, W] -> the same shape; N may differ from process to process, and be 0 in some."""
        if not torch.jit.is_scripting():
            return self.eager(input)
        return F.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )

    @torch.jit.unused
    def eager(self, input: Tensor) -> Tensor:
        """`forward` outside TorchScript."""
        together = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if not (self.training and together):
            return nn.BatchNorm2d.forward(self, input)
        on_cpu = input.device.type == "cpu"
        return self.over_processes(input) if on_cpu else nn.SyncBatchNorm.forward(self, input)

    @torch.jit.unused
    def over_processes(self, input: Tensor) -> Tensor:
        """Mean and variance by two sums over all processes, through which gradients flow."""
        x = input.float()
        count = torch.tensor(float(x.numel() // x.shape[1]))
        dist.all_reduce(count)
        mean = summed(x.sum(dim=(0, 2, 3))) / count
        centred = x - mean.view(-1, 1, 1)
        variance = summed(centred.square().sum(dim=(0, 2, 3))) / count
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale.view(-1, 1, 1) + self.bias.view(-1, 1, 1)).to(input.dtype)


def frozen(norm: nn.BatchNorm2d) -> nn.Module:
    """The same numbers, held still."""
    return _with_numbers_of(norm, FrozenBatchNorm2d(norm.num_features, eps=norm.eps))


def synchronised(norm: nn.BatchNorm2d) -> nn.Module:
    """The same, over the images of all processes."""
    other = SyncBatchNorm2d(norm.num_features, eps=norm.eps, momentum=norm.momentum)
    return _with_numbers_of(norm, other)


def grouped(norm: nn.BatchNorm2d) -> nn.Module:
    """Group normalisation that begins with the same scale and shift."""
    return _with_numbers_of(norm, group_norm(norm.num_features))


def _with_numbers_of(norm: nn.BatchNorm2d, other: nn.Module) -> nn.Module:
    theirs = norm.state_dict()
    other.load_state_dict({key: theirs[key] for key in other.state_dict()})
    return other


def replace_norms(
    module: nn.Module, among: set[nn.Module], make: Callable[[nn.BatchNorm2d], nn.Module]
) -> None:
    """Replace, inside `module`, every BatchNorm2d in `among` by what `make` gives for it."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            if child in among:
                setattr(module, name, make(child))
        else:
            replace_norms(child, among, make)
