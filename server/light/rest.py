"""REST: a request at one of the addresses that TorchServe answers -> what the handler gets -> the answer; and the
addresses of the Open Inference Protocol, of KServe's v1 and of whoever watches the server.

A body reaches the handler as it was sent, under `body`; a form's fields by their names; headers as they were spelled.
"""

import asyncio
import contextlib
import json
import logging
import time
import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..docs_page import POLICY, documentation_page
from ..page import HEADERS, files
from ..settings import CORS_HEADERS, CORS_METHODS, MODEL
from .answers import REFUSALS, Answered, Refusal
from .models import Models
from .operators import Meters, metrics_app
from .wire import HEAD_BYTES, SPELLED, fields_of, head_too_long, is_form

BODY_SECONDS = 10.0
"""Between two reads of a body, at most."""
JSON = "application/json"
EXTENSIONS = ["binary_tensor_data"]
PLATFORM = "pytorch_torchscript"
TENSORS = {"inputs": "image", "outputs": "detections"}
"""The tensors of the Open Inference Protocol: image files in, JSON of one result each out; both BYTES of any number."""

access = logging.getLogger("maskx.light.access")


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


class Predict:
    """A prediction, whatever the method, as with TorchServe; an application of ASGI.

    max_request_size: bytes of a body. by_query: whether the query's names go to the handler, as at the addresses where
    TorchServe hands them on.
    """

    def __init__(self, models: Models, max_request_size: int, *, by_query: bool = False) -> None:
        self._models = models
        self._most = max_request_size
        self._by_query = by_query

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers, with a request id of its own; who hung up is not answered, nor computed if it still waited."""
        begin, id_ = time.monotonic(), str(uuid.uuid4())
        try:
            answer = await self._answer(scope, receive)
        except ClientGone:
            answer = None
        except Refusal as refusal:
            answer = refused(refusal)
        status = 499 if answer is None else answer.status
        access.info(
            "request",
            extra={
                "id": id_,
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "ms": round((time.monotonic() - begin) * 1e3, 1),
                "bytes": 0 if answer is None else len(answer.body),
            },
        )
        if self._models.traces is not None:
            self._models.traces.request(scope, id_, begin, answer)
        if answer is not None:
            headers = {"content-type": answer.content_type, "cache-control": "no-store", "x-request-id": id_}
            response = Response(answer.body, answer.status, headers | answer.headers)
            await response(scope, receive, send)

    async def _answer(self, scope: Any, receive: Any) -> Answered:
        headers = headers_of(scope)
        if scope["method"] in ("HEAD", "OPTIONS", "CONNECT"):
            raise Refusal(405, "MethodNotAllowed", "POST the image")
        query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        path = scope["path_params"]
        pool = self._models.find(
            path.get("model") or query.get("model_name", MODEL),
            path.get("version") or query.get("model_version", ""),
        )
        body = await self._body(scope, receive)
        content_type = _header(scope, b"content-type")
        fields: dict[str, bytes] = {}
        if self._by_query:
            fields = {name: value.encode() for name, value in query.items()}
        if is_form(content_type):
            fields |= fields_of(body, content_type)
        elif not content_type.lower().startswith("application/x-www-form-urlencoded"):
            fields["body"] = body  # the handler refuses a form-urlencoded body by its type alone
        return await _unless_gone(pool.ask(fields, headers, by_grpc=False), receive)

    async def _body(self, scope: Any, receive: Any) -> bytes:
        """Raises Refusal: it is too long, or comes too slowly; ClientGone."""
        if _header(scope, b"expect").lower() not in ("", "100-continue"):
            raise Refusal(417, "BadRequest", "the only expectation that is known is 100-continue")
        if (length := _header(scope, b"content-length")) and int(length) > self._most:
            raise self._too_large()
        parts, size, more = [], 0, True
        while more:
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    message = await receive()
            except TimeoutError as error:
                raise Refusal(
                    408, "BadRequest", f"nothing of the body came for {BODY_SECONDS:g} s"
                ) from error
            if message["type"] == "http.disconnect":
                raise ClientGone
            parts.append(message["body"])
            size, more = size + len(message["body"]), message["more_body"]
            if size > self._most:
                raise self._too_large()
        return b"".join(parts)

    def _too_large(self) -> Refusal:
        return Refusal(413, "RequestTooLarge", f"a request may have {self._most} bytes; send a smaller image")


class Watched:
    """What is told of the server: health, readiness, metadata."""

    def __init__(self, models: Models, version: str) -> None:
        """`version` is the server's own."""
        self._models = models
        self._version = version

    async def ping(self, request: Request) -> Response:
        """TorchServe's, in its own spelling."""
        healthy = not self._models.not_ready()
        content = json.dumps({"status": "Healthy" if healthy else "Unhealthy"}, indent=2) + "\n"
        return Response(content, 200 if healthy else 500, media_type=JSON)

    async def ready(self, request: Request) -> Response:
        """Whether a prediction can be answered, in the form of `python -m server run`; for v2, and a model, too."""
        version = request.path_params.get("version", "")
        reason = self._models.not_ready()
        if "model" in request.path_params or version:
            pool = self._models.find(request.path_params.get("model", MODEL), version)
            reason = reason if pool.ready else "no worker of this version is ready"
        content = {"ready": not reason} | ({"reason": reason} if reason else {})
        return JSONResponse(content, 503 if reason else 200)

    async def live(self, request: Request) -> Response:
        """The front answers."""
        return JSONResponse({"live": True})

    async def server(self, request: Request) -> Response:
        """v2's metadata of the server."""
        return JSONResponse(server_metadata(self._version))

    async def model(self, request: Request) -> Response:
        """v2's metadata of a version."""
        path = request.path_params
        return JSONResponse(model_metadata(self._models, path["model"], path.get("version", "")))

    async def v1_model(self, request: Request) -> Response:
        """v1's readiness of the model."""
        name = request.path_params["model"]
        return JSONResponse({"name": name, "ready": self._models.find(name).ready})

    async def v1_models(self, request: Request) -> Response:
        """v1's list."""
        return JSONResponse({"models": [MODEL]})


class Told:
    """What can be asked here, out of the handler's own tables: `/openapi.json`, and `/docs`, the same as a page; and
    the page to try it, at `/`."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def openapi(self, request: Request) -> Response:
        """Of the default version, with the front's own refusals."""
        return JSONResponse(self._document(), headers=HEADERS)

    async def docs(self, request: Request) -> Response:
        """The document as a page."""
        headers = {**HEADERS, "Content-Security-Policy": POLICY}
        return Response(documentation_page(self._document()), 200, headers, "text/html; charset=utf-8")

    async def page(self, request: Request) -> Response:
        """A file of the page."""
        found = files()[request.url.path]
        return Response(found.body, 200, found.headers, found.content_type)

    def _document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self._models.find(MODEL).openapi)
        for item in document.get("paths", {}).values():
            if "post" in item:
                _add_refusals(item["post"]["responses"])
        return document


def _add_refusals(responses: dict[str, Any]) -> None:
    content = responses["400"]["content"]
    for status, meaning in REFUSALS:
        told = responses.setdefault(str(status), {"description": "", "content": content})
        told["description"] = f"{told['description']} {meaning}".strip()


def server_metadata(version: str) -> dict[str, Any]:
    """Of the Open Inference Protocol."""
    return {"name": "maskx", "version": version, "extensions": EXTENSIONS}


def model_metadata(models: Models, name: str, version: str) -> dict[str, Any]:
    """Of the Open Inference Protocol. Raises Refusal where there is no such version."""
    pool = models.find(name, version)
    tensors = {
        kind: [{"name": tensor, "datatype": "BYTES", "shape": [-1]}] for kind, tensor in TENSORS.items()
    }
    versions = [pool.version] if version else sorted(models.pools)
    return {"name": name, "versions": versions, "platform": PLATFORM, **tensors}


def inference_app(
    models: Models, meters: Meters, max_request_size: int, *, version: str, cors_origin: str = ""
) -> Starlette:
    """All addresses of the inference port; `version` is the server's own."""
    predict, by_query = Predict(models, max_request_size), Predict(models, max_request_size, by_query=True)
    watched, told = Watched(models, version), Told(models)
    named = ("", "/{version}")
    of_v2 = [f"/v2/models/{{model}}{one}" for one in ("", "/versions/{version}")]
    routes = [
        *(Route(f"/predictions/{{model}}{one}", predict) for one in (*named, "/{version}/{rest:path}")),
        *(Route(f"/explanations/{{model}}{one}", predict) for one in named),
        *(Route(f"/v1/models/{{model}}:{verb}", predict) for verb in ("predict", "explain")),
        *(Route(f"{one}/{verb}", predict) for one in of_v2 for verb in ("infer", "explain")),
        *(Route(f"/models/{{model}}{one}/invoke", by_query) for one in named),
        Route("/invocations", by_query),
        Route("/ping", watched.ping),
        Route("/ready", watched.ready),
        Route("/live", watched.live),
        Route("/v1/models", watched.v1_models),
        Route("/v1/models/{model}", watched.v1_model),
        Route("/v2", watched.server),
        Route("/v2/health/live", watched.live),
        Route("/v2/health/ready", watched.ready),
        *(Route(one, watched.model) for one in of_v2),
        *(Route(f"{one}/ready", watched.ready) for one in of_v2),
        Route("/openapi.json", told.openapi),
        Route("/docs", told.docs),
        *(Route(path, told.page) for path in files()),
        *metrics_app(meters, models).routes,
    ]
    cors = []
    if cors_origin:
        allowed: dict[str, Any] = {"allow_origins": [cors_origin], "allow_methods": CORS_METHODS.split(", ")}
        cors = [Middleware(CORSMiddleware, allow_headers=CORS_HEADERS.split(", "), **allowed)]
    handlers: Any = {HTTPException: _not_found, Refusal: _refused}
    app = Starlette(routes=routes, middleware=cors, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return app


def refused(refusal: Refusal) -> Answered:
    """A refusal as the answer that it is."""
    headers = {} if refusal.retry_after is None else {"retry-after": str(refusal.retry_after)}
    if refusal.status in (408, 413):
        headers["connection"] = "close"  # what is left of the body is not read
    return Answered(refusal.status, JSON, refusal.kind, headers, refusal.body())


def headers_of(scope: Any) -> dict[str, str]:
    """A request's headers as TorchServe hands them over: as spelled, of several with one spelling the last.

    Raises Refusal where they are too long.
    """
    spelled = scope[SPELLED]
    if sum(len(name) + len(value) + 4 for name, value in spelled) + len(scope["raw_path"]) > HEAD_BYTES:
        raise head_too_long()
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in spelled}


async def _unless_gone(asked: Any, receive: Any) -> Answered:
    """The answer that is waited for. Raises ClientGone where the client hangs up before it; that takes the request
    out of the queue."""
    answer = asyncio.ensure_future(asked)
    gone = asyncio.ensure_future(_hung_up(receive))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientGone
        result: Answered = answer.result()
        return result
    finally:
        for task in (answer, gone):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


async def _hung_up(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _header(scope: Any, name: bytes) -> str:
    """A header by its name in small letters, the last of several; '' where there is none."""
    values: Mapping[bytes, bytes] = dict(scope["headers"])
    return values.get(name, b"").decode("latin-1")


async def _not_found(request: Request, error: Exception) -> Response:
    """Starlette's own errors, in the project's form."""
    assert isinstance(error, HTTPException)
    kind = {404: "NotFound", 405: "MethodNotAllowed"}.get(error.status_code, "BadRequest")
    message = {404: "there is no such path", 405: "this path does not take this method"}
    refusal = Refusal(error.status_code, kind, message.get(error.status_code, str(error.detail)))
    return Response(refusal.body(), error.status_code, error.headers, media_type=JSON)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    answer = refused(error)
    return Response(answer.body, answer.status, answer.headers, media_type=JSON)
