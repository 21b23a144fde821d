"""The proxy in front of the real TorchServe with the stand-in: the same answers, its own errors, drain under load."""

import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from client import Client
from tests.served.asking import Once, multipart
from tests.served.machine import Machine
from tests.served.nginx import SECRET, Proxy, proxy, wait_until
from tests.served.standin import png, scene

IMAGE = png(scene(width=61, height=47, red=(3, 2, 20, 11), green=(30, 4, 13, 21), blue=(5, 30, 31, 9)))


def addresses(machine: Machine) -> dict[str, str]:
    return {
        "INFERENCE": f"127.0.0.1:{machine.ports.inference}",
        "GRPC": f"127.0.0.1:{machine.ports.grpc}",
    }


@pytest.fixture(scope="module")
def front(server: Machine) -> Iterator[Proxy]:
    with proxy(**addresses(server)) as made:
        yield made


def test_however_it_is_sent_an_image_is_answered_with_the_bytes_that_torchserve_gives_without_the_proxy(
    front: Proxy, server: Machine
) -> None:
    expected = server.rest().predict(IMAGE)
    assert json.loads(expected)["detections"]
    form, body = multipart(IMAGE, {})
    as_json = json.dumps({"image": base64.b64encode(IMAGE).decode()}).encode()
    for headers, sent in (
        ({"Content-Type": "image/png"}, IMAGE),
        ({}, IMAGE),
        ({"Content-Type": form}, body),
        ({"Content-Type": "application/json"}, as_json),
    ):
        reply = front.ask(body=sent, headers=headers)
        assert (reply.status, reply.body) == (200, expected), headers
        assert reply.headers["content-type"] == "application/json"
    assert Once(f"grpc://127.0.0.1:{front.grpc_port}", SECRET).predict(IMAGE) == expected


def test_a_bad_image_gets_the_handlers_400_unchanged(front: Proxy, server: Machine) -> None:
    reply = front.ask(body=b"no image")
    assert (reply.status, reply.error()["code"]) == (400, 400)
    connection = front.connect()
    connection.port = server.ports.inference
    connection.request("POST", "/predictions/maskx", body=b"no image")
    assert connection.getresponse().read() == reply.body
    connection.close()


def test_what_torchserve_answers_by_itself_has_the_handlers_form(front: Proxy) -> None:
    for path in ("/predictions/unknown", "/predictions/maskx/77.0", "/v2/models/unknown/infer"):
        reply = front.ask(path=path, body=IMAGE)
        assert (reply.status, reply.error()["type"]) == (404, "NotFound"), path


def test_odd_forms_are_answered_in_the_handlers_form_and_harm_no_worker(
    front: Proxy, server: Machine
) -> None:
    worker = server.worker().pid
    types = (
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=x",
        "multipart/mixed; boundary=x",
    )
    bodies = (
        b"",
        b"--x",
        b"--x\r\n\r\nabc",
        b"--x\r\nContent-Disposition: form-data; name=\r\n\r\nabc\r\n--x--\r\n",
        b'--x\r\nContent-Disposition: form-data; name="data"\r\nContent-Transfer-Encoding: odd\r\n\r\nabc\r\n--x--\r\n',
        b'--x\r\nContent-Disposition: form-data; name="data"\r\nContent-Type: a; charset=odd\r\n\r\nabc\r\n--x--\r\n',
        b'--x\r\nContent-Disposition: form-data; name="data"; filename=""\r\n\r\n\r\n--x--\r\n',
        b"--x\r\nContent-Type: multipart/mixed; boundary=y\r\n\r\n--y--\r\n--x--\r\n",
        b"--x\r\n" + b"a" * 70_000,
    )
    odd = [(kind, body) for kind in types for body in bodies]
    odd += [
        (kind, b"{") for kind in ("text/plain; charset=utf-99", "application/json; charset=\x80", ";", "/")
    ]
    answers = [front.ask(body=body, headers={"Content-Type": kind}) for kind, body in odd]
    wrong = [
        (reply.status, reply.body[:200], *sent)
        for sent, reply in zip(odd, answers, strict=True)
        if not (400 <= reply.status < 500 and list(json.loads(reply.body)) == ["error"])
    ]
    assert wrong == []
    assert server.worker().pid == worker and front.ask(body=IMAGE).status == 200


def test_a_worker_that_dies_with_a_form_in_hand_is_500_and_is_told_from_a_form_it_could_not_read(
    front: Proxy, server: Machine
) -> None:
    form, body = multipart(IMAGE, {})
    large_form, large_body = multipart(png(scene(width=8000, height=8000)), {})
    before = server.batches()
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(front.ask, body=large_body, headers={"Content-Type": large_form})
        wait_until(lambda: server.batches() > before)
        server.worker().kill()  # it takes seconds to decode so many pixels
        reply = held.result()
    assert (reply.status, reply.error()["type"]) == (500, "WorkerDied")
    wait_until(lambda: front.ask(body=body, headers={"Content-Type": form}).status == 200)


def test_headers_as_long_as_the_proxy_lets_through_are_not_too_long_for_torchserve(front: Proxy) -> None:
    lengths = range(0, 2000, 100)
    statuses = [
        front.ask(body=IMAGE, headers={f"x-{i}": "v" * length for i in range(3)}).status for length in lengths
    ]
    assert statuses[0] == 200 and set(statuses) <= {200, 431}, statuses


def test_drain_to_another_torchserve_under_load_loses_no_request_and_frees_the_old_one(
    server: Machine, batched: Machine
) -> None:
    """Four clients with a connection per request that never ask again, and four of ours, which keep theirs.

    A reload closes kept connections: that a request did not get through is seen by the client, and asked again.
    """
    expected = server.rest().predict(IMAGE)
    stop = Event()
    counts = [0] * 8

    def ask_until_stopped(client: int) -> list[str]:
        scheme, port = ("grpc", made.grpc_port) if client % 4 == 3 else ("http", made.port)
        failed = []
        with Client(f"{scheme}://127.0.0.1:{port}", token=SECRET) as keeping:
            while not stop.is_set():
                try:
                    answer = keeping.raw([IMAGE], {}) if client % 2 else made.ask(body=IMAGE).body
                except Exception as error:
                    failed.append(repr(error))
                else:
                    if answer != expected:
                        failed.append(f"another answer: {answer!r}")
                counts[client] += 1
        return failed

    with proxy(**addresses(batched)) as made, ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(ask_until_stopped, client) for client in range(8)]
        try:
            wait_until(lambda: min(counts) >= 5)
            workers = made.workers()
            made.settings.update(addresses(server))
            reloaded = made.entrypoint("reload")
            assert reloaded.returncode == 0, reloaded.stderr
            wait_until(lambda: made.workers() and not made.workers() & workers)
            asked_of_old, after = batched.batches(), list(counts)
            wait_until(lambda: all(now >= then + 5 for now, then in zip(counts, after, strict=True)))
        finally:
            stop.set()
        assert [client.result() for client in clients] == [[]] * 8
        assert batched.batches() == asked_of_old
