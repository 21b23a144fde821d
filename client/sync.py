"""`Client`: the same as `AsyncClient`, for code without an event loop.

The requests run on a loop of the client's own, in a thread, so that there is one implementation, and a deadline holds
even where a server sends its answer byte by byte.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar, Unpack

from client.core import AsyncClient, Wishes
from client.errors import ServerRefused
from client.images import ImageLike
from client.prediction import Prediction
from client.retry import Retries
from client.transport import DEFAULT_URL

Value = TypeVar("Value")


class Client:
    """Predictions of one model on one server; may be shared by threads, and is to be closed.

    Arguments, methods and errors are those of `AsyncClient`.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        model: str = "maskx",
        version: str = "",
        token: str | None = None,
        ca: Path | str | None = None,
        timeout: float = 120.0,
        deadline: float = 300.0,
        retries: Retries | None = None,
        connections: int = 32,
    ) -> None:
        self._remote = AsyncClient(
            url,
            model=model,
            version=version,
            token=token,
            ca=ca,
            timeout=timeout,
            deadline=deadline,
            retries=retries,
            connections=connections,
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="maskx client", daemon=True)
        self._thread.start()

    def predict(self, image: ImageLike, **wishes: Unpack[Wishes]) -> Prediction:
        """As `AsyncClient.predict`."""
        return self._wait(self._remote.predict(image, **wishes))

    def predict_many(
        self, images: Sequence[ImageLike], **wishes: Unpack[Wishes]
    ) -> list[Prediction | ServerRefused]:
        """As `AsyncClient.predict_many`."""
        return self._wait(self._remote.predict_many(images, **wishes))

    def overlay(self, image: ImageLike, **wishes: Unpack[Wishes]) -> bytes:
        """As `AsyncClient.overlay`."""
        return self._wait(self._remote.overlay(image, **wishes))

    def raw(self, images: Sequence[bytes], wishes: Wishes, *, output: str | None = None) -> bytes:
        """As `AsyncClient.raw`."""
        return self._wait(self._remote.raw(images, wishes, output=output))

    def _wait(self, work: Coroutine[None, None, Value]) -> Value:
        if self._loop.is_closed():
            work.close()
            raise ValueError("the client is closed; make a new one")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:  # Ctrl-C reaches this thread, not the loop's
            future.cancel()
            raise

    def close(self) -> None:
        """Closes all connections; a second time it does nothing."""
        if self._loop.is_closed():
            return
        self._wait(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _end(self) -> None:
        """Ends what is under way in other threads, whose callers get CancelledError, and the connections."""
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._remote.aclose()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
