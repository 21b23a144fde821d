"""JPEGs decoded on the device: torchvision's decoder for CPUs stands in for the one for GPUs."""

import io
import json
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from maskx_cuda_decode import CudaDecoder, is_ordinary
from maskx_image import decode
from maskx_model import ServedModel
from maskx_parameters import Parameters
from maskx_service import Service
from tests.pictures import encoded, exif
from tests.served.standin import png, scene

NO_LIMITS = {"max_pixels": 10**9, "max_side": 10**6}


def by_torchvision(files: list[Tensor]) -> list[Tensor]:
    from torchvision.io import ImageReadMode, decode_jpeg

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        decoded: list[Tensor] = decode_jpeg(files, mode=ImageReadMode.RGB)
    return decoded


class Counted:
    """The decoder, and how many files it was given each time."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, files: list[Tensor]) -> list[Tensor]:
        self.calls.append(len(files))
        return by_torchvision(files)


def photograph(width: int = 60, height: int = 40, mode: str = "RGB") -> Image.Image:
    """Smooth, no two corners alike."""
    corners = np.array([[[250, 20, 20], [20, 240, 20]], [[30, 30, 220], [230, 220, 30]]], np.uint8)
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def jpeg(image: Image.Image | None = None, *, orientation: int = 1, **options: Any) -> bytes:
    return encoded(image or photograph(), "JPEG", exif=exif(orientation), **options)


def assert_as_pillow(data: bytes, pixels: np.ndarray) -> None:
    expected = decode(data)
    assert pixels.shape == expected.shape and pixels.dtype == np.uint8
    assert abs(pixels.astype(int) - expected.astype(int)).mean() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_orientation_comes_upright_as_pillows_does(orientation: int) -> None:
    data = jpeg(orientation=orientation)
    (image,) = CudaDecoder(by_torchvision).images([data], **NO_LIMITS)
    assert image is not None
    assert_as_pillow(data, image.on_host())
    assert (image.height, image.width) == image.on_host().shape[:2]
    assert (image.height > image.width) == (orientation >= 5)


@pytest.mark.parametrize(
    "options", [{}, {"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"quality": 30}]
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_ordinary_jpegs_are_within_3_of_pillows_on_average(mode: str, options: dict[str, Any]) -> None:
    data = jpeg(photograph(97, 61, mode), **options)
    (image,) = CudaDecoder(by_torchvision).images([data], **NO_LIMITS)
    assert image is not None
    assert_as_pillow(data, image.on_host())


def with_adobe(transform: int) -> bytes:
    data = jpeg()
    segment = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform])
    return data[:2] + segment + data[2:]


ODD = {
    "progressive": jpeg(progressive=True),
    "CMYK": jpeg(photograph(mode="CMYK")),
    "RGB as stored, by Adobe's marker": with_adobe(0),
    "cut short": jpeg()[:-40],
    "something behind": jpeg() + b"trailer",
    "a PNG": png(scene()),
    "empty": b"",
    "a marker alone": b"\xff\xd8\xff\xd9",
    "no scan": jpeg()[: jpeg().index(b"\xff\xda")] + b"\xff\xd9",
    "RGB as stored, by its ids": jpeg(keep_rgb=True),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_out_of_the_ordinary_is_never_given_to_the_gpu(kind: str) -> None:
    counted = Counted()
    assert not is_ordinary(ODD[kind])
    assert CudaDecoder(counted).images([ODD[kind]], **NO_LIMITS) == [None] and counted.calls == []


def test_an_adobe_marker_of_ycbcr_is_ordinary() -> None:
    assert is_ordinary(with_adobe(1)) and is_ordinary(jpeg())


@pytest.mark.parametrize(
    "limits", [{"max_pixels": 2399, "max_side": 99}, {"max_pixels": 9999, "max_side": 59}]
)
def test_what_the_limits_refuse_is_never_given_to_the_gpu(limits: dict[str, int]) -> None:
    counted = Counted()
    assert CudaDecoder(counted).images([jpeg()], **limits) == [None] and counted.calls == []
    assert CudaDecoder(counted).images([jpeg()], max_pixels=2400, max_side=60) != [None]


def test_scans_beyond_those_that_are_read_are_never_given_to_the_gpu() -> None:
    data = jpeg()
    many = data[:2] + b"\xff\xe5\x00\xca" + b"\xff\xda" * 100 + data[2:]
    assert is_ordinary(many)
    assert CudaDecoder(Counted()).images([many], **NO_LIMITS) == [None]


BATCH = [
    jpeg(photograph(64, 64)),
    png(scene(red=(3, 3, 9, 9))),
    jpeg(orientation=6),
    jpeg()[:-40],
    b"?",
    jpeg(Image.fromarray(scene(width=64, height=64, blue=(16, 16, 32, 32))), quality=95, subsampling=0),
]


def answers(service: Service, bodies: Sequence[bytes], **parameters: str) -> list[tuple[int, Any]]:
    found = service.answer([{"body": body, **parameters} for body in bodies])
    return [
        (one.status, one.body if one.content_type != "application/json" else json.loads(one.body))
        for one in found
    ]


def test_a_batch_of_all_kinds_is_answered_in_order_as_without_the_gpu(service: Service) -> None:
    without = answers(service, BATCH)
    counted = Counted()
    service.cuda_decoder = CudaDecoder(counted)
    with_it = answers(service, BATCH)
    assert counted.calls == [3]
    assert [status for status, _ in with_it] == [200, 200, 200, 400, 400, 200]
    assert with_it == without
    assert len(with_it[5][1]["detections"]) == 1


def no_decoder(files: list[Tensor]) -> list[Tensor]:
    raise RuntimeError("nvjpegDecode failed: 5")


def wrong_size(files: list[Tensor]) -> list[Tensor]:
    return [torch.zeros(3, 1, 1, dtype=torch.uint8) for _ in files]


def too_few(files: list[Tensor]) -> list[Tensor]:
    return by_torchvision(files)[:-1]


@pytest.mark.parametrize("broken", [no_decoder, wrong_size, too_few])
def test_where_the_gpu_fails_pillow_decodes_the_whole_batch_with_its_own_errors(
    service: Service, broken: Any, caplog: pytest.LogCaptureFixture
) -> None:
    without = answers(service, BATCH)
    service.cuda_decoder = CudaDecoder(broken)
    assert answers(service, BATCH) == without
    assert "the GPU could not decode 3 JPEGs, Pillow does" in caplog.text


def test_an_overlay_is_drawn_over_pixels_that_lie_on_the_device(service: Service) -> None:
    service.cuda_decoder = CudaDecoder(by_torchvision)
    data = jpeg(photograph(700, 500, "L"), orientation=6)
    ((status, body),) = answers(service, [data], output="overlay")
    assert status == 200
    with Image.open(io.BytesIO(body)) as picture:
        assert picture.size == (500, 700)
        corner = np.asarray(picture.convert("RGB"))[5, 5].astype(int)
    assert abs(corner - decode(data)[5, 5]).max() < 3


def test_images_that_lie_on_the_device_are_predicted_as_arrays_are(model: ServedModel) -> None:
    pixels = scene(red=(3, 3, 9, 9))
    parameters = [Parameters(score_threshold=0.5, max_detections=3)]
    there = torch.from_numpy(pixels).permute(2, 0, 1).contiguous().permute(1, 2, 0)
    for image in (pixels, there):
        assert model.predict([image], parameters)[0].boxes.tolist() == [[3, 3, 12, 12]]
