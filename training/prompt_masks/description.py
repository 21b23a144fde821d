"""What lies in a segmenter's folder: `segmenter.toml`, or SAM's own form where there is none."""

import hashlib
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from model.dataclass_io import from_plain, require_at_least
from model.files import first_few
from training.prompt_masks.segmenter import Fit

FILE = "segmenter.toml"
CONFIG = "config.json"
"""Of a folder that transformers has written."""
_ENCODERS = ("encoder.onnx", "*encoder*.onnx")
_DECODERS = ("decoder.onnx", "sam.onnx", "*decoder*.onnx")


@dataclass(frozen=True, kw_only=True)
class Names:
    """Names of the decoder's inputs and outputs; defaults are those of SAM's export."""

    embedding: str = "image_embeddings"
    """Takes the encoder's output where that has one; several are taken by the names that the encoder gives them."""
    point_coords: str = "point_coords"
    point_labels: str = "point_labels"
    mask_input: str = "mask_input"
    has_mask_input: str = "has_mask_input"
    orig_im_size: str = "orig_im_size"
    low_res_masks: str = "low_res_masks"
    quality: str = "iou_predictions"


@dataclass(frozen=True, kw_only=True)
class Description:
    """A segmenter in ONNX files of the form of SAM's export; a key for each field in `segmenter.toml`."""

    kind: Literal["sam", "transformers"] = "sam"
    encoder: str = "encoder.onnx"
    decoder: str = "decoder.onnx"
    image_side: int = 1024
    """Of the square canvas, in pixels."""
    fit: Fit = "longest"
    """How an image lies on it: resized to its longer side, or stretched over it."""
    layout: Literal["nchw", "hwc"] = "nchw"
    """Of the encoder's input: normalised and padded [1, 3, S, S]; or raw [h, w, 3], which it normalises itself."""
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    choice: Literal["auto", "first", "best"] = "auto"
    """Of several masks to a box: the first, the one of the best quality, or of SAM's four the first, else the best."""
    names: Names = field(default_factory=Names)

    def __post_init__(self) -> None:
        require_at_least(16, image_side=self.image_side)
        if min(self.std) <= 0:
            raise ValueError(f"std is {list(self.std)}; expected three numbers above 0")


def described(folder: Path) -> tuple[Description, str]:
    """The description of a segmenter's folder, and in words how it was come by.

    Raises:
        ValueError: there is no such folder, its description has mistakes, or files are missing.
    """
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}; expected one with a segmenter's files (docs/prompt_masks.md)")
    path = folder / FILE
    if path.is_file():
        try:
            found = from_plain(Description, tomllib.loads(path.read_text(encoding="utf-8")))
        except (ValueError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: {error}") from error
        for name in (found.encoder, found.decoder) if found.kind == "sam" else (CONFIG,):
            if not (folder / name).is_file():
                raise ValueError(f"{path}: there is no file {name} beside it{_there(folder)}")
        return found, f"as {FILE} says"
    if (folder / CONFIG).is_file():
        return Description(kind="transformers"), f"as {CONFIG} says"
    encoder, decoder = _one(folder, _ENCODERS, "encoder"), _one(folder, _DECODERS, "decoder")
    found = Description(encoder=encoder, decoder=decoder)
    words = (
        f"no {FILE}, so SAM's own form is taken: encoder {encoder}, decoder {decoder}, the longer side to "
        f"{found.image_side} pixels, normalised by SAM's mean and deviation"
    )
    return found, words


def checksum(folder: Path, description: Description) -> str:
    """SHA-256 over the files that decide the masks, with their names."""
    if description.kind == "sam":
        files = [folder / description.encoder, folder / description.decoder, *folder.glob("*.onnx*data")]
    else:
        files = [path for path in folder.iterdir() if path.is_file()]
    digest = hashlib.sha256(repr(description).encode())
    for path in sorted(set(files)):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _one(folder: Path, patterns: tuple[str, ...], what: str) -> str:
    """The file of the first pattern that has one; ValueError where none has, or several have."""
    for pattern in patterns:
        found = sorted(path.name for path in folder.glob(pattern) if path.is_file())
        if len(found) > 1:
            raise ValueError(
                f"{folder}: which of {first_few(found)} is the {what}? Write {FILE} with a line {what} = "
                f'"{found[0]}" (docs/prompt_masks.md)'
            )
        if found:
            return found[0]
    raise ValueError(
        f"{folder}: no {what} ({' or '.join(patterns)}){_there(folder)}; expected encoder.onnx and decoder.onnx of a "
        f"segmenter, or {FILE} that names them (docs/prompt_masks.md)"
    )


def _there(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return f"; there are {first_few(names)}" if names else "; the folder is empty"
