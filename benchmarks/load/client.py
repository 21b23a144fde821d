"""The generator of load: REST over kept connections or gRPC, closed loop or open loop, in a process of its own.

Closed loop: every client sends its next request when it has the answer to the last. Open loop: requests begin at a
fixed rate whatever the server does, and a latency counts from the moment its request was to begin; where all
connections are busy, the wait for one counts too, so that no request that a slow server held back is left out.

Threads with http.client or grpc: they wait nearly all the time, and what they cost is reported ("cpu").
"""

import http.client
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import grpc

from benchmarks.load.times import Sample

HOST = "127.0.0.1"
CONNECTIONS = 64
"""Most requests on their way at a time in an open loop; TorchServe's queue takes 100."""
PAUSE = 0.01
"""Seconds that a client waits after an error, so that one that is refused at once does not become a flood."""
LONGEST_SECONDS = 3600.0
MOST_REQUESTS = 2_000_000
MAX_MESSAGE_BYTES = 64 * 2**20
GRPC_OPTIONS = [(f"grpc.max_{way}_message_length", MAX_MESSAGE_BYTES) for way in ("send", "receive")]
GRPC_OPTIONS.append(("grpc.use_local_subchannel_pool", 1))


class Sender(Protocol):
    """One connection that is kept."""

    def send(self, number: int) -> str:
        """Sends the image of that number; "" where detections came back, else what happened."""
        ...

    def close(self) -> None:
        """Ends the connection."""
        ...


class RestSender:
    """Posts images as they are, and connects anew where the server closed."""

    def __init__(self, port: int, model: str, images: Sequence[bytes], timeout: float) -> None:
        self._connection = http.client.HTTPConnection(HOST, port, timeout=timeout)
        self._path = f"/predictions/{model}"
        self._images = images

    def send(self, number: int) -> str:
        body = self._images[number % len(self._images)]
        try:
            self._connection.request("POST", self._path, body, {"Content-Type": "application/octet-stream"})
            answer = self._connection.getresponse()
            content = answer.read()
        except TimeoutError:
            self._connection.close()
            return "timeout"
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            return type(error).__name__
        if answer.status != 200:
            return str(answer.status)
        return "" if b'"detections":[' in content else "no detections"

    def close(self) -> None:
        self._connection.close()


class GrpcSender:
    """Calls Predictions over a channel that shares its connection with no other."""

    def __init__(self, port: int, model: str, images: Sequence[bytes], timeout: float) -> None:
        from client.generated import inference_pb2, inference_pb2_grpc

        self._channel = grpc.insecure_channel(f"{HOST}:{port}", options=GRPC_OPTIONS)
        self._call = inference_pb2_grpc.InferenceAPIsServiceStub(self._channel).Predictions
        request = partial(inference_pb2.PredictionsRequest, model_name=model)
        self._requests = [request(input={"data": image}) for image in images]
        self._timeout = timeout

    def send(self, number: int) -> str:
        try:
            answer = self._call(self._requests[number % len(self._requests)], timeout=self._timeout)
        except grpc.RpcError as error:
            return str(error.code().name)
        return "" if b'"detections":[' in answer.prediction else "no detections"

    def close(self) -> None:
        self._channel.close()


SENDERS: dict[str, Callable[[int, str, Sequence[bytes], float], Sender]] = {
    "REST": RestSender,
    "gRPC": GrpcSender,
}


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How long a run sends, and at most how many requests. Raises ValueError where that is no bound."""

    seconds: float
    most: int

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= LONGEST_SECONDS:
            raise ValueError(f"a run of {self.seconds} s; up to {LONGEST_SECONDS:.0f} s is allowed")
        if not 0 < self.most <= MOST_REQUESTS:
            raise ValueError(f"{self.most} requests; 1 to {MOST_REQUESTS} are allowed")


def closed_loop(senders: Sequence[Sender], bounds: Bounds) -> list[Sample]:
    """Every sender sends one request after the other; a clock that begins at 0."""
    samples: list[Sample] = []
    numbers = itertools.count()
    start = time.perf_counter()

    def work(sender: Sender) -> None:
        while (begin := time.perf_counter() - start) < bounds.seconds:
            number = next(numbers)
            if number >= bounds.most:
                return
            outcome = sender.send(number)
            samples.append(Sample(begin=begin, end=time.perf_counter() - start, outcome=outcome))
            if outcome:
                time.sleep(PAUSE)

    _together(senders, work)
    return samples


def open_loop(senders: Sequence[Sender], bounds: Bounds, rate: float) -> list[Sample]:
    """Request number i is to begin at i / rate seconds; it begins later where all senders are busy, and that counts."""
    count = min(int(bounds.seconds * rate), bounds.most)
    samples: list[Sample] = []
    numbers = itertools.count()
    start = time.perf_counter()

    def work(sender: Sender) -> None:
        while (number := next(numbers)) < count:
            intended = number / rate
            wait = intended - (time.perf_counter() - start)
            if wait > 0:
                time.sleep(wait)
            outcome = sender.send(number)
            samples.append(Sample(begin=intended, end=time.perf_counter() - start, outcome=outcome))

    _together(senders, work)
    return samples


def _together(senders: Sequence[Sender], work: Callable[[Sender], None]) -> None:
    threads = [threading.Thread(target=work, args=(sender,)) for sender in senders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class LoadClient:
    """What the process of the generator is asked to do; answers are plain values."""

    def __init__(
        self, protocol: str, port: int, images: Sequence[str], model: str = "maskx", timeout: float = 120.0
    ) -> None:
        self._make = SENDERS[protocol]
        self._port, self._model, self._timeout = port, model, timeout
        self._images = [Path(image).read_bytes() for image in images]

    def closed(self, concurrency: int, seconds: float, most: int) -> dict[str, Any]:
        """See `closed_loop`."""
        bounds = Bounds(seconds=seconds, most=most)
        return self._run(concurrency, lambda senders: closed_loop(senders, bounds))

    def open(self, rate: float, seconds: float, most: int) -> dict[str, Any]:
        """See `open_loop`."""
        bounds = Bounds(seconds=seconds, most=most)
        return self._run(CONNECTIONS, lambda senders: open_loop(senders, bounds, rate))

    def _run(self, connections: int, load: Callable[[Sequence[Sender]], list[Sample]]) -> dict[str, Any]:
        """ "samples" [begin, end, outcome] in order of their ends, and "cpu", seconds that this process took."""
        given = self._port, self._model, self._images, self._timeout
        senders = [self._make(*given) for _ in range(connections)]
        cpu = time.process_time()
        try:
            samples = load(senders)
        finally:
            for sender in senders:
                sender.close()
        spent = time.process_time() - cpu
        samples.sort(key=lambda sample: sample.end)
        return {"samples": [[one.begin, one.end, one.outcome] for one in samples], "cpu": spent}


def samples_of(answer: dict[str, Any]) -> list[Sample]:
    """What `LoadClient` answered, as samples again."""
    return [Sample(begin=begin, end=end, outcome=outcome) for begin, end, outcome in answer["samples"]]
