"""Masks for boxes from a promptable segmenter: an image is embedded once, then each box of it prompts a mask.

`python -m training.prompt_masks` writes them into a COCO file; `load_segmenter` is for whoever wants them in memory.
"""

from training.prompt_masks.load import load_segmenter
from training.prompt_masks.pixels import pixel_masks
from training.prompt_masks.segmenter import Embedding, Prompted, Segmenter

__all__ = ["Embedding", "Prompted", "Segmenter", "load_segmenter", "pixel_masks"]
