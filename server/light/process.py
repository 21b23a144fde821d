"""A worker process as the front sees it: the socket, what was asked over it, and the process' end."""

import asyncio
import contextlib
import itertools
import marshal
import os
import signal
from collections.abc import AsyncIterator, Sequence
from typing import Any

LENGTH = 8
"""Bytes of a message's length, see worker.py."""


class WorkerProcess:
    """A worker process and the socket to it; `ready` once its model is loaded, `answered` once it has answered.

    It answers `lanes` messages at a time.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.process = process
        self.gone = asyncio.ensure_future(process.wait())
        self.ready = False
        self.answered = False
        self.lanes = 1
        self._reader = reader
        self._writer = writer
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._reading: asyncio.Task[None] | None = None
        self._turns = asyncio.Condition()
        self._under_way = 0
        self._alone = False

    async def first_message(self) -> Any:
        """What it says of itself once it has tried to load the model. Raises OSError or EOFError: it is gone."""
        return await self._receive()

    def loaded(self, lanes: int) -> None:
        """It is ready, and answers what it is asked from now on."""
        self.ready, self.lanes = True, lanes
        self._reading = asyncio.create_task(self._read())

    @contextlib.asynccontextmanager
    async def turn(self, *, alone: bool) -> AsyncIterator[None]:
        """A time in which one thing may be asked; `alone`: and nothing else is."""
        async with self._turns:
            await self._turns.wait_for(lambda: not self._alone)
            self._alone = alone
            self._under_way += 1
            try:
                await self._turns.wait_for(lambda: not alone or self._under_way == 1)
            except asyncio.CancelledError:
                self._leave(alone=alone)
                raise
        try:
            yield
        finally:
            async with self._turns:
                self._leave(alone=alone)

    def _leave(self, *, alone: bool) -> None:
        self._alone = self._alone and not alone
        self._under_way -= 1
        self._turns.notify_all()

    async def ask(self, content: Sequence[Any]) -> Any:
        """The answer to a message. Raises OSError or EOFError where the worker is gone."""
        number = next(self._numbers)
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            data = marshal.dumps((number, *content))
            self._writer.writelines([len(data).to_bytes(LENGTH, "little"), data])
            await self._writer.drain()
            return await answer
        finally:
            del self._asked[number]

    async def _read(self) -> None:
        """Hands out answers until the worker is gone, which whoever still waits is then told."""
        try:
            while True:
                number, content = await self._receive()
                if (answer := self._asked.get(number)) is not None and not answer.done():
                    answer.set_result(content)
        except Exception as error:  # of whatever kind: what is no message ends the connection too
            self.hang_up()
            gone = EOFError(f"the worker is gone: {error}")
            for answer in self._asked.values():
                if not answer.done():
                    answer.set_exception(gone)

    async def _receive(self) -> Any:
        size = int.from_bytes(await self._reader.readexactly(LENGTH), "little")
        return marshal.loads(await self._reader.readexactly(size))

    @property
    def alive(self) -> bool:
        """Whether it can still be asked."""
        return self._reading is not None and not self._reading.done() and not self._writer.is_closing()

    def hang_up(self) -> None:
        """Closes the socket: whoever waits for an answer is told that the worker is gone."""
        self._writer.close()

    async def end(self, patience: float) -> None:
        """Hangs up, and kills the process where it is still there after `patience` seconds."""
        self.hang_up()
        await asyncio.wait({self.gone}, timeout=patience)
        if not self.gone.done():
            # not process.kill(), which looks for the end of the process, and takes it from whom waits for it
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGKILL)
            await self.gone
