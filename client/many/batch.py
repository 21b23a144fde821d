"""Many images: a few requests at a time, every answer kept at once, failures listed at the end."""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from maskx_draw import draw_detections

from ..client import AsyncClient, Parameters
from ..errors import NotAuthorized, ServerRefused, ServerUnreachable, TimedOut
from ..images import upright
from .files import ImageFile, whole
from .journal import Journal


@dataclass
class Outcome:
    """What became of a run. `failed` has a reason for each file; `stopped` says why no further file was tried."""

    answered: int = 0
    kept: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    stopped: Exception | None = None


async def run(
    client: AsyncClient,
    images: Sequence[ImageFile],
    parameters: Parameters,
    journal: Journal,
    *,
    jobs: int,
    overlays: Path | None = None,
) -> Outcome:
    """Asks for every image that the journal has no answer to, `jobs` at a time, and draws overlays where wanted.

    A file that cannot be read, is refused, or whose answer does not come in time is a failure of its own, and the run
    goes on. A server that is gone or a token that it does not know ends the run.
    """
    outcome = Outcome()
    waiting = iter(images)
    with tqdm(total=len(images), unit="image", disable=None, file=sys.stderr) as bar:

        async def work() -> None:
            for image in waiting:
                if outcome.stopped is not None:
                    return
                try:
                    if await asyncio.to_thread(journal.has, image):
                        answer, outcome.kept = journal.answer(image), outcome.kept + 1
                        data = b""
                    else:
                        data = await asyncio.to_thread(image.path.read_bytes)
                        answer = (await client.predict(data, **parameters)).content()
                        journal.add(image, answer)
                        outcome.answered += 1
                    if overlays is not None:
                        await asyncio.to_thread(_draw, image, data, answer, overlays)
                except (ServerUnreachable, NotAuthorized) as error:
                    outcome.stopped = error
                except (ServerRefused, TimedOut, ValueError, OSError) as error:
                    outcome.failed[image.name] = str(error)
                bar.update()

        async with asyncio.TaskGroup() as group:
            for _ in range(min(jobs, len(images))):
                group.create_task(work())
    return outcome


def overlay_path(folder: Path, image: ImageFile) -> Path:
    """Where the overlay of a file lies: its name with .png added, so that a.jpg and a.png stay apart."""
    return folder / f"{image.name}.png"


def _draw(image: ImageFile, data: bytes, answer: Mapping[str, Any], folder: Path) -> None:
    """Draws the overlay, unless one is there that is newer than the file and `data` is empty: answered before."""
    path = overlay_path(folder, image)
    if not data:
        if path.exists() and path.stat().st_mtime_ns >= image.path.stat().st_mtime_ns:
            return
        data = image.path.read_bytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = draw_detections(upright(data), answer["detections"], legend=True)
    with whole(path) as unfinished:
        drawn.save(unfinished, "PNG")
