"""Whether an encoder and a decoder have the form of SAM's export, and which output goes to which input."""

from typing import Any

from training.prompt_masks.description import FILE, Description
from training.prompt_masks.onnx_session import Session


def image_input(encoder: Session, description: Description) -> Any:
    """The encoder's one input; ValueError where it has another number, or cannot take the described layout."""
    if len(encoder.inputs) != 1:
        raise ValueError(f"{encoder.path}: inputs {_listed(encoder.inputs)}; expected one, the image")
    taken = next(iter(encoder.inputs.values()))
    side = description.image_side
    wanted: list[int | None] = [None, 3, side, side] if description.layout == "nchw" else [None, None, 3]
    fits = len(taken.shape) == len(wanted) and all(
        size is None or not isinstance(seen, int) or seen == size
        for seen, size in zip(taken.shape, wanted, strict=True)
    )
    if not fits:
        expected = f"[1, 3, {side}, {side}]" if description.layout == "nchw" else "[height, width, 3]"
        raise ValueError(
            f"{encoder.path}: the image has the shape {taken.shape}; expected {expected}, as layout = "
            f'"{description.layout}" and image_side = {side} say ({FILE})'
        )
    return taken


def features(encoder: Session, decoder: Session, description: Description) -> dict[str, str]:
    """The decoder's input for every output of the encoder that it takes.

    Raises:
        ValueError: an input or an output is missing, is not known, or the two shapes of a map differ.
    """
    names = description.names
    if len(encoder.outputs) == 1:
        taken = {next(iter(encoder.outputs)): names.embedding}
    else:
        taken = {name: name for name in encoder.outputs if name in decoder.inputs}
    points = (names.point_coords, names.point_labels)
    for name in (*(taken.values() or (names.embedding,)), *points):
        if name not in decoder.inputs:
            raise _missing(decoder, "input", name, decoder.inputs)
    for name in (names.low_res_masks, names.quality):
        if name not in decoder.outputs:
            raise _missing(decoder, "output", name, decoder.outputs)
    known = {*taken.values(), *points, names.mask_input, names.has_mask_input, names.orig_im_size}
    if strange := sorted(decoder.inputs.keys() - known):
        raise ValueError(
            f"{decoder.path}: input {strange[0]}, which is not known and no output of {encoder.path.name} "
            f"({_listed(encoder.outputs)}); a table [names] in {FILE} says which input is which"
        )
    for output, name in taken.items():
        made, wanted = encoder.outputs[output].shape, decoder.inputs[name].shape
        if not _fit(made, wanted):
            raise ValueError(
                f"{decoder.path}: input {name} has the shape {wanted}, and {encoder.path.name} makes {made}; expected "
                "the two files of one network"
            )
    return taken


def mask_side(decoder: Session, description: Description) -> int:
    """S of the decoder's S x S masks: that of the masks it can be given, else a quarter of the canvas."""
    given = decoder.inputs.get(description.names.mask_input)
    side = given.shape[-1] if given is not None else None
    return side if isinstance(side, int) else description.image_side // 4


def _fit(made: list[Any], wanted: list[Any]) -> bool:
    return len(made) == len(wanted) and all(
        a == b or not isinstance(a, int) or not isinstance(b, int) for a, b in zip(made, wanted, strict=True)
    )


def _missing(decoder: Session, what: str, name: str, there: dict[str, Any]) -> ValueError:
    return ValueError(
        f"{decoder.path}: no {what} {name}; it has {_listed(there)}. A table [names] in {FILE} says which is which"
    )


def _listed(there: dict[str, Any]) -> str:
    return ", ".join(f"{name} {one.shape}" for name, one in there.items())
