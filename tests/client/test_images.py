"""The picture that the client draws on is the server's, whatever kind of image it comes from, and so is the drawing."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, features

from client.images import upright
from client.many.files import find_images
from client.prediction import prediction_of
from maskx_image import FORMATS, SUFFIXES, decode
from maskx_model import ServedModel
from maskx_service import Service
from maskx_settings import Limits
from tests.pictures import encoded, exif
from tests.served.standin import scene

RED = scene(red=(3, 4, 20, 15))
RAMP = np.linspace(0, 1, 1200, dtype=np.float32).reshape(30, 40)


def see_through() -> Image.Image:
    """RGBA: the red rectangle over black pixels whose alpha goes from none to all of it."""
    pixels = np.dstack([np.where(RED == 128, 0, RED), (255 * RAMP).astype(np.uint8)])
    pixels[4:19, 3:23, 3] = 255
    return Image.fromarray(pixels)


SHARP: dict[str, Any] = {"quality": 95, "subsampling": 0}
KINDS = {
    "RGBA": encoded(see_through()),
    "LA": encoded(see_through().convert("LA")),
    "a transparent colour": encoded(Image.fromarray(RED), transparency=(128, 128, 128)),
    "palette": encoded(see_through().quantize(16)),
    "floating point": encoded(Image.fromarray(RAMP), "TIFF"),
    "16 bits": encoded(Image.fromarray((RAMP * 65_535).astype(np.uint16))),
    "CMYK": encoded(Image.fromarray(RED).convert("CMYK"), "JPEG", **SHARP),
    "turned by EXIF": encoded(Image.fromarray(RED), "JPEG", **SHARP, exif=exif(6)),
}


@pytest.fixture(scope="module")
def service(standin: Path) -> Service:
    served = ServedModel(standin, torch.device("cpu"), precision="float32")
    return Service(served, Limits(), name="maskx", version="1.0")


@pytest.mark.parametrize("kind", KINDS)
def test_the_overlay_drawn_here_is_the_servers_pixel_for_pixel(service: Service, kind: str) -> None:
    data = KINDS[kind]
    answer, overlay = service.answer([{"body": data}, {"body": data, "output": b"overlay"}])
    content = json.loads(answer.body)
    assert "detections" in content
    here = prediction_of(content, content["model"]).overlay(upright(data))
    with Image.open(io.BytesIO(overlay.body)) as there:
        assert np.array_equal(np.asarray(here), np.asarray(there))


def test_some_of_these_images_show_what_was_found(service: Service) -> None:
    """Else the test above would compare images without a drawing."""
    answers = service.answer(
        [{"body": KINDS[kind]} for kind in ("RGBA", "a transparent colour", "turned by EXIF")]
    )
    assert [len(json.loads(answer.body)["detections"]) for answer in answers] == [1, 1, 1]


def test_an_image_that_cannot_be_read_here_is_told() -> None:
    with pytest.raises(ValueError, match="the overlay cannot be drawn, .*: not an image"):
        upright(b"none")


def test_the_suffixes_that_are_looked_for_are_those_of_the_formats_that_are_read() -> None:
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}
    of_heif = {".heic", ".heif", ".hif", ".heics", ".heifs"}
    assert set(SUFFIXES) == known | of_heif | {".mpo"}  # which is read as JPEG


@pytest.mark.parametrize("kind", [one for one in FORMATS if one != "HEIF"])
def test_each_format_is_read(kind: str) -> None:
    if kind != "AVIF" or features.check("avif"):
        assert decode(encoded(Image.fromarray(RED), kind)).shape == RED.shape


def test_an_image_of_each_format_is_found_in_a_folder(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        (tmp_path / f"a{suffix.upper()}").touch()
    (tmp_path / "a.txt").touch()
    assert [name for _, name in find_images([str(tmp_path)])] == sorted(f"a{one.upper()}" for one in SUFFIXES)
