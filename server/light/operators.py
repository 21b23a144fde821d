"""What whoever operates the server sees and changes: versions, as by TorchServe's management API, and metrics.

Of that API there is what server/management.py asks, in TorchServe's forms: list, describe, register, set the default,
unregister. The metrics are those that serve_config/metrics.yaml declares for the handler, and the front's own.
"""

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import yaml
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..processes import Batching
from ..settings import MODEL
from .answers import Refusal, Sample
from .models import Models, with_changes
from .pool import Pool

NUMBERS = {"batch_size": "batch_size", "max_batch_delay": "batch_delay", "initial_workers": "workers"}
"""Of a registration, by what they are here."""
OWN = "maskx_waited_seconds"
"""Seconds that the first request of a batch waited in the server's queue."""


class _Metric(Protocol):
    """A metric of prometheus_client."""

    def labels(self, *values: str) -> Any:
        """That of these labels."""
        ...


class Meters:
    """All that is counted."""

    def __init__(self, declared: Path) -> None:
        """`declared` is metrics.yaml."""
        disable_created_metrics()
        self.registry = CollectorRegistry()
        self._host = socket.gethostname()
        kinds: dict[str, Any] = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}
        self._metrics: dict[str, _Metric] = {}
        content = yaml.safe_load(declared.read_text())["model_metrics"]
        content["histogram"].append({"name": OWN, "dimensions": ["ModelName", "Level"]})
        for kind, ones in content.items():
            for one in ones:
                if one["name"].startswith("maskx_"):
                    labels = [*one["dimensions"], "Hostname"]
                    made = kinds[kind](
                        one["name"], "See serve_config/metrics.yaml.", labels, registry=self.registry
                    )
                    self._metrics[one["name"]] = made
        by_version = ["model_name", "model_version", "hostname"]
        self._answered = Counter(
            "ts_inference_requests_total", "Requests answered.", by_version, registry=self.registry
        )
        self._state = {
            name: Gauge(name, told, ["model_version"], registry=self.registry)
            for name, told in (
                ("maskx_waiting", "Requests that wait or are being answered."),
                ("maskx_workers_ready", "Workers that can answer."),
                ("maskx_worker_restarts", "Workers that ended and were started again."),
            )
        }

    def count(self, version: str, samples: Sequence[Sample]) -> None:
        """Takes in the samples of a batch."""
        for name, value, own in samples:
            if name == "maskx_requests_total":
                self._answered.labels(MODEL, version, self._host).inc(value)
            metric = self._metrics.get(name)
            if metric is None:
                continue
            one = metric.labels(*own, MODEL, "Model", self._host)
            if isinstance(one, Counter):
                one.inc(value)
            elif isinstance(one, Histogram):
                one.observe(value)
            else:
                one.set(value)

    def text(self, models: Models, names: Sequence[str] = ()) -> bytes:
        """Everything in Prometheus' form, or the series of these names alone."""
        for version, pool in models.pools.items():
            ready = sum(is_ready for _, is_ready in pool.workers())
            for name, value in (
                ("maskx_waiting", pool.pending),
                ("maskx_workers_ready", ready),
                ("maskx_worker_restarts", pool.restarts),
            ):
                self._state[name].labels(version).set(value)
        return generate_latest(self.registry.restricted_registry(names) if names else self.registry)


def metrics_app(meters: Meters, models: Models) -> Starlette:
    """GET /metrics, all or those of `name[]`."""

    async def metrics(request: Request) -> Response:
        text = meters.text(models, request.query_params.getlist("name[]"))
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    return Starlette(routes=[Route("/metrics", metrics)])


class Operations:
    """The management API's calls, over the versions of one server."""

    def __init__(self, models: Models, store: Path, batching: Batching, *, may_change: bool) -> None:
        """Args: store: the only folder that archives are taken from. may_change: whether any is taken or removed."""
        self._models = models
        self._store = store
        self._batching = batching
        self._may_change = may_change

    def app(self) -> Starlette:
        """All its addresses."""
        named = f"/models/{MODEL}"
        routes = [
            Route("/models", self.listed, methods=["GET"]),
            Route("/models", self.register, methods=["POST"]),
            Route(named, self.describe, methods=["GET"]),
            Route(f"{named}/all", self.describe_all, methods=["GET"]),
            Route(f"{named}/{{version}}", self.describe, methods=["GET"]),
            Route(f"{named}/{{version}}/set-default", self.set_default, methods=["PUT"]),
            Route(named, self.unregister, methods=["DELETE"]),
            Route(f"{named}/{{version}}", self.unregister, methods=["DELETE"]),
        ]
        return Starlette(routes=routes, exception_handlers={Refusal: _refused})

    async def listed(self, request: Request) -> Response:
        """The model, with the archive of its default version."""
        url = self._models.files.get(self._models.default, "")
        return JSONResponse({"models": [{"modelName": MODEL, "modelUrl": url}]})

    async def describe(self, request: Request) -> Response:
        """One version; with `customized=true` what a worker says of itself beside it."""
        pool = self._pool(request.path_params.get("version", ""))
        content = self._content(pool)
        if request.query_params.get("customized") == "true":
            content["customizedMetadata"] = await pool.describe()
        return JSONResponse([content])

    async def describe_all(self, request: Request) -> Response:
        """All versions."""
        return JSONResponse([self._content(pool) for pool in self._models.pools.values()])

    async def register(self, request: Request) -> Response:
        """Takes an archive of the store beside the others; returns before its workers are ready."""
        self._require_changes()
        asked = request.query_params
        archive = self._store / asked.get("url", "")
        if archive.parent != self._store or not archive.is_file():
            raise Refusal(404, "ModelNotFoundException", "no archive of the model store has this name")
        try:
            numbers = {here: int(asked[name]) for name, here in NUMBERS.items() if name in asked}
            version = self._models.load(archive, with_changes(self._batching, **numbers))
        except ValueError as error:
            raise Refusal(400, "BadRequestException", str(error)) from error
        return JSONResponse({"status": f"version {version} is loading"}, status_code=202)

    async def set_default(self, request: Request) -> Response:
        """This version answers where none is named."""
        pool = self._pool(request.path_params["version"])
        self._models.default = pool.version
        return JSONResponse({"status": f"version {pool.version} is the default"})

    async def unregister(self, request: Request) -> Response:
        """Removes a version that is not the default, once all who asked it are answered."""
        self._require_changes()
        pool = self._pool(request.path_params.get("version", ""))
        if pool.version == self._models.default:
            raise Refusal(403, "InvalidModelVersionException", "the default version cannot be removed")
        await self._models.unload(pool.version)
        return JSONResponse({"status": f"version {pool.version} is removed"})

    def _pool(self, version: str) -> Pool:
        pool = self._models.pools.get(version or self._models.default)
        if pool is None:
            raise Refusal(404, "ModelVersionNotFoundException", f"there is no version {version[:50]!r}")
        return pool

    def _require_changes(self) -> None:
        if not self._may_change:
            raise Refusal(
                405,
                "MethodNotAllowedException",
                "no model can be registered or removed; start with --model-api",
            )

    def _content(self, pool: Pool) -> dict[str, Any]:
        settings = pool.settings
        workers = [
            {"id": str(pid), "pid": pid, "status": "READY" if ready else "LOADING"}
            for pid, ready in pool.workers()
        ]
        return {
            "modelName": MODEL,
            "modelVersion": pool.version,
            "modelUrl": self._models.files.get(pool.version, ""),
            "runtime": "python",
            "minWorkers": settings.workers,
            "maxWorkers": settings.workers,
            "batchSize": settings.batch_size,
            "maxBatchDelay": round(settings.delay * 1e3),
            "workers": workers,
            "jobQueueStatus": {
                "remainingCapacity": max(settings.queue - pool.pending, 0),
                "pendingRequests": pool.pending,
            },
        }


async def _refused(request: Request, error: Exception) -> Response:
    """TorchServe's form of an error, which who asks its management API reads."""
    assert isinstance(error, Refusal)
    content = {"code": error.status, "type": error.kind, "message": error.message}
    return JSONResponse(content, status_code=error.status)
