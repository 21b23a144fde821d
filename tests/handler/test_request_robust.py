"""Whatever comes is either understood or refused in short, and costs little: the parser under random attack."""

import base64
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from maskx_errors import RequestError
from maskx_json import MOST_JSON_PARTS
from maskx_parameters import (
    MASK_FORMATS,
    MAX_DETECTIONS,
    OUTPUTS,
    PARAMETERS,
    Category,
    CategoryIndex,
    Parameters,
)
from maskx_request import ImageRequest, Request, parse_request

DEFAULTS = Parameters(score_threshold=0.5, max_detections=100)
CATEGORIES = CategoryIndex(
    {label: Category(id=label * 7, name=f"n\u00e4me {label}", mask_supervised=True) for label in range(1, 40)}
)
MAX_IMAGES = 3
MAX_IMAGE_BYTES = 64

FIELDS = ["body", "data", "data_1", "data1", "image", "images", "instances", "inputs", "parameters", "b64"]
NAMES = [*FIELDS, "id", "name", "shape", "datatype", "outputs", "x", "host", *PARAMETERS]
OF_BODY = ["Content-Type", "content-type", "Content-Length", "Content-Encoding"]
HEADERS = [*OF_BODY, "Score-Threshold", "OUTPUT", "categories", "X"]
KINDS = ["application/json", "multipart/form-data", "application/x-www-form-urlencoded"]
HEADER_VALUES = [*KINDS, "gzip", "12", "99999", "0.5", "overlay"]

names = st.sampled_from(NAMES) | st.text(max_size=5)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(
        ["BYTES", "rle", "n\u00e4me 1", "aGk=", "data:;base64,aGk=", "http://x", '["n\u00e4me 2"]']
    )
)
values = st.recursive(
    scalars | st.binary(max_size=80),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=8,
)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=10,
)
header_values = st.sampled_from(HEADER_VALUES) | st.text(max_size=10) | st.just({"content-type": ""})
headers_ = st.dictionaries(st.sampled_from(HEADERS) | st.text(max_size=5), header_values, max_size=4)
many = settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])


def parsed_by(request: dict[str, Any], headers: dict[str, Any]) -> Request:
    limits = {"max_images": MAX_IMAGES, "max_image_bytes": MAX_IMAGE_BYTES}
    return parse_request(request, headers, DEFAULTS, CATEGORIES, **limits)


def check(request: dict[str, Any], headers: dict[str, Any]) -> None:
    """Understood within the limits, or refused with one short line."""
    errors: list[RequestError] = []
    try:
        parsed = parsed_by(request, headers)
    except RequestError as refusal:
        errors.append(refusal)
    else:
        assert 1 <= len(parsed.images) <= MAX_IMAGES
        if parsed.envelope.kind == "single":
            assert isinstance(parsed.images[0], ImageRequest)
        errors += [one for one in parsed.images if isinstance(one, RequestError)]
        for one in parsed.images:
            if isinstance(one, ImageRequest):
                check_allowed(one, parsed.envelope.kind)
    for error in errors:
        assert error.kind.status == 400
        assert len(error.message) < 600 and error.message.isprintable()
        json.dumps(error.content()).encode("ascii")


def check_allowed(one: ImageRequest, kind: str) -> None:
    assert 1 <= len(one.image) <= MAX_IMAGE_BYTES and type(one.image) is bytes
    assert 0.0 <= one.parameters.score_threshold <= 1.0 and type(one.parameters.score_threshold) is float
    assert 1 <= one.parameters.max_detections <= MAX_DETECTIONS and type(one.parameters.max_detections) is int
    assert one.parameters.labels is None or (
        one.parameters.labels and one.parameters.labels <= set(range(1, 40))
    )
    assert one.parameters.mask_format in MASK_FORMATS
    assert one.parameters.output in (OUTPUTS if kind == "single" else ("json",))


@many
@given(st.dictionaries(names, values, max_size=4), headers_)
def test_any_fields_and_headers_are_understood_or_refused(
    request: dict[str, Any], headers: dict[str, Any]
) -> None:
    check(request, headers)


@many
@given(st.binary(max_size=200), headers_)
@example(b"\xff\xfe{\x00", {})
@example(b"\x1f\x8b\x08\x00", {"Content-Encoding": "gzip"})
@example(b'{"image": "\\ud800"}', {})
@example(b'{"images": [{"\\ud800": "\\n\\u001b"}]}', {})
@example(b'{"image": "aGk=", "categories": ["\\ud800"]}', {})
def test_any_body_is_understood_or_refused(body: bytes, headers: dict[str, Any]) -> None:
    check({"body": body}, headers)
    check({"data": bytearray(body)}, {})
    check({"data_1": body, "data_2": body}, {})


@many
@given(
    st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(PARAMETERS, json_values),
            "image": json_values,
            "images": st.lists(json_values, max_size=4),
            "instances": st.lists(st.dictionaries(names, json_values, max_size=3), max_size=4),
            "inputs": st.lists(
                st.fixed_dictionaries(
                    {"datatype": st.just("BYTES"), "data": st.lists(json_values, max_size=3)},
                    optional={"shape": json_values, "parameters": json_values},
                ),
                max_size=3,
            ),
            "parameters": json_values,
        },
    )
)
def test_any_json_is_understood_or_refused(content: dict[str, Any]) -> None:
    check({"body": json.dumps(content).encode()}, {"Content-Type": "application/json"})
    check({"body": content}, {})


@many
@given(st.sampled_from(PARAMETERS), values)
def test_any_value_of_any_parameter_is_read_or_refused_by_name(name: str, value: Any) -> None:
    check({"body": b"image", name: value}, {})
    try:
        parsed_by({"body": b"image", name: value}, {})
    except RequestError as error:
        message = error.message
    else:
        message = f"{name} a field"
    assert name in message and "a field" in message


@many
@given(st.binary(min_size=1, max_size=MAX_IMAGE_BYTES))
def test_any_image_comes_through_json_as_it_was(image: bytes) -> None:
    text = base64.b64encode(image).decode()
    for content in ({"image": text}, {"images": [text]}, {"instances": [{"b64": text}]}):
        (one,) = parsed_by({"body": content}, {}).images
        assert isinstance(one, ImageRequest) and one.image == image


@pytest.mark.parametrize(
    "content",
    [
        b'{"image": "' + b"A" * 20_000_000 + b'"}',
        b'{"image": "' + b"\\u0041" * 3_000_000 + b'"}',
        b'{"' + b"k" * 10_000_000 + b'": 1}',
        b'{"max_detections": ' + b"9" * 10_000_000 + b"}",
        b'{"image": "aGk=", "score_threshold": 0.' + b"1" * 10_000_000 + b"}",
        b'{"image": "aGk=", "score_threshold": "' + b"1" * 10_000_000 + b'"}',
        b'{"image": "aGk=", "categories": "' + b"a" * 10_000_000 + b'"}',
        b'{"image": "aGk=", "categories": [' + b'"x",' * (MOST_JSON_PARTS - 9) + b'"x"]}',
        b'{"image": "aGk=", "categories": "' + b"[" * (MOST_JSON_PARTS - 9) + b'"}',
        b"{" * 20_000_000,
        b"[" * 20_000_000,
        b'{"image":{' + b'"a":{' * 40_000 + b"}" * 40_000 + b"}}",
        b"{" + b",".join(b'"%d":1' % number for number in range(40_000)) + b"}",
        b"{" + b'"a":1,' * 45_000 + b'"a":1}',
        b"{" + b",".join(b'"%d":1' % number for number in range(45_000)) + b',"44999":1}',
        b'{"image": "aGk=", "categories": "' + "n\u00e4me 1,".encode() * 2_000_000 + b'"}',
    ],
)
def test_a_big_json_is_refused_in_a_short_message(content: bytes) -> None:
    for request in ({"body": content}, {"data": content}, {"data_1": content}):
        check(request, {})
    check({"body": b"image", "categories": content}, {})
