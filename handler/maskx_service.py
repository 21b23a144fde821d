"""A batch of requests -> an answer for each, in order: parse, decode, predict, encode.

What is wrong with one image costs nobody else: only those that can be decoded go through the network, together with
those of the other requests, and one that fails there fails alone. Knows nothing of the server, so another one needs
only its own small adapter.
"""

import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from maskx_answer import Detections, answer_body, compact, image_content, overlay_png
from maskx_cuda_decode import CudaDecoder, DeviceImage
from maskx_engine import give_freed_memory_back, usable_cores
from maskx_errors import (
    ANSWER_TOO_LARGE,
    IMAGE_TOO_LARGE,
    INTERNAL,
    INVALID_IMAGE,
    RESTARTING,
    MaskxError,
    RequestError,
)
from maskx_forward import DeviceLost, Lanes
from maskx_image import DecodedImage, ImageError, ImageTooLarge, checked_header, decode, decode_to_fit
from maskx_model import ServedModel
from maskx_parameters import CategoryIndex, Parameters
from maskx_request import ImageRequest, Request, parse_request
from maskx_settings import Limits
from maskx_tiles import Tile, joined, tiles_of

logger = logging.getLogger(__name__)

MOST_DECODERS = 8
"""Images decoded at a time, however many cores there are: each may hold a whole image a second time."""

TILED_PIXELS = 1 << 20
"""Of the network's input, that tiles have together on a CPU, which computes no faster with more: ResNet-50 takes some
hundreds of bytes for each in float32."""

JSON = "application/json"
PNG = "image/png"

Result = dict[str, Any] | bytes | MaskxError
"""Of one image: its content as in the answer, the bytes of its picture, or its error."""

Decoded = tuple[DecodedImage | DeviceImage, Parameters]

RESTARTING_MESSAGE = "the server's device failed and its worker is restarting; ask again in a few seconds"

_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass
class Timings:
    """Seconds that a batch took, by what they went into: reading and decoding, the network, writing."""

    decode: float = 0.0
    forward: float = 0.0
    encode: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A body and what goes with it.

    `status` is as HTTP has it. `kind` is the error's type where the whole request is answered with an error, else "".
    `errors` are the types of all its errors, those of single images among several too. `images` and `detections` say
    how many there were. `timings` are those of the whole batch that the request was in.
    """

    status: int
    body: bytes
    content_type: str = JSON
    kind: str = ""
    errors: tuple[str, ...] = ()
    images: int = 0
    detections: int = 0
    timings: Timings = field(default_factory=Timings)


class Service:
    """Answers requests with one model; `name` and `version` are those the server knows it by.

    `lost` is true once the device computes no more. The process must then be ended after the answers are sent, in which
    every image has a 503; so has whatever is asked from then on.

    The images are decoded in parallel, one thread per core and at most MOST_DECODERS; Pillow decodes without
    the interpreter's lock. Memory for images: 3 bytes for each pixel of at most `images_together` of them, as decoded,
    and while a thread decodes 4 more for each pixel of its image (up to 17 in some formats, see maskx_image). A JPEG of
    12 megapixels is decoded at half its sides for a network of 800 x 1333: 8 of them take 73 MB and 12 MB a thread;
    8 PNGs of that size 293 MB and 49 MB a thread; 8 at the default limit of 64 Mi pixels 1.6 GB and 268 MB a thread.
    `max_pixels` in the settings lowers the bound.

    Where `cuda_decoder` is not None, ordinary JPEGs are decoded by it, all of a batch at once and in full, and only the
    others in threads; their pixels take 3 bytes each on the device. `lanes` are what the network computes in; several
    threads may ask at a time.
    """

    cuda_decoder: CudaDecoder | None = None
    lanes = Lanes()

    def __init__(self, model: ServedModel, limits: Limits, *, name: str, version: str) -> None:
        self._model = model
        self._limits = limits
        self._largest = {"max_pixels": limits.max_pixels, "max_side": limits.max_side}
        self._name = name
        self._version = version
        self._categories = CategoryIndex(model.categories)
        self._threads = ThreadPoolExecutor(min(usable_cores(), MOST_DECODERS), thread_name_prefix="decoder")
        self.lost = False

    def answer(
        self, requests: Sequence[Mapping[str, Any]], headers: Sequence[Mapping[str, str]] | None = None
    ) -> list[Answer]:
        """One answer per request, in order.

        Args:
            requests: each a mapping of names to values as `maskx_request` describes it.
            headers: those of each request, in which parameters may stand; None where there are none.
        """
        timings = Timings()
        begin = time.perf_counter()
        parsed = self._map(self._parse, list(zip(requests, headers or [{}] * len(requests), strict=True)))
        timings.decode = time.perf_counter() - begin
        images = [image for request in parsed if isinstance(request, Request) for image in request.images]
        results: list[Result] = []
        for start in range(0, len(images), self._limits.images_together):
            results += self._results(images[start : start + self._limits.images_together], timings)
        begin = time.perf_counter()
        of_each = iter(results)
        answers = []
        for request in parsed:
            if isinstance(request, Request):
                results = list(itertools.islice(of_each, len(request.images)))
                answers.append(self._answer(request, results, timings))
            else:
                answers.append(_refusal(request, timings))
        timings.encode += time.perf_counter() - begin
        return answers

    def _parse(self, request: tuple[Mapping[str, Any], Mapping[str, str]]) -> Request | MaskxError:
        try:
            most = {"max_images": self._limits.max_images, "max_image_bytes": self._limits.max_image_bytes}
            fields, headers = request
            return parse_request(fields, headers, self._model.defaults, self._categories, **most)
        except RequestError as error:
            return error
        except Exception as error:
            return _internal(error, "reading a request")

    def _results(self, images: Sequence[ImageRequest | RequestError], timings: Timings) -> list[Result]:
        """What becomes of each of at most `images_together` images, in order."""
        begin = time.perf_counter()
        decoded = self.decoded(images)
        timings.decode += time.perf_counter() - begin
        begin = time.perf_counter()
        good = [one for one in decoded if not isinstance(one, MaskxError)]
        predicted = self._predict_in_tiles(good)
        timings.forward += time.perf_counter() - begin
        begin = time.perf_counter()
        written = iter(self._map(self._encode, list(zip(good, predicted, strict=True))))
        timings.encode += time.perf_counter() - begin
        return [one if isinstance(one, MaskxError) else next(written) for one in decoded]

    def decoded(self, images: Sequence[ImageRequest | RequestError]) -> list[Decoded | MaskxError]:
        """Each image decoded, or the error in its place, in order."""
        if self.cuda_decoder is None:
            return self._map(self._decode, images)
        files = [
            b"" if isinstance(image, RequestError) or image.parameters.tiles else image.image
            for image in images
        ]
        on_device = self.cuda_decoder.images(files, **self._largest)
        both = list(zip(images, on_device, strict=True))
        rest = iter(self._map(self._decode, [image for image, done in both if done is None]))
        return [
            (done, image.parameters) if done is not None and isinstance(image, ImageRequest) else next(rest)
            for image, done in both
        ]

    def _decode(self, image: ImageRequest | RequestError) -> Decoded | MaskxError:
        if isinstance(image, RequestError):
            return image
        try:
            decoded = self._fitting(image)
        except ImageTooLarge as error:
            return MaskxError(IMAGE_TOO_LARGE, str(error))
        except ImageError as error:
            return MaskxError(INVALID_IMAGE, str(error))
        except MaskxError as error:
            return error
        except Exception as error:
            return _internal(error, "decoding an image")
        return decoded, image.parameters

    def _fitting(self, image: ImageRequest) -> DecodedImage:
        """The image as it is needed: no larger than the network takes it, or in full where it is looked at in tiles."""
        if (tiling := image.parameters.tiles) is None:
            target = {"min_size": self._model.min_size, "max_size": self._model.max_size}
            return decode_to_fit(image.image, **target, **self._largest)
        most_pixels, most_side = self._limits.max_tiled_pixels, self._limits.max_side
        header = checked_header(image.image, max_pixels=most_pixels, max_side=most_side)
        width, height = header.upright_size
        tiles_of(height, width, tiling, most=self._limits.max_tiles)
        pixels = decode(image.image, max_pixels=most_pixels, max_side=most_side)
        return DecodedImage(pixels=pixels, height=height, width=width)

    def _predict_in_tiles(self, images: Sequence[Decoded]) -> list[Detections | MaskxError]:
        """`_predict`, where images that ask for it are cut into tiles, and what is found in those is joined again."""
        cut = [_cut(image, parameters, most=self._limits.max_tiles) for image, parameters in images]
        parts = [
            (part, parameters)
            for (_, parameters), (_, pixels) in zip(images, cut, strict=True)
            for part in pixels
        ]
        found: list[Detections | MaskxError] = []
        in_tiles = len(parts) > len(images)
        together = self._tiles_together() if in_tiles else self._limits.images_together
        for start in range(0, len(parts), together):
            if in_tiles:  # the image is large: what its decoding and the tiles before took must not add up
                give_freed_memory_back()
            found += self._predict(parts[start : start + together])
        of_each = iter(found)
        answers: list[Detections | MaskxError] = []
        for (image, parameters), (tiles, pixels) in zip(images, cut, strict=True):
            of_tiles = list(itertools.islice(of_each, len(pixels)))
            errors = [one for one in of_tiles if isinstance(one, MaskxError)]
            size, most = {"height": image.height, "width": image.width}, parameters.max_detections
            good = [one for one in of_tiles if not isinstance(one, MaskxError)]
            answers.append(errors[0] if errors else joined(good, tiles, most=most, **size))
        return answers

    def _tiles_together(self) -> int:
        """How many go through the network at a time."""
        if self._model.device.type != "cpu":
            return self._limits.images_together
        of_one = self._model.min_size * self._model.max_size
        return min(max(TILED_PIXELS // of_one, 1), self._limits.images_together)

    def _predict(self, images: Sequence[Decoded]) -> Sequence[Detections | MaskxError]:
        if images and not self.lost:
            try:
                alone, parameters = [image for image, _ in images], [wished for _, wished in images]
                return self.lanes.predict_each(self._model, alone, parameters)
            except DeviceLost:
                self.lost = True
        return [MaskxError(RESTARTING, RESTARTING_MESSAGE)] * len(images)

    def _encode(self, work: tuple[Decoded, Detections | MaskxError]) -> Result:
        (image, parameters), detections = work
        if isinstance(detections, MaskxError):
            return detections
        try:
            size, form = {"height": image.height, "width": image.width}, parameters.mask_format
            content = image_content(detections, self._model.categories, mask_format=form, **size)
            if parameters.output != "overlay":
                return content
            pixels = image.pixels if isinstance(image, DecodedImage) else image.on_host()
            most, lines = self._limits.max_answer_bytes, self._model.keypoint_lines
            return overlay_png(pixels, content, max_bytes=most, lines=lines, **size)
        except MaskxError as error:
            return error
        except Exception as error:
            return _internal(error, "writing an answer")

    def _answer(self, request: Request, results: Sequence[Result], timings: Timings) -> Answer:
        """The answer of a request from the results of its images; where every image failed, the request has."""
        errors = [one for one in results if isinstance(one, MaskxError)]
        if len(errors) == len(results):
            return _refusal(_of_all(errors), timings, errors, images=len(results))
        if isinstance(results[0], bytes):
            return Answer(status=200, body=results[0], content_type=PNG, images=1, timings=timings)
        contents = [_content(one) for one in results]
        body = answer_body(contents, request.envelope, model_name=self._name, model_version=self._version)
        if len(body) > self._limits.max_answer_bytes:
            too_large = MaskxError(
                ANSWER_TOO_LARGE,
                f"the answer has {len(body)} bytes, at most {self._limits.max_answer_bytes} are allowed; raise "
                "score_threshold, lower max_detections, take mask_format rle or none, or send fewer images at a time",
            )
            return _refusal(too_large, timings, images=len(results))
        return Answer(
            status=200,
            body=body,
            errors=tuple(error.kind.name for error in errors),
            images=len(results),
            detections=sum(len(one.get("detections", ())) for one in contents),
            timings=timings,
        )

    def _map(self, work: Callable[[_In], _Out], items: Sequence[_In]) -> list[_Out]:
        """`work` of each, in order; of one by itself in the thread that asks."""
        if len(items) > 1:
            return list(self._threads.map(work, items))
        return [work(item) for item in items]


def _cut(
    image: DecodedImage | DeviceImage, parameters: Parameters, *, most: int
) -> tuple[list[Tile], list[DecodedImage | DeviceImage]]:
    """The tiles of an image and their pixels, which are views of its own; of one without tiles the image itself."""
    if parameters.tiles is None or not isinstance(image, DecodedImage):
        return [Tile(0, 0, image.height, image.width)], [image]
    tiles = tiles_of(image.height, image.width, parameters.tiles, most=most)
    return tiles, [
        DecodedImage(
            pixels=image.pixels[tile.top : tile.bottom, tile.left : tile.right],
            height=tile.bottom - tile.top,
            width=tile.right - tile.left,
        )
        for tile in tiles
    ]


def _refusal(
    error: MaskxError, timings: Timings, errors: Sequence[MaskxError] = (), *, images: int = 0
) -> Answer:
    return Answer(
        status=error.kind.status,
        body=compact(error.content()),
        kind=error.kind.name,
        errors=tuple(one.kind.name for one in errors) or (error.kind.name,),
        images=images,
        timings=timings,
    )


def _content(result: Result) -> dict[str, Any]:
    """What stands in the answer for one image."""
    assert not isinstance(result, bytes), "a picture among several results"
    return result.content() if isinstance(result, MaskxError) else result


def _of_all(errors: Sequence[MaskxError]) -> MaskxError:
    """The one error of a request all of whose images failed: of the worst kind, with what is wrong with each."""
    if len(errors) == 1:
        return errors[0]
    worst = max(errors, key=lambda error: error.kind.status)
    return MaskxError(
        worst.kind,
        f"none of the {len(errors)} images can be answered; "
        + "; ".join(f"number {number}: {error.message}" for number, error in enumerate(errors, start=1)),
    )


def _internal(error: Exception, doing: str) -> MaskxError:
    """The error for what should not happen, which goes to the log with its stack."""
    logger.error("failed while %s", doing, exc_info=error)
    return MaskxError(
        INTERNAL, f"the server failed while {doing}; if it does again, whoever runs it finds why in its log"
    )
