"""Who computes the dense parts: ONNX Runtime, OpenVINO, TorchScript optimised for inference, torch.compile."""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.engines.dense import Dense, cast, modules_of
from maskx_engine import ask_for_winograd
from model.inference import Inference

ArrayRun = Callable[[list[np.ndarray]], list[np.ndarray]]


def package(name: str) -> Any:
    """The package. Raises ImportError with its cure where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{name} is not installed here; python -m pip install -r requirements/peers.txt brings it"
        ) from error


def onnx_runtime(paths: Mapping[str, Path], threads: int) -> Dense:
    """ONNX Runtime on the CPU, all optimisations, float32.

    Raises ImportError without the package.
    """
    onnxruntime = package("onnxruntime")

    def session_of(name: str) -> ArrayRun:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(paths[name]), options, providers=["CPUExecutionProvider"])
        names = [one.name for one in session.get_inputs()]

        def run(arrays: list[np.ndarray]) -> list[np.ndarray]:
            # A bias that is one number for all is folded into the file.
            answers: list[np.ndarray] = session.run(None, dict(zip(names, arrays, strict=False)))
            return answers

        return run

    return by_arrays(session_of)


def openvino(paths: Mapping[str, Path], threads: int, precision: str) -> Dense:
    """OpenVINO on the CPU, told to compute in `precision`; what goes in and out is float32.

    Raises ImportError without the package.
    """
    core = package("openvino").Core()
    hints = {
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
    }

    def request_of(name: str) -> ArrayRun:
        compiled = core.compile_model(core.read_model(str(paths[name])), "CPU", hints)
        request, count = compiled.create_infer_request(), len(compiled.inputs)

        def run(arrays: list[np.ndarray]) -> list[np.ndarray]:
            answers = request.infer(arrays[:count], share_inputs=True)
            return [answers[one].copy() for one in compiled.outputs]

        return run

    return by_arrays(request_of)


def by_arrays(run_of: Callable[[str], ArrayRun]) -> Dense:
    """The parts around functions of NumPy's arrays."""

    def tensors(run: ArrayRun, *given: Tensor) -> list[Tensor]:
        arrays = [one.float().contiguous().numpy() for one in given]
        return [torch.from_numpy(one) for one in run(arrays)]

    trunk, box_head, mask_head = (run_of(name) for name in ("trunk", "box_head", "mask_head"))
    return Dense(
        trunk=lambda canvas: tensors(trunk, canvas),
        box_head=lambda pooled: tensors(box_head, pooled)[0],
        mask_head=lambda *given: tensors(mask_head, *given)[0],
    )


def optimised_torchscript(network: Inference, precision: str) -> Dense:
    """The trunk by `torch.jit.optimize_for_inference`, which gives oneDNN the convolutions; the heads as served."""
    cast(network, precision)
    if precision == "float32":
        ask_for_winograd(network.mask_branch)
    frozen: dict[str, Any] = {
        name: torch.jit.freeze(torch.jit.script(module.eval()))
        for name, module in modules_of(network).items()
    }
    return Dense(**{**frozen, "trunk": torch.jit.optimize_for_inference(frozen["trunk"])})


def torch_compiled(network: Inference, precision: str) -> Dense:
    """`torch.compile` with weights frozen into the code; compiles when it first runs and at a second size."""
    from torch._inductor import config

    config.freezing = True
    cast(network, precision)
    return Dense(**{name: torch.compile(module.eval()) for name, module in modules_of(network).items()})
