"""Client and AsyncClient over both protocols, against servers that fail in every way that is asked again for."""

import asyncio
import io
import json
import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from client import (
    AsyncClient,
    Client,
    InvalidImage,
    InvalidRequest,
    NotAuthorized,
    Prediction,
    Retries,
    ServerBusy,
    ServerFailed,
    ServerRefused,
    ServerUnreachable,
    TimedOut,
)
from client.errors import error_in
from tests.client.faulty import (
    ANSWER,
    MODEL,
    ONE,
    WORKER_DIED,
    Faulty,
    Step,
    cutting,
    error,
    later,
    over_grpc,
    rest,
)

QUICK = Retries(attempts=4, first=0.001, longest=0.01)
Server = Callable[..., AbstractContextManager[Faulty]]
Status = grpc.StatusCode
both = pytest.mark.parametrize("server", [rest, over_grpc])


def failed(code: str, details: str) -> Step:
    """A failure over gRPC."""
    return Step(code=grpc.StatusCode[code], details=details)


TRANSIENT: dict[str, tuple[Server, Step]] = {
    "503": (rest, Step(status=503, body=error(503, "Restarting"))),
    "503 without a body": (rest, Step(status=503, body=b"")),
    "502 of a proxy": (rest, Step(status=502, body=b"<html>", headers={"Content-Type": "text/html"})),
    "504": (rest, Step(status=504, body=b"")),
    "429": (rest, Step(status=429, body=b"")),
    "500 worker died": (rest, Step(status=500, body=WORKER_DIED)),
    "no answer but an end": (rest, Step(cut=0)),
    "an end in the middle": (rest, Step(cut=20)),
    "gRPC UNAVAILABLE": (over_grpc, failed("UNAVAILABLE", "Prediction failed")),
    "gRPC worker died": (over_grpc, failed("INTERNAL", "Worker died.\nInternalServerException")),
    "gRPC queue full": (over_grpc, failed("INTERNAL", 'Model "m" has no worker to serve it')),
    "gRPC proxy without server": (over_grpc, failed("INTERNAL", "Received RST_STREAM with code 2")),
    "gRPC rate limit": (over_grpc, failed("RESOURCE_EXHAUSTED", "slow down")),
    "gRPC too late for the proxy": (over_grpc, failed("DEADLINE_EXCEEDED", "upstream")),
    "gRPC error in the body": (over_grpc, Step(body=error(503, "Restarting"))),
}


@pytest.mark.parametrize("name", TRANSIENT)
def test_a_failure_that_passes_is_asked_again_for_and_without_retries_it_is_raised(name: str) -> None:
    server, step = TRANSIENT[name]
    with server(step, step) as faulty, Client(faulty.url, retries=QUICK) as client:
        assert client.predict(b"image").content() == ANSWER
        assert [seen.entries["data"] for seen in faulty.seen] == [b"image"] * 3
    with server(step) as faulty, Client(faulty.url, retries=Retries(attempts=1)) as client:
        with pytest.raises((ServerRefused, ServerUnreachable)):
            client.predict(b"image")
        assert len(faulty.seen) == 1


BAD_IMAGE = error(400, "InvalidImage")
TOO_LARGE = "Received message larger than max (9 vs. 8)"
LASTING: dict[str, tuple[Server, Step, type[ServerRefused]]] = {
    "400": (rest, Step(status=400, body=error(400, "InvalidRequest")), InvalidRequest),
    "a bad image": (rest, Step(status=400, body=BAD_IMAGE), InvalidImage),
    "413 empty": (rest, Step(status=413, body=b""), InvalidImage),
    "500 of the handler": (rest, Step(status=500, body=error(500, "InternalError")), ServerFailed),
    "507": (rest, Step(status=507, body=error(507, "OutOfMemory")), ServerFailed),
    "404": (rest, Step(status=404, body=error(404, "ModelNotFoundException")), ServerRefused),
    "a wrong token": (rest, Step(status=400, body=error(400, "InvalidKeyException")), NotAuthorized),
    "401 of a proxy": (rest, Step(status=401, body=b""), NotAuthorized),
    "gRPC bad image, alone": (over_grpc, failed("INVALID_ARGUMENT", json.dumps(BAD_IMAGE)), InvalidImage),
    "gRPC bad image, in the body": (over_grpc, Step(body=BAD_IMAGE), InvalidImage),
    "gRPC internal": (over_grpc, failed("INTERNAL", "a bug"), ServerFailed),
    "gRPC no token": (over_grpc, failed("PERMISSION_DENIED", "no"), NotAuthorized),
    "gRPC larger than this side takes": (over_grpc, failed("RESOURCE_EXHAUSTED", TOO_LARGE), InvalidImage),
    "gRPC larger than the server takes": (over_grpc, failed("CANCELLED", "RST_STREAM"), ServerFailed),
}


@pytest.mark.parametrize("name", LASTING)
def test_a_failure_that_would_come_again_is_raised_at_once_in_its_class(name: str) -> None:
    server, step, kind = LASTING[name]
    with server(step) as faulty, Client(faulty.url, retries=QUICK) as client:
        with pytest.raises(ServerRefused) as raised:
            client.predict(b"image")
        assert type(raised.value) is kind
        assert len(faulty.seen) == 1


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"error":{"code":400,"type":"T","message":"m"}}', 400),
        (b'{"code":503,"type":"ServiceUnavailableException","message":"m"}', 503),
        (b'{"detections":[]}', None),
        (b'{"error":"m"}', None),
        (b"[]", None),
        (b"\xff", None),
        (b"", None),
    ],
)
def test_an_error_is_told_from_an_answer(body: bytes, code: int | None) -> None:
    found = error_in(body)
    assert (found.code if found else None) == code


def test_an_error_of_a_single_image_stands_in_its_place_and_without_words_has_those_of_its_status() -> None:
    with rest(Step(status=413, body=b"")) as faulty, Client(faulty.url) as client:
        (one,) = client.predict_many([b""])
    assert isinstance(one, InvalidImage) and "413 HTTP: " in str(one) and "too large" in one.message.lower()


@both
def test_attempts_end_and_the_last_error_is_raised(server: Server) -> None:
    step = Step(status=503, code=Status.UNAVAILABLE, details="Prediction failed", body=b"")
    with server(*[step] * 9) as faulty, Client(faulty.url, retries=QUICK) as client:
        with pytest.raises(ServerBusy, match="503"):
            client.predict(b"")
        assert len(faulty.seen) == QUICK.attempts


@both
def test_a_wait_that_the_server_asks_for_beyond_the_deadline_ends_at_once_and_says_so(server: Server) -> None:
    """Retry-After is read: with the back-off alone, milliseconds, the second attempt would be answered."""
    step = Step(status=503, code=Status.UNAVAILABLE, headers={"retry-after": "3600"}, body=b"")
    with server(step) as faulty, Client(faulty.url, retries=QUICK, deadline=60) as client:
        with pytest.raises(TimedOut, match="within 60 s and 1 attempts"):
            client.predict(b"")
        assert len(faulty.seen) == 1


@pytest.mark.parametrize(
    ("server", "step"), [(rest, Step(hang=True)), (over_grpc, Step(hang=True)), (rest, Step(drip=True))]
)
def test_an_attempt_that_hangs_or_drips_is_given_up_and_the_next_is_answered(
    server: Server, step: Step
) -> None:
    with server(step) as faulty, Client(faulty.url, retries=QUICK, timeout=1) as client:
        assert client.predict(b"").content() == ANSWER
        assert len(faulty.seen) >= 2


@both
def test_the_deadline_ends_all_attempts_together(server: Server) -> None:
    """Four attempts of 30 s are allowed, and the deadline of 0.3 s leaves time for the first alone."""
    with server(*[Step(hang=True)] * 4) as faulty:
        with Client(faulty.url, retries=QUICK, timeout=30, deadline=0.3) as client, pytest.raises(TimedOut):
            client.predict(b"")
        assert len(faulty.seen) <= 1  # none where even the first came too late


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_connection_that_is_reset_is_made_again_and_in_the_end_the_address_is_named(scheme: str) -> None:
    with (
        cutting() as (address, taken),
        Client(f"{scheme}://{address}", retries=Retries(attempts=5, first=0.2)) as client,
    ):
        with pytest.raises(ServerUnreachable, match=address):
            client.predict(b"")
        assert len(taken) >= 2


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "grpc://127.0.0.1:1"])
def test_where_nobody_answers_the_error_says_how_to_start_a_server(url: str) -> None:
    with Client(url, retries=QUICK) as client, pytest.raises(ServerUnreachable, match="make serve"):
        client.predict(b"")


@both
def test_a_server_that_comes_back_is_found_again_by_the_same_client(server: Server) -> None:
    with server() as faulty:
        port = int(faulty.url.rpartition(":")[2])
        client = Client(faulty.url, retries=Retries(attempts=40, first=0.05, longest=0.3))
        assert client.predict(b"").content() == ANSWER
    with client, later(faulty.url.partition("://")[0], port):
        assert client.predict(b"").content() == ANSWER


@both
def test_parameters_travel_as_text_by_their_names_and_lists_as_json(server: Server) -> None:
    with server() as faulty, Client(faulty.url, model="m x", version="2.0", token="secret") as client:
        client.predict(
            b"image",
            score_threshold=0.25,
            max_detections=7,
            categories=["cup, saucer", 3],
            mask_format="none",
        )
        (seen,) = faulty.seen
        assert seen.entries == {
            "data": b"image",
            "score_threshold": b"0.25",
            "max_detections": b"7",
            "categories": b'["cup, saucer", 3]',
            "mask_format": b"none",
        }
        assert seen.headers["authorization"] == "Bearer secret"
        assert seen.path in ("/predictions/m%20x/2.0", "m x/2.0")
        client.predict(b"image", score_threshold=None)
        assert faulty.seen[1].entries == {"data": b"image"}
        assert faulty.seen[1].headers.get("content-type", "octet-stream").endswith("octet-stream")


@both
def test_the_token_comes_from_the_environment_unless_it_is_given(server: Server, monkeypatch: Any) -> None:
    monkeypatch.setenv("MASKX_TOKEN", "of the environment")
    with server() as faulty:
        for token in (None, "given", ""):
            with Client(faulty.url, token=token) as client:
                client.predict(b"")
        sent = [seen.headers.get("authorization") for seen in faulty.seen]
        assert sent == ["Bearer of the environment", "Bearer given", None]


@both
def test_images_together_are_one_request_and_an_error_stands_in_its_place(server: Server) -> None:
    body = {"model": MODEL, "results": [ONE, error(400, "InvalidImage", "cut short"), ONE]}
    with server(Step(body=body)) as faulty, Client(faulty.url) as client:
        first, second, third = client.predict_many([b"a", b"b", b"c"], max_detections=1)
        assert isinstance(first, Prediction) and first.content() == ANSWER and first == third
        assert isinstance(second, InvalidImage) and second.message == "cut short"
        assert [seen.entries for seen in faulty.seen] == [
            {"data": b"a", "data_1": b"b", "data_2": b"c", "max_detections": b"1"}
        ]
        assert client.predict_many([]) == []


def test_of_images_together_only_those_that_may_pass_are_sent_again() -> None:
    first = {"model": MODEL, "results": [ONE, error(503, "Restarting"), error(400, "InvalidImage")]}
    with rest(Step(body=first)) as faulty, Client(faulty.url, retries=QUICK) as client:
        results = client.predict_many([b"a", b"b", b"c"])
        assert [type(one) for one in results] == [Prediction, Prediction, InvalidImage]
        assert [seen.entries for seen in faulty.seen[1:]] == [{"data": b"b"}]


def test_many_images_become_requests_of_what_a_server_takes() -> None:
    eight = {"model": MODEL, "results": [ONE] * 8}
    with rest(Step(body=eight), Step(body=eight)) as faulty, Client(faulty.url) as client:
        assert len(client.predict_many([b"x"] * 17)) == 17
        assert [len(seen.entries) for seen in faulty.seen] == [8, 8, 1]
    two = {"model": MODEL, "results": [ONE] * 2}
    with rest(Step(body=two), Step(body=two)) as faulty, Client(faulty.url) as client:
        client.predict_many([bytes(9_000_000)] * 4)
        assert [len(seen.entries) for seen in faulty.seen] == [2, 2]


@both
def test_an_overlay_is_asked_of_the_server_and_comes_as_its_bytes(server: Server) -> None:
    with server(Step(body=b"\x89PNG...")) as faulty, Client(faulty.url) as client:
        assert client.overlay(b"image", max_detections=3) == b"\x89PNG..."
        assert faulty.seen[0].entries == {"data": b"image", "max_detections": b"3", "output": b"overlay"}


@both
def test_the_asynchronous_client_does_the_same_and_many_at_a_time(server: Server) -> None:
    async def ask(url: str) -> list[Prediction]:
        async with AsyncClient(url, retries=QUICK) as client:
            return await asyncio.gather(*(client.predict(b"image") for _ in range(8)))

    step = Step(status=503, code=Status.UNAVAILABLE, body=b"")
    with server(step, step) as faulty:
        faulty.together = 2
        answers = asyncio.run(ask(faulty.url))
        assert [one.content() for one in answers] == [ANSWER] * 8
        assert faulty.most_at_once > 1 and len(faulty.seen) == 10


@both
def test_loops_and_threads_of_one_process_do_not_disturb_each_other(server: Server, caplog: Any) -> None:
    """grpc.aio would log an error of each loop that found the others' queue empty."""

    async def ask(client: AsyncClient) -> None:
        await asyncio.gather(*(client.predict(b"image") for _ in range(20)))

    async def own_loop(url: str) -> None:
        async with AsyncClient(url) as client:
            await ask(client)

    with server() as faulty, Client(faulty.url) as shared, caplog.at_level(logging.WARNING):
        threads = [threading.Thread(target=lambda: asyncio.run(own_loop(faulty.url))) for _ in range(3)]
        threads += [
            threading.Thread(target=lambda: [shared.predict(b"image") for _ in range(20)]) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(faulty.seen) == 120
    assert caplog.records == []


@both
def test_a_task_that_is_cancelled_ends_and_the_client_goes_on(server: Server) -> None:
    async def ask(faulty: Faulty) -> Prediction:
        async with AsyncClient(faulty.url) as client:
            first = asyncio.create_task(client.predict(b""))
            while not faulty.seen:
                await asyncio.sleep(0.01)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            return await client.predict(b"")

    with server(Step(hang=True)) as faulty:
        assert asyncio.run(ask(faulty)).content() == ANSWER
        assert len(faulty.seen) == 2


def test_a_closed_client_says_so_and_closes_twice() -> None:
    client = Client("http://127.0.0.1:1")
    client.close()
    client.close()
    with pytest.raises(ValueError, match="the client is closed"):
        client.predict(b"")


@both
@pytest.mark.parametrize("body", [b"not json", b"[]", b"{}", b'{"image":{"height":1,"width":1}}'])
def test_an_answer_of_another_form_is_one_clear_error(server: Server, body: bytes) -> None:
    with (
        server(Step(body=body)) as faulty,
        Client(faulty.url) as client,
        pytest.raises(ValueError, match="is it another model or server that answers"),
    ):
        client.predict(b"")


def test_a_picture_an_array_a_path_and_bytes_are_sent_without_loss(tmp_path: Any) -> None:
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "a.bmp")
    with rest() as faulty, Client(faulty.url) as client:
        for image in (pixels, picture, tmp_path / "a.bmp", str(tmp_path / "a.bmp")):
            client.predict(image)
        for seen in faulty.seen:
            with Image.open(io.BytesIO(seen.entries["data"])) as sent:
                assert np.array_equal(np.asarray(sent), pixels)
        with pytest.raises(ValueError, match=r"float64 \[2, 2\] is not an image"):
            client.predict(np.zeros((2, 2)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"url": "127.0.0.1:8080"}, r"expected one such as http://127\.0\.0\.1:8080"),
        ({"url": "ftp://x"}, "expected one such as"),
        ({"url": "http://"}, "expected one such as"),
        ({"url": ""}, "expected one such as"),
        ({"url": "grpc://host"}, "grpc://host:port"),
        ({"url": "http://user:secret@host"}, "expected one such as"),
        ({"token": "a\nb"}, "printable ASCII"),
        ({"token": "é"}, "printable ASCII"),
        ({"url": "https://x", "ca": "/not/there"}, "there is no file /not/there"),
        ({"url": "http://x", "ca": __file__}, "not encrypted"),
        ({"url": "https://x", "ca": __file__}, "no certificates in PEM form"),
        ({"url": "grpcs://x:1", "ca": __file__}, "no certificates in PEM form"),
        ({"timeout": 0}, "above 0"),
    ],
)
def test_an_argument_that_cannot_be_is_refused_with_what_can(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Client(**arguments)
