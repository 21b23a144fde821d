"""The dense parts as ONNX files with free sizes, float32."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.engines.dense import LEVELS, PARTS, modules_of
from model.inference import Inference

OPSET = 17
RPN_OUTPUTS = tuple(f"{what}{k}" for what in ("level", "logits", "deltas") for k in range(LEVELS))


class AsTuple(nn.Module):
    """A module whose answer is a tuple, which is what the exporter names."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        """The module's answers."""
        answer = self.module(*given)
        return (answer,) if isinstance(answer, Tensor) else tuple(answer)


def write_parts(network: Inference, folder: Path) -> dict[str, Path]:
    """`trunk.onnx`, `box_head.onnx` and `mask_head.onnx`; the folder is made. N, H, W and R are free.

    By the exporter that traces TorchScript: the newer one, on torch.export, needs the package onnxscript. It does not
    trace what is added in place to a view, so that gradients are on, with which the pyramid adds aside.
    """
    folder.mkdir(parents=True, exist_ok=True)
    step, channels = network.canvas.step, network.backbone.out_channels
    assert isinstance(channels, int)
    rows = torch.rand(3, network.mask_table.shape[1])
    box, mask = (
        torch.rand(3, channels, pool.size, pool.size) for pool in (network.box_pool, network.mask_pool)
    )
    given = {
        "trunk": {"canvas": torch.rand(2, 3, 3 * step, 4 * step)},
        "box_head": {"pooled": box},
        "mask_head": {"pooled": mask, "rows": rows, "bias": network.mask_bias},
    }
    free = {
        "trunk": {name: {0: "images", 2: f"{name}_h", 3: f"{name}_w"} for name in ("canvas", *RPN_OUTPUTS)},
        "box_head": {name: {0: "rois"} for name in ("pooled", "hidden")},
        "mask_head": {name: {0: "rois"} for name in ("pooled", "rows", "probabilities")},
    }
    outputs = {"trunk": RPN_OUTPUTS, "box_head": ("hidden",), "mask_head": ("probabilities",)}
    modules, paths = modules_of(network), {name: folder / f"{name}.onnx" for name in PARTS}
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's age, and of sizes that it takes for constants
        for name, path in paths.items():
            torch.onnx.export(
                AsTuple(modules[name]).eval(),
                tuple(given[name].values()),
                str(path),
                dynamo=False,
                opset_version=OPSET,
                input_names=list(given[name]),
                output_names=list(outputs[name]),
                dynamic_axes=free[name],
            )
    return paths
