"""A segmenter in two ONNX files of the form of SAM's export.

The encoder makes maps of an image; the decoder makes masks of these and of points, of which a box is two: its corners,
labelled 2 and 3. What the decoder enlarges to the size of the photograph is not asked for: `pixels` does that, inside
the box alone.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.prompt_masks.canvas import canvas, resized
from training.prompt_masks.description import Description
from training.prompt_masks.onnx_form import features, image_input, mask_side
from training.prompt_masks.onnx_session import Session
from training.prompt_masks.segmenter import Embedding, Frame, Prompted

CORNERS = np.array([2, 3], np.float32)
"""SAM's labels of a box's upper left and lower right corner."""
SAM_MASKS = 4
"""SAM's decoder makes as many; the first is that of prompts that leave no doubt, as boxes do."""


class OnnxSegmenter:
    """See the file, and `Segmenter` for what it does.

    Args:
        folder, description: where the files are, and their form.
        name: see `Segmenter`; what computes it is added.
        device: auto, cpu or cuda.
        threads: of one computation.

    Raises:
        ValueError: ONNX Runtime or the device is not there, or a file cannot be loaded or does not fit.
    """

    def __init__(
        self, folder: Path, description: Description, *, name: str, device: str, threads: int
    ) -> None:
        self._description, self._names = description, description.names
        self._encoder = Session(folder / description.encoder, device=device, threads=threads)
        self._image = image_input(self._encoder, description)
        self._decoder = Session(folder / description.decoder, device=device, threads=threads)
        self._features = features(self._encoder, self._decoder, description)
        self._side = mask_side(self._decoder, description)
        self.name = f"{name} ({self._encoder.computed_by})"

    def embed(self, image: NDArray[np.uint8]) -> Embedding:
        """See `Segmenter`; ValueError where the network cannot be computed."""
        wanted = self._description
        frame = Frame.of(*image.shape[:2], side=wanted.image_side, fit=wanted.fit)
        picture = resized(image, frame)
        if wanted.layout == "nchw":
            seen: NDArray[Any] = canvas(picture, frame.side, wanted.mean, wanted.std)
        else:
            seen = _raw(picture, self._image)
        made = self._encoder.run(list(self._features), {self._image.name: seen})
        return Embedding(features=dict(zip(self._features.values(), made, strict=True)), frame=frame)

    def masks(
        self, embedding: Embedding, boxes: NDArray[np.float32], prior: NDArray[np.float32] | None = None
    ) -> Prompted:
        """See `Segmenter`; ValueError where the network cannot be computed, or takes no `prior`."""
        if prior is not None and self._names.mask_input not in self._decoder.inputs:
            raise ValueError(
                f"{self._decoder.path}: no input {self._names.mask_input} for masks to be made better"
            )
        logits = np.zeros((len(boxes), self._side, self._side), np.float32)
        quality = np.zeros(len(boxes), np.float32)
        corners = embedding.frame.on_canvas(boxes).reshape(-1, 1, 2, 2)
        for row, points in enumerate(corners):
            inputs = {
                **embedding.features,
                self._names.point_coords: points,
                self._names.point_labels: CORNERS[None],
                **self._prior(None if prior is None else prior[row]),
            }
            made = self._decoder.run([self._names.low_res_masks, self._names.quality], inputs)
            logits[row], quality[row] = _chosen(made[0][0], made[1][0], self._description.choice)
        return Prompted(logits, quality)

    def _prior(self, logits: NDArray[np.float32] | None) -> dict[str, NDArray[np.float32]]:
        """The decoder's inputs that are not of the image or the box, of those that it has."""
        empty = np.zeros((self._side, self._side), np.float32)
        given = {
            self._names.mask_input: (empty if logits is None else logits)[None, None],
            self._names.has_mask_input: np.array([logits is not None], np.float32),
            # of an enlarged mask that is not asked for, and which it would make all the same
            self._names.orig_im_size: np.array([1, 1], np.float32),
        }
        return {name: value for name, value in given.items() if name in self._decoder.inputs}


def _chosen(
    logits: NDArray[np.float32], quality: NDArray[np.float32], choice: str
) -> tuple[NDArray[np.float32], float]:
    """One mask of logits [M, S, S] with its quality, of [M]; see `Description.choice`."""
    first = choice == "first" or (choice == "auto" and len(quality) == SAM_MASKS)
    best = 0 if first else int(quality.argmax())
    return logits[best], float(quality[best])


def _raw(picture: NDArray[np.uint8], taken: Any) -> NDArray[Any]:
    """The picture [h, w, 3] for an encoder that normalises it itself, zeros around where its sides are fixed."""
    seen = picture.shape[:2]
    wanted = [side if isinstance(side, int) else own for side, own in zip(taken.shape[:2], seen, strict=True)]
    if seen[0] > wanted[0] or seen[1] > wanted[1]:
        raise ValueError(
            f"the encoder takes pictures of {wanted[1]} x {wanted[0]}, and an image resized to image_side is {seen[1]} "
            f"x {seen[0]}; expected an encoder of a square or of free sides"
        )
    padded = np.pad(picture, ((0, wanted[0] - seen[0]), (0, wanted[1] - seen[1]), (0, 0)))
    return padded if taken.type == "tensor(uint8)" else padded.astype(np.float32)
