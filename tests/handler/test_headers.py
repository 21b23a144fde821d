"""HTTP headers as clients and proxies write them."""

import gzip

import pytest

from maskx_answer import compressed
from maskx_request import accepts_gzip, header, queue_seconds


@pytest.mark.parametrize(
    ("value", "accepts"),
    [
        ("gzip", True),
        ("deflate, GZIP ; Q=0.2, br", True),
        ("*", True),
        ("x-gzip", True),
        ("gzip;q=0", False),
        ("*, gzip;q=0.000", False),
        ("gzip;q=high", False),
        ("gzipped, deflate", False),
        ("identity", False),
        ("", False),
    ],
)
def test_gzip_is_accepted_where_the_standard_says_so(value: str, accepts: bool) -> None:
    assert accepts_gzip({"Host": "a", "ACCEPT-encoding": value}) is accepts


def test_no_header_accepts_nothing_and_a_part_of_a_form_is_no_header() -> None:
    assert not accepts_gzip({"Host": "a"})
    assert header({"accept-encoding": {"content-type": "gzip"}}, "accept-encoding") == ""


def test_the_same_body_is_compressed_to_the_same_bytes() -> None:
    body = b"a long answer " * 1000
    assert compressed(body) == compressed(body)
    assert gzip.decompress(compressed(body)) == body


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("t=1000.250", 0.5),
        ("t=1000", 0.75),
        ("t=1001.5", 0.0),  # the proxy's clock is a little ahead
        ("t=1005", None),
        ("t=1", None),
        ("t=1000.25, t=1000.5", None),
        ("1000.25", None),
        ("t=nan", None),
        ("t=-1", None),
        ("", None),
    ],
)
def test_the_time_in_the_queue_is_since_the_proxy_took_the_request(value: str, seconds: float | None) -> None:
    now = 1000.75 if value != "t=1" else 10_000.0
    assert queue_seconds({"X-Request-Start": value}, now) == seconds
