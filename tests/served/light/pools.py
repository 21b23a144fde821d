"""A version's pool run for a test, and what it answers."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from server.light.answers import Answered, Refusal
from server.light.pool import Pool, PoolSettings
from server.light.wire import run as on_the_loop

Case = Callable[[Pool], Awaitable[None]]


def run(folder: Path, settings: PoolSettings, case: Case) -> list[Any]:
    """Runs the case with a pool whose workers are started, and ends them; returns what was counted."""
    counted: list[Any] = []

    async def whole() -> None:
        pool = Pool("maskx", "1.0", folder, settings, counted.extend)
        pool.start()
        try:
            await case(pool)
        finally:
            await pool.close()

    on_the_loop(whole())
    return counted


async def ready(pool: Pool) -> None:
    while not pool.ready:
        await asyncio.sleep(0.01)


def asked(pool: Pool, body: bytes) -> "asyncio.Task[Answered]":
    return asyncio.create_task(pool.ask({"body": body}, {}, by_grpc=False))


def content(answer: Answered) -> dict[str, Any]:
    return json.loads(answer.body)


async def outcome(task: "asyncio.Task[Answered]") -> str:
    """What was asked, as the answer says it; or the refusal's name and status."""
    try:
        return str(content(await task)["asked"])
    except Refusal as refusal:
        return f"{refusal.status} {refusal.kind}"
