"""Requests to answers without a server, with a stand-in for the network."""

import io
import json
import threading
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

import maskx_service
from maskx_answer import Detections
from maskx_model import ServedModel
from maskx_parameters import Category, Parameters
from maskx_service import Answer, Service
from maskx_settings import Limits
from maskx_warm_up import warm_up_service
from tests.pictures import encoded, exif
from tests.served.standin import png, scene


class Recorder:
    """In the model's place: keeps what it is given, and finds one box of the whole original in every image."""

    categories: ClassVar = {1: Category(id=5, name="all", mask_supervised=True)}
    defaults = Parameters(score_threshold=0.5, max_detections=10)
    min_size, max_size = 64, 200
    keypoint_lines: ClassVar[tuple[tuple[int, int], ...]] = ()
    device = torch.device("cpu")

    def device_answers(self) -> bool:
        return True

    def __init__(self) -> None:
        self.images: list[np.ndarray] = []
        self.sizes: list[tuple[int, int]] = []
        self.together: list[int] = []

    def predict(
        self,
        images: Sequence[np.ndarray],
        parameters: Sequence[Parameters],
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[Detections]:
        assert sizes is not None and len(images) == len(parameters) == len(sizes)
        self.images += images
        self.sizes += sizes
        self.together.append(len(images))
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
    return encoded(Image.new("L", (width, height), grey), "JPEG", exif=exif(orientation))


@pytest.mark.parametrize(
    ("sides", "device", "together"),
    [
        ((400, 667), "cpu", [3, 3, 3]),
        ((64, 200), "cpu", [9]),
        ((800, 1333), "cpu", [1] * 9),
        ((800, 1333), "cuda", [9]),
    ],
)
def test_a_cpu_is_given_few_tiles_at_a_time_where_the_network_makes_them_large(
    sides: tuple[int, int], device: str, together: list[int]
) -> None:
    service, model = recording()
    model.min_size, model.max_size = sides  # type: ignore[misc]
    model.device = torch.device(device)  # type: ignore[misc]
    request = {"data": jpeg(300, 300), "tiles": b"128,32"}
    assert service.answer([request])[0].status == 200
    assert model.together == together


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


def decoded_in(monkeypatch: pytest.MonkeyPatch, together: int) -> list[threading.Thread]:
    """Threads that decode images, filled as they do; each waits until `together` of them are at it."""
    threads: list[threading.Thread] = []
    barrier = threading.Barrier(together)
    decode = Service._decode

    def watched(self: Service, image: Any) -> Any:
        threads.append(threading.current_thread())
        barrier.wait(timeout=60)
        return decode(self, image)

    monkeypatch.setattr(Service, "_decode", watched)
    return threads


def test_the_images_of_a_batch_are_decoded_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maskx_service, "usable_cores", lambda: 3)
    threads = decoded_in(monkeypatch, together=3)
    service, _ = recording()
    answers = service.answer([{"body": jpeg(70, 70)}] * 6)
    assert [answer.status for answer in answers] == [200] * 6
    assert len(threads) == 6 and len(set(threads)) == 3
    assert threading.current_thread() not in threads


def test_a_request_alone_is_decoded_where_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = decoded_in(monkeypatch, together=1)
    service, _ = recording()
    assert [answer.status for answer in service.answer([{"body": jpeg(70, 70)}])] == [200]
    assert threads == [threading.current_thread()]


def test_there_are_as_many_decoders_as_usable_cores_and_never_more_than_eight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for cores, decoders in ((1, 1), (2, 2), (64, 8)):
        monkeypatch.setattr(maskx_service, "usable_cores", lambda cores=cores: cores)
        assert recording()[0]._threads._max_workers == decoders


def test_many_batches_leave_no_threads_behind() -> None:
    before = threading.active_count()
    service, _ = recording()
    for _ in range(20):
        service.answer([{"body": jpeg(70, 70)}] * 3)
    assert threading.active_count() - before <= 8


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
    assert [answer.status for answer in service.answer([{}, {"body": b""}])] == [400, 400]
    assert model.together == []


def test_no_more_images_than_allowed_are_decoded_and_computed_together() -> None:
    service, model = recording(Limits(images_together=3))
    bodies = [jpeg(70, 70, grey=20 * i) for i in range(8)]
    two = {"data": bodies[0], "data_1": bodies[1]}
    answers = service.answer([two, *({"body": one} for one in bodies[2:])])
    assert [answer.status for answer in answers] == [200] * 7
    assert model.together == [3, 3, 2]
    assert [int(image[0, 0, 0]) for image in model.images] == [20 * i for i in range(8)]


def test_one_bad_image_of_several_has_its_error_in_its_place_and_only_where_all_fail_the_request() -> None:
    service, _ = recording()
    some = {"data": jpeg(70, 71), "data_1": b"?", "data_2": jpeg(72, 70)}
    empty = {"body": json.dumps({"instances": [{"b64": ""}]}).encode()}
    answer, alone, none = service.answer([some, empty, {"data": b"?", "data_1": b"??"}])
    first, second, third = json.loads(answer.body)["results"]
    assert (first["image"]["height"], third["image"]["width"]) == (71, 72)
    assert second["error"]["type"] == "InvalidImage"
    assert (answer.status, answer.kind, answer.errors, answer.images) == (200, "", ("InvalidImage",), 3)
    assert (alone.status, none.status, none.errors) == (400, 400, ("InvalidImage", "InvalidImage"))
    assert list(json.loads(alone.body)) == list(json.loads(none.body)) == ["error"]
    said = json.loads(none.body)["error"]["message"]
    assert "none of the 2 images can be answered; number 1: not an image" in said


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
    assert small.status == 200 and (large.status, large.kind) == (400, "ImageTooLarge")
    assert "31 x 30" in json.loads(large.body)["error"]["message"]
    image = png(scene())
    few = Service(model, Limits(max_images=1), name="m", version="1")
    assert few.answer([{"data": image, "data_1": image}])[0].kind == "TooManyImages"
    short = Service(model, Limits(max_image_bytes=len(image) - 1), name="m", version="1")
    assert short.answer([{"data": image}])[0].kind == "ImageTooLarge"


def test_what_fails_while_an_image_is_decoded_or_its_answer_written_costs_that_image_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is known to do this; if something does, it stays with one caller, and tells nothing of the inside."""
    good, bad = {"body": jpeg(70, 70)}, {"body": jpeg(75, 70)}
    for name in ("decode_to_fit", "image_content"):
        real = getattr(maskx_service, name)

        def failing(*args: Any, real: Any = real, **options: Any) -> Any:
            if args[0] == bad["body"] or options.get("width") == 75:
                raise ZeroDivisionError("a secret of the inside")
            return real(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(maskx_service, name, failing)
            answers = recording()[0].answer([good, bad, good])
        assert [answer.kind for answer in answers] == ["", "InternalError", ""]
        assert answers[1].status == 500 and b"secret" not in answers[1].body


def test_an_answer_says_how_many_images_and_detections_it_has_and_how_long_its_batch_took() -> None:
    service, _ = recording()
    one, two = service.answer([{"body": jpeg(70, 70)}, {"data": jpeg(70, 70), "data_1": jpeg(70, 70)}])
    assert [(answer.images, answer.detections) for answer in (one, two)] == [(1, 1), (2, 2)]
    assert one.timings is two.timings
    assert min(one.timings.decode, one.timings.forward, one.timings.encode) > 0


def test_an_answer_above_the_limit_is_refused_rather_than_killing_the_worker(model: ServedModel) -> None:
    service = Service(model, Limits(max_answer_bytes=300), name="m", version="1")
    image = png(scene(red=(1, 1, 5, 5), blue=(20, 10, 6, 6)))
    one, two = service.answer([{"data": image, "max_detections": b"1"}, {"body": image}])
    assert one.status == 200 and two.status == 400
    assert json.loads(two.body)["error"]["type"] == "AnswerTooLarge"


def test_an_image_turned_by_exif_is_answered_in_upright_pixels(service: Service) -> None:
    upright = scene(width=40, height=30, red=(25, 5, 10, 8))
    # Stored turned left; orientation 6 turns it back right.
    turned = encoded(Image.fromarray(np.rot90(upright).copy()), exif=exif(6))
    answer = json.loads(service.answer([{"body": turned}])[0].body)
    assert answer["image"] == {"height": 30, "width": 40}
    assert answer["detections"][0]["bbox"] == [25, 5, 10, 8]


def test_the_network_is_asked_for_the_categories_and_the_masks_asked_for_and_no_more(
    service: Service, model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []
    module = model._module

    def watched(*given: Any) -> Any:
        asked.append(given)
        return module(*given)

    monkeypatch.setattr(model, "_module", watched)
    body = png(scene(red=(1, 1, 5, 5), green=(10, 10, 5, 5), blue=(20, 10, 6, 6)))
    some = {"body": body, "categories": b"90,red", "mask_format": b"none"}
    answers = [json.loads(one.body)["detections"] for one in service.answer([some, {"body": body}])]
    class_mask, with_masks = asked[0][4:]
    assert class_mask.tolist() == [[False, True, False, True], [True] * 4]
    assert with_masks.tolist() == [False, True]
    assert [[one["category"] for one in found] for found in answers] == [
        ["red", "bleu é"],
        ["red", "green", "bleu é"],
    ]
    assert [["segmentation" in one for one in found] for found in answers] == [[False] * 2, [True] * 3]


def test_an_overlay_is_a_picture_of_the_answer_and_its_errors_are_errors_like_all(
    service: Service, model: ServedModel
) -> None:
    body = png(scene(width=800, height=600, red=(100, 100, 500, 300)))
    (drawn,) = service.answer([{"body": body, "output": "overlay", "mask_format": "none"}])
    assert (drawn.status, drawn.content_type) == (200, "image/png")
    with Image.open(io.BytesIO(drawn.body)) as picture:
        assert picture.format == "PNG" and picture.size == (800, 600)
    assert service.answer([{"body": body}])[0].content_type == "application/json"
    small = Service(model, Limits(max_answer_bytes=100), name="m", version="1")
    assert small.answer([{"body": body, "output": "overlay"}])[0].kind == "AnswerTooLarge"
    assert service.answer([{"body": b"?", "output": "overlay"}])[0].content_type == "application/json"


def test_the_service_is_warmed_up_through_all_that_answers_a_request_and_in_the_threads_that_decode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[str, str]] = []
    encode = Service._encode

    def watched(self: Service, work: Any) -> Any:
        seen.append((work[0][1].mask_format, work[0][1].output))
        return encode(self, work)

    monkeypatch.setattr(Service, "_encode", watched)
    service, model = recording()
    warm_up_service(service)
    assert set(seen) == {("polygon", "json"), ("png", "json"), ("rle", "overlay")}
    assert model.together[0] == 2 and len(service._threads._threads) >= 1
    assert [height > width for height, width in model.sizes[:2]] == [False, True]


def test_a_model_that_fails_while_it_is_warmed_up_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    service, model = recording()
    monkeypatch.setattr(model, "predict", lambda *arguments: 1 / 0)
    with pytest.raises(ValueError, match="the model cannot be warmed up: .*InternalError"):
        warm_up_service(service)
    warm_up_service(recording(Limits(max_side=64))[0])  # refused by a limit: no failure
