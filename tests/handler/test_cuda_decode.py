"""JPEGs on the GPU: torchvision's decoder for CPUs stands in for its decoder for GPUs, which reads the same bytes."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from maskx_cuda_decode import CudaDecoder, on_host
from maskx_image import decode
from maskx_model import ServedModel
from maskx_service import Service
from maskx_settings import Limits
from maskx_warm_up import faster_decoder
from tests.served.standin import scene, write_standin

CPU = torch.device("cpu")

# torchvision 0.29 points at torchcodec, which has a decoder for JPEGs on GPUs in its newest version alone.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The image decoding and encoding capabilities:DeprecationWarning"
)


def by_torchvision(data: list[torch.Tensor]) -> list[torch.Tensor]:
    return [decode_jpeg(one, mode=ImageReadMode.RGB) for one in data]


def decoder(decode: Any = by_torchvision, **limits: int) -> CudaDecoder:
    return CudaDecoder(CPU, **{"max_pixels": 10**6, "max_side": 2000, **limits}, decode=decode)


def smooth(mode: str = "RGB") -> Image.Image:
    y, x = np.mgrid[:48, :80]
    return Image.fromarray(np.stack([x * 3, y * 5, (x + y) * 2], axis=2).astype(np.uint8)).convert(mode)


def jpeg(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return jpeg(smooth(), exif=exif, quality=95)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_comes_out_upright_as_pillow_has_it(orientation: int) -> None:
    data = turned(orientation)
    (one,) = decoder().decoded([data])
    assert one is not None
    expected = decode(data)
    pixels = on_host(one.pixels)
    assert pixels.shape == expected.shape == (one.height, one.width, 3) and pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - expected).mean() < 3
    wrong = decode(turned(orientation % 8 + 1))
    assert wrong.shape != expected.shape or np.abs(pixels.astype(int) - wrong).mean() > 20


def test_grey_is_read_as_pillow_reads_it() -> None:
    (one,) = decoder().decoded([jpeg(smooth("L"))])
    assert one is not None and np.abs(on_host(one.pixels).astype(int) - decode(jpeg(smooth("L")))).mean() < 3


OTHERS = {
    "progressive": jpeg(smooth(), progressive=True),
    "CMYK": jpeg(smooth("CMYK")),
    "no JPEG": b"\x89PNG\r\n\x1a\n",
    "nothing": b"",
    "too large": jpeg(smooth().resize((1100, 1000))),
    "too long": jpeg(smooth().resize((2001, 4))),
    "too many scans": jpeg(smooth()) + b"\xff\xda" * 65,
}


@pytest.mark.parametrize("data", OTHERS.values(), ids=OTHERS.keys())
def test_all_else_is_pillows_and_never_shown_to_the_gpu(data: bytes) -> None:
    seen: list[int] = []

    def noting(batch: list[torch.Tensor]) -> list[torch.Tensor]:
        seen.append(len(batch))
        return by_torchvision(batch)

    plain = jpeg(smooth())
    found = decoder(noting).decoded([data, plain, data])
    assert [one is None for one in found] == [True, False, True] and seen == [1]
    assert decoder(noting).decoded([data]) == [None] and seen == [1]


def test_what_the_gpu_cannot_decode_or_decodes_to_another_size_is_pillows() -> None:
    def broken(batch: list[torch.Tensor]) -> list[torch.Tensor]:
        raise RuntimeError("nvjpegDecode failed: 5")

    def halved(batch: list[torch.Tensor]) -> list[torch.Tensor]:
        return [one[:, ::2, ::2] for one in by_torchvision(batch)]

    for one in (broken, halved):
        assert decoder(one).decoded([jpeg(smooth())] * 2) == [None, None]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    path: Path = write_standin(tmp_path_factory.mktemp("standin") / "maskx.pt")
    return ServedModel(path, CPU, precision="float32")


@pytest.fixture
def service(model: ServedModel) -> Service:
    return Service(model, Limits(), name="maskx", version="1.0")


RED = Image.fromarray(scene(width=64, height=64, red=(16, 16, 32, 32)))


def bodies(service: Service, requests: Sequence[dict[str, Any]]) -> list[tuple[int, Any]]:
    return [(answer.status, json.loads(answer.body)) for answer in service.answer(requests)]


def test_a_batch_is_answered_with_the_gpus_images_and_bad_ones_have_pillows_errors(
    service: Service, model: ServedModel
) -> None:
    """A cut-off JPEG, a PNG and a text among good ones: each its own answer, in order."""
    good, png = jpeg(RED, quality=95), io.BytesIO()
    RED.save(png, "PNG")
    requests = [{"body": one} for one in (good, good[:-20], png.getvalue(), b"text", good)]
    expected = bodies(service, requests)
    assert [status for status, _ in expected] == [200, 400, 200, 400, 200]
    seen: list[int] = []

    def noting(batch: list[torch.Tensor]) -> list[torch.Tensor]:
        seen.append(len(batch))
        return by_torchvision(batch) if len(batch) < 3 else fail()

    service.decoder = decoder(noting)
    # One that cannot be read leaves the JPEGs of its batch to Pillow.
    assert bodies(service, requests) == expected and seen == [3]
    with_gpu = bodies(service, [requests[0], requests[2], requests[4]])
    assert seen == [3, 2]
    assert [status for status, _ in with_gpu] == [200] * 3 and with_gpu[0] == with_gpu[2]
    assert with_gpu[1] == expected[2]
    (found,) = with_gpu[0][1]["detections"]
    assert found["category"] == "red"
    assert np.abs(np.array(found["bbox"]) - expected[0][1]["detections"][0]["bbox"]).max() <= 1


def test_a_decoder_that_breaks_in_a_way_of_its_own_costs_no_answer(service: Service) -> None:
    class Broken(CudaDecoder):
        def decoded(self, data: Sequence[bytes]) -> list[Any]:
            raise MemoryError("the device has no memory left for images")

    service.decoder = Broken(CPU, max_pixels=1, max_side=1)
    assert [status for status, _ in bodies(service, [{"body": jpeg(RED)}] * 2)] == [200, 200]


def fail() -> list[torch.Tensor]:
    raise RuntimeError("one of them is cut off")


def test_an_overlay_is_drawn_from_pixels_on_the_device(service: Service) -> None:
    service.decoder = decoder()
    (answer,) = service.answer([{"body": jpeg(RED, quality=95), "output": "overlay"}])
    assert answer.status == 200 and Image.open(io.BytesIO(answer.body)).format == "PNG"


def test_the_faster_way_is_taken_and_one_that_fails_is_not(service: Service) -> None:
    waited: list[bool] = []

    def measured(decode: Any) -> tuple[bool, dict[str, float]]:
        own = decoder(decode, max_pixels=10**7)
        return faster_decoder(service, own, min_size=128, max_size=160, wait=lambda: waited.append(True))

    whole = torch.zeros(3, 1080, 1920, dtype=torch.uint8)
    faster, seconds = measured(lambda batch: [whole] * len(batch))
    assert seconds.keys() == {"cpu", "gpu"} and faster == (seconds["gpu"] < seconds["cpu"]) and waited
    for broken in (lambda batch: fail(), lambda batch: [whole[:, ::2]] * len(batch)):
        faster, seconds = measured(broken)
        assert not faster and seconds.keys() == {"cpu"}
