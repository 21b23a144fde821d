"""Requests to answers without a server, with a stand-in for the network."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskx_model import ServedModel
from maskx_request import Wishes
from maskx_service import Service
from maskx_settings import Limits
from tests.served.standin import METADATA, png, scene, write_standin


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    path = write_standin(tmp_path_factory.mktemp("standin") / "maskx.pt")
    return ServedModel(path, torch.device("cpu"))


@pytest.fixture
def service(model: ServedModel) -> Service:
    return Service(model, Limits(), name="maskx", version="1.0")


def test_a_bad_request_costs_its_own_caller_a_400_and_the_others_keep_order(service: Service) -> None:
    scenes = [scene(width=40 + i, red=(2 + i, 3, 9, 7)) for i in range(4)]
    requests: list[dict[str, Any]] = [{"body": png(one)} for one in scenes]
    requests.insert(0, {"body": b"no image"})
    requests.insert(2, {"data": png(scenes[0]), "max_detections": b"none"})
    requests.append({})
    answers = service.answer(requests)
    assert [answer.status for answer in answers] == [400, 200, 400, 200, 200, 200, 400]
    kinds = [json.loads(answers[i].body)["error"]["type"] for i in (0, 2, 6)]
    assert kinds == ["InvalidImage", "InvalidRequest", "InvalidRequest"]
    good = [json.loads(answers[i].body) for i in (1, 3, 4, 5)]
    assert [answer["image"]["width"] for answer in good] == [40, 41, 42, 43]
    assert [answer["detections"][0]["bbox"] for answer in good] == [[2 + i, 3, 9, 7] for i in range(4)]


def test_a_batch_of_bad_requests_alone_is_answered_without_the_network(model: ServedModel) -> None:
    class NoNetwork:
        defaults = model.defaults

        def predict(self, images: list[Any], wishes: list[Any]) -> list[Any]:
            assert images == wishes == []
            return []

    answers = Service(NoNetwork(), Limits(), name="m", version="1").answer([{}, {"body": b""}])  # type: ignore[arg-type]
    assert [answer.status for answer in answers] == [400, 400]


def test_each_request_of_a_batch_has_its_own_wishes(service: Service) -> None:
    image = png(scene(red=(1, 1, 5, 5), blue=(20, 10, 6, 6)))
    answers = service.answer([{"body": image}, {"data": image, "max_detections": b"1"}, {"body": image}])
    assert [len(json.loads(answer.body)["detections"]) for answer in answers] == [2, 1, 2]


def test_the_defaults_of_the_file_hold_where_a_request_says_nothing(service: Service) -> None:
    pixels = scene(red=(1, 1, 2, 2))
    pixels[20, 30] = (255, 0, 0)  # the box now spans 31 x 21 pixels, of which 5 are red
    found = json.loads(service.answer([{"body": png(pixels)}])[0].body)
    assert found["detections"] == []  # score 5 / 600
    answer = service.answer([{"data": png(pixels), "score_threshold": b"0.005"}])[0]
    assert json.loads(answer.body)["detections"][0]["area"] == 5


def test_limits_are_those_of_the_settings(model: ServedModel) -> None:
    service = Service(model, Limits(max_side=30), name="m", version="1")
    small, large = service.answer([{"body": png(scene(width=30, height=30))}, {"body": png(scene(width=31))}])
    assert small.status == 200 and large.status == 400
    assert "31 x 30" in json.loads(large.body)["error"]["message"]


def test_an_answer_above_the_limit_is_refused_rather_than_killing_the_worker(model: ServedModel) -> None:
    service = Service(model, Limits(max_answer_bytes=300), name="m", version="1")
    image = png(scene(red=(1, 1, 5, 5), blue=(20, 10, 6, 6)))
    (one,), (two,) = (
        service.answer([{"data": image, "max_detections": b"1"}]),
        service.answer([{"body": image}]),
    )
    assert one.status == 200 and two.status == 400
    assert json.loads(two.body)["error"]["type"] == "AnswerTooLarge"


def test_an_image_turned_by_exif_is_answered_in_upright_pixels(service: Service) -> None:
    upright = scene(width=40, height=30, red=(25, 5, 10, 8))
    turned = Image.fromarray(
        np.rot90(upright).copy()
    )  # stored turned left; orientation 6 turns it back right
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    turned.save(file, "PNG", exif=exif)
    answer = json.loads(service.answer([{"body": file.getvalue()}])[0].body)
    assert answer["image"] == {"height": 30, "width": 40}
    assert answer["detections"][0]["bbox"] == [25, 5, 10, 8]


def test_warm_up_runs_the_network_with_masks_and_every_detection(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[tuple[int, ...], Wishes]] = []
    monkeypatch.setattr(model, "predict", lambda images, wishes: seen.append((images[0].shape, wishes[0])))
    model.warm_up()
    assert len(seen) == 3
    assert set(seen) == {((64, 64, 3), Wishes(score_threshold=0.0, max_detections=100))}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format_version 2, this handler reads 1; export the checkpoint"),
        ({"categories": None}, "lacks \\['categories'\\]"),
    ],
)
def test_metadata_that_is_not_understood_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    metadata = {name: value for name, value in {**METADATA, **change}.items() if value is not None}
    path = write_standin(tmp_path / "maskx.pt", metadata)
    with pytest.raises(ValueError, match=message):
        ServedModel(path, torch.device("cpu"))


def test_a_file_that_is_no_torchscript_or_has_no_metadata_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "maskx.pt"
    path.write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"maskx\.pt cannot be loaded as TorchScript"):
        ServedModel(path, torch.device("cpu"))
    torch.jit.save(torch.jit.script(torch.nn.Identity()), str(path))
    with pytest.raises(ValueError, match=r"no metadata\.json inside"):
        ServedModel(path, torch.device("cpu"))
