"""The queue, the batches and the workers of one version, with real processes that compute nothing."""

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from server.light.answers import Refusal
from server.light.pool import Pool, PoolSettings
from server.light.wire import run as on_the_loop
from tests.served.light.pools import asked, content, outcome, ready, run


def test_requests_that_come_together_are_answered_together_and_in_their_order(
    folder: Path, settings: PoolSettings
) -> None:
    async def case(pool: Pool) -> None:
        await ready(pool)
        answers = [content(await task) for task in [asked(pool, b"%d" % i) for i in range(6)]]
        assert [one["asked"] for one in answers] == list("012345")
        assert [one["together"] for one in answers] == ["4"] * 4 + ["2"] * 2

    counted = run(folder, settings, case)
    assert [one.value for one in counted if one.name == "maskx_batch_size"] == [4, 2]


def test_a_lone_request_is_answered_though_no_other_comes(folder: Path, settings: PoolSettings) -> None:
    async def case(pool: Pool) -> None:
        assert content(await asked(pool, b"a"))["together"] == "1"

    run(folder, settings, case)


def test_others_are_waited_for_only_where_requests_come_together(
    folder: Path, settings: PoolSettings
) -> None:
    async def case(pool: Pool) -> None:
        assert content(await asked(pool, b"a"))["together"] == "1"  # waited for others, in vain
        pool.settings = replace(settings, delay=3600.0)
        async with asyncio.timeout(30):
            assert [content(await asked(pool, one))["together"] for one in (b"b", b"c")] == ["1", "1"]
            slow = asked(pool, b"slow")
            await asyncio.sleep(0.1)
            beside = [asked(pool, b"d"), asked(pool, b"e")]
            assert content(await slow)["together"] == "1"
            await asyncio.sleep(0.3)
            assert not any(one.done() for one in beside)  # wait for others, as they came beside the slow one
            beside += [asked(pool, b"f"), asked(pool, b"g")]
            assert [content(await one)["together"] for one in beside] == ["4"] * 4
            lone = asked(pool, b"h")
            await asyncio.sleep(0.3)
            assert not lone.done()
            four = [lone, *(asked(pool, b"i") for _ in range(3))]
            assert [content(await one)["together"] for one in four] == ["4"] * 4
            await pool.describe()  # shares no batch, so it says nothing of that
            four = [asked(pool, b"j")]
            await asyncio.sleep(0.3)
            four += [asked(pool, b"k") for _ in range(3)]
            assert [content(await one)["together"] for one in four] == ["4"] * 4

    run(folder, settings, case)


def test_a_full_queue_refuses_at_once_with_when_to_ask_again(folder: Path, settings: PoolSettings) -> None:
    async def case(pool: Pool) -> None:
        await ready(pool)
        first = asked(pool, b"slow")
        await asyncio.sleep(0.3)
        waiting = [asked(pool, b"a"), asked(pool, b"b")]
        await asyncio.sleep(0)
        with pytest.raises(Refusal) as raised:
            await pool.ask({"body": b"c"}, {}, by_grpc=False)
        assert (raised.value.status, raised.value.kind, raised.value.retry_after) == (503, "Busy", 1)
        assert [await outcome(one) for one in [first, *waiting]] == ["slow", "a", "b"]

    run(folder, replace(settings, queue=2, batch_size=1), case)


def test_who_hangs_up_while_he_waits_is_never_computed(folder: Path, settings: PoolSettings) -> None:
    async def case(pool: Pool) -> None:
        await ready(pool)
        first = asked(pool, b"slow")
        await asyncio.sleep(0.1)
        gone, stays = asked(pool, b"die"), asked(pool, b"b")
        await asyncio.sleep(0)
        assert pool.pending == 3
        gone.cancel()
        await asyncio.sleep(0)
        assert pool.pending == 2
        assert [await outcome(first), await outcome(stays)] == ["slow", "b"]
        assert pool.restarts == 0

    run(folder, replace(settings, batch_size=1), case)


def test_a_killed_worker_costs_nobody_an_answer(folder: Path, settings: PoolSettings) -> None:
    async def case(pool: Pool) -> None:
        await ready(pool)
        ((pid, _),) = pool.workers()
        tasks = [asked(pool, body) for body in (b"slow", b"a", b"b", b"c", b"d")]
        await asyncio.sleep(0.3)
        os.kill(pid, signal.SIGKILL)
        assert [await outcome(one) for one in tasks] == ["slow", "a", "b", "c", "d"]
        assert pool.workers()[0][0] != pid and pool.restarts == 1

    run(folder, settings, case)


def test_a_worker_that_died_with_nothing_to_do_is_replaced_and_no_request_is_charged_with_it(
    folder: Path, settings: PoolSettings
) -> None:
    async def case(pool: Pool) -> None:
        for _ in range(3):
            await ready(pool)
            ((pid, _),) = pool.workers()
            os.kill(pid, signal.SIGKILL)
            assert content(await asked(pool, b"a"))["pid"] != pid

    run(folder, settings, case)


def test_a_batch_that_is_gathered_in_the_moment_in_which_its_worker_ends_goes_back(
    folder: Path, settings: PoolSettings
) -> None:
    async def case() -> None:
        pool = Pool("maskx", "1.0", folder, replace(settings, batch_size=1), lambda samples: None)
        task = asked(pool, b"a")
        await asyncio.sleep(0)
        worker: Any = SimpleNamespace(gone=asyncio.get_running_loop().create_future())
        gathered = asyncio.create_task(pool._gathered(worker))
        await asyncio.sleep(0)
        worker.gone.set_result(1)
        assert await gathered == [] and pool.pending == 1
        task.cancel()

    on_the_loop(case())


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("turns", range(8))
def test_a_batch_that_is_gathered_in_the_moment_in_which_the_pool_ends_is_not_lost(
    folder: Path, settings: PoolSettings, turns: int, batch_size: int
) -> None:
    async def case() -> None:
        pool = Pool("maskx", "1.0", folder, replace(settings, batch_size=batch_size), lambda samples: None)
        worker: Any = SimpleNamespace(gone=asyncio.get_running_loop().create_future())
        gathered = asyncio.create_task(pool._gathered(worker))
        await asyncio.sleep(0.01)
        task = asked(pool, b"a")
        for _ in range(turns):
            await asyncio.sleep(0)
        gathered.cancel()
        (batch,) = await asyncio.gather(gathered, return_exceptions=True)
        here = [] if isinstance(batch, BaseException) else batch
        assert len(here) + pool.pending == 1
        task.cancel()

    on_the_loop(case())


def test_a_request_that_kills_its_worker_twice_is_refused_alone(folder: Path, settings: PoolSettings) -> None:
    async def case(pool: Pool) -> None:
        await ready(pool)
        tasks = [asked(pool, body) for body in (b"a", b"die", b"b", b"c")]
        assert [await outcome(one) for one in tasks] == ["a", "503 WorkerDied", "b", "c"]
        assert await outcome(asked(pool, b"after")) == "after"
        assert pool.restarts == 2

    run(folder, settings, case)


def test_a_worker_that_hangs_is_ended_and_its_other_requests_answered(
    folder: Path, settings: PoolSettings
) -> None:
    async def case(pool: Pool) -> None:
        await ready(pool)
        tasks = [asked(pool, body) for body in (b"a", b"hang")]
        assert [await outcome(one) for one in tasks] == ["a", "503 WorkerDied"]

    run(folder, replace(settings, response_timeout=0.5), case)


def test_a_lost_device_costs_only_the_request_that_loses_it_again(
    folder: Path, settings: PoolSettings
) -> None:
    async def case(pool: Pool) -> None:
        await ready(pool)
        tasks = [asked(pool, body) for body in (b"a", b"lost", b"b")]
        answers = [await one for one in tasks]
        assert [one.kind for one in answers] == ["", "Restarting", ""]
        assert answers[1].status == 503
        assert await outcome(asked(pool, b"after")) == "after"
        assert pool.restarts == 2

    run(folder, settings, case)


def test_two_workers_compute_at_once_and_one_dead_leaves_the_other(
    folder: Path, settings: PoolSettings
) -> None:
    async def case(pool: Pool) -> None:
        while sum(is_ready for _, is_ready in pool.workers()) < 2:
            await asyncio.sleep(0.01)
        tasks = [asked(pool, b"slow") for _ in range(4)]
        pids = {content(await one)["pid"] for one in tasks}
        assert pids == {pid for pid, _ in pool.workers()} and len(pids) == 2
        os.kill(min(pids), signal.SIGKILL)
        while pool.restarts == 0:
            await asyncio.sleep(0.01)
        assert pool.ready and await outcome(asked(pool, b"a")) == "a"

    run(folder, replace(settings, workers=2, batch_size=1), case)


def with_lanes(folder: Path, lanes: int) -> Path:
    (folder / "model-config.yaml").write_text(f"lanes: {lanes}")
    return folder


def test_a_worker_with_lanes_answers_so_many_batches_at_a_time_each_in_a_thread_of_its_own(
    folder: Path, settings: PoolSettings
) -> None:
    async def case(pool: Pool) -> None:
        await ready(pool)
        tasks = [asked(pool, body) for body in (b"wait", b"wait", b"go")]
        answers = [content(await one) for one in tasks]
        assert len({one["pid"] for one in answers}) == 1
        assert {one["thread"] for one in answers} == {f"lane_{k}" for k in range(3)}
        assert (await pool.describe())["lanes"] == 3

    run(with_lanes(folder, 3), replace(settings, batch_size=1, delay=0.0), case)


def test_who_was_in_another_lane_of_a_worker_that_died_is_asked_again_with_nothing_beside_it(
    folder: Path, settings: PoolSettings
) -> None:
    async def case(pool: Pool) -> None:
        await ready(pool)
        slow = [asked(pool, b"slow"), asked(pool, b"slow")]
        await asyncio.sleep(0.1)
        tasks = [asked(pool, b"die"), *slow, asked(pool, b"after")]
        assert [await outcome(one) for one in tasks] == ["503 WorkerDied", "slow", "slow", "after"]
        assert pool.restarts == 2

    run(with_lanes(folder, 3), replace(settings, batch_size=1, delay=0.0), case)


def test_a_hung_lane_ends_its_worker_and_those_in_the_other_lanes_are_answered(
    folder: Path, settings: PoolSettings
) -> None:
    async def case(pool: Pool) -> None:
        await ready(pool)
        tasks = [asked(pool, b"hang")]
        await asyncio.sleep(0.3)
        tasks += [asked(pool, b"slow"), asked(pool, b"slow")]
        assert [await outcome(one) for one in tasks] == ["503 WorkerDied", "slow", "slow"]
        assert pool.pending == 0

    run(with_lanes(folder, 2), replace(settings, batch_size=1, delay=0.0, response_timeout=3.0), case)


@pytest.mark.parametrize("lanes", [1, 3])
def test_a_fault_in_a_lane_ends_the_worker_at_once(folder: Path, settings: PoolSettings, lanes: int) -> None:
    async def case(pool: Pool) -> None:
        await ready(pool)
        assert await outcome(asked(pool, b"faulty")) == "503 WorkerDied"
        assert await outcome(asked(pool, b"after")) == "after"
        assert pool.restarts == 2

    run(with_lanes(folder, lanes), settings, case)
    assert "a fault of this program's own" in settings.log.read_text()


def test_what_is_no_message_ends_the_worker_at_once(folder: Path, settings: PoolSettings) -> None:
    async def case(pool: Pool) -> None:
        await ready(pool)
        assert await outcome(asked(pool, b"garbage")) == "503 WorkerDied"
        assert await outcome(asked(pool, b"after")) == "after"

    run(folder, replace(settings, response_timeout=3600.0), case)


def test_a_device_that_a_lane_loses_ends_the_worker(folder: Path, settings: PoolSettings) -> None:
    async def case(pool: Pool) -> None:
        await ready(pool)
        answer = await asked(pool, b"lost")
        assert (answer.status, answer.kind) == (503, "Restarting")
        assert await outcome(asked(pool, b"after")) == "after"

    run(with_lanes(folder, 2), replace(settings, batch_size=1, delay=0.0), case)


def test_closing_refuses_who_is_in_any_lane(folder: Path, settings: PoolSettings) -> None:
    async def case(pool: Pool) -> None:
        await ready(pool)
        tasks = [asked(pool, b"hang") for _ in range(3)]
        await asyncio.sleep(0.3)
        await pool.close(patience=0.1)
        assert [await outcome(one) for one in tasks] == ["503 Busy"] * 3

    run(with_lanes(folder, 2), replace(settings, batch_size=1, delay=0.0), case)


def test_who_waits_too_long_is_told_so(folder: Path, settings: PoolSettings) -> None:
    async def case(pool: Pool) -> None:
        await ready(pool)
        assert await outcome(asked(pool, b"hang")) == "504 Timeout"
        assert pool.pending == 1  # its worker still has it

    run(folder, replace(settings, answer_timeout=0.3), case)


def test_closing_ends_the_workers_and_refuses_who_still_waits(folder: Path, settings: PoolSettings) -> None:
    pids: list[int] = []

    async def case(pool: Pool) -> None:
        await ready(pool)
        pids.extend(pid for pid, _ in pool.workers())
        tasks = [asked(pool, b"hang"), asked(pool, b"a")]
        await asyncio.sleep(0.3)
        await pool.close(patience=0.1)
        assert [await outcome(one) for one in tasks] == ["503 Busy"] * 2

    run(folder, replace(settings, batch_size=1), case)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
