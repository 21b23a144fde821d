"""Parameters of a request, what is refused and why, and what is heeded of its headers."""

import base64
import gzip
import json
from typing import Any

import pytest

from maskx_errors import IMAGE_TOO_LARGE, TOO_MANY_IMAGES, RequestError
from maskx_parameters import Parameters
from maskx_request import ImageRequest, accepts_gzip, header, queue_seconds
from tests.handler.asked import (
    FORM,
    GZIP,
    IMAGE,
    INPUT,
    SECOND,
    TEXT,
    TEXT_2,
    body,
    images_of,
    only,
    parsed,
    refused,
    refused_with,
    typed,
)

ALL = {"score_threshold": 0.25, "max_detections": 7, "categories": [90], "mask_format": "png"}
AS_TEXT = {name: str(value) for name, value in ALL.items()} | {"categories": "bl\u00e9u", "output": "json"}
AS_HEADERS = {n.replace("_", "-").title(): v.encode().decode("latin-1") for n, v in AS_TEXT.items()}
FEW = {"max_detections": b"7"}
ASKED = Parameters(score_threshold=0.25, max_detections=7, labels=frozenset([2]), mask_format="png")


@pytest.mark.parametrize(
    ("request_", "headers"),
    [
        ({"data": IMAGE, **{name: value.encode() for name, value in AS_TEXT.items()}}, {}),
        ({"data": IMAGE, **{name: bytearray(value.encode()) for name, value in AS_TEXT.items()}}, {}),
        ({"body": IMAGE, **AS_TEXT}, {}),
        (body({"image": TEXT, **ALL}), {}),
        (body({"images": [TEXT], **ALL}), {}),
        (body({"images": [{"image": TEXT, **ALL}]}), {}),
        (body({"instances": [{"b64": TEXT, **ALL}]}), {}),
        (body({"instances": [{"b64": TEXT}], "parameters": ALL}), {}),
        (body({"inputs": [{"datatype": "BYTES", "data": [TEXT], "parameters": ALL}]}), {}),
        (body({"inputs": [{"datatype": "BYTES", "data": [TEXT]}], "parameters": ALL}), {}),
        ({"data_1": json.dumps({"image": TEXT, **ALL}).encode()}, {}),
        ({"body": IMAGE}, AS_TEXT),
        ({"body": IMAGE}, AS_HEADERS),
        ({"body": IMAGE, "max_detections": b"7"}, {n: v for n, v in AS_TEXT.items() if n[:3] != "max"}),
    ],
)
def test_parameters_are_the_same_wherever_they_stand(
    request_: dict[str, Any], headers: dict[str, str]
) -> None:
    assert only(parsed(request_, headers)).parameters == ASKED


def test_an_images_own_parameters_go_before_those_of_the_request() -> None:
    content = {"images": [{"image": TEXT, "max_detections": 3}, TEXT_2], "max_detections": 9}
    request = parsed(body(content), {"Score-Threshold": "0.125"})
    assert [one.parameters for one in request.images if isinstance(one, ImageRequest)] == [
        Parameters(score_threshold=0.125, max_detections=most) for most in (3, 9)
    ]


@pytest.mark.parametrize(
    ("request_", "headers", "message"),
    [
        (body({"image": TEXT, "max_detections": 7}) | FEW, {}, "a field and in the JSON"),
        ({"data": IMAGE, **FEW}, {"max-detections": "7"}, "'max-detections' and in a field"),
        ({"body": IMAGE}, {"output": "a", "Output": "b"}, "header 'output' and in the header 'Output'"),
        (body({"instances": [TEXT], "parameters": ALL}), {"mask-format": "rle"}, 'mat\' and in "parameters"'),
    ],
)
def test_a_parameter_in_two_places_is_refused_with_both(
    request_: dict[str, Any], headers: dict[str, str], message: str
) -> None:
    error = refused(request_, headers)
    assert "given twice" in error.message and message in error.message


def test_headers_that_are_no_parameters_and_parts_content_types_are_left_alone() -> None:
    headers = {"X-Score-Threshold": "9", "explain": "False", "url_path": "", "describe": "True"}
    parts = {"score_threshold": {"content-type": ""}, "data": {"content-type": "image/png"}}
    image = only(parsed({"data": IMAGE, "score_threshold": b"0.25"}, {**headers, **parts}))
    assert image.parameters == Parameters(score_threshold=0.25, max_detections=100)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"picture": ""}, "has no \"image\"; exactly one of .*seen were 'picture'"),
        ({}, "seen were nothing"),
        ({"image": TEXT, "images": []}, 'has "image" and "images"; exactly one'),
        ({"image": 7}, '"image" is 7; text in base64'),
        ({"image": {"b64": TEXT, "x": 1}}, '"image" is {.*; text in base64'),
        ({"image": "aG%k="}, "\"image\" is not valid base64 \\('aG%k='\\)"),
        ({"image": "aGkab"}, "not valid base64 .*it has 5 characters without the padding.*cut short"),
        ({"image": "aG-k+GkA"}, "not valid base64 .*characters of both alphabets"),
        ({"image": "aGk=aGk="}, "not valid base64"),
        ({"image": "aGk===="}, "not valid base64"),
        ({"image": str(IMAGE)}, "as Python shows bytes; send the text: base64.b64encode"),
        ({"data": [[0.1, 0.2]]}, '"data" is .*; text in base64'),
        ({"data": TEXT, "image": TEXT}, 'has "image" and "data"; exactly one'),
        ({"a": {"b64": TEXT}, "b": {"b64": TEXT}}, 'has no "image"; exactly one'),
        ({"image": "caf\u00e9"}, "not valid base64"),
        ({"image": "data:image/png," + TEXT}, "data URL without ';base64,': 'data:image/png'"),
        ({"image": TEXT, "mask_formt": 1}, "'mask_formt'; did you mean mask_format"),
        ({"image": "data:;base64"}, "data URL without"),
        ({"image": ""}, '"image" is empty'),
        ({"image": "https://example.org/a.jpg"}, "is an address \\('https.*none is fetched"),
        ({"image": "file:///etc/passwd"}, "is an address"),
        ({"image": TEXT, "scores": 1}, "unknown parameter in the JSON 'scores'; known are image, score_th"),
        ({"images": []}, '"images" is an empty list'),
        ({"images": TEXT}, '"images" is .*; a list is expected'),
        ({"instances": 3}, '"instances" is 3; a list is expected'),
        ({"inputs": {"a": TEXT, "b": TEXT}}, '"inputs" is .*; one input, with one image or a list'),
        ({"inputs": {"a": 7}}, "\"inputs\\['a'\\]\" is 7; a list"),
        ({"instances": [TEXT], "max_detections": 3}, 'beside "instances"; put it into "parameters"'),
        ({"instances": [TEXT], "signature_name": 3}, '"signature_name" is 3; text'),
        (
            {"instances": [TEXT], "signature": ""},
            "unknown key in the JSON 'signature'; did you mean signature_name",
        ),
        ({"image": {"type": "base64", "value": TEXT}}, '"image" is .*; text in base64'),
        ({"inputs": [{**INPUT, "shape": [-1, -1]}]}, "shape of inputs\\[0\\] is \\[-1, -1\\]"),
        ({"inputs": [{**INPUT, "shape": [2, -1]}]}, "shape of inputs\\[0\\] is \\[2, -1\\].*has 1 elements"),
        ({"inputs": [{**INPUT, "shape": [0, -1]}]}, "shape of inputs\\[0\\]"),
        ({"instances": [TEXT], "parameters": 3}, '"parameters" is 3; an object'),
        ({"inputs": [INPUT], "max_detections": 3}, 'beside "inputs"; put it into'),
        ({"inputs": [7]}, "inputs\\[0\\] is 7; an object"),
        ({"inputs": [INPUT | {"datatype": "UINT8"}]}, "datatype of inputs\\[0\\] is 'UINT8'; \"BYTES\""),
        ({"inputs": [INPUT | {"shape": [2]}]}, "shape of inputs\\[0\\] is \\[2\\].*has 1 elements"),
        ({"inputs": [INPUT | {"shape": [1.0]}]}, "shape of inputs\\[0\\]"),
        ({"inputs": [INPUT | {"shape": [10**6] * 9}]}, "shape of inputs\\[0\\]"),
        ({"inputs": [INPUT | {"data": [], "shape": [0]}]}, '"inputs" has no image'),
        ({"inputs": [INPUT | {"dat": 1}]}, "unknown key in inputs\\[0\\] 'dat'; did you mean data"),
        ({"inputs": [INPUT], "id": 7}, '"id" is 7; text'),
        ({"inputs": [INPUT], "id": "x" * 300}, '"id" is .*at most 256'),
        ({"inputs": [INPUT], "outputs": [{"name": "boxes"}]}, '"outputs" has .*the only output is'),
    ],
)
def test_json_that_cannot_be_understood_is_refused_with_the_reason(content: Any, message: str) -> None:
    refused_with(message, body(content))


@pytest.mark.parametrize(
    ("request_", "headers", "message"),
    [
        ({}, {}, "no image: .*fields seen were none"),
        ({"score_threshold": b"1"}, {}, "no image.*seen were 'score_threshold'"),
        ({"\u0089PNG": b""}, typed("application/x-www-form-urlencoded"), "x-www-form-urlencoded.*curl -T"),
        ({}, FORM, "form has no field.*cut off"),
        ({"body": b"--x\r\n"}, typed("Multipart/Form-Data; boundary=x"), "'Multipart.*small letters"),
        ({"body": b"--x\r\n"}, typed("multipart/form-data"), "'multipart/form-data', which is not"),
        ({"body": IMAGE, "data": IMAGE}, {}, "both a body and a field 'data'"),
        ({"body": IMAGE, "data_2": IMAGE}, {}, "both a body and a field 'data_2'"),
        ({"data_1": IMAGE, "data01": IMAGE}, {}, "'data_1' and 'data01' have the same number"),
        ({"body": b""}, {}, "the body is empty"),
        ({"body": b""}, typed("application/json"), "the body is empty"),
        ({"data": b""}, {}, "the field 'data' is empty"),
        ({"body": b'{"image": '}, {}, "the body is not valid JSON"),
        ({"body": b'{"image": "\xff"}'}, {}, "not valid JSON: it is not utf-8 at byte 11"),
        ({"body": IMAGE}, typed("application/json; charset=utf-8"), "not valid JSON"),
        ({"body": b"[1]"}, {}, "not an object: \\[1\\]"),
        ({"body": ["a"]}, {}, "not an object"),
        ({"body": b"{" * 99_000}, {}, "not valid JSON"),
        ({"body": b'{"image":' + b"[" * 99_000}, {}, "not valid JSON: too many levels"),
        ({"body": b'{"images": [' + b"1," * 100_000 + b"1]}"}, {}, "JSON of 100003 parts; at most 100000"),
        ({"body": b'{"image": "", "image": ""}'}, {}, "key 'image' is there twice"),
        ({"body": b'{"images": [{"image": 1, "image": 2}]}'}, {}, "key 'image' is there twice"),
        ({"body": b'{"image": "", "score_threshold": NaN}'}, {}, "NaN is no number in JSON"),
        ({"body": b'{"image": "", "score_threshold": -Infinity}'}, {}, "-Infinity is no number"),
        ({"body": b'{"max_detections": ' + b"9" * 5000 + b"}"}, {}, "a number of 5000 digits"),
        ({"body": b"http://example.org/a.jpg"}, {}, "the body is an address"),
        ({"body": "\x89PNG"}, {}, "came as text"),
        ({"data": None}, {}, "came as text"),
        ({"data": IMAGE, "treshold": b"1"}, {}, "unknown parameter 'treshold'; did you mean score_threshold"),
        ({"data": IMAGE, "Max-Detections": b"1"}, {}, "did you mean max_detections"),
        ({"data": IMAGE, "": b"1"}, {}, "unknown parameter ''; known are data, score_threshold"),
        ({"body": b"abc"}, GZIP, "Content-Encoding is gzip, but the body is not"),
        ({"body": gzip.compress(IMAGE)[:-3]}, GZIP, "not one complete gzip stream"),
        ({"body": gzip.compress(IMAGE) + b"x"}, GZIP, "not one complete gzip stream"),
        ({"body": IMAGE}, {"Content-Encoding": "br"}, "Content-Encoding is 'br'; gzip is read"),
    ],
)
def test_a_request_that_cannot_be_understood_is_refused_with_the_reason(
    request_: dict[str, Any], headers: dict[str, str], message: str
) -> None:
    refused_with(message, request_, headers)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"instances": {}}, "instances[0] is {}, which has no image; one is expected"),
        (
            {"instances": [[[0.1], [0.2]]]},
            "instances[0] is [[0.1], [0.2]]; an image file in base64 is expected, not",
        ),
        ({"instances": [{"data": TEXT, "b64": TEXT}]}, "instances[0] is {"),
        ({"inputs": [{**INPUT, "data": [300]}]}, "inputs[0].data[0] is 300; text in base64"),
        ({"inputs": {"a": [TEXT[:5]]}}, "inputs['a'][0] is not valid base64"),
    ],
)
def test_an_instance_without_an_image_says_what_it_is(content: Any, message: str) -> None:
    (error,) = parsed(body(content)).images
    assert isinstance(error, RequestError) and error.message.startswith(message)


def test_one_bad_image_of_several_is_an_error_in_its_place() -> None:
    bad: list[tuple[Any, str]] = [
        ("aG%k=", "images[1] is not valid base64"),
        ({"image": TEXT, "score_threshold": 2}, "score_threshold is 2 in images[2]; a number from 0 to 1"),
        ({"type": "base64", "value": TEXT}, "images[3] is {'type'"),
        ({"image": TEXT, "mask": "rle"}, "unknown parameter in images[4] 'mask'"),
        (7, "images[5] is 7; an image file in base64 is expected, not pixels"),
        ({"image": TEXT, "output": "overlay"}, "output is 'overlay'"),
    ]
    content = {"images": [TEXT, *(one for one, _ in bad), TEXT_2]}
    first, *errors, last = parsed(body(content), max_images=8).images
    assert isinstance(first, ImageRequest) and isinstance(last, ImageRequest)
    assert (first.image, last.image) == (IMAGE, SECOND)
    for error, (_, message) in zip(errors, bad, strict=True):
        assert isinstance(error, RequestError) and error.message.startswith(message)


@pytest.mark.parametrize(
    "request_",
    [
        {"data": IMAGE, "data_1": b"", "data_2": SECOND},
        {"data": IMAGE, "data_1": b'{"image": 1}', "data_2": SECOND},
        {"data": IMAGE, "data_1": b"[]", "data_2": SECOND},
        body({"instances": [{"b64": TEXT}, {"b64": TEXT, "image": TEXT}, TEXT_2]}),
        body({"inputs": [{"datatype": "BYTES", "data": [TEXT, None, TEXT_2]}]}),
        body({"inputs": [INPUT, INPUT | {"parameters": {"x": 1}}, INPUT | {"data": [TEXT_2]}]}),
    ],
)
def test_one_bad_image_costs_the_others_of_its_request_nothing(request_: dict[str, Any]) -> None:
    request = parsed(request_)
    assert [isinstance(one, RequestError) for one in request.images] == [False, True, False]
    assert images_of(request) == [IMAGE, SECOND]


def test_a_wrong_parameter_for_all_images_is_the_requests_error() -> None:
    assert "max_detections is 0 in the JSON" in refused(body({"images": [TEXT], "max_detections": 0})).message
    assert "mask_format is 'x' in the header" in refused({"data_1": IMAGE}, {"Mask-Format": "x"}).message


@pytest.mark.parametrize(
    "request_",
    [
        {f"data_{number}": IMAGE for number in range(3)},
        body({"images": [TEXT] * 3}),
        body({"instances": [TEXT] * 3}),
        body({"inputs": [{"datatype": "BYTES", "data": [TEXT] * 3}]}),
        body({"inputs": [INPUT] * 3}),
    ],
)
def test_more_images_than_allowed_are_refused_and_as_many_are_not(request_: dict[str, Any]) -> None:
    error = refused(request_, max_images=2)
    assert error.kind is TOO_MANY_IMAGES and "3 images; at most 2" in error.message
    assert len(parsed(request_, max_images=3).images) == 3


def test_an_image_of_more_bytes_than_allowed_is_refused_however_it_comes() -> None:
    image = bytes(range(256))
    text = base64.b64encode(image).decode()
    for request in ({"body": image}, {"data": image}, body({"image": text})):
        assert refused(request, max_image_bytes=255).kind is IMAGE_TOO_LARGE
        assert only(parsed(request, max_image_bytes=256)).image == image
    for request in ({"data_1": image}, body({"images": [text]}), body({"instances": [text]})):
        (error,) = parsed(request, max_image_bytes=255).images
        assert isinstance(error, RequestError) and error.kind is IMAGE_TOO_LARGE
        assert "256 bytes; at most 255" in error.message


def test_a_packed_body_is_unpacked_no_further_than_an_image_may_need() -> None:
    bomb = gzip.compress(b" " * 1_000_000)
    error = refused({"body": bomb}, GZIP)
    assert error.kind is IMAGE_TOO_LARGE and "unpacked body has more than" in error.message


def test_an_overlay_is_for_one_image_sent_by_itself() -> None:
    for request in ({"body": IMAGE, "output": b"overlay"}, body({"image": TEXT, "output": "overlay"})):
        assert only(parsed(request)).parameters.output == "overlay"
    for request in (
        {"data_1": IMAGE, "output": b"overlay"},
        body({"images": [TEXT], "output": "overlay"}),
        body({"instances": [TEXT], "parameters": {"output": "overlay"}}),
        body({"inputs": [INPUT], "parameters": {"output": "overlay"}}),
    ):
        assert "needs exactly one image" in refused(request).message


def test_a_form_that_the_server_kept_only_a_part_of_is_refused() -> None:
    request = {"data": IMAGE, "score_threshold": b"0.5"}
    long = FORM | {"Content-Length": "50000"}
    assert "none of its fields" in refused(request, long).message
    assert only(parsed(request, FORM | {"Content-Length": "400"})).image == IMAGE
    assert only(parsed(request, {"Content-Length": "50000"})).image == IMAGE


def test_gzip_is_accepted_where_the_standard_says_so() -> None:
    for value in ("gzip", "deflate, GZIP ; Q=0.2, br", "*", "x-gzip"):
        assert accepts_gzip({"Host": "a", "ACCEPT-encoding": value}), value
    for value in ("gzip;q=0", "*, gzip;q=0.000", "gzip;q=high", "gzipped, deflate", "identity", ""):
        assert not accepts_gzip({"Host": "a", "ACCEPT-encoding": value}), value
    assert not accepts_gzip({"Host": "a"})


def test_a_part_of_a_form_is_no_header() -> None:
    assert header({"accept-encoding": {"content-type": "gzip"}}, "accept-encoding") == ""


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("t=1000.250", 0.5),
        ("t=1000", 0.75),
        ("t=1001.5", 0.0),  # the proxy's clock is a little ahead
        *((wrong, None) for wrong in ("t=1005", "t=1000.25, t=1000.5", "1000.25", "t=nan", "t=-1", "")),
    ],
)
def test_the_time_in_the_queue_is_since_the_proxy_took_the_request(value: str, seconds: float | None) -> None:
    assert queue_seconds({"X-Request-Start": value}, 1000.75) == seconds
    assert queue_seconds({"X-Request-Start": "t=1"}, 10_000.0) is None
