"""A segmenter of the form of SAM's export whose masks can be computed by hand.

The encoder averages patches of 16 x 16 pixels. The mask of a box is the ellipse in it, as far as the image is brighter
there than the encoder's `mean`; its quality is the box's width by that of the canvas.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper, parser

SIDE = 128
"""Of the canvas, unless a test wants another."""

_DECODER = """
<ir_version: 8, opset_import: ["" : 17]>
decoder (float[1, 3, E, E] image_embeddings, float[1, num_points, 2] point_coords, float[1, num_points] point_labels,
         float[1, 1, M, M] mask_input, float[1] has_mask_input, float[2] orig_im_size)
     => (float[1, N, M, M] low_res_masks, float[1, N] iou_predictions, float[1, N, height, width] masks)
{
  corners = Unsqueeze (point_coords, one)
  upper_left, lower_right = Split <axis = 2> (corners)
  x0, y0 = Split <axis = 3> (upper_left)
  x1, y1 = Split <axis = 3> (lower_right)
  width = Sub (x1, x0)
  height = Sub (y1, y0)
  from_left = Sub (xs, x0)
  from_top = Sub (ys, y0)
  across = Div (from_left, width)
  down = Div (from_top, height)
  a = Sub (across, half)
  b = Sub (down, half)
  aa = Mul (a, a)
  bb = Mul (b, b)
  distance = Add (aa, bb)
  ellipse = Sub (quarter, distance)
  labels = ReduceSum (point_labels, one)
  apart = Unsqueeze (labels, last)
  off = Sub (apart, five)
  wrong = Abs (off)
  red, green, blue = Split <axis = 1> (image_embeddings)
  bright = Resize <mode = "linear"> (red, roi, scales)
  mask = Min (ellipse, bright)
  labelled = Sub (mask, wrong)
  prior = Mul (mask_input, has_mask_input)
  first = Add (labelled, prior)
  low_res_masks = Sub (first, steps)
  share = Div (width, side)
  flat = Reshape (share, one_by_one)
  iou_predictions = Mul (flat, qualities)
  masks = Identity (low_res_masks)
}
"""


def write_segmenter(
    folder: Path,
    *,
    side: int = SIDE,
    masks: int = 1,
    best: int = 0,
    renamed: dict[str, str] | None = None,
    traced: bool = False,
) -> Path:
    """`encoder.onnx` and `decoder.onnx` in a folder that is made; the folder.

    Args:
        side: of the canvas.
        masks: to a box; each is smaller than the one before.
        best: the one of the best quality; another's is half of that nearer to it.
        renamed: other names for inputs and outputs of the decoder.
        traced: the decoder is right for one box at a time alone, as exporters trace it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    encoder = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]>\n'
        f"encoder (float[1, 3, {side}, {side}] image) => (float[1, 3, {side // 16}, {side // 16}] output)\n"
        "{ output = AveragePool <kernel_shape = [16, 16], strides = [16, 16]> (image) }"
    )
    onnx.save(encoder, folder / "encoder.onnx")
    write_decoder(folder, side=side, masks=masks, best=best, renamed=renamed, traced=traced)
    return folder


def write_decoder(
    folder: Path,
    *,
    side: int = SIDE,
    masks: int = 1,
    best: int = 0,
    renamed: dict[str, str] | None = None,
    traced: bool = False,
) -> None:
    """The decoder alone; see `write_segmenter`."""
    renamed = renamed or {}
    sizes = {"E": side // 16, "M": side // 4, "N": masks}
    text = _DECODER.replace("(point_labels, one)", "(point_labels)") if traced else _DECODER
    for letter, size in sizes.items():
        text = text.replace(f" {letter},", f" {size},").replace(f" {letter}]", f" {size}]")
    model = parser.parse_model(text)
    centres = ((np.arange(side // 4) + 0.5) * 4).astype(np.float32)
    values: dict[str, Any] = {
        "xs": centres.reshape(1, 1, 1, -1),
        "ys": centres.reshape(1, 1, -1, 1),
        "one": np.array([1]),
        "last": np.array([2, 3]),
        "half": np.float32(0.5),
        "quarter": np.float32(0.25),
        "five": np.float32(5),
        "roi": np.zeros(0, np.float32),
        "scales": np.array([1, 1, 4, 4], np.float32),
        "steps": (np.arange(masks) / 10).astype(np.float32).reshape(1, -1, 1, 1),
        "side": np.float32(side),
        "one_by_one": np.array([-1, 1]),
        "qualities": (0.5 ** abs(np.arange(masks) - best)).astype(np.float32).reshape(1, -1),
    }
    for name, value in values.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    for one in (*model.graph.input, *model.graph.output):
        one.name = renamed.get(one.name, one.name)
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
    onnx.save(model, folder / "decoder.onnx")


def raw_encoder(folder: Path, *, height: int | str, width: int | str) -> None:
    """In place of the encoder one that takes [height, width, 3] and normalises by 100 itself, as some exporters do."""
    side = SIDE // 16
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]>\n'
        f"encoder (float[{height}, {width}, 3] image) => (float[1, 3, {side}, {side}] output)\n"
        "{ less = Sub (image, level)\n"
        "  channels = Transpose <perm = [2, 0, 1]> (less)\n"
        "  batch = Unsqueeze (channels, zero)\n"
        "  output = AveragePool <kernel_shape = [16, 16], strides = [16, 16]> (batch) }"
    )
    for name, value in {"level": np.float32(100), "zero": np.array([0])}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    onnx.save(model, folder / "encoder.onnx")


def describe(folder: Path, *lines: str, side: int = SIDE) -> None:
    """Write `segmenter.toml`: the side, grey 100 as mean, and these lines."""
    head = [f"image_side = {side}", "mean = [100, 100, 100]", "std = [50, 50, 50]"]
    (folder / "segmenter.toml").write_text("\n".join([*head, *lines]))
