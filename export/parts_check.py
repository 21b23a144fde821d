"""A compiled part beside the same part of the TorchScript file: the same answers, and how long each takes."""

import io
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from export.compiler import CompileError
from export.fresh_process import fusers_off
from model.files import one_line
from model.inference import Inference
from model.inference.dense import common_canvas, example_of_parts
from model.serving import REDUCIBLE

TOLERANCE = 1e-4
"""Of float32: of an answer, as a fraction of its greatest value."""

MORE_ERROR = 1.5
"""Of a lower precision: the mean distance from float32 may be so many times that of the TorchScript file in that
precision, which rounds at other places."""

FEW = 4.0
"""Of n numbers it may be 1 + FEW / sqrt(n) times as much again: a mean of few wanders. (The scores of a smallest level,
a dozen numbers, were 1.57 times as far as TorchScript's, in a trunk whose other answers were as near.)"""

PAIRS = 5
"""Turns of each, one after the other, of which the middle one counts."""

LEAST_GAIN = 0.97
"""A part is kept where it takes less than this share of TorchScript's time: a few per cent are not worth a file."""

NAMES = {"trunk": "dense_trunk", "box_head": "dense_box_head", "mask_head": "dense_mask_head"}

Run = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Seconds of a part on this machine, each the median of `PAIRS`; none where nothing was measured."""

    torchscript: float = 0.0
    compiled: float = 0.0

    @property
    def slower(self) -> bool:
        """Whether it is not worth having."""
        return self.torchscript > 0 and self.compiled >= LEAST_GAIN * self.torchscript

    def milliseconds(self) -> dict[str, float]:
        """For the record; empty where nothing was measured."""
        if self.torchscript == 0:
            return {}
        return {"torchscript": round(1000 * self.torchscript, 2), "compiled": round(1000 * self.compiled, 2)}

    def __str__(self) -> str:
        return f"{1000 * self.compiled:.1f} ms against {1000 * self.torchscript:.1f} ms in TorchScript"


@dataclass(frozen=True, kw_only=True)
class Served:
    """The parts of the TorchScript file by name: `exact` in float32, `frozen` as the handler runs them."""

    exact: Mapping[str, Run] = field(repr=False)
    frozen: Mapping[str, Run] = field(repr=False)


def served_parts(data: bytes, inference: Inference) -> Served:
    """The TorchScript file's parts, on the device and in the type of `inference`.

    The frozen ones as `maskx_engine.prepared` and `frozen` have them, Winograd's form in float32 included.
    """
    fusers_off()
    dtype, device = inference.box_head.weight_type(), inference.mask_table.device
    whole, cast = (torch.jit.load(io.BytesIO(data), map_location=device).eval() for _ in range(2))
    if dtype == torch.float32 and device.type == "cpu" and torch._nnpack_available():
        for module in cast.modules():
            if hasattr(module, "winograd"):
                module.winograd = True
    prefixes = tuple(f"{name}." for name in REDUCIBLE)
    with torch.no_grad():
        for name, parameter in cast.named_parameters():
            value = parameter.data.to(dtype) if name.startswith(prefixes) else parameter.data
            if value.dim() == 4:
                value = value.contiguous(memory_format=torch.channels_last)
            parameter.data = value
    frozen = torch.jit.freeze(cast, preserved_attrs=list(NAMES.values()))
    return Served(
        exact={name: getattr(whole, method) for name, method in NAMES.items()},
        frozen={name: getattr(frozen, method) for name, method in NAMES.items()},
    )


def canvases(inference: Inference) -> list[tuple[int, int, int, int]]:
    """Height, width, images and rows on which answers are compared, none of them those of the export.

    Even and odd numbers of steps and one alone; one image and several; one row and many.
    """
    step, most = inference.canvas.step, max(inference.canvas.max_size // inference.canvas.step, 1)
    sides = [(2, 3, 1, 1), (5, 4, 3, 7), (1, most, 1, 36), (most, 3, 4, 260)]
    return [(min(h, most) * step, min(w, most) * step, images, rows) for h, w, images, rows in sides]


@torch.inference_mode()
def require_same_answers(name: str, run: Run, served: Served, inference: Inference) -> None:
    """Raises CompileError unless a compiled part answers as the TorchScript file's part does.

    In float32 within `TOLERANCE`. In a lower precision no further from float32 than `MORE_ERROR` times as far as the
    TorchScript file in that precision, answer by answer, and a little further where an answer is of `FEW` numbers.
    """
    reduced = inference.box_head.weight_type() != torch.float32
    for height, width, images, rows in canvases(inference):
        given = example_of_parts(inference, height, width, images=images, rows=rows)[name]
        where = f"{name}, {images} x {height} x {width}" if name == "trunk" else f"{name}, {rows} rows"
        try:
            answers = _tensors(run(*given))
        except RuntimeError as error:
            raise CompileError(f"{where}: compiled, it fails: {one_line(error)[:200]}") from error
        exact = _tensors(served.exact[name](*(one.float() for one in given)))
        frozen = _tensors(served.frozen[name](*given))
        if len(answers) != len(exact):
            raise CompileError(f"{where}: {len(answers)} answers, and {len(exact)} in TorchScript")
        for k, (got, right, other) in enumerate(zip(answers, exact, frozen, strict=True)):
            if got.shape != right.shape or got.dtype != other.dtype:
                raise CompileError(
                    f"{where}, answer {k}: {got.dtype} {list(got.shape)}, and in TorchScript {other.dtype} "
                    f"{list(right.shape)}"
                )
            allowed, away = allowed_of(right, other, reduced=reduced), (got.float() - right).abs()
            found, kind = (float(away.mean()), "on average") if reduced else (float(away.max()), "at most")
            if not found <= allowed:  # NaN is not
                raise CompileError(
                    f"{where}, answer {k}: {found:.3g} away from float32 {kind}; {allowed:.3g} is allowed"
                )


def allowed_of(right: Tensor, other: Tensor, *, reduced: bool) -> float:
    """How far an answer may be from `right`, float32's, where TorchScript's is `other`: see `require_same_answers`."""
    tolerance = TOLERANCE * float(right.abs().max())
    if not reduced:
        return tolerance
    more = MORE_ERROR * (1 + FEW / math.sqrt(right.numel()))
    return more * float((other.float() - right).abs().mean()) + tolerance


@torch.inference_mode()
def times_of(name: str, run: Run, served: Served, inference: Inference) -> Figures:
    """Both on one photograph's canvas, 1 000 proposals, 100 masks: in turns, after one of each."""
    rows = 1000 if name == "box_head" else 100
    given = example_of_parts(inference, *common_canvas(inference), images=1, rows=rows)[name]
    taken: list[list[float]] = [[], []]
    for _ in range(PAIRS + 1):
        for seconds, one in zip(taken, (served.frozen[name], run), strict=True):
            begin = time.perf_counter()
            one(*given)
            if given[0].device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begin)
    torchscript, compiled = (statistics.median(seconds[1:]) for seconds in taken)
    return Figures(torchscript=torchscript, compiled=compiled)


def _tensors(answer: Any) -> list[Tensor]:
    leaves: list[Tensor] = pytree.tree_leaves(answer)
    return leaves
