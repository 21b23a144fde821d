"""Requests to answers without a server, with a stand-in for the network."""

import io
import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

import maskx_service
from maskx_answer import Category, Detections
from maskx_model import ServedModel
from maskx_request import Wishes
from maskx_service import Answer, Service, usable_cores
from maskx_settings import Limits
from tests.served.standin import METADATA, png, scene, write_standin


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    path = write_standin(tmp_path_factory.mktemp("standin") / "maskx.pt")
    return ServedModel(path, torch.device("cpu"), precision="float32")


@pytest.fixture
def service(model: ServedModel) -> Service:
    return Service(model, Limits(), name="maskx", version="1.0")


class Recorder:
    """In the model's place: keeps what it is given, and finds one box of the whole original in every image."""

    categories: ClassVar = {1: Category(id=5, name="all", mask_supervised=True)}
    defaults = Wishes(score_threshold=0.5, max_detections=10)
    min_size, max_size = 64, 200

    def __init__(self) -> None:
        self.images: list[np.ndarray] = []
        self.sizes: list[tuple[int, int]] = []

    def predict(
        self,
        images: Sequence[np.ndarray],
        wishes: Sequence[Wishes],
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[Detections]:
        assert sizes is not None and len(images) == len(wishes) == len(sizes)
        self.images, self.sizes = list(images), list(sizes)
        return [
            Detections(
                boxes=np.array([[0, 0, width, height]], np.float32),
                scores=np.ones(1, np.float32),
                labels=np.ones(1, np.int64),
                rle_counts=np.array([0, height * width]),
                rle_offsets=np.array([0, 2]),
            )
            for height, width in sizes
        ]


def recording(limits: Limits | None = None) -> tuple[Service, Recorder]:
    model = Recorder()
    return Service(model, limits or Limits(), name="maskx", version="1.0"), model  # type: ignore[arg-type]


def jpeg(width: int, height: int, *, grey: int = 90, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.new("L", (width, height), grey).save(file, "JPEG", exif=exif)
    return file.getvalue()


@pytest.mark.parametrize(
    ("width", "height", "orientation", "seen"),
    [
        (400, 300, 1, (75, 100)),  # shorter side to 64
        (400, 300, 6, (100, 75)),
        (900, 100, 1, (25, 225)),  # longer side to 200
    ],
)
def test_a_large_jpeg_reaches_the_network_small_and_is_answered_in_its_own_pixels(
    width: int, height: int, orientation: int, seen: tuple[int, int]
) -> None:
    service, model = recording()
    body = service.answer([{"body": jpeg(width, height, orientation=orientation)}])[0].body
    if orientation == 6:
        width, height = height, width
    assert model.images[0].shape == (*seen, 3)
    assert model.sizes == [(height, width)]
    answer = json.loads(body)
    assert answer["image"] == {"height": height, "width": width}
    assert answer["detections"][0]["bbox"] == [0, 0, width, height]
    assert answer["detections"][0]["segmentation"]["size"] == [height, width]
    assert answer["detections"][0]["area"] == height * width


@pytest.mark.parametrize("limits", [Limits(max_side=399), Limits(max_pixels=119_999)])
def test_the_limits_are_those_of_the_original_not_of_what_is_decoded(limits: Limits) -> None:
    service, _ = recording(limits)
    refused, answered = service.answer([{"body": jpeg(400, 300)}, {"body": jpeg(399, 300)}])
    assert (refused.status, answered.status) == (400, 200)
    assert "400 x 300" in json.loads(refused.body)["error"]["message"]


def test_a_batch_keeps_its_order_whichever_image_is_decoded_first() -> None:
    """The large ones take longest; one is cut short."""
    service, model = recording()
    sizes = [(2000 - 400 * i if i < 4 else 50 + i, 100) for i in range(10)]
    bodies = [jpeg(*size, grey=20 * i) for i, size in enumerate(sizes)]
    bodies[3] = bodies[3][: len(bodies[3]) // 2]
    answers = service.answer([{"body": body} for body in bodies])
    assert [answer.status for answer in answers] == [200] * 3 + [400] + [200] * 6
    assert json.loads(answers[3].body)["error"]["type"] == "InvalidImage"
    good = [i for i in range(10) if i != 3]
    assert [json.loads(answers[i].body)["image"]["width"] for i in good] == [sizes[i][0] for i in good]
    assert [int(image[0, 0, 0]) for image in model.images] == [20 * i for i in good]


def read_in(monkeypatch: pytest.MonkeyPatch, together: int) -> list[threading.Thread]:
    """Threads that read requests, filled as they do; each waits until `together` of them are at it."""
    threads: list[threading.Thread] = []
    barrier = threading.Barrier(together)
    read = Service._read

    def watched(self: Service, request: Mapping[str, Any]) -> Any:
        threads.append(threading.current_thread())
        barrier.wait(timeout=60)
        return read(self, request)

    monkeypatch.setattr(Service, "_read", watched)
    return threads


def test_the_images_of_a_batch_are_decoded_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maskx_service, "usable_cores", lambda: 3)
    threads = read_in(monkeypatch, together=3)
    service, _ = recording()
    answers = service.answer([{"body": jpeg(70, 70)}] * 6)
    assert [answer.status for answer in answers] == [200] * 6
    assert len(threads) == 6 and len(set(threads)) == 3
    assert threading.current_thread() not in threads


def test_a_request_alone_is_decoded_where_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = read_in(monkeypatch, together=1)
    service, _ = recording()
    assert [answer.status for answer in service.answer([{"body": jpeg(70, 70)}])] == [200]
    assert threads == [threading.current_thread()]


def test_there_are_as_many_decoders_as_usable_cores_and_never_more_than_eight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for cores, decoders in (({0}, 1), ({1, 5}, 2), (set(range(64)), 8)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, cores=cores: cores, raising=False)
        assert usable_cores() == len(cores)
        assert recording()[0]._decoders._max_workers == decoders
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


def test_many_batches_leave_no_threads_behind() -> None:
    before = threading.active_count()
    service, _ = recording()
    for _ in range(20):
        service.answer([{"body": jpeg(70, 70)}] * 3)
    assert threading.active_count() - before <= min(usable_cores(), 8)


def test_an_empty_batch_has_no_answers() -> None:
    answers: list[Answer] = recording()[0].answer([])
    assert answers == []


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


def test_a_batch_of_bad_requests_alone_gives_the_network_nothing_to_do() -> None:
    service, model = recording()
    model.sizes = [(1, 1)]
    assert [answer.status for answer in service.answer([{}, {"body": b""}])] == [400, 400]
    assert model.images == model.sizes == []


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
