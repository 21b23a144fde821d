"""Odd or broken HTTP: headers, forms, paths, methods, bodies that do not end.

Among the statuses of a case 0 means that the server hangs up without a word.
"""

import gzip
from collections.abc import Iterator

from tests.hostile.case import (
    ANSWERED,
    BY_SERVER,
    HUNG_UP,
    IMAGE_ERRORS,
    PATH,
    Case,
    field,
    form,
    http,
    refused,
)
from tests.hostile.images import encoded


def cases() -> Iterator[Case]:
    """All of this file."""
    of_heads = (odd_headers, headers_refused, content_types)
    for part in (*of_heads, forms, wrong_forms, wrong_addresses, broken_http, left_open):
        yield from part()


def odd_headers() -> Iterator[Case]:
    """Headers that must change nothing: what TorchServe's own handlers heed, and what ends a worker if sent back."""
    image = encoded("png")
    headers: tuple[tuple[str, str | bytes], ...] = (
        ("describe", "True"), ("Describe", "True"), ("describe", "true"), ("explain", "True"), ("explain", "False"),
        ("x-request-id", "caf\u00e9"), ("x-request-id", b"\xff\xfe"), ("X-Request-Id", "a" * 4_000),
        ("x-request-id", "a\tb"), ("x-request-id", "a%0d%0aSet-Cookie: x=1"), ("traceparent", "00-" + "g" * 32),
        ("traceparent", "\u8ddf\u8e2a"), ("accept-encoding", "gzip;q=nan"), ("accept-encoding", "\u00e9"),
        ("accept", "image/\u00fc"), ("x-request-start", "t=nan"), ("x-request-start", "t=-1e400"),
        ("x-request-start", "t=" + "9" * 500), ("authorization", "Bearer \u00e9"), ("url_path", "../.."),
        ("content-disposition", 'form-data; name="data"'), ("x-forwarded-for", "127.0.0.1"), ("range", "bytes=0-1"),
        ("origin", "null"), ("cookie", "a" * 6_000), ("\u0078-\u00fc", "1"), ("transfer-coding", "chunked"),
        ("content-encoding", "identity"), ("content-language", "\u4e2d"),
    )  # fmt: skip
    for place, (name, value) in enumerate(headers):
        label = f"{place}: {name!a} = {ascii(value)[:30]}"
        # The name in other than ASCII is the server's own matter.
        expect = BY_SERVER if not name.isascii() else ANSWERED
        yield _case("odd header", label, expect, http(image, [(name, value)]), image, statuses=(200, 400, 0))
    several = [(f"x-header-{i}", "v" * 40) for i in range(100)]
    yield _case("odd header", "100 headers", ANSWERED, http(image, several), image)
    both = [("describe", "True"), ("describe", "False"), ("explain", "True")]
    yield _case("odd header", "describe twice and explain", ANSWERED, http(image, both), image)


def headers_refused() -> Iterator[Case]:
    """Headers that say something wrong about the body."""
    image = encoded("png")
    packed = gzip.compress(image, mtime=0)
    for name, body, headers in (
        ("gzip that is not gzip", image, [("content-encoding", "gzip")]),
        ("gzip cut short", packed[:-20], [("content-encoding", "gzip")]),
        ("gzip with more behind", packed + b"x", [("content-encoding", "gzip")]),
        ("an unknown encoding", image, [("content-encoding", "br")]),
        ("an encoding outside ASCII", image, [("content-encoding", "\u00e9")]),
        ("gzip twice", gzip.compress(packed, mtime=0), [("content-encoding", "gzip, gzip")]),
        ("describe without an image", b"", [("describe", "True2")]),
        ("explain without an image", b"", [("explain", "True")]),
    ):
        yield refused("header refused", name, http(body, headers), types=("InvalidRequest", "InvalidImage"))
    bomb = http(gzip.compress(bytes(200 * 2**20), 9, mtime=0), [("content-encoding", "gzip")])
    yield refused("header refused", "gzip that unpacks to 200 MiB", bomb, types=("ImageTooLarge",))


def content_types() -> Iterator[Case]:
    """An image, whatever it is called; but not as a form."""
    image = encoded("png")
    usual = ("image/jpeg", "text/html", "text/plain; charset=utf-16", "video/mp4")
    for kind in (*usual, "", "\u56fe/\u50cf", "a" * 2_000):
        wire = http(image, [("Content-Type", kind)])
        yield _case("content type", ascii(kind)[:40], ANSWERED, wire, image)
    for kind in ("application/json", "application/cloudevents+json", "APPLICATION/JSON; charset=x"):
        wire = http(image, [("Content-Type", kind)])
        yield refused("content type", f"{kind} for a PNG", wire)
    whole = "multipart/form-data"
    for kind in (whole, f"{whole}; boundary=", "multipart/mixed; boundary=x", "multipart/"):
        wire = http(image, [("Content-Type", kind)])
        yield _by_server("content type", f"{kind} for a PNG", wire, (200, 400, 500, 503))


def forms() -> Iterator[Case]:
    """Bodies said to be urlencoded: curl -d sends them so."""
    image = encoded("png")
    for name, body in (
        ("a field", b"score_threshold=0.5"),
        ("an image's bytes", image),
        ("data as text", b"data=abc"),
        ("5000 fields", b"a&" * 5_000),
        ("5000 different fields", b"&".join(b"a%d=1" % i for i in range(5_000))),
        ("empty", b""),
        ("a wrong escape", b"a=%zz"),
        ("a cut escape", b"a=%"),
        ("a NUL", b"a=%00&%00=b"),
        ("outside ASCII", "n\u00e4me=\u50cf".encode()),
        ("a long name", b"a" * 100_000),
        ("equals signs", b"=" * 1_000),
        ("ampersands", b"&" * 1_000),
    ):
        wire = http(body, [("Content-Type", "application/x-www-form-urlencoded")])
        # What cannot be taken apart TorchServe refuses by itself; the proxy refuses all of them.
        yield _by_server("urlencoded", name, wire, (400, 500))


def wrong_forms() -> Iterator[Case]:
    """Multipart that is broken, or holds something else."""
    image = encoded("png")
    good, headers = form((field("data", "a.png"), image))
    cut, _ = form((field("data", "a.png"), image), end=False)
    other = [("Content-Type", "multipart/form-data; boundary=another")]
    kind, encoding = "\r\nContent-Type: ", field("data") + "\r\nContent-Transfer-Encoding: "
    for name, body, with_headers in (
        ("another boundary", good, other),
        ("a preamble", b"preamble\r\n" + good, headers),
        ("no end", cut, headers),
        ("cut in the image", good[: len(good) // 2], headers),
        ("cut in the head", good[:30], headers),
        ("a boundary alone", b"--b0undary--\r\n", headers),
        ("nothing", b"", headers),
        ("no blank line", good.replace(b"\r\n\r\n", b"\r\n", 1), headers),
        ("no name", *form(("Content-Disposition: form-data", image))),
        ("an empty name", *form((field(""), image))),
        ("no disposition", *form(("X: y", image))),
        ("another field", *form((field("image"), image))),
        ("a parameter alone", *form((field("score_threshold"), b"0.5"))),
        ("an empty image", *form((field("data"), b""))),
        ("text for an image", *form((field("data"), b"not an image"))),
        ("an image twice", *form((field("data"), image * 3), (field("data"), image * 3))),
        ("a body and an image", *form((field("body"), image), (field("data"), image))),
        ("data1 and data_1", *form((field("data1"), image), (field("data_1"), image))),
        ("9 images", *form(*((field(f"data_{i}"), image) for i in range(9)))),
        ("2000 parts", *form(*((field(f"f{i}"), b"x") for i in range(2_000)))),
        ("a name outside ASCII", *form((field("d\u00e4ta"), image))),
        ("a name of 5000 letters", *form((field("n" * 5_000), image))),
        ("a head of 20000 letters", *form((field("data") + "\r\nX: " + "y" * 20_000, b"x"))),
        ("base64 as a transfer encoding", *form((encoding + "base64", b"!!!"))),
        ("another charset", *form((field("score_threshold") + kind + "text/plain; charset=none", b"1"))),
        ("a boundary of 70 letters", *form((field("nodata"), image), boundary="b" * 70)),
        ("a boundary outside ASCII", good, [("Content-Type", "multipart/form-data; boundary=\u00e9")]),
    ):
        # TorchServe refuses some of them before the handler sees them, with 400, 500 or 503 of its own.
        yield _by_server("broken multipart", name, http(body, with_headers), (400, 413, 500, 503))
    bare = b"--b0undary\n" + field("data").encode() + b"\n\n" + image + b"\n--b0undary--\n"
    for name, body, with_headers in (
        ("line feeds alone", bare, headers),
        (
            "a boundary in a part's head",
            *form((field("data") + kind + "multipart/form-data; boundary=2", image)),
        ),
        ("an unknown transfer encoding", *form((encoding + "x", image))),
        ("an epilogue", good + b"epilogue", headers),
    ):
        yield _case("odd multipart", name, ANSWERED, http(body, with_headers), image)


def wrong_addresses() -> Iterator[Case]:
    """Paths and methods that are not there."""
    image = encoded("png")
    for path in (
        "/", "/predictions", "/predictions/", "/predictions/unknown", "/predictions/maskx/9.9", "/predictions/%00",
        "/predictions/..%2f..%2fetc%2fpasswd", "/predictions/m\u00e4skx", "/v1/models/unknown:predict",
        "/v1/models/maskx", "/v2/models/unknown/infer", "/models", "/models/maskx/9.9/invoke", "/wfpredict/none",
        "/explanations/unknown", "//", "/../../etc/passwd", "/predictions/maskx%20", "/" + "a" * 3_000,
        "/" + "b" * 9_000,
        "/predictions/unknown?" + "q=1&" * 1_000, "http://example.com/", "*", "/token",
    ):  # fmt: skip
        statuses = (400, 403, 404, 405, 414, 500, 503)
        yield _by_server("wrong path", ascii(path)[:40], http(image, path=path), statuses)
    # TorchServe predicts whatever the method; the proxy lets POST and PUT through.
    for method in ("DELETE", "PATCH", "TRACE", "CONNECT", "BREW", "post", "OPTION", "PUT", "GET"):
        yield _case("wrong method", method, ANSWERED, http(image, method=method), image)
    for method in ("HEAD", "G\u00c9T", "OPTIONS", "P" * 5_000):
        yield _by_server("wrong method", ascii(method)[:40], http(image, method=method), (200, 400, 405))
    for method in ("GET", "PUT"):
        types = ("InvalidRequest", *IMAGE_ERRORS)
        yield refused("wrong method", f"{method} without a body", http(method=method), types=types)
    yield _case("wrong method", "explanations", ANSWERED, http(image, path="/explanations/maskx"), image)


def broken_http() -> Iterator[Case]:
    """Requests that are not HTTP, or two of them in one."""
    image = encoded("png")
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\n".encode()
    chunked, no_body = head + b"Transfer-Encoding: chunked\r\n\r\n", b"\r\nContent-Length: 0\r\n\r\n"
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
    for name, wire, statuses in (
        ("a header of 9000 letters", http(image, [("x", "y" * 9_000)]), (400, 431, 0)),
        ("1000 headers", http(image, [(f"x{i}", "y" * 20) for i in range(1_000)]), (400, 431, 0)),
        ("a name of 9000 letters", http(image, [("x" * 9_000, "y")]), (400, 431, 0)),
        ("a line feed in a value", head + b"x: a\nb" + no_body, (400, 0)),
        ("a carriage return in a value", head + b"x: a\rb" + no_body, (400, 0)),
        ("a folded header", head + b"x: a\r\n b" + no_body, (400, 0)),
        ("a NUL in a value", head + b"x: a\0b" + no_body, (400, 0)),
        ("a NUL in a name", head + b"x\0y: a" + no_body, (400, 0)),
        ("a space before the colon", head + b"x : a" + no_body, (400, 0)),
        ("a header without a colon", head + b"nothing" + no_body, (400, 0)),
        ("a header without a name", head + b": a" + no_body, (400, 0)),
        ("a negative length", head + b"Content-Length: -1\r\n\r\n", (400, 0)),
        ("a length that is no number", head + b"Content-Length: ten\r\n\r\n", (400, 0)),
        ("a length of 10^30", head + b"Content-Length: 1" + b"0" * 30 + b"\r\n\r\n", (400, 413, 0)),
        ("a length above the limit", head + b"Content-Length: 40000000\r\n\r\n", (413,)),
        ("a body above the limit", http(bytes(34 * 2**20)), (413, 0)),
        ("two lengths", head + b"Content-Length: 0\r\nContent-Length: 5\r\n\r\nhello", (400, 0)),
        ("chunks that are not chunks", chunked + b"zz\r\nhello\r\n0\r\n\r\n", (400, 0)),
        ("a chunk of 10^15", chunked + b"38D7EA4C68000\r\nx", (400, 408, 413, 0)),
        ("a negative chunk", chunked + b"-5\r\nhello\r\n0\r\n\r\n", (400, 0)),
        ("a transfer encoding twice", head + b"Transfer-Encoding: x" + no_body, (400, 411, 501, 0)),
        ("HTTP/0.9", f"GET {PATH}\r\n\r\n".encode(), (400, 404, 405, 0)),
        ("HTTP/3.7", f"POST {PATH} HTTP/3.7\r\nContent-Length: 0\r\n\r\n".encode(), (400, 505, 0)),
        ("HTTP/2 without asking", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400, 404, 405, 500, 0)),
        ("TLS", hello + bytes(200) + b"\r\n\r\n", (400, 404, 405, 0)),
        ("no HTTP", b"hello\r\n\r\n", (400, 404, 405, 0)),
        ("bytes", bytes(range(256)) * 4 + b"\r\n\r\n", (400, 404, 405, 0)),
        ("no request line", b"\r\n\r\n\r\nHost: x\r\n\r\n", (400, 404, 405, 0)),
        ("an expectation", head + b"Expect: 100-what" + no_body, (400, 417)),
    ):
        yield _by_server("broken HTTP", name, wire, statuses)


def left_open() -> Iterator[Case]:
    """Clients that leave: in the head, in the body, before the answer."""
    image = encoded("png")
    whole = http(image)
    for name, wire in (
        ("nothing sent", b""),
        ("half a head", whole[:30]),
        ("half a body", whole[: len(whole) // 2]),
        ("all but the last byte", whole[:-1]),
        ("a whole request", whole),
        ("half a chunk", f"POST {PATH} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n50\r\nab".encode()),
        ("half a form", http(*form((field("data"), image)))[:-40]),
    ):
        yield Case(group="client leaves", name=name, expect=HUNG_UP, wire=wire)


def _case(
    group: str, name: str, expect: str, wire: bytes, image: bytes, *, statuses: tuple[int, ...] = ()
) -> Case:
    return Case(group=group, name=name, expect=expect, wire=wire, image=image, statuses=statuses)


def _by_server(group: str, name: str, wire: bytes, statuses: tuple[int, ...]) -> Case:
    return Case(group=group, name=name, expect=BY_SERVER, wire=wire, statuses=statuses)
