"""Our network with its dense parts computed by a peer, bytes to JSON, in the handler's own modules."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.engines import runners
from benchmarks.engines.dense import PARTS, Dense, Recorded, computed_by, differences, eager, network_in
from benchmarks.engines.onnx_files import write_parts
from benchmarks.machine import usable_cores
from benchmarks.speed.network import config_of_size
from benchmarks.speed.ours import Ours
from maskx_engine import PIXELS_TOGETHER_ON_CPU
from model.inference import Inference

ONNX_RUNTIME, OPENVINO = "ONNX Runtime", "OpenVINO"
OPTIMISED, TORCH_COMPILE = "optimize_for_inference", "torch.compile"
FLOAT32_OUTSIDE = (ONNX_RUNTIME, OPENVINO)
"""Engines whose parts take and give float32, whatever they compute in."""


class PeerEngine(Ours):
    """The bench's network in `folder`, one of the engines above; the rest of the network runs in Python.

    What goes into the network and what comes out is that of the handler.
    """

    def __init__(self, folder: str, engine: str, precision: str) -> None:
        """Raises ImportError where the engine's package is not installed."""
        path = Path(folder) / "maskx.pt"
        outside = "float32" if engine in FLOAT32_OUTSIDE else precision
        super().__init__(path, "cpu", outside)
        about = json.loads((path.parent / "about.json").read_text(encoding="utf-8"))
        self._make = lambda: network_in(
            path, config_of_size(about["min_size"], about["max_size"]), about["classes"]
        )
        network = self._make()
        network.pixels_together = PIXELS_TOGETHER_ON_CPU
        self.engine, self._outside = engine, outside
        self._recorded = Recorded(dense_of(network, engine, precision, path.parent / "onnx"))
        self._dense = self._recorded.dense()
        computed_by(network, self._dense)
        self._network = network
        self.model._module = network

    def differences(self, files: Sequence[str]) -> dict[str, float]:
        """Of each part's answer to what it is given in a request, the largest difference from eager float32."""
        self.time(files)
        given = {name: tuple(one.float() for one in of) for name, of in self._recorded.given.items()}
        return differences(given, eager(self._make()), self._in_float32())

    def _in_float32(self) -> Dense:
        """The engine's parts for tensors in float32."""
        dtype: torch.dtype = getattr(torch, self._outside)

        def reduced(run: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *given: run(*[one.to(dtype) for one in given])

        dense = self._dense
        return Dense(
            trunk=reduced(dense.trunk), box_head=reduced(dense.box_head), mask_head=reduced(dense.mask_head)
        )


def dense_of(network: Inference, engine: str, precision: str, folder: Path) -> Dense:
    """The parts of `network` by an engine; ONNX files go into `folder`, where they are taken from if they are there.

    Raises ImportError without the engine's package, ValueError for an engine that is not known.
    """
    if engine in FLOAT32_OUTSIDE:
        paths = {name: folder / f"{name}.onnx" for name in PARTS}
        if not all(path.exists() for path in paths.values()):
            paths = write_parts(network, folder)
        if engine == OPENVINO:
            return runners.openvino(paths, usable_cores(), precision)
        return runners.onnx_runtime(paths, usable_cores())
    if engine == OPTIMISED:
        return runners.optimised_torchscript(network, precision)
    if engine == TORCH_COMPILE:
        return runners.torch_compiled(network, precision)
    raise ValueError(
        f"engine is {engine!r}; known are {', '.join((*FLOAT32_OUTSIDE, OPTIMISED, TORCH_COMPILE))}"
    )
