"""The network as it goes into maskx.pt: the same numbers from fewer operations, still float32 and not frozen."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from model.backbones.c4 import Res5BoxHead
from model.backbones.norms import FrozenBatchNorm2d
from model.boxes.head import BoxHead
from model.inference import Inference

REDUCIBLE = ("backbone", "rpn.head", "box_head", "mask_branch")
"""Modules whose weights may be cast to a lower precision, all of them or none; all others stay float32."""

REDUCIBLE_WITH_KEYPOINTS = (*REDUCIBLE, "keypoint_branch.convs")
"""The same of a network with keypoints, whose last layer stays float32: neighbouring cells differ by little."""


@torch.no_grad()
def prepared_for_serving(inference: Inference) -> Inference:
    """A copy of `inference` with batch normalisation folded into its convolutions and fc6 reading cell by cell.

    Raises:
        ValueError: a normalisation does not follow a convolution, so that it cannot be folded.
    """
    served = copy.deepcopy(inference).eval().requires_grad_(False)
    side = 2 * served.canvas.step
    fold_batch_norms(served.backbone, torch.zeros(1, 3, side, side, device=served.canvas.mean.device))
    box_head, size = served.box_head, served.box_pool.size
    if isinstance(box_head, Res5BoxHead):
        channels, device = served.backbone.out_channels, served.canvas.mean.device
        assert isinstance(channels, int)
        fold_batch_norms(box_head, torch.zeros(1, channels, size, size, device=device))
    if isinstance(box_head, BoxHead):
        weight = box_head.fc6.weight
        by_cell = weight.view(weight.shape[0], -1, size, size).permute(0, 2, 3, 1)
        box_head.fc6.weight = nn.Parameter(
            by_cell.reshape(weight.shape[0], -1).contiguous(), requires_grad=False
        )
        box_head.cell_by_cell = True
    return served


def fold_batch_norms(network: nn.Module, example: Tensor) -> None:
    """Folds every batch normalisation into the convolution before it, in place and in float64.

    Raises:
        ValueError: a normalisation does not follow a convolution.
    """
    for name, (norm, convolution) in norms_to_fold(network, example).items():
        _fold(convolution, norm)
        parent, _, own = name.rpartition(".")
        setattr(network.get_submodule(parent), own, nn.Identity())


def norms_to_fold(
    network: nn.Module, example: Tensor
) -> dict[str, tuple[nn.BatchNorm2d | FrozenBatchNorm2d, nn.Conv2d]]:
    """Every batch normalisation by its name, with the convolution before it.

    Which one that is, one forward pass of `example` tells: the one whose answer the normalisation is given.
    ValueError where there is none.
    """
    norms = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d)
    }
    # Answers are kept alive, so that no two of them have the same identity.
    answers: list[tuple[Tensor, nn.Conv2d]] = []
    before: dict[nn.Module, nn.Conv2d] = {}

    def remember(module: nn.Module, _: tuple[Tensor, ...], answer: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        answers.append((answer, module))

    def find(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        for answer, convolution in answers:
            if answer is given[0]:
                before[module] = convolution

    hooks = [m.register_forward_hook(remember) for m in network.modules() if isinstance(m, nn.Conv2d)]
    hooks += [norm.register_forward_pre_hook(find) for norm in norms.values()]
    try:
        network(example)
    finally:
        for hook in hooks:
            hook.remove()
    for name, norm in norms.items():
        if norm not in before:
            raise ValueError(f"{name} does not normalise the answer of a convolution, so it cannot be folded")
    return {name: (norm, before[norm]) for name, norm in norms.items()}


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d | FrozenBatchNorm2d) -> None:
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None
    scale = norm.weight.double() * torch.rsqrt(variance.double() + norm.eps)
    bias = torch.zeros_like(mean) if convolution.bias is None else convolution.bias
    shift = norm.bias.double() + (bias.double() - mean.double()) * scale
    folded = convolution.weight.double() * scale[:, None, None, None]
    convolution.weight = nn.Parameter(folded.to(convolution.weight.dtype), requires_grad=False)
    convolution.bias = nn.Parameter(shift.to(convolution.weight.dtype), requires_grad=False)
