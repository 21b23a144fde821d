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
from training.prompt_masks.onnx_session import Session, with_free_batch
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
        batch: boxes in one run of the decoder, where it can take several; else it gets one by one.

    Raises:
        ValueError: ONNX Runtime or the device is not there, or a file cannot be loaded or does not fit.
    """

    def __init__(
        self, folder: Path, description: Description, *, name: str, device: str, threads: int, batch: int = 1
    ) -> None:
        self._description, self._names = description, description.names
        self._encoder = Session(folder / description.encoder, device=device, threads=threads)
        self._image = image_input(self._encoder, description)
        path = folder / description.decoder
        self._decoder = Session(path, device=device, threads=threads)
        self._features = features(self._encoder, self._decoder, description)
        self._side = mask_side(self._decoder, description)
        self._batch, self._of_several = batch, self._decoder
        if batch > 1:
            network = with_free_batch(path, (self._names.point_coords, self._names.point_labels))
            self._of_several = Session(path, device=device, threads=threads, network=network)
            if not self._agrees():
                self._batch = 1
                print(f"{path}: does not take several boxes at once; they go one by one")
        self.name = f"{name} ({self._encoder.computed_by}, {self._batch} boxes at once)"

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
        corners = embedding.frame.on_canvas(boxes).reshape(-1, 2, 2)
        found = [(np.zeros((0, self._side, self._side), np.float32), np.zeros(0, np.float32))]
        several = self.takes_several and prior is None and len(boxes) > 1
        step, decoder = (self._batch, self._of_several) if several else (1, self._decoder)
        for start in range(0, len(boxes), step):
            points = corners[start : start + step]
            inputs = {
                **embedding.features,
                self._names.point_coords: points,
                self._names.point_labels: np.tile(CORNERS, (len(points), 1)),
                **self._prior(None if prior is None else prior[start]),
            }
            made = decoder.run([self._names.low_res_masks, self._names.quality], inputs)
            found.append(_chosen(made[0], made[1], self._description.choice))
        logits, quality = zip(*found, strict=True)
        return Prompted(np.concatenate(logits), np.concatenate(quality))

    @property
    def takes_several(self) -> bool:
        """Whether its decoder takes several boxes at once, and was asked to."""
        return self._batch > 1

    def _agrees(self) -> bool:
        """Whether two boxes at once have the masks that each has alone, of an image of noise."""
        side = self._description.image_side
        noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
        embedding = self.embed(noise)
        boxes = np.array([[0.1, 0.2, 0.6, 0.9], [0.5, 0, 1, 1]], np.float32) * side
        try:
            together = self.masks(embedding, boxes)
        except ValueError:  # of a size that its exporter has written into the network
            return False
        alone = [self.masks(embedding, box[None]).logits for box in boxes]
        allowed = 1e-3 * float(abs(together.logits).max())
        return bool(abs(np.concatenate(alone) - together.logits).max() <= allowed)

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
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """One mask to a box, of logits [N, M, S, S], with its quality, of [N, M]; see `Description.choice`."""
    first = choice == "first" or (choice == "auto" and quality.shape[1] == SAM_MASKS)
    taken = np.zeros(len(quality), np.int64) if first else quality.argmax(1)
    rows = np.arange(len(quality))
    return logits[rows, taken], quality[rows, taken]


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
