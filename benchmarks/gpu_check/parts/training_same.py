"""100 steps of one seed on the GPU beside the CPU, loss by loss; a run on the GPU stopped and taken up again."""

import contextlib
import math
import os
import signal
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.gpu_check.parts.trained import losses_of, training_command
from benchmarks.gpu_check.setting import CheckSetting, Clock, Keep, measured, say
from benchmarks.tables import Part, table

SHOWN = (1, 2, 3, 5, 10, 20, 30, 50, 75, 100)
Numbers = dict[str, Any]


class Training:
    """`python -m training.train` of the drawn set in a process of its own, its loss of every step in log.csv."""

    def __init__(self, setting: CheckSetting, name: str, device: str, steps: int) -> None:
        self.folder = Path(setting.folder) / "same" / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self._log = self.folder / "output.txt"
        changes = [f"schedule.end_to_end_steps={steps}", "schedule.detector_steps=0", "schedule.mask_steps=0"]
        changes += [f"schedule.batch_size={4 if setting.short else 16}", "precision=float32"]
        changes += [f"schedule.warmup_steps={min(20, steps)}", f"device={device}", "data.workers=1"]
        self._command = training_command(setting, self.folder, *changes)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *more: str) -> None:
        """Begins, or with --resume goes on."""
        with self._log.open("ab") as out:
            self._process = subprocess.Popen(
                [*self._command, *more], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )

    def wait(self, seconds: float) -> int:
        """Its exit status. Raises ValueError where it takes longer, and ends it."""
        assert self._process is not None
        try:
            return self._process.wait(timeout=max(seconds, 1.0))
        except subprocess.TimeoutExpired:
            self.end()
            late = f"not done after {seconds:.0f} s, at step {self.step}"
            raise ValueError(f"{self.folder.name}: {late}") from None

    def stop_at(self, step: int, seconds: float) -> int:
        """Sends SIGTERM once `step` is logged; the exit status."""
        assert self._process is not None
        clock = Clock(seconds)
        while self.step < step and self._process.poll() is None and clock.left:
            time.sleep(0.05)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGTERM)
        return self.wait(30)

    def end(self) -> None:
        """At once."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(timeout=20)

    @property
    def step(self) -> int:
        """The last that is logged."""
        return max(self.losses(), default=0)

    def losses(self) -> dict[int, float]:
        """By step."""
        return losses_of(self.folder)

    def said(self) -> str:
        """The last line of its output."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


def measure(setting: CheckSetting, seconds: float, keep: Keep) -> Part:
    """On a GPU all runs side by side, on a CPU one after the other."""
    clock = Clock(seconds)
    steps = 4 if setting.short else 100
    device = "cuda" if setting.on_gpu else "cpu"
    here, cpu = Training(setting, "whole", device, steps), Training(setting, "cpu", "cpu", steps)
    stopped = Training(setting, "stopped", device, steps)
    numbers: Numbers = {}
    try:
        here.start()
        if setting.on_gpu:  # side by side: only their losses count, not their times
            cpu.start("threads=8")
            stopped.start()
        _ended(here, here.wait(clock.left - 2))
        numbers["losses"] = {device: here.losses()}
        keep(shown_part(setting, numbers))
        say("training: stopped and taken up again")
        if not setting.on_gpu:
            stopped.start()
        numbers["stopped"] = {"status": stopped.stop_at(steps // 3 + 1, clock.left), "step": stopped.step}
        stopped.start("--resume")
        _ended(stopped, stopped.wait(clock.left - 1))
        numbers["losses"]["stopped and resumed"] = stopped.losses()
        keep(shown_part(setting, numbers))
        if setting.on_gpu:
            _ended(cpu, cpu.wait(clock.left))
            numbers["losses"]["cpu"] = cpu.losses()
    finally:
        for one in (here, stopped, cpu):
            if one is cpu and "cpu" not in numbers.get("losses", {}) and setting.on_gpu:
                numbers.setdefault("losses", {})["cpu"] = cpu.losses()  # as far as it came
                keep(shown_part(setting, numbers))
            one.end()
    return shown_part(setting, numbers)


def _ended(training: Training, status: int) -> None:
    if status != 0:
        name = training.folder.name
        raise ValueError(f"the training {name!r} ended with status {status}: {training.said()}")


def shown_part(setting: CheckSetting, numbers: Numbers) -> Part:
    """Losses side by side, and how far apart they are."""
    losses: dict[str, dict[int, float]] = numbers["losses"]
    name, first = next(iter(losses.items()))
    last = max(first, default=0)
    steps = sorted({step for step in SHOWN if step < last} | {last})
    rows = [(str(s), *[f"{of[s]:.5f}" if s in of else "-" for of in losses.values()]) for s in steps]
    text = table(("step", *losses), rows) + "\n"
    for other, of in losses.items():
        common = sorted(first.keys() & of.keys())
        if other == name or not common:
            continue
        apart = relative(first[common[0]], of[common[0]])
        tail = [step for step in common if step > common[-1] - max(len(common) // 5, 1)]
        ends = [statistics.mean(side[step] for step in tail) for side in (first, of)]
        equal = sum(first[step] == of[step] for step in common)
        numbers[f"{other}, apart"] = {"first": apart, "end": relative(*ends), "equal": equal}
        text += (
            f"- {other} beside {name}: apart {100 * apart:.3g} % in step {common[0]}, {100 * relative(*ends):.3g} % in "
            f"the mean of the last {len(tail)}; {equal} of {len(common)} losses are the same to 6 digits\n"
        )
    if "stopped" in numbers:
        one = numbers["stopped"]
        text += f"- stopped by SIGTERM at step {one['step']}: exit status {one['status']} (143 is wished), "
        text += "then --resume to the end\n"
    text += (
        "- the shapes preset end to end, float32, one seed; rounding alone tells devices apart, and grows\n"
    )
    return Part("Training: one seed, side by side", text, measured(**numbers))


def relative(one: float, two: float) -> float:
    """How far apart two losses are, as a share of the first; infinite where one is not finite."""
    if not (math.isfinite(one) and math.isfinite(two)):
        return math.inf
    return abs(one - two) / max(abs(one), 1e-12)
