"""The start and the end of a version's workers: what keeps one from loading, and an end in the middle of a start."""

import asyncio
import gc
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.light.models import Models
from server.light.pool import Pool, PoolSettings
from server.light.wire import run as on_the_loop
from server.processes import Batching
from tests.served.light.fake import fake_archive
from tests.served.light.pools import asked, outcome, ready, run


def test_an_archive_that_cannot_be_loaded_says_why_and_is_tried_again(
    folder: Path, settings: PoolSettings
) -> None:
    (folder / "model-config.yaml").write_text("broken: true")

    async def case(pool: Pool) -> None:
        while not pool.failure:
            await asyncio.sleep(0.01)
        assert pool.failure == "ValueError: this archive is broken" and not pool.ready
        (folder / "model-config.yaml").write_text("{}")
        assert await outcome(asked(pool, b"a")) == "a"

    run(folder, settings, case)
    assert "MODEL_LOG - ValueError: this archive is broken" in settings.log.read_text()


def test_an_archive_of_before_is_refused_with_what_to_do(folder: Path, settings: PoolSettings) -> None:
    (folder / "maskx_served.py").unlink()

    async def case(pool: Pool) -> None:
        while not pool.failure:
            await asyncio.sleep(0.01)
        assert "lacks maskx_served.py" in pool.failure and "make it again" in pool.failure

    run(folder, settings, case)


def test_a_model_that_is_not_loaded_in_its_time_is_said_to_be_late_and_not_ended(
    folder: Path, settings: PoolSettings
) -> None:
    async def case(pool: Pool) -> None:
        while not pool.failure:
            await asyncio.sleep(0.01)
        assert pool.failure == "the model was not loaded within 0.001 s"

    run(folder, replace(settings, startup_timeout=0.001), case)


def test_where_no_process_can_be_started_it_is_tried_again(
    folder: Path, settings: PoolSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched, failures = Pool._launched, [OSError("no process left")]

    async def launch(pool: Pool, place: int) -> Any:
        if failures:
            raise failures.pop()
        return await launched(pool, place)

    monkeypatch.setattr(Pool, "_launched", launch)

    async def case(pool: Pool) -> None:
        assert await outcome(asked(pool, b"a")) == "a"

    run(folder, settings, case)


@pytest.mark.parametrize("turns", range(16))
def test_an_end_in_the_middle_of_a_start_leaves_no_process_and_no_socket(
    folder: Path, settings: PoolSettings, monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    started: list[asyncio.subprocess.Process] = []
    start = asyncio.create_subprocess_exec

    async def watched(*arguments: Any, **named: Any) -> asyncio.subprocess.Process:
        started.append(await start(*arguments, **named))
        return started[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", watched)

    async def case(pool: Pool) -> None:
        for _ in range(turns):  # of the event loop, each of which may be any step of the start
            await asyncio.sleep(0)

    run(folder, settings, case)
    assert [one.returncode is None for one in started] == [False] * len(started)
    gc.collect()  # what was left open warns


@pytest.mark.parametrize(("config", "expected"), [("{}", "slow"), ("broken: true", "503 Busy")])
def test_who_asked_a_version_that_is_taken_away_is_answered_though_its_worker_dies_meanwhile(
    tmp_path: Path, config: str, expected: str
) -> None:
    async def case() -> None:
        models = Models(tmp_path, tmp_path, gpus=0, count=lambda version, samples: None)
        models.load(fake_archive(tmp_path / "maskx.mar"), Batching(batch_size=1, batch_delay=1, workers=1))
        pool = models.pools["1.0"]
        await ready(pool)
        task = asked(pool, b"slow")
        await asyncio.sleep(0.1)
        (pool.folder / "model-config.yaml").write_text(config)
        os.kill(pool.workers()[0][0], signal.SIGKILL)
        while pool.ready:
            await asyncio.sleep(0.01)
        await models.unload("1.0")
        assert await outcome(task) == expected
        assert not pool.folder.exists() and not models.pools

    on_the_loop(case())


def test_who_asked_a_version_that_is_taken_away_is_answered_by_a_ready_worker_though_another_cannot_load(
    tmp_path: Path,
) -> None:
    async def case() -> None:
        models = Models(tmp_path, tmp_path, gpus=0, count=lambda version, samples: None)
        models.load(fake_archive(tmp_path / "maskx.mar"), Batching(batch_size=1, batch_delay=1, workers=2))
        pool = models.pools["1.0"]
        while sum(is_ready for _, is_ready in pool.workers()) < 2:
            await asyncio.sleep(0.01)
        (pool.folder / "model-config.yaml").write_text("broken: true")
        os.kill(pool.workers()[0][0], signal.SIGKILL)
        while not pool.failure:
            await asyncio.sleep(0.01)
        tasks = [asked(pool, b"slow"), asked(pool, b"a")]
        await asyncio.sleep(0)
        await models.unload("1.0")
        assert [await outcome(one) for one in tasks] == ["slow", "a"]

    on_the_loop(case())
