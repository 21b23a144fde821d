"""Batches of a real server: what is wrong with one request stays its own, and order and parameters are kept."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest

from client.errors import ServerRefused
from server.life import ready
from server.processes import ENGINES
from tests.served.machine import Machine, serving
from tests.served.nginx import wait_until
from tests.served.standin import (
    ALWAYS_OUT_OF_MEMORY,
    DEVICE_FAULT,
    NETWORK_FAULT,
    OUT_OF_MEMORY_ABOVE_TWO,
    plain,
    png,
    scene,
)

pytestmark = pytest.mark.engines(*ENGINES)


def at_once(machine: Machine, asks: Sequence[Callable[[], Any]]) -> list[Any]:
    """All asked in one batch, and each one's answer, in order; an exception is an answer too."""

    def ask(one: Callable[[], Any], barrier: Barrier) -> Any:
        barrier.wait()
        try:
            return one()
        except ServerRefused as error:
            return error

    for _ in range(10):  # until the machine was quick enough for all to meet in one batch
        before, barrier = machine.batches(), Barrier(len(asks))
        with ThreadPoolExecutor(len(asks)) as pool:
            answers = [future.result() for future in [pool.submit(ask, one, barrier) for one in asks]]
        if machine.batches() == before + 1:
            return answers
    raise AssertionError("the requests never met in one batch")


@pytest.mark.parametrize("protocol", ["rest", "grpc", "both"])
def test_one_bad_image_of_eight_hurts_no_other_of_its_batch_and_order_is_kept(
    batched: Machine, protocol: str
) -> None:
    images = [
        png(scene(width=50 + i, height=30 + i, red=(i, 2, 9, 7), green=(20, 4, 5 + i, 6))) for i in range(8)
    ]
    images[3] = images[3][:60]
    over_rest, over_grpc = batched.rest(), batched.grpc()
    grpc_at = {"rest": [], "grpc": range(8), "both": range(0, 8, 2)}[protocol]
    answers = at_once(
        batched, [partial((over_grpc if i in grpc_at else over_rest).predict, images[i]) for i in range(8)]
    )
    bad = answers.pop(3)
    assert isinstance(bad, ServerRefused) and bad.code == 400 and bad.kind == "InvalidImage"
    for i, body in zip((0, 1, 2, 4, 5, 6, 7), answers, strict=True):
        answer = json.loads(body)
        assert answer["image"] == {"height": 30 + i, "width": 50 + i}
        assert [one["bbox"] for one in answer["detections"]] == [[i, 2, 9, 7], [20, 4, 5 + i, 6]]


def kinds(answers: list[Any]) -> list[str]:
    """Of each answer the type of its error, or of a good one the place of its first object."""
    return [
        one.kind if isinstance(one, ServerRefused) else str(json.loads(one)["detections"][0]["bbox"][0])
        for one in answers
    ]


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
@pytest.mark.parametrize(
    ("colour", "kind", "code"),
    [(NETWORK_FAULT, "InternalError", 500), (ALWAYS_OUT_OF_MEMORY, "OutOfMemory", 507)],
    ids=["network", "memory"],
)
def test_an_image_that_the_network_fails_on_hurts_no_other_of_its_batch(
    batched: Machine, protocol: str, colour: tuple[int, int, int], kind: str, code: int
) -> None:
    client = getattr(batched, protocol)()
    images = [png(scene(red=(i, 2, 9, 7))) for i in range(8)]
    images[5] = png(plain(colour))
    answers = at_once(batched, [partial(client.predict, image) for image in images])
    assert kinds(answers) == ["0.0", "1.0", "2.0", "3.0", "4.0", kind, "6.0", "7.0"]
    assert answers[5].code == code


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_where_memory_runs_out_in_a_batch_all_are_answered_after_a_retry_at_half_of_it(
    batched: Machine, protocol: str
) -> None:
    client = getattr(batched, protocol)()
    images = [png(plain(OUT_OF_MEMORY_ABOVE_TWO)), *(png(scene(red=(i, 2, 9, 7))) for i in range(1, 8))]
    answers = at_once(batched, [partial(client.predict, image) for image in images])
    assert json.loads(answers[0])["detections"] == []
    assert kinds(answers[1:]) == [f"{i}.0" for i in range(1, 8)]
    log = (batched.state / "logs" / "model_log.log").read_text()
    assert "images failed together, and are tried again" in log


def test_sizes_formats_parameters_and_protocols_may_differ_in_one_batch(batched: Machine) -> None:
    """Each answer is the very one that the request has alone."""
    asks: list[Callable[[], bytes]] = []
    asked: list[dict[str, Any]] = [
        {},
        {"mask_format": "polygon"},
        {"mask_format": "png", "categories": "red"},
        {"mask_format": "none"},
        {"output": "overlay"},
        {"max_detections": 1},
        {"categories": "green,7"},
        {"score_threshold": 0.9},
    ]
    for i, parameters in enumerate(asked):
        image = png(
            scene(width=60 + 40 * i, height=90 - 7 * i, red=(2 + i, 3, 20, 11), green=(30, 4, 13, 21 + i))
        )
        client = batched.rest() if i % 2 else batched.grpc()
        asks.append(partial(client.predict, image, parameters))
    alone = [ask() for ask in asks]
    assert len(set(alone)) == 8
    assert at_once(batched, asks) == alone


def test_answers_just_below_the_limit_fill_a_batch_and_one_above_it_is_refused(batched: Machine) -> None:
    """TorchServe kills a worker that sends one answer above its own limit; it counts each by itself."""
    limit = 6_000_000
    below, above = (checkerboard(side) for side in (2440, 2460))
    predict = partial(batched.rest().predict, parameters={"score_threshold": 0.1})
    worker = batched.worker().pid
    answers = at_once(batched, [partial(predict, image) for image in (below, above, below, below)])
    refused = answers.pop(1)
    assert isinstance(refused, ServerRefused) and refused.kind == "AnswerTooLarge"
    assert [0.95 * limit < len(body) <= limit for body in answers] == [True] * 3
    assert batched.worker().pid == worker


def checkerboard(side: int) -> bytes:
    """A red object of every second pixel: about as many bytes of run lengths as the image has pixels."""
    pixels = np.zeros((side, side, 3), np.uint8)
    pixels[::2, ::2, 0] = pixels[1::2, 1::2, 0] = 255
    return png(pixels)


def test_a_worker_whose_device_is_lost_answers_everybody_and_is_replaced(
    standin_archive: Callable[..., Path], tmp_path: Path
) -> None:
    # All eight must meet in one batch: TorchServe loses a request that it gathers for the next when the worker goes.
    archive = standin_archive("lost", batchSize=8, maxBatchDelay=3000)
    with serving(tmp_path, archive) as machine:
        first = machine.worker()
        rest, grpc = machine.rest(), machine.grpc()
        images = [png(scene(red=(i, 2, 9, 7))) for i in range(8)]
        images[2], images[6] = png(plain(DEVICE_FAULT)), b"?"
        asks = [partial((grpc if i % 2 else rest).predict, image) for i, image in enumerate(images)]
        answers = at_once(machine, asks)
        assert kinds(answers) == ["Restarting"] * 6 + ["InvalidImage", "Restarting"]
        assert answers[0].code == 503
        first.wait(timeout=60)
        wait_until(lambda: not ready(state=machine.state))
        assert machine.worker().pid != first.pid
        assert kinds([rest.predict(images[4])]) == ["4.0"]
