"""`AsyncClient`: predictions of one model over REST or gRPC, asked again where that can help, as typed values."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypedDict, Unpack

from client.errors import ServerRefused, ServerUnreachable, TimedOut, error_of
from client.images import ImageLike, encoded
from client.prediction import ANOTHER, Prediction, parsed, prediction_of
from client.rest_transport import RestTransport
from client.retry import Pursuit, Retries
from client.transport import DEFAULT_URL, Parameters, Target, Transport, token_or_environment

IMAGES_PER_REQUEST = 8
BYTES_PER_REQUEST = 24_000_000
"""A request of several images stays below what the server takes as it is shipped; more become more requests."""


class Wishes(TypedDict, total=False):
    """Parameters of a request; the server's defaults hold for what is left out or None.

    score_threshold: 0 to 1. max_detections: the best so many. categories: names or ids. mask_format: rle, polygon, png
    or none.
    """

    score_threshold: float | str | None
    max_detections: int | str | None
    categories: Sequence[str | int] | str | None
    mask_format: str | None


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
        ValueError: an argument that cannot be.
        ImportError: gRPC, and client/generated is not made.
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
        self._target = Target(
            url=url,
            model=model,
            version=version,
            token=token_or_environment(token),
            ca=None if ca is None else Path(ca),
        )
        self._timeout = timeout
        self._deadline = deadline
        self._retries = retries or Retries()
        self._transport: Transport
        if self._target.grpc:
            # only who asks for gRPC needs its packages and the generated code
            from client.grpc_transport import GrpcTransport

            self._transport = GrpcTransport(self._target)
        else:
            self._transport = RestTransport(self._target, connections=connections)

    async def predict(self, image: ImageLike, **wishes: Unpack[Wishes]) -> Prediction:
        """What the model finds in one image.

        Raises:
            ServerRefused: the server answered with an error; the class says of which sort (client/errors.py).
            ServerUnreachable: nobody answered, also not in the last attempt.
            TimedOut: the attempt's time or the deadline has passed.
            ValueError: the image or the answer is none.
        """
        content = parsed(await self.raw([encoded(image)], wishes))
        return prediction_of(content, content.get("model", {}))

    async def predict_many(
        self, images: Sequence[ImageLike], **wishes: Unpack[Wishes]
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
            found += await self._portion(data[begin:end], wishes)
        return found

    async def _portion(self, images: list[bytes], wishes: Wishes) -> list[Prediction | ServerRefused]:
        pursuit = Pursuit(self._retries, self._deadline)
        results: dict[int, Prediction | ServerRefused] = {}
        missing = list(range(len(images)))
        while missing:
            found = await self._together([images[i] for i in missing], wishes, pursuit)
            results.update(zip(missing, found, strict=True))
            passing = {
                i: one for i, one in results.items() if isinstance(one, ServerRefused) and one.transient
            }
            missing = list(passing)
            if missing:
                try:
                    await asyncio.sleep(pursuit.wait(passing[missing[0]]))
                except (ServerRefused, TimedOut):
                    break  # the errors stay in their places
        return [results[i] for i in range(len(images))]

    async def _together(
        self, images: list[bytes], wishes: Wishes, pursuit: Pursuit
    ) -> list[Prediction | ServerRefused]:
        """The results of one request; the server answers a single image in the form of `predict`."""
        if len(images) > 1:
            return _results(await self.raw(images, wishes, pursuit=pursuit), len(images))
        try:
            content = parsed(await self.raw(images, wishes, pursuit=pursuit))
        except ServerRefused as error:
            return [error]
        return [prediction_of(content, content.get("model", {}))]

    async def overlay(self, image: ImageLike, **wishes: Unpack[Wishes]) -> bytes:
        """The image with the detections drawn over it by the server, a PNG; raises as `predict`."""
        return await self.raw([encoded(image)], wishes, output="overlay")

    async def raw(
        self,
        images: Sequence[bytes],
        wishes: Wishes,
        *,
        output: str | None = None,
        pursuit: Pursuit | None = None,
    ) -> bytes:
        """The answer's body to a request of these images, after as many attempts as it took; raises as `predict`."""
        parameters = as_text(wishes)
        if output is not None:
            parameters = {**parameters, "output": output}
        if pursuit is None:
            pursuit = Pursuit(self._retries, self._deadline)
        while True:
            seconds = min(self._timeout, pursuit.left())
            try:
                return await self._transport.send(images, parameters, seconds)
            except (ServerRefused, ServerUnreachable, TimedOut) as error:
                await asyncio.sleep(pursuit.wait(error))

    async def aclose(self) -> None:
        """Closes all connections."""
        await self._transport.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def as_text(wishes: Wishes) -> Parameters:
    """The parameters as they travel, without those that are None; a list of categories as JSON, for names may have
    commas."""
    given = {name: value for name, value in wishes.items() if value is not None}
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
