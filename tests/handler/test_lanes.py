"""In how many lanes a network computes: chosen by time, or as it was asked for; and that they compute."""

import itertools
import threading
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import maskx_served
import maskx_warm_up
from maskx_answer import Detections
from maskx_errors import MaskxError
from maskx_forward import DeviceLost, Lanes
from maskx_image import DecodedImage
from maskx_model import ServedModel
from maskx_parameters import Parameters
from maskx_warm_up import SMALL_NETWORK, Measured, choose_lanes
from tests.served.standin import NETWORK_FAULT, plain, scene


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many torch has, the last of them now; begins with 8."""
    had = [8]
    monkeypatch.setattr(torch, "get_num_threads", lambda: had[-1])
    monkeypatch.setattr(torch, "set_num_threads", had.append)
    return had


def chosen(model: Any, by_threads: dict[int, float], otherwise: Collection[int] = ()) -> int:
    """Of a network of which an image takes so many milliseconds with so many threads, rounded otherwise by some."""

    def measure(_: Any, threads: int) -> Measured:
        return Measured(
            seconds=by_threads[threads] / 1e3, answers=b"otherwise" if threads in otherwise else b"alike"
        )

    return choose_lanes(model, measure)


@pytest.mark.parametrize(
    ("by_threads", "lanes"),
    [
        ({8: 10.0, 4: 10.5, 2: 11.0, 1: 11.5}, 8),  # threads gain nothing
        ({8: 10.0, 4: 11.0, 2: 13.3, 1: 13.4}, 4),
        ({8: 10.0, 4: 18.0, 2: 34.0, 1: 66.0}, 1),  # threads gain all that they can
        ({8: 16.0, 4: 12.0, 2: 10.0, 1: 13.4}, 4),  # so many are slower than few
    ],
)
def test_as_many_batches_at_a_time_as_make_an_image_a_third_later_at_most(
    model: ServedModel, threads: list[int], by_threads: dict[int, float], lanes: int
) -> None:
    assert chosen(model, by_threads) == lanes
    assert threads[-1] == 8


@pytest.mark.parametrize(("otherwise", "lanes"), [({1}, 4), ({1, 2}, 2), ({2}, 8), ({4, 2, 1}, 1)])
def test_only_numbers_of_threads_are_taken_that_round_as_all_of_them(
    model: ServedModel, threads: list[int], otherwise: set[int], lanes: int
) -> None:
    assert chosen(model, dict.fromkeys((8, 4, 2, 1), 10.0), otherwise) == lanes


def test_answers_are_compared_to_the_last_bit(
    model: ServedModel, threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maskx_warm_up, "LATER", 1e9)
    assert choose_lanes(model) == 8

    def with_another_last_bit(*given: Any) -> list[Detections]:
        (answer,) = ServedModel.predict(model, *given)
        if threads[-1] < 8:
            answer.scores[-1:] = np.nextafter(answer.scores[-1:], np.float32(2))
        return [answer]

    monkeypatch.setattr(model, "predict", with_another_last_bit)
    assert choose_lanes(model) == 1


def test_threads_that_cannot_be_halved_evenly_are_halved_no_further(
    model: ServedModel, threads: list[int]
) -> None:
    threads.append(6)
    assert chosen(model, {6: 10.0, 3: 10.0}) == 2


def test_a_large_network_is_measured_once_and_has_one_lane(model: ServedModel, threads: list[int]) -> None:
    assert chosen(model, {8: 1e3 * SMALL_NETWORK + 1}) == 1


def test_a_large_network_is_run_twice_more_at_the_start_and_no_more(
    model: ServedModel, threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, clock = itertools.count(), itertools.count()
    monkeypatch.setattr(model, "predict", lambda *_: next(runs))
    monkeypatch.setattr(maskx_warm_up.time, "perf_counter", lambda: next(clock) * (SMALL_NETWORK + 0.01))
    assert choose_lanes(model) == 1
    assert next(runs) == 2


def test_one_thread_a_gpu_and_compiled_parts_have_one_lane_and_nothing_is_measured(
    model: ServedModel, threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads.append(1)
    assert chosen(model, {}) == 1
    threads.append(8)
    with monkeypatch.context() as patch:
        patch.setattr(model, "engine", {"used": "compiled"})
        assert chosen(model, {}) == 1
    assert torch.get_num_threads() == 8
    assert chosen(SimpleNamespace(device=torch.device("cuda", 0), engine=model.engine), {}) == 1


def test_time_is_taken_with_so_many_threads_as_were_asked_for(model: ServedModel, threads: list[int]) -> None:
    assert choose_lanes(model) in (1, 2, 4, 8)
    assert threads[:3] == [8, 8, 4] and threads[-1] == 8


def test_what_the_operator_says_is_taken(
    model: ServedModel, threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maskx_served, "choose_lanes", lambda _: 2)
    monkeypatch.delenv("MASKX_LANES", raising=False)
    assert maskx_served.lanes_of(model) == 2
    monkeypatch.setenv("MASKX_LANES", "auto")
    assert maskx_served.lanes_of(model) == 2
    monkeypatch.setenv("MASKX_LANES", "4")
    assert maskx_served.lanes_of(model) == 4
    monkeypatch.setenv("MASKX_LANES", "9")
    with pytest.raises(
        ValueError, match=r"MASKX_LANES is '9'; expected auto or a whole number from 1 to 8: this worker has"
    ):
        maskx_served.lanes_of(model)
    monkeypatch.setenv("MASKX_LANES", "two")
    with pytest.raises(ValueError, match=r"MASKX_LANES is 'two'"):
        maskx_served.lanes_of(model)
    monkeypatch.setattr(model, "engine", {"used": "compiled"})
    monkeypatch.setenv("MASKX_LANES", "1")
    assert maskx_served.lanes_of(model) == 1
    monkeypatch.setenv("MASKX_LANES", "2")
    with pytest.raises(ValueError, match=r"from 1 to 1: "):
        maskx_served.lanes_of(model)


REDS = [scene(red=(i, 2, 9, 7)) for i in range(7)]
WISHED = Parameters(score_threshold=0.5, max_detections=100)


def placed(found: Sequence[Detections | MaskxError]) -> list[str]:
    """Of each image the place of its red object, or the type of its error."""
    return [one.kind.name if isinstance(one, MaskxError) else str(int(one.boxes[0, 0])) for one in found]


def computed(lanes: Lanes, model: ServedModel, images: Sequence[np.ndarray]) -> list[str]:
    decoded = [DecodedImage(pixels=one, height=one.shape[0], width=one.shape[1]) for one in images]
    return placed(lanes.predict_each(model, decoded, [WISHED] * len(decoded)))


@pytest.mark.parametrize(
    ("count", "images", "parts"),
    [(1, 7, [7]), (2, 7, [3, 4]), (3, 7, [2, 2, 3]), (4, 1, [1]), (4, 2, [1, 1]), (2, 4, [2, 2])],
)
def test_a_batch_is_computed_in_as_even_parts_as_there_are_lanes_and_answered_in_order(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch, count: int, images: int, parts: list[int]
) -> None:
    sizes, names = [], set[str]()

    def noted(batch: Sequence[np.ndarray], *others: Any) -> list[Detections]:
        sizes.append(len(batch))
        names.add(threading.current_thread().name)
        return ServedModel.predict(model, batch, *others)

    monkeypatch.setattr(model, "predict", noted)
    lanes = Lanes(count)
    assert computed(lanes, model, REDS[:images]) == [str(i) for i in range(images)]
    assert sorted(sizes) == parts
    assert threading.current_thread().name in names and len(names) <= len(parts)
    assert computed(lanes, model, []) == []


def test_where_others_are_in_all_lanes_a_batch_is_computed_whole_in_the_next_that_is_free(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, begun, go = [], threading.Semaphore(0), threading.Event()

    def held(batch: Sequence[np.ndarray], *others: Any) -> list[Detections]:
        sizes.append(len(batch))
        begun.release()
        assert go.wait(60)
        return ServedModel.predict(model, batch, *others)

    monkeypatch.setattr(model, "predict", held)
    lanes = Lanes(3)
    with ThreadPoolExecutor(4) as clients:
        first = clients.submit(computed, lanes, model, REDS[:1])
        assert begun.acquire(timeout=60)
        others = [clients.submit(computed, lanes, model, REDS[:4])]  # two lanes are free
        assert begun.acquire(timeout=60) and begun.acquire(timeout=60)
        others += [clients.submit(computed, lanes, model, REDS[1:4])]
        while lanes.taken < 4:
            time.sleep(0.001)
        go.set()
        assert first.result() == ["0"]
        assert [one.result() for one in others] == [["0", "1", "2", "3"], ["1", "2", "3"]]
    assert sizes == [1, 2, 2, 3] and lanes.taken == 0
    computed(lanes, model, REDS[:3])
    assert sizes[-3:] == [1, 1, 1]  # all are free again


def test_a_lane_has_its_share_of_the_threads_and_who_asks_keeps_all(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, seen = torch.get_num_threads(), []

    def noted(*given: Any) -> list[Detections]:
        seen.append(torch.get_num_threads())
        return ServedModel.predict(model, *given)

    monkeypatch.setattr(model, "predict", noted)
    torch.set_num_threads(4)
    try:
        computed(Lanes(2), model, REDS[:2])
        assert seen == [2, 2] and torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def test_an_image_that_fails_in_a_lane_costs_its_own_answer_alone(model: ServedModel) -> None:
    images = [*REDS[:3], plain(NETWORK_FAULT), *REDS[4:]]
    assert computed(Lanes(3), model, images) == ["0", "1", "2", "InternalError", "4", "5", "6"]


def test_a_device_that_is_lost_in_a_lane_is_lost(model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "device_answers", lambda: False)
    with pytest.raises(DeviceLost):
        computed(Lanes(2), model, [*REDS[:3], plain(NETWORK_FAULT)])
