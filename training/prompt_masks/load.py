"""A segmenter from its folder."""

from pathlib import Path

import torch

from training.prompt_masks.description import checksum, described
from training.prompt_masks.onnx_sam import OnnxSegmenter
from training.prompt_masks.onnx_session import has_cuda
from training.prompt_masks.segmenter import Segmenter
from training.prompt_masks.transformers_sam import TransformersSegmenter

BATCH_ON_GPU = 32
"""Boxes in one run of the decoder. On a CPU several take as long as one after the other, or longer."""


def load_segmenter(folder: Path, *, device: str = "auto", threads: int | None = None) -> Segmenter:
    """The segmenter in `folder` (`training.prompt_masks.description`); how its files were taken is printed.

    Args:
        device: auto, cpu or cuda; auto: cuda where what computes the network has it.
        threads: of one computation (default: torch's own, so OMP_NUM_THREADS).

    Raises:
        ValueError: a file that is missing, cannot be loaded or does not fit; a package or a device that is not there.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device {device!r}; expected auto, cpu or cuda")
    description, how = described(folder)
    name = f"{folder.resolve().name} {checksum(folder, description)[:16]}"
    print(f"{folder}: {how}")
    if description.kind == "transformers":
        if threads is not None:
            torch.set_num_threads(threads)
        return TransformersSegmenter(folder, name=name, device=device)
    batch = BATCH_ON_GPU if device != "cpu" and has_cuda() else 1
    threads = threads or torch.get_num_threads()
    return OnnxSegmenter(folder, description, name=name, device=device, threads=threads, batch=batch)
