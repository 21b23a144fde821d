"""One version of the model: the queue of its requests, the batches made of them, the processes that answer those.

A request is asked for again where the worker that had it died, or lost its device: once, and alone, so that one that
kills its worker is found out and costs nobody else an answer. A worker that died is started again, at first at once,
then later and later.
"""

import asyncio
import contextlib
import json
import logging
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..settings import TELEMETRY
from .answers import Answered, Course, Refusal, Sample, ending
from .process import WorkerProcess

WORKER = Path(__file__).with_name("worker.py")
READ_AHEAD = 4 << 20
MOST_DEATHS = 2
"""Workers that may die with one request before it is refused."""
BACK_OFF = (0.0, 0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Seconds to wait before the first, second, ... start of a worker that has answered nothing since."""
PARTING, HURRY = 5.0, 0.5
"""Seconds that a worker has to end by itself once its socket is closed; and one that another waits to replace."""

logger = logging.getLogger("maskx.light")


@dataclass(kw_only=True, eq=False)
class Job:
    """One request in the queue; a describe call has no fields.

    `deaths` counts the workers that died with it; with one it is asked alone.
    """

    fields: dict[str, bytes] | None
    headers: dict[str, str]
    by_grpc: bool
    future: asyncio.Future[Any]
    since: float = field(default_factory=time.monotonic)
    deaths: int = 0

    @property
    def alone(self) -> bool:
        """Whether it may share a batch with no other."""
        return self.deaths > 0 or self.fields is None


@dataclass(frozen=True, kw_only=True)
class PoolSettings:
    """How a version is served.

    delay: seconds that a batch waits for others, where requests come together at all. queue: requests that may wait.
    response_timeout, startup_timeout: seconds that a worker has for a batch and to load the model. answer_timeout:
    seconds that a request has, waiting included.
    gpus: that the workers are dealt out to, 0 for the CPU. log: the file that the workers' output goes to.
    """

    batch_size: int
    delay: float
    workers: int
    queue: int
    gpus: int
    response_timeout: float
    startup_timeout: float
    answer_timeout: float
    log: Path


class Pool:
    """The queue and the workers of one version."""

    def __init__(
        self,
        name: str,
        version: str,
        folder: Path,
        settings: PoolSettings,
        count: Callable[[Sequence[Sample]], None],
    ) -> None:
        """`folder` has the unpacked archive; `count` is given every batch's samples."""
        self.version = version
        self.folder = folder
        self.settings = settings
        self.restarts = 0
        self.failure = ""
        self.openapi = b"{}"
        """The OpenAPI document of the handler's, in JSON, once a worker was ready."""
        self._name = name
        self._count = count
        self._waiting: deque[Job] = deque()
        self._working = 0
        self._together = True
        """Whether of late requests came while others were pending: of one alone, each wait for others is lost."""
        self._arrived = asyncio.Event()
        self._turn = asyncio.Lock()
        self._processes: list[WorkerProcess | None] = [None] * settings.workers
        self._keepers: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Starts the workers, and from now on those in place of dead ones."""
        self._keepers = [asyncio.create_task(self._keep(place)) for place in range(self.settings.workers)]

    @property
    def pending(self) -> int:
        """Requests that wait or are being answered."""
        return len(self._waiting) + self._working

    @property
    def ready(self) -> bool:
        """Whether a worker can answer."""
        return any(one is not None and one.ready for one in self._processes)

    def workers(self) -> list[tuple[int, bool]]:
        """Process id of each worker, and whether it is ready."""
        return [(one.process.pid, one.ready) for one in self._processes if one is not None]

    async def ask(self, fields: dict[str, bytes], headers: dict[str, str], *, by_grpc: bool) -> Answered:
        """The answer to a request; one whose asker is cancelled leaves the queue.

        Raises Refusal: the queue is full, or the request's workers died.
        """
        if len(self._waiting) >= self.settings.queue:
            busy = f"{len(self._waiting)} requests wait already; send it again later"
            raise Refusal(503, "Busy", busy, retry_after=1)
        try:
            async with asyncio.timeout(self.settings.answer_timeout):
                return Answered(*await self._enter(fields, headers, by_grpc=by_grpc))
        except TimeoutError as error:
            late = f"there was no answer within {self.settings.answer_timeout:g} s; send it again later"
            raise Refusal(504, "Timeout", late, retry_after=1) from error

    async def describe(self) -> Any:
        """What a worker says of itself; stands in the queue as every request does."""
        return json.loads(await self._enter(None, {}, by_grpc=False))

    async def close(self, *, patience: float = PARTING) -> None:
        """Ends the workers; who still waits is refused."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        gone = Refusal(
            503, "Busy", "the server or this version is ending; send it again later", retry_after=1
        )
        while self._waiting:
            _fail(self._waiting.popleft(), gone)
        await asyncio.gather(*(one.end(patience) for one in self._processes if one is not None))

    async def _enter(self, fields: dict[str, bytes] | None, headers: dict[str, str], *, by_grpc: bool) -> Any:
        future = asyncio.get_running_loop().create_future()
        job = Job(fields=fields, headers=headers, by_grpc=by_grpc, future=future)
        self._together = self._together or self.pending > 0
        self._waiting.append(job)
        self._arrived.set()
        try:
            return await future
        finally:
            if not future.done() or future.cancelled():
                with contextlib.suppress(ValueError):  # it is in a batch already
                    self._waiting.remove(job)

    async def _keep(self, place: int) -> None:
        """Keeps a worker running, for ever."""
        attempt = 0
        while True:
            await asyncio.sleep(BACK_OFF[min(attempt, len(BACK_OFF) - 1)])
            try:
                worker = self._processes[place] = await self._launched(place)
            except OSError as error:
                attempt, self.failure = attempt + 1, f"no worker can be started: {error}"
                logger.error("Load model failed", extra={"version": self.version, "reason": self.failure})
                continue
            try:
                if await self._is_loaded(worker):
                    async with asyncio.TaskGroup() as lanes:
                        for _ in range(worker.lanes):
                            lanes.create_task(self._serve(worker))
            except asyncio.CancelledError:
                raise
            except Exception:  # a fault of this program's own must not leave the version without a worker
                logger.exception("worker failed", extra={"version": self.version})
            worker.ready = False
            await worker.end(HURRY)
            attempt = 1 if worker.answered else attempt + 1
            self.restarts += 1
            told = {"version": self.version, "pid": worker.process.pid, "status": worker.process.returncode}
            logger.warning("worker ended", extra=told)

    async def _launched(self, place: int) -> WorkerProcess:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        gpu = str(place % self.settings.gpus) if self.settings.gpus else ""
        command = [sys.executable, "-P", str(WORKER), str(theirs.fileno()), str(self.folder), self._name, gpu]
        command.append(str(self.settings.batch_size))
        environment = {name: one for name, one in os.environ.items() if not name.startswith(TELEMETRY)}
        # the socket first: once there is a process, nothing is waited for before somebody has it to end it
        with theirs:
            reader, writer = await asyncio.open_connection(sock=ours, limit=READ_AHEAD)
            try:
                with open(self.settings.log, "ab") as log:
                    streams: dict[str, Any] = {
                        "stdin": asyncio.subprocess.DEVNULL,
                        "stdout": log,
                        "stderr": log,
                    }
                    starting = asyncio.ensure_future(
                        asyncio.create_subprocess_exec(
                            *command, cwd=self.folder, env=environment, pass_fds=[theirs.fileno()], **streams
                        )
                    )
                    try:
                        process = await asyncio.shield(starting)
                    except asyncio.CancelledError:  # uvloop would leave a process that nobody waits for
                        with contextlib.suppress(OSError):
                            await WorkerProcess(await starting, reader, writer).end(0.0)
                        raise
            except BaseException:
                writer.close()
                raise
        return WorkerProcess(process, reader, writer)

    async def _is_loaded(self, worker: WorkerProcess) -> bool:
        begin = time.monotonic()
        try:
            async with asyncio.timeout(self.settings.startup_timeout):
                said = await worker.first_message()
        except TimeoutError:  # before OSError, of which it is one
            said = ("failed", f"the model was not loaded within {self.settings.startup_timeout:g} s")
        except (OSError, EOFError):
            said = ("failed", f"the worker ended while it loaded the model (log: {self.settings.log.name})")
        told = {"version": self.version, "pid": worker.process.pid}
        if said[0] != "ready":
            self.failure = said[1]
            logger.error("Load model failed", extra={**told, "reason": said[1]})
            return False
        self.failure, self.openapi = "", said[1]
        worker.loaded(lanes=said[2])
        told |= {"lanes": said[2], "seconds": round(time.monotonic() - begin, 2)}
        logger.info("worker is ready", extra=told)
        return True

    async def _serve(self, worker: WorkerProcess) -> None:
        """Has one batch after the other answered until the worker is gone; each of its lanes does."""
        while batch := await self._gathered(worker):
            self._working += len(batch)
            try:
                async with worker.turn(alone=batch[0].deaths > 0):
                    if not await self._exchange(worker, batch):
                        break
            except asyncio.CancelledError:
                for job in batch:
                    _fail(job, ending())
                raise
            finally:
                self._working -= len(batch)
        worker.hang_up()  # for the other lanes

    async def _gathered(self, worker: WorkerProcess) -> list[Job]:
        """The next batch; empty where the worker is gone before it."""
        gather = asyncio.ensure_future(self._batch())
        gone = True  # of this task, too, where it is cancelled while it waits
        try:
            await asyncio.wait({gather, worker.gone}, return_when=asyncio.FIRST_COMPLETED)
            gone = worker.gone.done()
        finally:
            if gone:
                gather.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    self._put_back(await gather)
        return [] if gone else gather.result()

    async def _batch(self) -> list[Job]:
        """Waits for a request, then for others to go with it: `delay` seconds at most, and not at all where the last
        that was waited for came alone and none has come since while another was pending."""
        loop = asyncio.get_running_loop()
        batch: list[Job] = []
        async with self._turn:
            try:
                await self._wait_for_one()
                deadline = loop.time() + self.settings.delay * self._together
                while self._take(batch) and (left := deadline - loop.time()) > 0:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(left):
                            await self._wait_for_one()
                self._together = len(batch) > 1 or (self._together and batch[0].alone)
            except asyncio.CancelledError:
                self._put_back(batch)
                raise
        return batch

    async def _wait_for_one(self) -> None:
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()

    def _take(self, batch: list[Job]) -> bool:
        """Moves what may join the batch into it; whether more may."""
        while self._waiting and len(batch) < self.settings.batch_size:
            if batch and (batch[0].alone or self._waiting[0].alone):
                return False
            batch.append(self._waiting.popleft())
        return len(batch) < self.settings.batch_size and not (batch and batch[0].alone)

    def _put_back(self, batch: Sequence[Job]) -> None:
        self._waiting.extendleft(job for job in reversed(batch) if not job.future.done())
        self._arrived.set()

    async def _exchange(self, worker: WorkerProcess, batch: list[Job]) -> bool:
        """Has the batch answered; whether the worker can answer another."""
        if not worker.alive:  # since the batch was made
            self._put_back(batch)
            return False
        asked = time.monotonic()
        describe = batch[0].fields is None
        message = ("describe",) if describe else ("answer", [(j.fields, j.headers, j.by_grpc) for j in batch])
        try:
            async with asyncio.timeout(self.settings.response_timeout):
                reply = await worker.ask(message)
        except (OSError, EOFError, TimeoutError) as error:
            self._died(worker, batch, error)
            return False
        worker.answered = True
        if describe:
            _settle(batch[0], reply)
            return True
        answers, told, lost = reply
        samples = [Sample(*one) for one in told]
        for job, answer in zip(batch, answers, strict=True):
            if lost and answer[2] == "Restarting" and job.deaths + 1 < MOST_DEATHS:
                job.deaths += 1
                self._put_back([job])
            else:
                course = Course(job.since, asked, self.version, len(batch), samples, job.deaths)
                _settle(job, (*answer, course))
        waited = asked - min(job.since for job in batch)
        self._count([*samples, Sample("maskx_waited_seconds", waited, ())])
        return not lost

    def _died(self, worker: WorkerProcess, batch: list[Job], error: Exception) -> None:
        """Puts a dead worker's requests back, but for those that have had their share of workers."""
        told = {"version": self.version, "pid": worker.process.pid, "requests": len(batch)}
        logger.error("worker died", extra={**told, "reason": type(error).__name__})
        for job in batch:
            job.deaths += 1
            if job.deaths >= MOST_DEATHS:
                died = f"{job.deaths} workers died with this request, the last time with no other beside it"
                _fail(job, Refusal(503, "WorkerDied", died))
        self._put_back(batch)


def _settle(job: Job, result: Any) -> None:
    if not job.future.done():
        job.future.set_result(result)


def _fail(job: Job, refusal: Refusal) -> None:
    if not job.future.done():
        job.future.set_exception(refusal)
