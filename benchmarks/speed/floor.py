"""The floor: floating-point operations of the network over the best matrix-multiplication rate of this machine."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from benchmarks.clock import timed
from benchmarks.speed.peer import DETECTIONS, SCORE_THRESHOLD
from model.inference import Inference

SIDES = (1024, 2048, 4096)


@torch.inference_mode()
def matmul_rates(
    precision: str, device: str, sides: Sequence[int] = SIDES, seconds: float = 1.5
) -> dict[str, float]:
    """Best FLOP/s of n x n matrix products by n, each tried for about `seconds`, at least twice after a warm-up."""
    dtype: torch.dtype = getattr(torch, precision)
    rates: dict[str, float] = {}
    for side in sides:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        torch.mm(a, b)
        taken: list[float] = []
        while len(taken) < 2 or sum(taken) < seconds:
            taken += timed(partial(torch.mm, a, b), device=torch.device(device))
        rates[str(side)] = 2 * side**3 / min(taken)
    return rates


def network_flops(network: Inference, pixels: Tensor) -> dict[str, int]:
    """Operations of one image (uint8 [3, h, w]) through the eager network, see `flops_of`."""
    return flops_of(lambda: run_eagerly(network, pixels))


@torch.inference_mode()
def flops_of(run: Callable[[], object]) -> dict[str, int]:
    """Operations of what `run` does, by outermost module below the one it calls, and as "whole".

    A multiplication and an addition are two. A convolution counts by its definition, also where it is computed with
    fewer multiplications (Winograd); RoIAlign, NMS and elementwise work are left out.
    """
    nnpack = {torch.ops.aten._nnpack_spatial_convolution: _nnpack_flops}
    with FlopCounterMode(display=False, custom_mapping=nnpack) as counter:
        run()
    counted = counter.get_flop_counts()
    found = {"whole": int(sum(counted["Global"].values()))}
    paths = [name for name in counted if "." in name]
    for name in paths:
        if not any(name.startswith(f"{other}.") for other in paths):
            found[name.partition(".")[2]] = int(sum(counted[name].values()))
    return found


def run_eagerly(network: Inference, pixels: Tensor) -> dict[str, Tensor]:
    """The answer for one image (uint8 [3, h, w]) at the threshold and number of detections of the bench."""
    size, classes = (
        torch.tensor([pixels.shape[1:]]),
        torch.ones((1, network.mask_table.shape[0]), dtype=torch.bool),
    )
    wished = torch.tensor([SCORE_THRESHOLD]), torch.tensor([DETECTIONS])
    answers: list[dict[str, Tensor]] = network(
        [pixels], size, *wished, classes, torch.ones(1, dtype=torch.bool)
    )
    return answers[0]


def _nnpack_flops(
    x_shape: list[int], w_shape: list[int], *_: object, out_shape: list[int], **__: object
) -> int:
    """Of the convolution by its definition."""
    flops: int = conv_flop_count(x_shape, w_shape, out_shape)
    return flops
