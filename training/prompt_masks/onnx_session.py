"""ONNX Runtime as it is used here: an optional package (requirements/segmenter.txt), its errors named in one line."""

import importlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from model.files import first_few, one_line

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def package(name: str) -> Any:
    """onnxruntime or onnx; ValueError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"a segmenter in ONNX files needs the package {name}, which is not installed: "
            "pip install -r requirements/segmenter.txt"
        ) from error


def has_cuda() -> bool:
    """Whether the installed ONNX Runtime can compute on a GPU."""
    return CUDA in package("onnxruntime").get_available_providers()


def with_free_batch(path: Path, inputs: Collection[str]) -> bytes:
    """The network in a file, with the first size of these inputs free: SAM's export fixes it to 1, one box.

    What follows from them takes any number, as far as the exporter has not written a 1 into the network itself.
    """
    model = package("onnx").load(path)
    for one in (*model.graph.input, *model.graph.output):
        if one.name in inputs or one in model.graph.output:
            one.type.tensor_type.shape.dim[0].dim_param = "boxes"
    del model.graph.value_info[:]  # sizes that its writer noted on the way
    network: bytes = model.SerializeToString()
    return network


class Session:
    """A network in an ONNX file. Several threads may use one.

    Args:
        path: of the file.
        device: auto, cpu or cuda; auto: cuda where the installed ONNX Runtime has it.
        threads: of one computation.
        network: what is in the file, where something was changed.

    Raises:
        ValueError: the package or the device is not there, or the file cannot be loaded.
    """

    def __init__(self, path: Path, *, device: str, threads: int, network: bytes | None = None) -> None:
        runtime = package("onnxruntime")
        there = runtime.get_available_providers()
        if device == "cuda" and CUDA not in there:
            raise ValueError(
                f"device cuda: the ONNX Runtime that is installed has {first_few(there)}; expected {CUDA}: install "
                "onnxruntime-gpu of the same version in place of onnxruntime, or take --device cpu"
            )
        wanted = [CUDA, CPU] if device != "cpu" and CUDA in there else [CPU]
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3  # else warnings of single operations fill the screen
        try:
            self._session = runtime.InferenceSession(network or str(path), options, providers=wanted)
        except Exception as error:  # the base of ONNX Runtime's own errors
            raise ValueError(f"{path}: ONNX Runtime cannot load it ({one_line(error)})") from error
        self.path = path
        self.inputs = {one.name: one for one in self._session.get_inputs()}
        self.outputs = {one.name: one for one in self._session.get_outputs()}
        """By name; each has a `shape` (of whole numbers, and texts where it is free) and a `type`."""
        self.on_gpu = self._session.get_providers()[0] == CUDA
        if device == "cuda" and not self.on_gpu:
            raise ValueError(f"{path}: device cuda was asked for, and ONNX Runtime could not start on it")
        self.computed_by = f"onnxruntime {runtime.__version__}, {'cuda' if self.on_gpu else 'cpu'}"

    def run(self, outputs: list[str], inputs: dict[str, Any]) -> list[Any]:
        """Arrays of the outputs by name, in this order; ValueError where the network cannot be computed."""
        try:
            made: list[Any] = self._session.run(outputs, inputs)
        except Exception as error:  # as above
            raise ValueError(f"{self.path}: ONNX Runtime cannot compute it ({one_line(error)})") from error
        return made
