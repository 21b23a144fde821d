"""The dense parts of the served network as modules with free sizes, for torch.export: AOTInductor compiles them.

They are the very layers of `model.inference.stages`, whose `dense_trunk`, `dense_box_head` and `dense_mask_head` they
stand for: the same arguments, the same answers.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as symbols

from model.boxes.head import BoxHead
from model.canvas import canvas_side, resized_size
from model.inference import Inference

PARTS = ("box_head", "mask_head", "trunk")

LEAST_STEPS = 3
"""Of a canvas' sides: below it the coarsest level is one cell wide, which torch.export and Inductor take for a
constant. The code that they make computes smaller canvases too, which `export.parts_check` looks at."""

MOST_IMAGES = 64
"""Images of a canvas that a part is exported for; a caller with more gives them in turns."""

MOST_ROWS = 1 << 17
"""RoIs that a part is exported for: those of `MOST_IMAGES` at 2 000 proposals."""


class Trunk(nn.Module):
    """Backbone and RPN head."""

    def __init__(self, inference: Inference) -> None:
        super().__init__()
        self.backbone = inference.backbone
        self.head = inference.rpn.head

    def forward(self, canvas: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """As `Stages.dense_trunk`."""
        levels = list(self.backbone(canvas).values())
        logits, deltas = self.head(levels)
        return levels, logits, deltas


class OfBoxes(nn.Module):
    """The box head."""

    def __init__(self, inference: Inference) -> None:
        super().__init__()
        self.box_head = inference.box_head

    def forward(self, pooled: Tensor) -> Tensor:
        """As `Stages.dense_box_head`."""
        hidden: Tensor = self.box_head(pooled)
        return hidden.float()


class OfMasks(nn.Module):
    """The mask branch, after what the box head does to its crops."""

    def __init__(self, inference: Inference) -> None:
        super().__init__()
        self.mask_branch = inference.mask_branch
        self.box_head = inference.box_head if shares_convolutions(inference.box_head) else None

    def forward(self, crops: Tensor, rows: Tensor, bias: Tensor) -> Tensor:
        """As `Stages.dense_mask_head`."""
        if self.box_head is not None:
            crops = self.box_head.for_masks(crops)
        return torch.sigmoid(self.mask_branch(crops, rows, bias))


def shares_convolutions(head: BoxHead) -> bool:
    """Whether the mask branch sees its crops through the box head's convolutions (mask head "res5")."""
    return type(head).for_masks is not BoxHead.for_masks


@dataclass(frozen=True, kw_only=True)
class DensePart:
    """A part with arguments to export it by.

    Args:
        module: in evaluation mode, in the types of its weights.
        example: arguments of a common size.
        free: which of their sides are free, as torch.export wants it.
    """

    module: nn.Module
    example: tuple[Tensor, ...]
    free: tuple[Any, ...]


def dense_parts(inference: Inference) -> dict[str, DensePart]:
    """The parts of a network that is `prepared_for_serving` and cast as it is to compute; every form has all three."""
    dtype = inference.box_head.weight_type()
    device = inference.mask_table.device
    examples = example_of_parts(inference, *common_canvas(inference), images=2, rows=96)
    step, rows = inference.canvas.step, torch.export.Dim("rows", min=1, max=MOST_ROWS)
    most = max(canvas_side(inference.canvas.max_size, step) // step, LEAST_STEPS + 1)
    sides = {
        side + 2: step * torch.export.Dim(name, min=LEAST_STEPS, max=most)
        for side, name in enumerate(("height", "width"))
    }
    images = {0: torch.export.Dim("images", min=1, max=MOST_IMAGES)}
    of_bias = {0: rows} if inference.mask_bias.dim() > 0 else None
    assert all(one.device == device and one.dtype == dtype for (one, *_) in examples.values())
    return {
        "trunk": DensePart(
            module=Trunk(inference).eval(),
            example=examples["trunk"],
            free=({**images, **sides},),
        ),
        "box_head": DensePart(
            module=OfBoxes(inference).eval(),
            example=examples["box_head"],
            free=({0: rows},),
        ),
        "mask_head": DensePart(
            module=OfMasks(inference).eval(),
            example=examples["mask_head"],
            free=({0: rows}, {0: rows}, of_bias),
        ),
    }


def common_canvas(inference: Inference) -> tuple[int, int]:
    """Height and width of the canvas of a photograph of 4 : 3, at least `LEAST_STEPS`."""
    own = inference.canvas
    height, width = resized_size(3000, 4000, own.min_size, own.max_size, own.round_down)
    least = LEAST_STEPS * own.step
    return max(canvas_side(height, own.step), least), max(canvas_side(width, own.step), least)


def example_of_parts(
    inference: Inference, height: int, width: int, *, images: int, rows: int
) -> dict[str, tuple[Tensor, ...]]:
    """Arguments of each part, drawn at random (the same always): a canvas of `images`, crops of `rows` RoIs."""
    table, dtype = inference.mask_table, inference.box_head.weight_type()
    generator = torch.Generator().manual_seed(height * width + images + rows)

    def drawn(*shape: int) -> Tensor:
        numbers = torch.randn(shape, generator=generator)
        return numbers.to(table.device, dtype).contiguous(memory_format=torch.channels_last)

    channels = inference.backbone.out_channels
    assert isinstance(channels, int)
    box, mask = inference.box_pool.size, inference.mask_pool.size
    labels = torch.arange(rows, device=table.device) % table.shape[0]
    weights, bias = inference.mask_rows(labels)
    return {
        "trunk": (drawn(images, 3, height, width),),
        "box_head": (drawn(rows, channels, box, box),),
        "mask_head": (drawn(rows, channels, mask, mask), weights.contiguous(), bias.contiguous()),
    }


def exported(part: DensePart) -> torch.export.ExportedProgram:
    """`part` as torch.export's program.

    Raises:
        torch._dynamo.exc.UserError, and others of torch.export's own: the part cannot be exported.
    """
    with torch.no_grad(), free_from_one():
        return torch.export.export(part.module, part.example, dynamic_shapes=part.free)


def free_from_one() -> Any:
    """Within, torch.export and Inductor let a free side be 1, too, where they would else begin at 2."""
    return symbols.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]


def unused_weights(inference: Inference, parts: list[str]) -> list[str]:
    """Beginnings of the names of the TorchScript file's parameters that nobody reads where these parts are compiled.

    The box head stays where the mask branch goes through it, by its prior or its convolutions, in TorchScript.
    """
    head = inference.box_head
    unused = []
    if "trunk" in parts:
        unused += ["backbone.", "rpn.head."]
    if "mask_head" in parts:
        unused.append("mask_branch.")
    elsewhere = head.has_prior or (shares_convolutions(head) and "mask_head" not in parts)
    if "box_head" in parts and not elsewhere:
        unused.append("box_head.")
    return sorted(unused)
