"""Average precision of a maskx.pt as it is served: in each precision, with images decoded whole and scaled down.

    python -m benchmarks.accuracy --model build/maskx.pt --images build/shapes/val --annotations build/shapes/val.json

Every figure goes through the handler's own model and decoder.
"""

import argparse
import io
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from benchmarks import ROOT
from benchmarks.command import parser_of, write_result
from benchmarks.machine import describe, native_precisions
from benchmarks.speed.ours import Ours
from benchmarks.tables import percent, table
from maskx_compiled import Unfit, read_record
from maskx_cuda_decode import CudaDecoder
from maskx_image import MAX_PIXELS, MAX_SIDE, DecodedImage, ImageError, decode, decode_to_fit
from maskx_model import ServedModel
from maskx_parameters import Parameters
from model.classes import ClassTable
from model.files import exit_status
from training.evaluate.precision import (
    MAX_DETECTIONS,
    AveragePrecision,
    box_precision,
    coco_results,
    mask_precision,
)
from training.evaluate.predictions import SCORE_THRESHOLD
from training.evaluate.truth import GroundTruth, load_ground_truth

Decoding = Literal["whole", "draft", "enlarged whole", "enlarged draft", "enlarged torchvision"]
"""Every pixel decoded, or as the service decodes: a JPEG much larger than the network's input scaled down on the way.
Enlarged: the image is first made a JPEG of `--enlarge` times its sides, for the drawn images are small PNGs.
torchvision: by the way of maskx_cuda_decode, with torchvision's decoder of the same name (nvJPEG on a GPU, libjpeg on a
CPU, where it stands in for the other)."""


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """AP in [0, 1] of one way to serve; None where there is nothing to find."""

    precision: str
    engine: str
    """What computed: torchscript or compiled."""
    decoding: str
    images: int
    scaled_down: int
    """Images that the decoder gave in fewer pixels than the file has."""
    box: AveragePrecision
    mask: AveragePrecision
    mask_a: AveragePrecision
    mask_b: AveragePrecision


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    options = parser().parse_args(arguments)
    device = torch.device(options.device)
    files = options.images, options.annotations
    common = {name: getattr(options, name) for name in ("enlarge", "batch_size", "max_images")}
    with exit_status() as status:
        found = []
        for precision in options.precisions or native_precisions(device):
            model = served(options.model, device, precision=precision)
            found += [
                measure(model, *files, decoding=decoding, **common)
                for decoding in get_args(Decoding)
                if options.enlarge > 1 or not decoding.startswith("enlarged")
            ]
        for package in options.packages:
            model = served(options.model, device, package=package)
            found.append(measure(model, *files, decoding="whole", **common))
        text = report(found, options.annotations)
        print(text)
        machine = describe(device)
        path = options.out / f"accuracy-{options.name}-{machine['date'][:10]}.md"
        write_result(path, text, {"machine": machine, "results": [asdict(one) for one in found]})
        print(f"{path} and its .json written")
    return status.code


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = parser_of("benchmarks.accuracy", __doc__)
    add = made.add_argument
    build, shapes = ROOT / "build", ROOT / "build" / "shapes"
    add("--model", type=Path, default=build / "maskx.pt", help="(default: build/maskx.pt)")
    add("--images", type=Path, default=shapes / "val", help="(default: the drawn ones)")
    add("--annotations", type=Path, default=shapes / "val.json", help="a COCO file of them")
    add("--precisions", nargs="+", help="(default: those that the device computes by itself)")
    add(
        "--packages", nargs="+", type=Path, default=[], help="compiled from the model (maskx.pt2), each a row"
    )
    add("--enlarge", type=int, default=4, help="of the enlarged rows, 1 for none (default: %(default)s)")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", default=device, help="(default: %(default)s)")
    add("--batch-size", type=int, default=8, help="images at a time (default: %(default)s)")
    add("--max-images", type=int, help="only the first so many")
    add("--name", default="shapes", help="of the data, for the result's name (default: %(default)s)")
    return made


def served(
    path: Path, device: torch.device, *, precision: str = "auto", package: Path | None = None
) -> ServedModel:
    """A maskx.pt as the handler loads it; with `package` its compiled parts compute, in their own precision.

    Raises ValueError: a file that cannot be used, or a precision that the device has not.
    """
    if not path.is_file():
        raise ValueError(f"there is no {path}; export one first (make archive)")
    if package is None:
        return ServedModel(path, device, precision=precision, engine="torchscript")
    try:
        precision = read_record(package)["precision"]
    except Unfit as reason:
        raise ValueError(str(reason)) from reason
    return Ours(path, str(device), precision, package=str(package)).model


def measure(
    model: ServedModel,
    images: Path,
    annotations: Path,
    *,
    decoding: Decoding,
    enlarge: int = 1,
    batch_size: int = 8,
    max_images: int | None = None,
) -> Accuracy:
    """AP of one way of decoding. Raises ValueError: annotations or an image that cannot be used."""
    classes = class_table(model)
    truth = load_ground_truth(annotations, classes, images, max_images=max_images)
    results: list[dict[str, Any]] = []
    scaled_down = 0
    wishes = Parameters(score_threshold=SCORE_THRESHOLD, max_detections=MAX_DETECTIONS)
    for start in range(0, len(truth.image_ids), batch_size):
        ids = truth.image_ids[start : start + batch_size]
        decoded = [read(images / truth.file_names[i], model, decoding, enlarge) for i in ids]
        # Answers are asked for in the annotations' pixels, also of what was enlarged.
        sizes = [truth.sizes[i] for i in ids]
        factor = enlarge if decoding.startswith("enlarged") else 1
        for i, one, (height, width) in zip(ids, decoded, sizes, strict=True):
            scaled_down += one.pixels.shape[:2] != (one.height, one.width)
            if (one.height, one.width) != (height * factor, width * factor):
                has = f"{truth.file_names[i]} has {one.width // factor} x {one.height // factor} pixels"
                raise ValueError(f"{has}, its annotations are for {width} x {height}")
        answers = model.predict([one.pixels for one in decoded], [wishes] * len(ids), sizes)
        for image_id, size, answer in zip(ids, sizes, answers, strict=True):
            names = ("boxes", "scores", "labels", "rle_counts", "rle_offsets")
            output = {name: torch.as_tensor(getattr(answer, name)) for name in names}
            results += coco_results(image_id, output, size, classes)
    return judged(truth, results, classes, model, decoding, scaled_down)


def judged(
    truth: GroundTruth,
    results: Sequence[dict[str, Any]],
    classes: ClassTable,
    model: ServedModel,
    decoding: str,
    scaled_down: int,
) -> Accuracy:
    """AP of COCO results over all classes, and of masks over sets A and B."""
    boxes, masks = box_precision(truth, results, classes), mask_precision(truth, results, classes)
    in_a = {classes.id_of_label(label) for label in classes.set_a_labels()}
    in_b = {classes.id_of_label(label) for label in classes.set_b_labels()}
    return Accuracy(
        precision=model.precision,
        engine=model.engine["used"],
        decoding=decoding,
        images=len(truth.image_ids),
        scaled_down=scaled_down,
        box=boxes.over(in_a | in_b),
        mask=masks.over(in_a | in_b),
        mask_a=masks.over(in_a),
        mask_b=masks.over(in_b),
    )


def class_table(model: ServedModel) -> ClassTable:
    """The classes of a served model, by label."""
    categories = [model.categories[label] for label in sorted(model.categories)]
    ids, names = tuple(one.id for one in categories), tuple(one.name for one in categories)
    return ClassTable(ids=ids, names=names, has_mask=tuple(one.mask_supervised for one in categories))


def read(path: Path, model: ServedModel, decoding: Decoding, enlarge: int) -> DecodedImage:
    """The image in this way of decoding. Raises ValueError, with the file's name, where it is no image."""
    try:
        data = path.read_bytes()
        if decoding.startswith("enlarged"):
            data = enlarged(data, enlarge)
        if decoding.endswith("draft"):
            return decode_to_fit(data, min_size=model.min_size, max_size=model.max_size)
        pixels = _by_torchvision(data) if decoding.endswith("torchvision") else decode(data)
    except ImageError as error:
        raise ValueError(f"{path}: {error}") from error
    return DecodedImage(pixels=pixels, height=pixels.shape[0], width=pixels.shape[1])


def _by_torchvision(data: bytes) -> np.ndarray:
    """As the service on a GPU: what its decoder leaves alone is Pillow's."""
    [found] = CudaDecoder(_decode_jpegs).images([data], max_pixels=MAX_PIXELS, max_side=MAX_SIDE)
    return decode(data) if found is None else found.on_host()


def _decode_jpegs(files: list[torch.Tensor]) -> list[torch.Tensor]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision 0.29 says that TorchCodec will take its place
        decoded: list[torch.Tensor] = decode_jpeg(files, mode=ImageReadMode.RGB, device=device)
    return decoded


def enlarged(data: bytes, factor: int) -> bytes:
    """The image as a JPEG (quality 95) of `factor` times its sides."""
    image = Image.fromarray(decode(data))
    image = image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=95)
    return buffer.getvalue()


def report(found: Sequence[Accuracy], annotations: Path) -> str:
    """The table, AP in percent; the differences are to the first row."""
    first = found[0]
    rows = []
    for one in found:
        # What enlarging does to an image is not the decoder's doing.
        kind = one.decoding.startswith("enlarged")
        compared = next(other for other in found if other.decoding.startswith("enlarged") == kind)
        aps = (one.box.ap, one.box.ap50, one.mask.ap, one.mask_a.ap, one.mask_b.ap)
        figures = [percent(value) for value in aps]
        figures += [_difference(one.box.ap, compared.box.ap), _difference(one.mask.ap, compared.mask.ap)]
        name = one.precision if one.engine == "torchscript" else f"{one.precision}, {one.engine}"
        rows.append([f"{name}, {one.decoding}", *figures, str(one.scaled_down)])
    headers = ["precision, decoding", "box AP", "box AP50", "mask AP", "mask AP, A", "mask AP, B"]
    headers += ["box AP, difference", "mask AP, difference", "images scaled down"]
    return (
        f"# Accuracy as served: {annotations.parent.name}/{annotations.name}, {first.images} images\n\n"
        + table(headers, rows)
        + f"\nAP in percent, differences in points to {first.precision} decoded whole, of enlarged images among "
        "themselves.\n"
    )


def _difference(value: float | None, other: float | None) -> str:
    return "-" if value is None or other is None else f"{100 * (value - other):+.2f}"


if __name__ == "__main__":
    sys.exit(main())
