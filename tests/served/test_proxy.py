"""The proxy's routes, secrets and errors, with the real nginx and a server in TorchServe's place."""

import re
import socket
from collections.abc import Iterator

import pytest

from export.archive import ROOT
from tests.served.nginx import HEAD, MANY, SECRET, Proxy, Reply, proxy, reply_of, wait_until
from tests.served.upstream import Answer, Upstream

pytestmark = pytest.mark.usefixtures("fresh")
HANDLERS_400 = b'{"error":{"code":400,"type":"InvalidImage","message":"not an image: \xc3\xa9"}}'


@pytest.fixture(scope="module")
def front(behind: Upstream) -> Iterator[Proxy]:
    with proxy(INFERENCE=behind.address, READINESS=behind.address, MAX_BODY="100000") as made:
        yield made


@pytest.mark.parametrize(
    "path",
    [
        "/predictions/maskx",
        "/predictions/maskx/1.0",
        "/predictions/other_model-2.x",
        "/v1/models/maskx:predict",
        "/v2/models/maskx/infer",
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_an_image_reaches_the_same_path_of_torchserve_and_its_answer_comes_back(
    front: Proxy, behind: Upstream, path: str, method: str
) -> None:
    image = bytes(range(256)) * 300
    behind.answer = lambda _: Answer(200, image, {"content-type": "image/png", "x-own": "kept"})
    reply = front.ask(method, path, image, {"Content-Type": "image/jpeg", "score_threshold": "0.25"})
    assert (reply.status, reply.body) == (200, image)
    assert reply.headers["content-type"] == "image/png" and reply.headers["x-own"] == "kept"
    (seen,) = behind.seen
    assert (seen.method, seen.path, seen.body) == (method, path, image)
    assert seen.headers["content-type"] == "image/jpeg" and seen.headers["score_threshold"] == "0.25"


def test_torchserve_sees_neither_the_secret_nor_headers_that_mark_its_own_calls(
    front: Proxy, behind: Upstream
) -> None:
    own = {"Describe": "True", "EXPLAIN": "True", "url_path": "x"}
    front.ask(headers={**own, "X-Request-Start": "t=1", "Connection": "close"})
    (seen,) = behind.seen
    kept_back = {"authorization", "describe", "explain", "url_path", "connection", "content-type"}
    assert not kept_back & set(seen.headers)
    assert SECRET not in str(seen)
    assert re.fullmatch(r"t=1\d{9}\.\d{3}", seen.headers["x-request-start"]), seen


def test_a_request_id_and_a_traceparent_pass_where_they_are_ones(front: Proxy, behind: Upstream) -> None:
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    behind.answer = lambda _: Answer(headers={"x-request-id": "torchserve's own"})
    reply = front.ask(headers={"X-Request-Id": "mine-1", "traceparent": trace})
    odd = front.ask(headers={"X-Request-Id": "not one\t", "traceparent": "00-zz"})
    assert reply.headers["x-request-id"] == "mine-1" == behind.seen[0].headers["x-request-id"]
    assert behind.seen[0].headers["traceparent"] == trace and "traceparent" not in behind.seen[1].headers
    assert re.fullmatch("[0-9a-f]{32}", odd.headers["x-request-id"])
    assert behind.seen[1].headers["x-request-id"] == odd.headers["x-request-id"]


TORCHSERVES_OWN = b'{\n  "code": 500,\n  "type": "InternalServerException",\n  "message": "Worker died."\n}\n'
FORM_NOT_READ = b'{\n  "code": 500,\n  "type": "ErrorDataDecoderException",\n  "message": "..."\n}\n'
A_FORM = {"Content-Type": "multipart/form-data; boundary=x"}


@pytest.mark.parametrize("status", [400, 422])
def test_the_handlers_errors_pass_byte_for_byte(front: Proxy, behind: Upstream, status: int) -> None:
    behind.answer = lambda _: Answer(status, HANDLERS_400)
    reply = front.ask()
    assert (reply.status, reply.body) == (status, HANDLERS_400)


@pytest.mark.parametrize(
    ("answer", "sent", "status", "kind", "named"),
    [
        (Answer(404, TORCHSERVES_OWN), {}, 404, "NotFound", {}),
        (Answer(405, TORCHSERVES_OWN), {}, 405, "MethodNotAllowed", {"allow": "POST, PUT"}),
        (Answer(413, TORCHSERVES_OWN), {}, 413, "RequestTooLarge", {}),
        (Answer(500, TORCHSERVES_OWN), {}, 500, "WorkerDied", {}),
        (Answer(502, TORCHSERVES_OWN), {}, 502, "Unreachable", {}),
        (Answer(503, TORCHSERVES_OWN), {}, 503, "Busy", {"retry-after": "1"}),
        (Answer(504, TORCHSERVES_OWN), {}, 504, "Timeout", {}),
        # TorchServe's 507 is a worker that died.
        (Answer(507, TORCHSERVES_OWN.replace(b"500", b"507")), {}, 500, "WorkerDied", {}),
        # A form that TorchServe fails on is the client's fault; a worker that dies with one in hand is not.
        (Answer(500, FORM_NOT_READ, {}), A_FORM, 400, "BadRequest", {}),
        (Answer(500, TORCHSERVES_OWN, {}), A_FORM, 500, "WorkerDied", {}),
        # What the handler answers with one of these statuses keeps its type.
        (Answer(500, FORM_NOT_READ, {"x-error-type": "InternalError"}), A_FORM, 500, "InternalError", {}),
        (Answer(500, HANDLERS_400, {"x-error-type": "InternalError"}), {}, 500, "InternalError", {}),
        (
            Answer(503, HANDLERS_400, {"x-error-type": "Restarting"}), {}, 503, "Restarting",
            {"retry-after": "1"},
        ),
        (Answer(507, HANDLERS_400, {"x-error-type": "OutOfMemory"}), {}, 507, "OutOfMemory", {}),
    ],
)  # fmt: skip
def test_torchserves_own_errors_get_the_handlers_form_and_the_handlers_keep_their_type(
    front: Proxy,
    behind: Upstream,
    answer: Answer,
    sent: dict[str, str],
    status: int,
    kind: str,
    named: dict[str, str],
) -> None:
    behind.answer = lambda _: answer
    reply = front.ask(headers={**sent, "X-Request-Id": "mine"})
    assert (reply.status, reply.error()["type"]) == (status, kind)
    assert {name: reply.headers[name] for name in ("retry-after", "allow") if name in reply.headers} == named
    assert reply.headers["x-request-id"] == "mine" and "x-error-type" not in reply.headers
    assert b"Worker died." not in reply.body
    (seen,) = behind.seen  # nothing that was answered is asked again
    assert seen.path == "/predictions/maskx"


def refused(reply: Reply, behind: Upstream) -> tuple[int, str]:
    """Status and type of an error for which TorchServe was not asked."""
    assert behind.seen == []
    return reply.status, reply.error()["type"]


@pytest.mark.parametrize(
    "secret",
    [None, "", SECRET[:-1], SECRET + "x", SECRET.upper(), SECRET.replace(".", "x"), "*", f"{SECRET} x"],
)
def test_without_the_very_secret_nothing_is_answered_but_401(
    front: Proxy, behind: Upstream, secret: str | None
) -> None:
    reply = front.ask(secret=secret)
    assert refused(reply, behind) == (401, "Unauthenticated")
    assert reply.headers["www-authenticate"] == 'Bearer realm="maskx"'


def test_the_scheme_is_bearer_in_any_case_and_no_other(front: Proxy) -> None:
    statuses = [
        front.ask(secret=None, headers={"Authorization": f"{scheme} {SECRET}"}).status
        for scheme in ("Bearer", "bearer", "BEARER", "Basic", "XBearer", "Bearer x")
    ]
    assert statuses == [200, 200, 200, 401, 401, 401]


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS", "PATCH", "TRACE", "ODD"])
def test_other_methods_are_405(front: Proxy, behind: Upstream, method: str) -> None:
    reply = front.ask(method, body=b"")
    assert reply.status == 405 and behind.seen == []
    if method == "TRACE":  # nginx refuses it before it looks at the path
        return
    assert reply.headers["allow"] == "POST, PUT"
    assert method == "HEAD" or reply.error()["type"] == "MethodNotAllowed"


@pytest.mark.parametrize(
    "content_type",
    [
        "application/x-www-form-urlencoded",
        "application/x-www-form-urlencoded;a=b",
        "Application/X-WWW-Form-URLencoded; charset=utf-8",
        " application/x-www-form-urlencoded ;",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        "multipart/form-data; boundary=" + "b" * 71,
        "multipart/form-data; boundary=x; boundary=y",
        "multipart/mixed; boundary=x",
        "MULTIPART/x",
    ],
)
def test_a_body_for_torchserves_form_decoder_is_415_before_it_is_sent(
    front: Proxy, behind: Upstream, content_type: str
) -> None:
    """No byte of the body is sent here, and no 100 Continue asks for one."""
    head = f"{HEAD}Content-Type: {content_type}\r\nContent-Length: 90000\r\nExpect: 100-continue\r\n\r\n"
    with socket.create_connection(("127.0.0.1", front.port), timeout=30) as connection:
        connection.sendall(head.encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 415 ")
    assert refused(front.ask(headers={"Content-Type": content_type}), behind) == (415, "UnsupportedMediaType")


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data; boundary=------------------------d74496d66958873e",
        "Multipart/Form-Data;boundary=----WebKitFormBoundary7MA4YWxkTrZu0gW",
        'multipart/form-data; boundary="a b:c=d"; charset=utf-8',
        "application/json; charset=utf-8",
        "application/octet-stream",
        "text/plain",
    ],
)
def test_the_types_that_clients_send_pass_unchanged(
    front: Proxy, behind: Upstream, content_type: str
) -> None:
    assert front.ask(headers={"Content-Type": content_type}).status == 200
    assert behind.seen[0].headers["content-type"] == content_type


def test_a_second_content_type_never_reaches_torchserve(front: Proxy, behind: Upstream) -> None:
    front.raw(
        f"{HEAD}Connection: close\r\nContent-Type: image/png\r\n"
        "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 1\r\n\r\nx".encode()
    )
    assert all(seen.headers.get("content-type") == "image/png" for seen in behind.seen)


@pytest.mark.parametrize(
    ("path", "headers", "status", "kind", "said"),
    [
        ("/predictions/" + "m" * 3000, {}, 414, "AddressTooLong", ""),
        # TorchServe would drop it.
        ("/predictions/maskx?score_threshold=0.9", {}, 400, "BadRequest", "query"),
        ("/predictions/maskx", {"x-long": "v" * 3000}, 431, "HeadersTooLarge", ""),
        ("/predictions/maskx", {f"x-{i}": "v" * 1500 for i in range(6)}, 431, "HeadersTooLarge", ""),
        ("/predictions/maskx", {"Transfer-Encoding": "gzip"}, 501, "NotImplemented", ""),
    ],
)
def test_heads_that_torchserve_could_not_take_end_here(
    front: Proxy, behind: Upstream, path: str, headers: dict[str, str], status: int, kind: str, said: str
) -> None:
    reply = front.ask(path=path, body=b"", headers=headers)
    assert refused(reply, behind) == (status, kind) and said in reply.error()["message"]


def test_a_body_above_the_limit_is_413_with_or_without_a_length(front: Proxy, behind: Upstream) -> None:
    assert front.ask(body=b"x" * 100000).status == 200
    behind.seen.clear()
    assert refused(front.ask(body=b"x" * 100001), behind) == (413, "RequestTooLarge")
    connection = front.connect()
    connection.request(
        "POST",
        "/predictions/maskx",
        body=iter([b"x" * 60000] * 2),
        headers={"Authorization": f"Bearer {SECRET}", "Transfer-Encoding": "chunked"},
        encode_chunked=True,
    )
    reply = reply_of(connection)
    assert refused(reply, behind) == (413, "RequestTooLarge") and "100000 bytes" in reply.error()["message"]


def test_a_broken_chunk_is_400_in_the_handlers_form_and_whole_ones_arrive_joined(
    front: Proxy, behind: Upstream
) -> None:
    head = f"{HEAD}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n".encode()
    assert front.raw(head + b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n").startswith(b"HTTP/1.1 200 ")
    (seen,) = behind.seen
    assert seen.body == b"abcde" and "transfer-encoding" not in seen.headers
    broken = front.raw(head + b"3\r\nabcdefgh")
    assert broken.startswith(b"HTTP/1.1 400 ") and b'{"error":{"code":400,"type":"BadRequest",' in broken
    assert len(behind.seen) == 1


def test_an_address_that_is_not_allowed_is_403_even_with_the_secret(behind: Upstream) -> None:
    with proxy(INFERENCE=behind.address, ALLOW="10.0.0.0/8 ::1") as made:
        assert refused(made.ask("GET", "/ready", b""), behind) == (403, "Forbidden")


def test_more_requests_than_the_rate_allows_are_429_and_say_when_to_come_again(behind: Upstream) -> None:
    with proxy(INFERENCE=behind.address, RATE="1", BURST="2") as made:
        replies: list[Reply] = [made.ask()]
        while replies[-1].status == 200 and len(replies) < MANY:
            replies.append(made.ask())
    *allowed, refused = replies
    assert len(allowed) >= 3
    assert (refused.status, refused.error()["type"]) == (429, "TooManyRequests")
    assert refused.headers["retry-after"] == "1"


def test_a_server_that_is_not_there_is_502_and_one_that_is_silent_504(behind: Upstream) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with proxy(INFERENCE=address, READINESS=address, ANSWER_TIMEOUT="1s") as made:
            reply = made.ask()
            assert (reply.status, reply.error()["type"]) == (504, "Timeout")
            silent.close()
            for reply in (made.ask(), made.ask("GET", "/ready", b"")):
                assert (reply.status, reply.error()["type"]) == (502, "Unreachable")


OTHER_PATHS = """
/ping /models /models/maskx /models/maskx/invoke /invocations /explanations/maskx /wfpredict/x
/workflows /metrics /api-description /token /predictions /predictions/ /predictions/maskx/1.0/extra
/v1/models/maskx:explain /v1/models/maskx /v2/models/maskx/explain /v2/health/ready /_error
/_grpc/401 /_own/500 /_nowhere /js /js/ /js/page/ /js/nothing.js /js/package.json /js/page/index.html /index.html
/org.pytorch.serve.grpc.management.ManagementAPIsService/RegisterModel
"""


@pytest.mark.parametrize("path", OTHER_PATHS.split())
def test_every_other_path_is_404(front: Proxy, behind: Upstream, path: str) -> None:
    for method in ("GET", "POST"):
        assert refused(front.ask(method, path, b""), behind) == (404, "NotFound")


def test_readiness_passes_as_it_is_without_a_secret_and_nothing_else_of_its_server(
    front: Proxy, behind: Upstream
) -> None:
    answers = {"/ready": Answer(503, b'{"ready":false}'), "/live": Answer(200, b'{"live":true}')}
    behind.answer = lambda seen: answers[seen.path]
    for path, expected in answers.items():
        reply = front.ask("GET", path, b"", {"x-mine": "1"}, secret=None)
        assert (reply.status, reply.body) == (expected.status, expected.body)
        assert "x-mine" not in behind.seen[-1].headers
    reply = front.ask("POST", "/ready", b"")
    assert reply.error()["type"] == "MethodNotAllowed" and reply.headers["allow"] == "GET, HEAD"


def test_a_kept_connection_that_closes_loses_no_request(front: Proxy, behind: Upstream) -> None:
    """TorchServe says `connection: close` with every error; here even a connection that closes without a word."""
    behind.answer = lambda seen: Answer(503) if seen.body == b"busy" else Answer(hang_up=seen.body == b"last")
    connection = front.connect()
    statuses = [
        front.ask(body=body, over=connection).status for body in (b"", b"busy", b"last", b"next") * 25
    ]
    connection.close()
    assert statuses == [200, 503, 200, 200] * 25
    assert [seen.body for seen in behind.seen] == [b"", b"busy", b"last", b"next"] * 25


def test_a_request_during_which_the_server_hangs_up_on_a_new_connection_is_not_sent_again(
    behind: Upstream,
) -> None:
    """It may be what made it hang up."""
    behind.answer = lambda _: None
    with proxy(INFERENCE=behind.address) as made:
        assert made.ask().status == 502
    assert len(behind.seen) == 1


def test_the_log_has_times_and_the_clients_name_and_no_secret(front: Proxy, behind: Upstream) -> None:
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    front.ask(path="/predictions/logged", headers={"X-Request-Id": "logged-1", "traceparent": trace})
    front.ask(path=f"/predictions/logged?token={SECRET}", headers={"X-Request-Id": "logged-2"})
    front.ask(path="/predictions/logged", headers={"X-Request-Id": "logged-3"}, secret=f"{SECRET}x")
    wait_until(lambda: any(entry["request_id"] == "logged-3" for entry in front.log()))
    entries = {entry["request_id"]: entry for entry in front.log()}
    first = entries["logged-1"]
    assert (first["client"], first["path"], first["status"]) == ("somebody", "/predictions/logged", 200)
    # Both clocks tick in milliseconds and start apart: neither bounds the other.
    assert first["seconds"] >= 0 and float(first["upstream_seconds"]) >= 0
    assert first["upstream_status"] == "200"
    assert entries["logged-2"]["path"] == "/predictions/logged" and entries["logged-3"]["client"] == ""
    assert SECRET not in (front.folder / "run" / "access.log").read_text()


def test_the_readme_has_every_error_of_the_proxy_with_its_message() -> None:
    errors = (ROOT / "deploy" / "nginx" / "errors.conf").read_text()
    rows = re.findall(
        r"^\| (\d{3}) \| `(\w+)` \|", (ROOT / "deploy" / "nginx" / "README.md").read_text(), re.MULTILINE
    )
    declared = re.findall(r'^    "~\^(\d{3}):(?:\w+\$)?" +"(\w+)";$', errors, re.MULTILINE)
    assert declared and sorted(rows) == sorted(declared)
    messages = set(re.findall(r'^    ([A-Za-z]+) +"[^"]*[a-z ]{9,}[^"]*";$', errors, re.MULTILINE))
    assert {kind for _, kind in declared} | {"default"} == messages
