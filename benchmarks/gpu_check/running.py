"""Parts as processes: started, watched, ended when their time is up, whatever they do."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.gpu_check.plan import Grant, Planned
from benchmarks.gpu_check.setting import CheckSetting
from benchmarks.tables import Part

DONE, FAILED, OVER_TIME, LEFT_OUT, RUNNING = "done", "failed", "ended, over its time", "left out", "running"
POLL = 0.2
GRACE = 8.0
"""Seconds that a part which is told to end has to stop the server it started."""
LOG_LINES = 40


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a part: its state, why, its seconds, what it found (None: nothing), the end of its log."""

    planned: Planned
    state: str
    note: str = ""
    seconds: float = 0.0
    part: Part | None = None
    log: tuple[str, ...] = ()


Start = Callable[[str, float, Path, CheckSetting, Path], "subprocess.Popen[bytes]"]
"""Starts the process of a part: name, seconds, where the result goes, setting, where its output goes."""


def start_part(
    name: str, seconds: float, result: Path, setting: CheckSetting, log: Path
) -> subprocess.Popen[bytes]:
    """See `one_part`; in a session of its own, so that it can be ended with all that it started."""
    command = [sys.executable, "-m", "benchmarks.gpu_check.one_part"]
    command += [name, str(seconds), str(result), setting.to_json()]
    with log.open("wb") as out:
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, cwd=ROOT, start_new_session=True, **streams)


class Watched:
    """A part that runs."""

    def __init__(self, planned: Planned, granted: Grant, setting: CheckSetting, start: Start) -> None:
        folder = Path(setting.folder) / "parts"
        folder.mkdir(parents=True, exist_ok=True)
        self._planned, self._granted = planned, granted
        self._result, self._log = folder / f"{planned.name}.json", folder / f"{planned.name}.log"
        self._result.unlink(missing_ok=True)
        self._seen = 0
        self._begin = time.monotonic()
        self._process = start(planned.name, granted.seconds, self._result, setting, self._log)
        self._seconds: float | None = None
        self._over_time = False

    def ended(self) -> bool:
        """Whether it has come to its end, or was ended now since its time is up."""
        if self._seconds is not None:
            return True
        spent = time.monotonic() - self._begin
        if self._process.poll() is None:
            if spent < self._granted.limit:
                return False
            self._over_time = True
            self.end()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # whatever of its session it has left behind
        self._seconds = time.monotonic() - self._begin
        return True

    def end(self) -> None:
        """Ends the process and all of its session: it may tidy up for `GRACE` seconds."""
        for number, wait in ((signal.SIGTERM, GRACE), (signal.SIGKILL, 10.0)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=wait)

    def has_news(self) -> bool:
        """Whether it has written another result since this was asked last."""
        with contextlib.suppress(FileNotFoundError):
            written = self._result.stat().st_mtime_ns
            news, self._seen = written != self._seen, written
            return news
        return False

    def outcome(self) -> Outcome:
        """As far as it is."""
        content = {"finished": False, "error": "", "part": None}
        with contextlib.suppress(FileNotFoundError):
            content = json.loads(self._result.read_text(encoding="utf-8"))
        part = None if content["part"] is None else Part(**content["part"])  # type: ignore[arg-type]
        seconds = time.monotonic() - self._begin if self._seconds is None else self._seconds
        log: tuple[str, ...] = ()
        state, note = DONE if content["finished"] else RUNNING, ""
        if state == RUNNING and self._seconds is not None:
            state, why = FAILED, f"its process ended with status {self._process.returncode}"
            if self._over_time:
                state, why = OVER_TIME, f"after {seconds:.0f} s"
            note = str(content["error"]) or why
            with contextlib.suppress(FileNotFoundError):
                log = tuple(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:])
        return Outcome(planned=self._planned, state=state, note=note, seconds=seconds, part=part, log=log)


def run_together(
    given: Sequence[tuple[Planned, Grant]],
    setting: CheckSetting,
    news: Callable[[Sequence[Outcome]], None],
    start: Start = start_part,
) -> list[Outcome]:
    """Runs parts side by side to their ends; `news` is told how far they are whenever one has written something."""
    watched = [Watched(planned, granted, setting, start) for planned, granted in given]
    try:
        while True:
            ended = [one.ended() for one in watched]
            if any(one.has_news() for one in watched):
                news([one.outcome() for one in watched])
            if all(ended):
                return [one.outcome() for one in watched]
            time.sleep(POLL)
    finally:
        for one in watched:
            if not one.ended():
                one.end()


def stop_servers(folder: Path) -> None:
    """Stops whatever TorchServe a part that was ended has left."""
    from server.life import CLAIM, stop

    for claim in folder.glob(f"served/*/serve/{CLAIM}"):
        with contextlib.suppress(ValueError, OSError):
            stop(state=claim.parent)
