"""Every way in which a real server takes a request: what it does to forms, headers, queries and packed bodies."""

import base64
import gzip
import http.client
import json
from typing import Any

import pytest

from server.processes import ENGINES
from tests.served.asking import multipart
from tests.served.machine import Machine
from tests.served.standin import png, scene

pytestmark = pytest.mark.engines(*ENGINES)

IMAGE = png(scene(width=61, height=47, red=(3, 2, 20, 11), green=(30, 4, 13, 21), blue=(5, 30, 31, 9)))
OTHER = png(scene(width=50, height=40, green=(6, 7, 8, 9)))
TEXT, TEXT_2 = (base64.b64encode(image).decode() for image in (IMAGE, OTHER))
AS_JSON = json.dumps({"image": TEXT}).encode()
FORM = "multipart/form-data; boundary=edge"


def form(*parts: tuple[str, bytes]) -> bytes:
    """A form of these fields, each as a file."""
    sent = b"".join(
        f'--edge\r\nContent-Disposition: form-data; name="{name}"; filename="f"\r\n\r\n'.encode()
        + data
        + b"\r\n"
        for name, data in parts
    )
    return sent + b"--edge--\r\n"


@pytest.fixture(scope="module")
def whole(server: Machine) -> bytes:
    """The answer to the first image, sent by itself."""
    return server.ask(IMAGE, {"Content-Type": "image/png"}).body


@pytest.fixture(scope="module")
def alone(server: Machine, whole: bytes) -> list[dict[str, Any]]:
    """What is said of each of the two images."""
    answers = [json.loads(body) for body in (whole, server.ask(OTHER, {"Content-Type": "image/png"}).body)]
    assert all(answer["detections"] for answer in answers)
    return [{name: answer[name] for name in ("image", "detections")} for answer in answers]


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        ("/predictions/maskx", IMAGE, {}),
        ("/predictions/maskx", IMAGE, {"Content-Type": "text/plain"}),
        ("/predictions/maskx/1.0", IMAGE, {"Content-Type": "image/jpeg"}),
        ("/models/maskx/invoke", IMAGE, {"Content-Type": "image/png"}),
        ("/invocations?model_name=maskx", IMAGE, {"Content-Type": "image/png"}),
        ("/explanations/maskx", IMAGE, {"Content-Type": "image/png"}),
        ("/predictions/maskx", form(("data", IMAGE)), {"Content-Type": FORM}),
        ("/predictions/maskx", AS_JSON, {"Content-Type": "application/json"}),
        ("/predictions/maskx", AS_JSON, {"Content-Type": "text/plain; charset=utf-8"}),
        ("/predictions/maskx", AS_JSON.decode().encode("utf-16"), {"Content-Type": "application/json"}),
        ("/predictions/maskx", gzip.compress(IMAGE), {"Content-Encoding": "gzip"}),
        ("/predictions/maskx", IMAGE, {"Expect": "100-continue"}),
        ("/predictions/maskx", IMAGE, {"describe": "True", "explain": "True"}),
    ],
)
def test_a_single_image_is_answered_with_the_same_bytes_however_it_is_sent(
    server: Machine, whole: bytes, path: str, body: bytes, headers: dict[str, str]
) -> None:
    reply = server.ask(body, headers, path)
    assert (reply.status, reply.body) == (200, whole)


def test_a_chunked_body_is_answered_too(server: Machine, whole: bytes) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.ports.inference, timeout=60)
    connection.request("POST", "/predictions/maskx", body=iter([IMAGE[:50], IMAGE[50:]]), encode_chunked=True)
    assert connection.getresponse().read() == whole
    connection.close()


BAD = base64.b64encode(b"no image").decode()


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/predictions/maskx", {"images": [TEXT, BAD, {"image": TEXT_2}]}),
        (
            "/v1/models/maskx:predict",
            {"instances": [{"b64": TEXT}, {"b64": BAD}, {"image": {"b64": TEXT_2}}]},
        ),
        (
            "/v2/models/maskx/infer",
            {
                "id": "my id",
                "inputs": [{"name": "image", "shape": [3], "datatype": "BYTES", "data": [TEXT, BAD, TEXT_2]}],
            },
        ),
        ("/predictions/maskx", None),
    ],
    ids=["json", "v1", "v2", "form"],
)
def test_several_images_come_back_in_their_envelope_and_order_with_errors_in_their_places(
    server: Machine, alone: list[dict[str, Any]], path: str, content: dict[str, Any] | None
) -> None:
    sent = json.dumps(content).encode()
    if content is None:
        sent = form(("data_10", OTHER), ("data", IMAGE), ("data_9", b"no image"))
    reply = server.ask(sent, {"Content-Type": FORM if content is None else "application/json"}, path)
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json"), reply
    answer = json.loads(reply.body)
    if "outputs" in answer:
        (output,) = answer["outputs"]
        assert answer["id"] == "my id" and output["shape"] == [3]
        results = [json.loads(one) for one in output["data"]]
    else:
        results = answer["predictions"] if path.startswith("/v1") else answer["results"]
    first, bad, last = results
    assert [first, last] == alone
    assert bad["error"]["type"] == "InvalidImage"
    assert content is None or server.grpc().predict(sent) == reply.body


CHOSEN = {"categories": "bleu \u00e9,red", "max_detections": "5", "score_threshold": "0.25"}


@pytest.mark.parametrize("way", ["field", "header", "other header", "json", "query", "gRPC", "v1", "v2"])
def test_parameters_hold_whichever_way_they_come(server: Machine, way: str) -> None:
    as_json = {"Content-Type": "application/json"}
    path = "/predictions/maskx"
    if way == "gRPC":
        answer = json.loads(server.grpc().predict(IMAGE, CHOSEN))
    else:
        body, headers = IMAGE, {}
        if way == "field":
            headers["Content-Type"], body = multipart(IMAGE, CHOSEN)
        elif way == "header":
            headers = dict(CHOSEN)
        elif way == "other header":
            headers = {name.replace("_", "-").upper(): value for name, value in CHOSEN.items()}
        elif way == "json":
            headers, body = as_json, json.dumps({"image": TEXT, **CHOSEN}).encode()
        elif way == "query":
            path = "/models/maskx/invoke?categories=bleu%20%C3%A9%2Cred&max_detections=5&score_threshold=0.25"
            headers = {"Content-Type": "image/png"}
        elif way == "v1":
            content = {"instances": [{"b64": TEXT}], "parameters": CHOSEN}
            path, headers, body = "/v1/models/maskx:predict", as_json, json.dumps(content).encode()
        else:
            tensor = {"shape": [1], "datatype": "BYTES", "data": [TEXT], "parameters": CHOSEN}
            path, headers = "/v2/models/maskx/infer", as_json
            body = json.dumps({"inputs": [tensor]}).encode()
        reply = server.ask(body, headers, path)
        assert reply.status == 200, reply
        answer = json.loads(reply.body)
        if way == "v1":
            (answer,) = answer["predictions"]
        elif way == "v2":
            answer = json.loads(answer["outputs"][0]["data"][0])
    assert [one["category"] for one in answer["detections"]] == ["red", "bleu \u00e9"]


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
    reply = server.ask(body, headers)
    error = reply.error()
    assert (reply.status, error["type"], reply.headers["x-error-type"]) == (400, *["InvalidRequest"] * 2)
    assert message in error["message"]
