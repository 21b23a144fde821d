"""A segmenter in a folder that transformers has written: its classes Sam and Sam2 (optional: segmenter.txt).

Nothing is fetched. How the image is put on the canvas is the classes' own: SAM's longer side, SAM 2's stretching.
"""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model.files import one_line
from training.prompt_masks.canvas import canvas, resized
from training.prompt_masks.description import CONFIG
from training.prompt_masks.segmenter import Embedding, Fit, Frame, Prompted

CLASSES: dict[str, tuple[str, Fit]] = {
    "sam": ("SamModel", "longest"),
    "sam2": ("Sam2Model", "square"),
    "sam2_video": ("Sam2Model", "square"),
}
"""Class and fit by the configuration's model_type; SAM 2 is published as that of its video network."""
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Of both, as their image processors have them."""
BATCH = 32
"""Boxes in one run of the decoder."""


class TransformersSegmenter:
    """See the file, and `Segmenter` for what it does.

    Raises:
        ValueError: transformers is not installed, the device is not there, or the folder holds something else.
    """

    def __init__(self, folder: Path, *, name: str, device: str) -> None:
        try:
            transformers = importlib.import_module("transformers")
        except ModuleNotFoundError as error:
            raise ValueError(
                f"{folder}: a folder of transformers' needs that package, which is not installed ({one_line(error)}): "
                "pip install -r requirements/segmenter.txt transformers"
            ) from error
        kind = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("model_type")
        if kind not in CLASSES:
            raise ValueError(f"{folder / CONFIG}: model_type {kind!r}; expected {', '.join(CLASSES)}")
        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device cuda: torch finds none; take --device cpu")
        self._device = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
        architecture, self._fit = CLASSES[kind]
        try:
            net = getattr(transformers, architecture).from_pretrained(folder, local_files_only=True)
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"{folder}: transformers cannot load it ({one_line(error)})") from error
        self._net = net.eval().to(self._device)
        self._side = int(self._net.config.prompt_encoder_config.image_size)
        self.name = f"{name} (transformers {transformers.__version__}, {self._device})"

    @torch.inference_mode()
    def embed(self, image: NDArray[np.uint8]) -> Embedding:
        """See `Segmenter`."""
        frame = Frame.of(*image.shape[:2], side=self._side, fit=self._fit)
        pixels = torch.from_numpy(canvas(resized(image, frame), self._side, MEAN, STD)).to(self._device)
        return Embedding(features={"image_embeddings": self._net.get_image_embeddings(pixels)}, frame=frame)

    @torch.inference_mode()
    def masks(
        self, embedding: Embedding, boxes: NDArray[np.float32], prior: NDArray[np.float32] | None = None
    ) -> Prompted:
        """See `Segmenter`; with a `prior`, which transformers takes for one box at a time, boxes go one by one."""
        side = self._side // 4
        logits, quality = [np.zeros((0, side, side), np.float32)], [np.zeros(0, np.float32)]
        given = torch.from_numpy(embedding.frame.on_canvas(boxes)).to(self._device)
        step = BATCH if prior is None else 1
        for start in range(0, len(boxes), step):
            options: dict[str, Any] = {"multimask_output": False, **embedding.features}
            if prior is not None:
                options["input_masks"] = torch.from_numpy(prior[start : start + 1, None]).to(self._device)
            made = self._net(input_boxes=given[None, start : start + step], **options)
            logits.append(made.pred_masks[0, :, 0].float().cpu().numpy())
            quality.append(made.iou_scores[0, :, 0].float().cpu().numpy())
        return Prompted(np.concatenate(logits), np.concatenate(quality))
