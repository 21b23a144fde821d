"""`AsyncClient` and `Client`: predictions of one model over REST or gRPC, asked again where that can help, as typed
values.
"""

import asyncio
import json
import threading
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Self, TypedDict, TypeVar, Unpack

from .errors import ServerRefused, ServerUnreachable, TimedOut, error_of
from .images import ImageLike, encoded
from .prediction import ANOTHER, Prediction, parsed, prediction_of
from .retry import Attempts, Retries
from .transport import DEFAULT_URL, RestTransport, Target, Transport, token_or_environment

Value = TypeVar("Value")

IMAGES_PER_REQUEST = 8
BYTES_PER_REQUEST = 24_000_000
"""A request of several images stays below what the server takes as it is shipped; more become more requests."""


class Parameters(TypedDict, total=False):
    """What a request asks for beside its images; the server's defaults hold for what is left out or None.

    score_threshold: 0 to 1. max_detections: the best so many. categories: names or ids. mask_format: rle, polygon, png
    or none. tiles: side of the tiles in which a large image is looked at, in pixels, or "side,overlap".
    """

    score_threshold: float | str | None
    max_detections: int | str | None
    categories: Sequence[str | int] | str | None
    mask_format: str | None
    tiles: int | str | None


class Connection(TypedDict, total=False):
    """The keyword arguments of both clients, see `AsyncClient`."""

    model: str
    version: str
    token: str | None
    ca: Path | str | None
    timeout: float
    deadline: float
    retries: Retries | None
    connections: int


class AsyncClient:
    """Predictions of one model on one server; may be shared by tasks, and is to be closed.

    Args:
        url: http://, https://, grpc:// or grpcs:// and host:port; a path before /predictions is kept over HTTP.
        model, version: the model on the server; its default version where empty.
        token: None takes the environment's MASKX_TOKEN, "" sends none.
        ca: a PEM file with the authority of the server's certificate; None trusts those of this machine.
        timeout: seconds that one attempt may take.
        deadline: seconds that a request may take with all its attempts and the waits between them.
        retries: how often, and how fast, a request is sent again.
        connections: at most so many at a time over REST; gRPC needs one.

    Raises:
        ValueError: an argument has a value that is not possible.
        ImportError: gRPC is asked for, and its packages are not installed or its code is not made.
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
        if timeout <= 0 or deadline <= 0:
            raise ValueError(f"timeout is {timeout} and deadline {deadline}; both are seconds above 0")
        authority = None if ca is None else Path(ca)
        token = token_or_environment(token)
        self._target = Target(url=url, model=model, version=version, token=token, ca=authority)
        self._timeout = timeout
        self._deadline = deadline
        self._retries = retries or Retries()
        self._transport: Transport
        if self._target.grpc:
            # only who asks for gRPC needs its packages and the generated code
            from .grpc_transport import GrpcTransport

            self._transport = GrpcTransport(self._target)
        else:
            self._transport = RestTransport(self._target, connections=connections)

    async def predict(self, image: ImageLike, **parameters: Unpack[Parameters]) -> Prediction:
        """What the model finds in one image.

        Raises:
            ServerRefused: the server answered with an error; the class says of which sort (client/errors.py).
            ServerUnreachable: nobody answered, also not in the last attempt.
            TimedOut: the attempt's time or the deadline has passed.
            ValueError: the image cannot be sent, or the answer is not one of maskx.
        """
        content = parsed(await self.raw([encoded(image)], parameters))
        return prediction_of(content, content.get("model", {}))

    async def predict_many(
        self, images: Sequence[ImageLike], **parameters: Unpack[Parameters]
    ) -> list[Prediction | ServerRefused]:
        """What the model finds in several images, sent together: in their order, and an error in the place of an image
        that the server refused.

        They travel in requests of at most IMAGES_PER_REQUEST images and about BYTES_PER_REQUEST bytes. An image whose
        error may pass is sent again with the others of that sort.

        Raises:
            As `predict`, where a request failed as a whole.
        """
        data = [encoded(image) for image in images]
        # at a time, so that a failure leaves no request behind
        found: list[Prediction | ServerRefused] = []
        for begin, end in _portions([len(one) for one in data]):
            found += await self._portion(data[begin:end], parameters)
        return found

    async def _portion(self, images: list[bytes], parameters: Parameters) -> list[Prediction | ServerRefused]:
        attempts = Attempts(self._retries, self._deadline)
        results: dict[int, Prediction | ServerRefused] = {}
        missing = list(range(len(images)))
        while missing:
            found = await self._together([images[i] for i in missing], parameters, attempts)
            results.update(zip(missing, found, strict=True))
            passing = {
                i: one for i, one in results.items() if isinstance(one, ServerRefused) and one.transient
            }
            missing = list(passing)
            if missing:
                try:
                    await asyncio.sleep(attempts.wait(passing[missing[0]]))
                except (ServerRefused, TimedOut):
                    break  # the errors stay in their places
        return [results[i] for i in range(len(images))]

    async def _together(
        self, images: list[bytes], parameters: Parameters, attempts: Attempts
    ) -> list[Prediction | ServerRefused]:
        """The results of one request; the server answers a single image in the form of `predict`."""
        if len(images) > 1:
            return _results(await self.raw(images, parameters, attempts=attempts), len(images))
        try:
            content = parsed(await self.raw(images, parameters, attempts=attempts))
        except ServerRefused as error:
            return [error]
        return [prediction_of(content, content.get("model", {}))]

    async def overlay(self, image: ImageLike, **parameters: Unpack[Parameters]) -> bytes:
        """The image with the detections drawn over it by the server, a PNG; raises as `predict`."""
        return await self.raw([encoded(image)], parameters, output="overlay")

    async def raw(
        self,
        images: Sequence[bytes],
        parameters: Parameters,
        *,
        output: str | None = None,
        attempts: Attempts | None = None,
    ) -> bytes:
        """The answer's body to a request of these images, after as many attempts as it took; raises as `predict`."""
        fields = as_text(parameters) | ({} if output is None else {"output": output})
        if attempts is None:
            attempts = Attempts(self._retries, self._deadline)
        while True:
            seconds = min(self._timeout, attempts.left())
            try:
                return await self._transport.send(images, fields, seconds)
            except (ServerRefused, ServerUnreachable, TimedOut) as error:
                await asyncio.sleep(attempts.wait(error))

    async def aclose(self) -> None:
        """Closes all connections."""
        await self._transport.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class Client:
    """The same for code without an event loop; may be shared by threads, and is to be closed.

    Arguments, methods and errors are those of `AsyncClient`. The requests run on a loop of the client's own, in a
    thread, so that there is one implementation, and a deadline holds even where a server sends its answer byte by byte.
    """

    def __init__(self, url: str = DEFAULT_URL, **connection: Unpack[Connection]) -> None:
        self._remote = AsyncClient(url, **connection)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="maskx client", daemon=True)
        self._thread.start()

    def predict(self, image: ImageLike, **parameters: Unpack[Parameters]) -> Prediction:
        """As `AsyncClient.predict`."""
        return self._wait(self._remote.predict(image, **parameters))

    def predict_many(
        self, images: Sequence[ImageLike], **parameters: Unpack[Parameters]
    ) -> list[Prediction | ServerRefused]:
        """As `AsyncClient.predict_many`."""
        return self._wait(self._remote.predict_many(images, **parameters))

    def overlay(self, image: ImageLike, **parameters: Unpack[Parameters]) -> bytes:
        """As `AsyncClient.overlay`."""
        return self._wait(self._remote.overlay(image, **parameters))

    def raw(self, images: Sequence[bytes], parameters: Parameters, *, output: str | None = None) -> bytes:
        """As `AsyncClient.raw`."""
        return self._wait(self._remote.raw(images, parameters, output=output))

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def as_text(parameters: Parameters) -> dict[str, str]:
    """The parameters as they travel, without those that are None; a list of categories as JSON, for names may have
    commas."""
    given = {name: value for name, value in parameters.items() if value is not None}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in given.items()}


def _portions(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Begin and end of each request's images, from their sizes in bytes."""
    begin, total = 0, 0
    for i, size in enumerate(sizes):
        if i > begin and (i - begin == IMAGES_PER_REQUEST or total + size > BYTES_PER_REQUEST):
            yield begin, i
            begin, total = i, 0
        total += size
    if begin < len(sizes):
        yield begin, len(sizes)


def _results(body: bytes, images: int) -> list[Prediction | ServerRefused]:
    content = parsed(body)
    results = content.get("results")
    if not isinstance(results, list) or len(results) != images:
        raise ValueError(f"the answer to {images} images has no results of as many; {ANOTHER}")
    model = content.get("model", {})
    return [error_of(one) or prediction_of(one, model) for one in results]
