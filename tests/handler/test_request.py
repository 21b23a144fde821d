"""What a request says, by every road it can come."""

import base64
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maskx_request import MAX_DETECTIONS, PARAMETERS, RequestError, Wishes, parse_request, parse_wishes

DEFAULTS = Wishes(score_threshold=0.5, max_detections=100)
IMAGE = b"\x89PNG\r\n\x1a\n and so on"
TEXT = base64.b64encode(IMAGE).decode()


@pytest.mark.parametrize(
    "request_",
    [
        {"body": bytearray(IMAGE)},
        {"data": IMAGE},
        {"body": json.dumps({"image": TEXT}).encode()},
        {"body": b"\n  " + json.dumps({"image": TEXT}).encode()},
        {"body": {"image": TEXT}},
        {"body": json.dumps({"image": TEXT})},
        {"data": bytearray(json.dumps({"image": TEXT}).encode())},
    ],
    ids=["body", "field", "json", "json after space", "json parsed", "json as text", "json in the field"],
)
def test_every_road_carries_the_same_image_and_the_defaults(request_: dict[str, Any]) -> None:
    parsed = parse_request(request_, DEFAULTS)
    assert parsed.image == IMAGE and type(parsed.image) is bytes
    assert parsed.wishes == DEFAULTS


@pytest.mark.parametrize(
    "request_",
    [
        {"data": IMAGE, "score_threshold": b"0.25", "max_detections": bytearray(b"7")},
        {"data": IMAGE, "score_threshold": "0.25", "max_detections": "7"},
        {"body": {"image": TEXT, "score_threshold": 0.25, "max_detections": 7}},
        {"body": {"image": TEXT, "score_threshold": 0.25}, "max_detections": b"7"},
    ],
    ids=["bytes", "text", "json", "json and beside it"],
)
def test_every_road_carries_the_same_parameters(request_: dict[str, Any]) -> None:
    assert parse_request(request_, DEFAULTS).wishes == Wishes(score_threshold=0.25, max_detections=7)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "no image: .*names seen were none"),
        ({"\u0089PNG": b""}, "x-www-form-urlencoded.*PNG"),
        ({"body": IMAGE, "data": IMAGE}, "both a body and a field"),
        ({"body": b'{"image": '}, "not valid JSON"),
        ({"body": b"[1]"}, "not an object"),
        ({"body": ["a"]}, "not an object"),
        ({"body": b'{"picture": ""}'}, 'no "image"'),
        ({"body": b'{"image": 7}'}, '"image" is 7; a string'),
        ({"body": b'{"image": "aG%k="}'}, "not valid base64"),
        ({"body": b'{"image": "aGk"}'}, "not valid base64"),
        ({"body": '{"image": "caf\u00e9"}'}, "not valid base64"),
        ({"body": b"{" * 100_000}, "not valid JSON"),
        ({"body": b"[" * 100_000}, "not valid JSON"),
        ({"body": "\x89PNG"}, "came as text"),
        ({"data": IMAGE, "treshold": b"1"}, "unknown parameter 'treshold'; known are score_threshold"),
        ({"body": {"image": TEXT, "max_detections": 7}, "max_detections": b"7"}, "given twice"),
        ({"body": {"image": TEXT, "images": []}}, "unknown parameter 'images'"),
    ],
)
def test_a_request_that_cannot_be_understood_is_refused_with_the_reason(
    request_: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        parse_request(request_, DEFAULTS)


@pytest.mark.parametrize(
    "value", ["", b"half", "nan", "inf", "-0.1", 1.5, True, None, [0.5], b"\xff\xfe", "9" * 999]
)
def test_a_threshold_that_is_no_number_from_0_to_1_is_refused_by_name(value: object) -> None:
    with pytest.raises(RequestError, match="score_threshold is .*; a number from 0 to 1"):
        parse_wishes({"score_threshold": value}, DEFAULTS)


@pytest.mark.parametrize("value", [0, -1, 1.5, "2.5", MAX_DETECTIONS + 1, False, "ten", "1e999", 10**400])
def test_a_count_that_is_not_whole_or_out_of_range_is_refused_by_name(value: object) -> None:
    with pytest.raises(
        RequestError, match=f"max_detections is .*; a whole number from 1 to {MAX_DETECTIONS}"
    ):
        parse_wishes({"max_detections": value}, DEFAULTS)


def test_the_ends_of_each_range_are_allowed() -> None:
    assert parse_wishes({"score_threshold": 0, "max_detections": 1}, DEFAULTS) == Wishes(
        score_threshold=0.0, max_detections=1
    )
    assert parse_wishes({"score_threshold": "1", "max_detections": MAX_DETECTIONS}, DEFAULTS) == Wishes(
        score_threshold=1.0, max_detections=MAX_DETECTIONS
    )


def test_every_parameter_is_a_wish() -> None:
    assert set(PARAMETERS) == set(Wishes.__dataclass_fields__)


names = st.sampled_from(["body", "data", "image", "score_threshold", "max_detections", "x"])
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(names, values, max_size=4))
def test_whatever_comes_is_either_understood_or_refused_in_short(request_: dict[str, Any]) -> None:
    try:
        wishes = parse_request(request_, DEFAULTS).wishes
    except RequestError as error:
        message = str(error)
    else:
        message = ""
        assert 0.0 <= wishes.score_threshold <= 1.0
    assert len(message) < 1000
