"""The versions of the model that are loaded, which of them is the default, and how each is served."""

import asyncio
import contextlib
import logging
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..processes import Batching
from ..settings import MODEL, read_contents
from .answers import Refusal, Sample, ending
from .pool import Pool, PoolSettings
from .traces import Traces

RESPONSE_TIMEOUT = STARTUP_TIMEOUT = 120.0
"""Seconds, where the archive's model-config.yaml says nothing else; those of the shipped config.properties."""
ANSWER_TIMEOUT = 150.0
"""Seconds that a request has, waiting included, at least; the proxy gives TorchServe as many."""

logger = logging.getLogger("maskx.light")

Count = Callable[[str, Sequence[Sample]], None]


class Models:
    """Every version that answers, by name, and the queue of each.

    `ending` is set once the server is to end: who asks from then on is refused, who asked before is answered.
    `traces` takes in every prediction, where they are sent anywhere.
    """

    def __init__(self, temporary: Path, logs: Path, *, gpus: int, count: Count) -> None:
        """Args: temporary: where archives are unpacked. gpus: of the machine. count: gets a version's samples."""
        self.ending = False
        self.traces: Traces | None = None
        self.default = ""
        self.pools: dict[str, Pool] = {}
        self.files: dict[str, str] = {}
        self._temporary = temporary
        self._log = logs / "model_log.log"
        self._gpus = gpus
        self._count = count

    def find(self, name: str, version: str = "") -> Pool:
        """A version's queue, the default's where none is named. Raises Refusal: there is none, or the server ends."""
        if name != MODEL:
            raise Refusal(404, "NotFound", f"there is no model {name[:50]!r}; the only one is {MODEL}")
        if version and version not in self.pools:
            known = ", ".join(sorted(self.pools))
            raise Refusal(
                404, "NotFound", f"there is no version {version[:50]!r} of {MODEL}; there are {known}"
            )
        if self.ending or not self.default:
            raise ending()
        return self.pools[version or self.default]

    def not_ready(self) -> str:
        """Why nothing is answered just now; '' where the default version has a worker that is ready."""
        if self.ending:
            return "the server is to end"
        pool = self.pools.get(self.default)
        return "" if pool is not None and pool.ready else "no worker is ready"

    def load(self, archive: Path, batching: Batching) -> str:
        """Takes an archive beside those that are there, as the default where it is the first; returns its version.

        Its workers start with that; whether they can load it is seen by `Pool.ready` and `Pool.failure`.

        Raises ValueError: it cannot be read, or its version is there already.
        """
        contents = read_contents(archive)
        if contents.version in self.pools:
            raise ValueError(f"version {contents.version} is registered already")
        folder = Path(tempfile.mkdtemp(prefix=f"{MODEL}-{contents.version}-", dir=self._temporary))
        with zipfile.ZipFile(archive) as file:
            file.extractall(folder)
        version, settings = contents.version, contents.settings
        pool = Pool(
            MODEL,
            version,
            folder,
            pool_settings(batching, settings, gpus=self._gpus, log=self._log),
            lambda samples: self._count(version, samples),
        )
        self.pools[version], self.files[version] = pool, archive.name
        self.default = self.default or version
        pool.start()
        return version

    async def unload(self, version: str) -> None:
        """Removes a version: who has asked it is answered, who asks it from now on is refused.

        A worker that dies meanwhile is replaced first. Who waits is refused where no worker is ready and none can load
        the model.
        """
        pool = self.pools.pop(version)
        self.files.pop(version)
        while pool.pending and (pool.ready or not pool.failure):
            await asyncio.sleep(0.02)
        await pool.close()
        shutil.rmtree(pool.folder, ignore_errors=True)

    async def idle(self) -> None:
        """Returns when every request is answered."""
        while any(pool.pending for pool in self.pools.values()):
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        """Ends all workers."""
        self.ending = True
        await asyncio.gather(*(pool.close() for pool in self.pools.values()))
        for pool in self.pools.values():
            with contextlib.suppress(OSError):
                shutil.rmtree(pool.folder)


def pool_settings(batching: Batching, settings: Any, *, gpus: int, log: Path) -> PoolSettings:
    """How a version is served: batching as a start found it, time-outs as the archive's model-config.yaml has them."""
    response = float(settings.get("responseTimeout", RESPONSE_TIMEOUT))
    return PoolSettings(
        batch_size=batching.batch_size,
        delay=batching.batch_delay / 1e3,
        workers=batching.workers,
        queue=batching.queue,
        gpus=gpus if settings.get("deviceType") != "cpu" else 0,
        response_timeout=response,
        startup_timeout=float(settings.get("startupTimeout", STARTUP_TIMEOUT)),
        answer_timeout=max(ANSWER_TIMEOUT, response + 30.0),
        log=log,
    )


def with_changes(batching: Batching, **asked: int | None) -> Batching:
    """Batching with what a registration asks for. Raises ValueError: a number is not positive."""
    for name, value in asked.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; a whole number of at least 1 is expected")
    changes: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    return replace(batching, **changes)
