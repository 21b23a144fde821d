"""HTTP as it comes in: connections with time-outs of their own, and forms taken apart as TorchServe does.

uvicorn bounds an idle connection alone; here the head of a request has a time too, and what is no HTTP is refused in
the form of every other error.
"""

import asyncio
import contextlib
import re
import ssl
from collections.abc import Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any

import h11
import uvicorn
import uvloop
from uvicorn.protocols.http.h11_impl import H11Protocol

from .answers import Refusal

HEAD_SECONDS = 10.0
"""That the whole head of a request may take."""
IDLE_SECONDS = 60
"""That a connection may stay open between two requests."""
HEAD_BYTES = 8192
"""Of the whole head, as with TorchServe."""
SPELLED = "maskx.spelled"
"""In a request's scope: its headers as the client spelled them; ASGI has their names in lower case."""


class _Connection(h11.Connection):
    """Keeps the last request's headers as they were spelled, and the status that h11 has for an error."""

    spelled: list[tuple[bytes, bytes]]
    hint = 400

    def next_event(self) -> Any:
        """As h11 has it."""
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            self.hint = error.error_status_hint
            raise
        if isinstance(event, h11.Request):
            self.spelled = event.headers.raw_items()
        return event


class Protocol(H11Protocol):
    """uvicorn's protocol for HTTP/1.1, with a time for the head and errors in the project's form."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.conn = self._connection = connection = _Connection(
            h11.SERVER, max_incomplete_event_size=HEAD_BYTES
        )
        self._head: asyncio.TimerHandle | None = None
        inner = self.app

        async def app(scope: Any, receive: Any, send: Any) -> None:
            scope[SPELLED] = connection.spelled
            await inner(scope, receive, send)

        self.app = app

    def connection_made(self, transport: Any) -> None:
        """As uvicorn has it; the first head is waited for."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """As uvicorn has it; a head that has begun must end in time."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """As uvicorn has it; where the next head has begun already, it must end in time."""
        super().on_response_complete()
        if self.conn.trailing_data[0] and not self.transport.is_closing():
            self._unset_keepalive_if_required()
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """As uvicorn has it."""
        super().connection_lost(exc)
        self._forget()

    def send_400_response(self, msg: str) -> None:
        """For what is no HTTP, or not as it should be."""
        known = {
            431: head_too_long(),
            501: Refusal(501, "NotImplemented", "this Transfer-Encoding is not known; chunked is"),
        }
        other = Refusal(400, "BadRequest", "this is not HTTP/1.1 as it should be")
        self._refuse(known.get(self._connection.hint, other))

    def timeout_keep_alive_handler(self) -> None:
        """As uvicorn has it; who has not even taken the last answer is not waited for."""
        super().timeout_keep_alive_handler()
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def _watch(self) -> None:
        waits = self.cycle is None or self.cycle.response_complete
        if not waits:
            self._forget()
        elif self._head is None and self.timeout_keep_alive_task is None:
            self._head = self.loop.call_later(HEAD_SECONDS, self._too_late)

    def _forget(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _too_late(self) -> None:
        self._head = None
        if not self.transport.is_closing():
            self._refuse(Refusal(408, "BadRequest", f"the head was not sent within {HEAD_SECONDS:g} s"))

    def _refuse(self, refusal: Refusal) -> None:
        """Answers by itself, and closes the connection."""
        body = refusal.body()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        with contextlib.suppress(h11.LocalProtocolError):  # an answer is under way already
            head = h11.Response(status_code=refusal.status, headers=headers, reason=b"")
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def run(whole: Coroutine[Any, Any, None]) -> None:
    """Runs it to its end on uvloop, where one client is answered sooner than on asyncio's loop (docs/servers.md)."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(whole)


class Listener(uvicorn.Server):
    """One of the front's HTTP servers; signals are the front's own matter."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """None."""
        yield


def listener(app: Any, host: str, port: int, *, tls: tuple[Path, Path] | None = None) -> Listener:
    """A server of `app` that is not yet started. `tls`: files of certificate and key."""
    files = {"ssl_certfile": tls[0], "ssl_keyfile": tls[1]} if tls else {}
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=IDLE_SECONDS,
        backlog=1024,
        **files,  # type: ignore[arg-type]
    )
    config.load()
    if config.ssl is not None:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    return Listener(config)


def head_too_long() -> Refusal:
    """Of a request whose head has more than HEAD_BYTES."""
    return Refusal(431, "HeadersTooLarge", f"the head of a request may have {HEAD_BYTES} bytes")


def is_form(content_type: str) -> bool:
    """Whether a body is taken apart as a form: what TorchServe takes for one, in small letters and with a boundary."""
    return content_type.startswith("multipart/form-data") and boundary_of(content_type) != ""


def boundary_of(content_type: str) -> str:
    """The boundary that a Content-Type names, '' where it names none."""
    found = re.search(r';\s*boundary=("([^"]*)"|[^;,\s]*)', content_type, re.IGNORECASE)
    if found is None:
        return ""
    return found[2] if found[2] is not None else found[1]


def fields_of(body: bytes, content_type: str) -> Mapping[str, bytes]:
    """The fields of a form by name, the last of each; none at all where anything of it is not as it should be.

    The handler then says that the form cannot be read. Lines may end in a line feed alone; what follows the last
    boundary is left alone.
    """
    mark = re.escape(b"--" + boundary_of(content_type).encode("latin-1"))
    first = re.match(mark + rb"\r?\n", body)
    if first is None:
        return {}
    fields: dict[str, bytes] = {}
    at, between = first.end(), re.compile(rb"\r?\n" + mark + rb"(--|\r?\n)")
    while (end := between.search(body, at)) is not None:
        head = re.compile(rb"(?:[^\r\n]+\r?\n)+\r?\n").match(body, at)
        name = _name_in(head[0]) if head is not None and head.end() <= end.end() else ""
        if head is None or not name:
            return {}
        fields[name] = body[head.end() : max(end.start(), head.end())]
        if end[1] == b"--":
            return fields
        at = end.end()
    return {}


def _name_in(head: bytes) -> str:
    """The name of a part's field, '' where it has none."""
    for line in head.decode("utf-8", errors="replace").splitlines():
        kind, _, value = line.partition(":")
        if kind.strip().lower() == "content-disposition":
            found = re.search(r';\s*name=("([^"]*)"|[^;\s]*)', value, re.IGNORECASE)
            if found is not None:
                return found[2] if found[2] is not None else found[1]
    return ""
