"""Our network with its dense parts computed by one engine or another, bytes to JSON, in the handler's own modules."""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from benchmarks.engines import runners
from benchmarks.engines.dense import PARTS, Dense, Recorded, differences, eager, network_in
from benchmarks.engines.onnx_files import write_parts
from benchmarks.machine import usable_cores
from benchmarks.speed.network import config_of_size
from benchmarks.speed.ours import Ours
from benchmarks.speed.side import read
from maskx_compiled import CompiledParts
from maskx_engine import prepared
from maskx_stages import StagedNetwork
from model.inference import Inference
from model.serving import REDUCIBLE

TORCHSCRIPT, COMPILED = "TorchScript", "compiled"
ONNX_RUNTIME, OPENVINO = "ONNX Runtime", "OpenVINO"
OPTIMISED, TORCH_COMPILE = "optimize_for_inference", "torch.compile"
FLOAT32_OUTSIDE = (ONNX_RUNTIME, OPENVINO)
"""Engines whose parts take and give float32, whatever they compute in."""

STAGE_OF = {
    "begun": "resize",
    "proposed": "NMS, box crops",
    "detected": "detections",
    "cropped": "mask crops",
    "written": "run lengths",
    "_trunk": "trunk",
    "_box_head": "box head",
    "_mask_head": "mask head",
}
"""What a table calls the time of each stage and each dense part."""
DENSE_STAGES = {"trunk": ("backbone", "rpn.head"), "box head": ("box_head",), "mask head": ("mask_branch",)}
"""The modules whose operations each dense part has."""


class EngineSide(Ours):
    """The bench's network in `folder` on the CPU, by one of the engines above."""

    def __init__(self, folder: str, engine: str, precision: str, package: str = "") -> None:
        """`package` is that of the compiled engine.

        Raises ImportError where the engine's package is not installed, ValueError where the compiled one is not used.
        """
        path = Path(folder) / "maskx.pt"
        self.engine = engine
        self.outside = "float32" if engine in FLOAT32_OUTSIDE else precision
        super().__init__(path, "cpu", self.outside, package=package if engine == COMPILED else "")
        self._path, self._clocked = path, False
        about = json.loads((path.parent / "about.json").read_text(encoding="utf-8"))
        self._config = config_of_size(about["min_size"], about["max_size"])
        self._classes = about["classes"]
        self._recorded: Recorded | None = None
        self.seconds: dict[str, float] = defaultdict(float)
        if engine not in (TORCHSCRIPT, COMPILED):
            dense = dense_of(self._in_python(), engine, precision, path.parent / "onnx")
            self._recorded = Recorded(dense)
            self.model._module = self._staged(self._recorded.dense().parts())

    def breakdown(self, files: Sequence[str]) -> dict[str, float]:
        """Seconds of each stage and each dense part of one batch, and of all else, under the names of `STAGE_OF`.

        TorchScript is run stage by stage for this, as the compiled engine always is.
        """
        if not self._clocked:
            if self.engine == TORCHSCRIPT:
                self.model._module = self._staged(CompiledParts({"most_images": 1024}, {}))
            self._clock(self.model._module)
            self.answer(read(files))
        data = read(files)
        self.seconds.clear()
        begin = time.perf_counter()
        self.answer(data)
        whole = time.perf_counter() - begin
        found = {name: self.seconds[name] for name in STAGE_OF.values()}
        return found | {"all else": max(whole - sum(found.values()), 0.0), "whole": whole}

    def differences(self, files: Sequence[str]) -> dict[str, float]:
        """How far each part's answer to what it is given in a request is from eager float32, see `BOUNDS`."""
        if self._recorded is None:
            raise ValueError(f"{self.engine} keeps nothing to compare; peers do")
        self.answer(read(files))
        given = {name: [one.float() for one in of] for name, of in self._recorded.given.items()}
        dtype: torch.dtype = getattr(torch, self.outside)
        mine = self._recorded.dense()

        def reduced(run: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *tensors: run(*[one.to(dtype) for one in tensors])

        other = Dense(**{name: reduced(getattr(mine, name)) for name in PARTS})
        return differences(given, eager(self._in_python()), other)

    def _in_python(self) -> Inference:
        return network_in(self._path, self._config, self._classes)

    def _staged(self, parts: CompiledParts) -> StagedNetwork:
        """The file's stages around `parts`."""
        module = torch.jit.load(str(self._path), map_location=self.device).eval()
        self._file = prepared(module, self.device, self.outside, REDUCIBLE)  # its code is gone with it
        return StagedNetwork(self._file, parts, mask_size=2 * self._config.mask.roi_size)

    def _clock(self, network: StagedNetwork) -> None:
        """Adds up the seconds of each stage and each part from now on."""
        self._clocked = True
        for name in STAGE_OF:
            if name.startswith("_"):
                setattr(network, name, self._timed(name, getattr(network, name)))
        network._stages = _Timed(network._stages, self._timed)

    def _timed(self, name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(run)
        def timed(*given: Any) -> Any:
            begin = time.perf_counter()
            answer = run(*given)
            self.seconds[STAGE_OF[name]] += time.perf_counter() - begin
            return answer

        return timed


class _Timed:
    """An object whose methods in `STAGE_OF` are timed."""

    def __init__(self, inside: Any, timed: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> None:
        self._inside, self._timed = inside, timed

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inside, name)
        return self._timed(name, found) if name in STAGE_OF else found


def dense_of(network: Inference, engine: str, precision: str, folder: Path) -> Dense:
    """The parts of `network` by an engine; ONNX files lie in `folder`, or are written there.

    Raises ImportError without the engine's package, ValueError for an engine that is not known.
    """
    if engine in FLOAT32_OUTSIDE:
        runners.package("onnxruntime" if engine == ONNX_RUNTIME else "openvino")
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
    known = (*FLOAT32_OUTSIDE, OPTIMISED, TORCH_COMPILE)
    raise ValueError(f"engine is {engine!r}; known are {', '.join(known)}")
