"""A worker: the process that runs the archive's handler modules, and answers the batches that the front sends it.

    python -P worker.py DESCRIPTOR FOLDER NAME GPU BATCH_SIZE

DESCRIPTOR is that of a Unix socket to the front; FOLDER holds the unpacked archive, whose modules are imported from
there; GPU is "" where none is assigned. Only the standard library, PyYAML and the archive are imported.

A message is its length in 8 bytes, the lowest first, and the content in `marshal`'s form, which makes plain values
alone: nothing that is read can run code. The worker first says ("ready", the OpenAPI document in JSON, lanes) or
("failed", reason). From then on every message begins with a number of the front's, and so does the answer to it; up to
`lanes` of them may be under way at a time, and are answered in whatever order they are done (`maskx_forward.Lanes`).
(number, "describe") is answered with bytes, and (number, "answer", requests), each request (fields, headers, by_grpc),
with (answers, samples, lost): an answer is (status, content type, kind, headers, body), a sample (name, value, labels);
`lost` is whether the device computes no more, after which the process ends. It ends too when the front closes the
socket, and heeds no SIGTERM or SIGINT, which come to the whole group: the front decides when it is no longer needed.
"""

import json
import logging
import marshal
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

LENGTH = 8
MANIFEST = "MAR-INF/MANIFEST.json"

logger = logging.getLogger("maskx.worker")


def send(connection: socket.socket, content: Any) -> None:
    """Sends one message, at once, so that the front is woken once."""
    data = marshal.dumps(content)
    connection.sendall(len(data).to_bytes(LENGTH, "little") + data)


def receive(connection: socket.socket) -> Any:
    """Reads one message. Raises EOFError where the front has closed the socket."""
    return marshal.loads(_exactly(connection, int.from_bytes(_exactly(connection, LENGTH), "little")))


def _exactly(connection: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view, at = memoryview(data), 0
    while at < size:
        count = connection.recv_into(view[at:])
        if count == 0:
            raise EOFError("the front has closed the socket")
        at += count
    return data


class Worker:
    """Answers with the model of one archive, `lanes` batches at a time."""

    def __init__(self, folder: Path, name: str, gpu_id: int | None, batch_size: int) -> None:
        """Loads and warms up the model. Raises whatever the archive's modules raise."""
        manifest = json.loads((folder / MANIFEST).read_text())["model"]
        config = None
        if configuration := manifest.get("configFile"):
            config = import_module("yaml").safe_load((folder / configuration).read_text())
        try:
            self._served = import_module("maskx_served")
        except ModuleNotFoundError as error:
            raise ValueError(
                f"the archive lacks {error.name}.py, so it was made for TorchServe alone; make it again"
            ) from error
        self._model = self._served.load(
            folder, manifest, config, name=name, gpu_id=gpu_id, batch_size=batch_size
        )
        self.lanes: int = getattr(self._model, "lanes", 1)  # an archive of before has none
        self._metrics = import_module("maskx_metrics")
        self._queue_seconds = import_module("maskx_request").queue_seconds
        self._memory_due = 0.0

    def describe(self) -> bytes:
        """What runs here, in JSON."""
        description: bytes = self._model.description
        return description

    def openapi(self) -> bytes:
        """The OpenAPI document of what is taken and given here, in JSON."""
        document: bytes = self._model.openapi
        return document

    def answer(
        self, requests: Sequence[tuple[dict[str, Any], dict[str, str], bool]]
    ) -> tuple[Any, Any, bool]:
        """Answers, samples, and whether the device is lost; in the forms of a message."""
        now = time.time()
        service = self._model.service
        found = service.answer([fields for fields, _, _ in requests], [headers for _, headers, _ in requests])
        protocols = ["grpc" if by_grpc else "rest" for _, _, by_grpc in requests]
        queued = [self._queue_seconds(headers, now) for _, headers, _ in requests]
        samples = self._metrics.samples_of(found, protocols, queued) + self._memory()
        answers = []
        for answer, (_, headers, by_grpc) in zip(found, requests, strict=True):
            body, others = (answer.body, {}) if by_grpc else self._served.sent(answer, headers)
            answers.append((answer.status, answer.content_type, answer.kind, others, body))
        return answers, [(one.name, one.value, one.labels) for one in samples], service.lost

    def _memory(self) -> list[Any]:
        """The sample of the device's memory, where one is due."""
        now, model = time.monotonic(), self._model.model
        if now < self._memory_due:
            return []
        self._memory_due = now + self._metrics.MEMORY_EVERY
        return [self._metrics.memory_sample(str(model.device), model.memory_taken())]


class Lanes:
    """Answers messages, `worker.lanes` at a time; a single lane is the main thread."""

    def __init__(self, connection: socket.socket, worker: Worker) -> None:
        self._connection, self._worker = connection, worker
        self._sending = threading.Lock()
        self._lost = False

    def serve(self) -> int:
        """Answers until the front closes the socket, or the device is lost; returns the exit status."""
        if self._worker.lanes == 1:
            return self._serve(self._answer)
        with ThreadPoolExecutor(self._worker.lanes, "lane") as threads:
            return self._serve(lambda *message: threads.submit(self._guarded, *message))

    def _serve(self, answer: Any) -> int:
        while not self._lost:
            try:
                message = receive(self._connection)
            except (EOFError, ConnectionError):
                break
            answer(*message)
        return int(self._lost)

    def _answer(self, number: int, kind: str, *content: Any) -> None:
        if kind == "describe":
            self._send(number, self._worker.describe())
            return
        answers, samples, lost = self._worker.answer(content[0])
        self._send(number, (answers, samples, lost))
        if lost:
            logger.error("the device is lost: this worker ends, and the front starts another")
            self._lost = True
            self._connection.shutdown(socket.SHUT_RD)  # wakes who waits for the next message

    def _guarded(self, *message: Any) -> None:
        """`_answer` in a thread of its own, where a fault of this program's would be waited for in vain."""
        try:
            self._answer(*message)
        except ConnectionError:
            pass  # the front is gone, which the main thread sees as well
        except BaseException:
            logger.exception("a lane failed")
            logging.shutdown()
            os._exit(3)

    def _send(self, number: int, content: Any) -> None:
        with self._sending:
            send(self._connection, (number, content))


def main(arguments: Sequence[str]) -> int:
    """The process; returns its exit status."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    form = "%(asctime)s %(levelname)s MODEL_LOG - %(message)s"
    logging.basicConfig(stream=sys.stdout, format=form, level=logging.INFO)
    descriptor, folder, name, gpu, batch_size = arguments
    connection = socket.socket(fileno=int(descriptor))
    sys.path.insert(0, folder)
    try:
        worker = Worker(Path(folder), name, int(gpu) if gpu else None, int(batch_size))
    except Exception as error:  # whatever the archive's code raises is the reason why it cannot be served
        logger.error("%s: %s", type(error).__name__, error, exc_info=not isinstance(error, ValueError))
        send(connection, ("failed", f"{type(error).__name__}: {error}"))
        return 2
    send(connection, ("ready", worker.openapi(), worker.lanes))
    return Lanes(connection, worker).serve()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
