"""Every road of a request through the real TorchServe: what it does to forms, headers, queries and packed bodies."""

import base64
import gzip
import http.client
import json
from collections.abc import Iterable
from typing import Any

import pytest

from tests.served.asking import multipart
from tests.served.machine import Machine
from tests.served.standin import png, scene

IMAGE = png(scene(width=61, height=47, red=(3, 2, 20, 11), green=(30, 4, 13, 21), blue=(5, 30, 31, 9)))
OTHER = png(scene(width=50, height=40, green=(6, 7, 8, 9)))
TEXT, TEXT_2 = (base64.b64encode(image).decode() for image in (IMAGE, OTHER))
FORM = "multipart/form-data; boundary=edge"

Sent = dict[str, str] | Iterable[tuple[str, str]]


def ask(
    machine: Machine, body: bytes, headers: Sent = (), path: str = "/predictions/maskx"
) -> tuple[int, Any, dict[str, str]]:
    """One POST with exactly these headers, in UTF-8, and Host and Content-Length; the answer's JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", machine.ports.inference, timeout=60)
    try:
        connection.putrequest("POST", path, skip_accept_encoding=True)
        for name, value in dict(headers).items() if isinstance(headers, dict) else headers:
            connection.putheader(name, value.encode())
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read()), dict(answer.getheaders())
    finally:
        connection.close()


def form(*parts: tuple[str, bytes]) -> bytes:
    """A form of these fields, each as a file."""
    sent = b"".join(
        f'--edge\r\nContent-Disposition: form-data; name="{name}"; filename="f"\r\n\r\n'.encode()
        + data
        + b"\r\n"
        for name, data in parts
    )
    return sent + b"--edge--\r\n"


def names(answer: Any) -> list[str]:
    return [one["category"] for one in answer["detections"]]


@pytest.fixture(scope="module")
def alone(server: Machine) -> list[dict[str, Any]]:
    """The answers to the two images, sent by themselves, without the model's name."""
    found = []
    for image in (IMAGE, OTHER):
        status, answer, _ = ask(server, image, {"Content-Type": "image/png"})
        assert status == 200 and len(answer["detections"]) > 0
        found.append({name: answer[name] for name in ("image", "detections")})
    return found


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        ("/predictions/maskx", IMAGE, {}),
        ("/predictions/maskx/1.0", IMAGE, {"Content-Type": "image/jpeg"}),
        ("/models/maskx/invoke", IMAGE, {"Content-Type": "image/png"}),
        ("/invocations?model_name=maskx", IMAGE, {"Content-Type": "image/png"}),
        ("/predictions/maskx", form(("data", IMAGE)), {"Content-Type": FORM}),
        ("/predictions/maskx", json.dumps({"image": TEXT}).encode(), {"Content-Type": "application/json"}),
        (
            "/predictions/maskx",
            json.dumps({"image": TEXT}).encode("utf-16"),
            {"Content-Type": "application/json"},
        ),
        ("/predictions/maskx", gzip.compress(IMAGE), {"Content-Encoding": "gzip"}),
        ("/predictions/maskx", IMAGE, {"Expect": "100-continue"}),
        ("/predictions/maskx", IMAGE, {"describe": "True", "explain": "True"}),
    ],
)
def test_a_single_image_is_answered_alike_on_every_road(
    server: Machine, alone: list[dict[str, Any]], path: str, body: bytes, headers: dict[str, str]
) -> None:
    status, answer, _ = ask(server, body, headers, path)
    assert (status, {name: answer[name] for name in ("image", "detections")}) == (200, alone[0])


def test_a_chunked_body_is_answered_too(server: Machine, alone: list[dict[str, Any]]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.ports.inference, timeout=60)
    connection.request("POST", "/predictions/maskx", body=iter([IMAGE[:50], IMAGE[50:]]), encode_chunked=True)
    answer = json.loads(connection.getresponse().read())
    connection.close()
    assert answer["detections"] == alone[0]["detections"]


def test_several_images_come_back_in_the_envelope_and_the_order_they_came_in(
    server: Machine, alone: list[dict[str, Any]]
) -> None:
    as_json = {"Content-Type": "application/json"}
    numbered = form(("data_10", OTHER), ("data_9", IMAGE))
    _, answer, _ = ask(server, numbered, {"Content-Type": FORM})
    assert answer["results"] == alone
    _, answer, _ = ask(server, json.dumps({"images": [TEXT, {"image": TEXT_2}]}).encode(), as_json)
    assert answer["results"] == alone
    content: dict[str, Any] = {"instances": [{"b64": TEXT}, {"image": {"b64": TEXT_2}}]}
    _, answer, _ = ask(server, json.dumps(content).encode(), as_json, "/v1/models/maskx:predict")
    assert answer == {"predictions": alone}
    tensor = {"name": "image", "shape": [2], "datatype": "BYTES", "data": [TEXT, TEXT_2]}
    content = {"id": "my id", "inputs": [tensor]}
    _, answer, _ = ask(server, json.dumps(content).encode(), as_json, "/v2/models/maskx/infer")
    (output,) = answer["outputs"]
    assert answer["id"] == "my id" and output["shape"] == [2]
    assert [json.loads(one) for one in output["data"]] == alone


CHOSEN = {"categories": "bleu \u00e9,red", "max_detections": "5", "score_threshold": "0.25"}


@pytest.mark.parametrize("road", ["field", "header", "other header", "json", "query", "gRPC", "v1", "v2"])
def test_parameters_hold_on_every_road(server: Machine, road: str) -> None:
    as_json = {"Content-Type": "application/json"}
    path = "/predictions/maskx"
    if road == "gRPC":
        answer = json.loads(server.grpc().predict(IMAGE, CHOSEN))
    else:
        body, headers = IMAGE, {}
        if road == "field":
            headers["Content-Type"], body = multipart(IMAGE, CHOSEN)
        elif road == "header":
            headers = dict(CHOSEN)
        elif road == "other header":
            headers = {name.replace("_", "-").upper(): value for name, value in CHOSEN.items()}
        elif road == "json":
            headers, body = as_json, json.dumps({"image": TEXT, **CHOSEN}).encode()
        elif road == "query":
            path = "/models/maskx/invoke?categories=bleu%20%C3%A9%2Cred&max_detections=5&score_threshold=0.25"
            headers = {"Content-Type": "image/png"}
        elif road == "v1":
            content = {"instances": [{"b64": TEXT}], "parameters": CHOSEN}
            path, headers, body = "/v1/models/maskx:predict", as_json, json.dumps(content).encode()
        else:
            tensor = {"shape": [1], "datatype": "BYTES", "data": [TEXT], "parameters": CHOSEN}
            path, headers = "/v2/models/maskx/infer", as_json
            body = json.dumps({"inputs": [tensor]}).encode()
        status, answer, _ = ask(server, body, headers, path)
        assert status == 200, answer
        if road == "v1":
            (answer,) = answer["predictions"]
        elif road == "v2":
            answer = json.loads(answer["outputs"][0]["data"][0])
    assert names(answer) == ["red", "bleu \u00e9"]


@pytest.mark.parametrize(
    ("body", "headers", "message"),
    [
        (form(("data", IMAGE * 99), ("data", OTHER)), {"Content-Type": FORM}, "none of its fields"),
        (form(("data", IMAGE))[:-9], {"Content-Type": FORM}, "no field that can be read"),
        (b"before\r\n" + form(("data", IMAGE)), {"Content-Type": FORM}, "no field that can be read"),
        (
            gzip.compress(form(("data", IMAGE))),
            {"Content-Type": FORM, "Content-Encoding": "gzip"},
            "or it is packed",
        ),
        (form(("data", IMAGE)), {"Content-Type": FORM.title()}, "in small letters"),
        (form(("data", IMAGE)), {"Content-Type": "multipart/form-data"}, "not read as a form"),
        (form(("score_threshold", b"1")), {"Content-Type": FORM}, "no image"),
        (
            form(("data", IMAGE), ("max_detections", b"1")),
            {"Content-Type": FORM, "max-detections": "2"},
            "max_detections is given twice, in the header 'max-detections' and in a field",
        ),
        (
            IMAGE,
            {"max_detections": "1", "Max-Detections": "1"},
            "max_detections is given twice, in the header",
        ),
        (IMAGE, {"categories": "bl\u00e9u"}, "unknown name 'bl\u00e9u'"),
        (IMAGE, {"score_threshold": ""}, "score_threshold is '' in the header 'score_threshold'"),
        (IMAGE, {"Content-Encoding": "gzip"}, "but the body is not"),
        (IMAGE, {"Content-Type": "application/json"}, "not valid JSON"),
        (
            b"image=" + TEXT.encode(),
            {"Content-Type": "application/x-www-form-urlencoded"},
            "cannot carry an image",
        ),
        (b"", {"Content-Type": "image/png"}, "the body is empty"),
    ],
)
def test_what_the_server_misreads_is_refused_with_what_to_do(
    server: Machine, body: bytes, headers: dict[str, str], message: str
) -> None:
    status, answer, answered = ask(server, body, headers)
    assert status == 400, answer
    assert answered["x-error-type"] == "InvalidRequest"
    assert (answer["error"]["code"], answer["error"]["type"]) == (400, "InvalidRequest")
    assert message in answer["error"]["message"]


def test_a_bad_image_among_several_has_its_error_in_its_place(
    server: Machine, alone: list[dict[str, Any]]
) -> None:
    parts = form(("data", IMAGE), ("data_1", b"no image"), ("data_2", OTHER))
    status, answer, _ = ask(server, parts, {"Content-Type": FORM})
    assert status == 200
    first, bad, last = answer["results"]
    assert [first, last] == alone
    assert bad["error"]["type"] == "InvalidImage"
