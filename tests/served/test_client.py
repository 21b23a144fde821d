"""`Client` and its command line against the real server, over both protocols."""

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from client import AsyncClient, Client, InvalidImage, InvalidRequest, Prediction, ServerRefused
from client.__main__ import main
from tests.served.machine import Machine
from tests.served.standin import png, scene

both = pytest.mark.parametrize("protocol", ["rest", "grpc"])
IMAGE = scene(width=50, height=30, red=(4, 5, 10, 8), blue=(20, 3, 17, 20))


def url(server: Machine, protocol: str) -> str:
    ports = server.ports
    return f"http://127.0.0.1:{ports.inference}" if protocol == "rest" else f"grpc://127.0.0.1:{ports.grpc}"


def where(prediction: Prediction | ServerRefused) -> dict[str, int]:
    """Area of the mask by category."""
    assert isinstance(prediction, Prediction)
    return {one.category: int(mask.sum()) for one in prediction.detections if (mask := one.mask) is not None}


@both
@pytest.mark.parametrize("mask_format", ["rle", "polygon", "png", None])
def test_masks_come_as_they_are_in_the_image_in_every_form(
    server: Machine, protocol: str, mask_format: str | None
) -> None:
    with Client(url(server, protocol)) as client:
        found = client.predict(IMAGE, mask_format=mask_format, score_threshold=0.3)
    assert (found.height, found.width) == (30, 50)
    masks = {one.category: one.mask for one in found.detections}
    for name, channel in (("red", 0), ("bleu \u00e9", 2)):
        mask = masks[name]
        assert mask is not None
        assert np.array_equal(mask, (IMAGE[..., channel] == 255) & (IMAGE.min(axis=2) == 0))


@both
def test_parameters_do_what_they_say(server: Machine, protocol: str) -> None:
    with Client(url(server, protocol)) as client:
        assert where(client.predict(IMAGE, categories=["red"])) == {"red": 80}
        assert where(client.predict(IMAGE, categories=[90], max_detections=5)) == {"bleu \u00e9": 340}
        (one,) = client.predict(IMAGE, categories="red", mask_format="none").detections
        assert one.mask is None and one.area == 80
        with pytest.raises(InvalidRequest, match="score_threshold"):
            client.predict(IMAGE, score_threshold=7)
        with pytest.raises(InvalidImage):
            client.predict(b"no image")


@both
def test_a_bad_image_among_several_is_an_error_in_its_place(server: Machine, protocol: str) -> None:
    with Client(url(server, protocol)) as client:
        first, bad, last = client.predict_many([IMAGE, b"no image", IMAGE[:, ::-1].copy()])
    assert isinstance(bad, InvalidImage)
    assert where(first) == where(last) == {"red": 80, "bleu \u00e9": 340}


@both
def test_more_images_than_a_request_may_have_are_all_answered(server: Machine, protocol: str) -> None:
    images = [scene(width=40 + i, red=(2, 2, i, 3)) for i in range(1, 12)]
    with Client(url(server, protocol)) as client:
        assert [where(one) for one in client.predict_many(images)] == [{"red": 3 * i} for i in range(1, 12)]


@both
def test_the_overlay_of_the_server_is_the_one_drawn_here(server: Machine, protocol: str) -> None:
    with Client(url(server, protocol)) as client:
        drawn = client.overlay(IMAGE)
        here = client.predict(IMAGE).overlay(Image.fromarray(IMAGE))
    with Image.open(io.BytesIO(drawn)) as there:
        scale = here.width / there.width
        assert abs(there.height * scale - here.height) <= scale
        far = np.abs(
            np.asarray(there.resize((50, 30), Image.Resampling.BOX), np.int16)
            - np.asarray(here.resize((50, 30), Image.Resampling.BOX))
        )
        assert far.mean() < 10


@both
def test_requests_at_the_same_time_are_answered_each_with_its_own(server: Machine, protocol: str) -> None:
    async def ask() -> list[dict[str, int]]:
        async with AsyncClient(url(server, protocol)) as client:
            images = [scene(red=(1, 1, i, 2)) for i in range(1, 17)]
            return [where(one) for one in await asyncio.gather(*map(client.predict, images))]

    assert asyncio.run(ask()) == [{"red": 2 * i} for i in range(1, 17)]


@both
def test_a_folder_becomes_results_that_hold_the_masks(
    server: Machine, protocol: str, tmp_path: Path, capsys: Any
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(1, 6):
        (photos / f"{i}.png").write_bytes(png(scene(width=30 + i, red=(3, 4, i, 5))))
    (photos / "broken.png").write_bytes(png(IMAGE)[:60])
    out = tmp_path / "results.json"
    assert main([str(photos), "--coco", str(out), "--url", url(server, protocol)]) == 1
    assert "broken.png: the server refused with 400 InvalidImage" in capsys.readouterr().err
    truth = COCO(str(out.with_suffix(".images.json")))
    loaded = truth.loadRes(str(out))
    areas = {
        truth.imgs[one["image_id"]]["file_name"]: int(loaded.annToMask(one).sum())
        for one in loaded.anns.values()
    }
    assert areas == {f"{i}.png": 5 * i for i in range(1, 6)}
    assert json.loads(out.read_text())[0]["category"] == "red"
