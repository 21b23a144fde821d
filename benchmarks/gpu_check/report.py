"""The report in Markdown and JSON, written anew after every result."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.command import write_result
from benchmarks.gpu_check.bars import bars_table, values_of, verdicts
from benchmarks.gpu_check.running import Outcome
from benchmarks.gpu_check.setting import CheckSetting
from benchmarks.tables import Part, document, measured_on, table

NO_GPU = (
    "NO GPU HERE: this is the short form on the CPU. It shows that every part of the check runs; none of its figures "
    "is one of a GPU, and no bar that is set for a GPU is judged."
)


class Report:
    """Where the report lies and what is known so far."""

    def __init__(self, out: Path, setting: CheckSetting, machine: Mapping[str, Any], minutes: float) -> None:
        self._setting, self._machine, self._minutes = setting, dict(machine), minutes
        form = "cpu-short-" if not setting.on_gpu else "short-" if setting.short else ""
        self.path = out / f"gpu-check-{form}{machine['date'][:10]}.md"

    def write(self, outcomes: Sequence[Outcome], *, spent: float) -> str:
        """Both files; returns the Markdown."""
        text = self.markdown(outcomes, spent=spent)
        numbers = [one.part.numbers for one in outcomes if one.part is not None]
        values, judged = values_of(numbers), verdicts(numbers, on_gpu=self._setting.on_gpu)
        bars = {key: {"value": values.get(key), "verdict": verdict} for key, verdict in judged.items()}
        parts = {
            one.planned.name: {key: getattr(one, key) for key in ("state", "note", "seconds", "log")}
            | {"title": one.planned.title, "numbers": None if one.part is None else one.part.numbers}
            for one in outcomes
        }
        about = {"machine": self._machine, "minutes": spent / 60, "setting": asdict(self._setting)}
        write_result(self.path, text, {**about, "bars": bars, "parts": parts})
        return text

    def markdown(self, outcomes: Sequence[Outcome], *, spent: float) -> str:
        """The bars, what became of each part, then every part."""
        setting = self._setting
        numbers = [one.part.numbers for one in outcomes if one.part is not None]
        rows = [
            (one.planned.title, one.state, f"{one.seconds:.0f} s", one.note.replace("|", "/") or "-")
            for one in outcomes
        ]
        bars = ("" if setting.on_gpu else f"{NO_GPU}\n\n") + bars_table(numbers, on_gpu=setting.on_gpu)
        states = table(("part", "state", "took", "why"), rows) if rows else "-\n"
        parts = [Part(title=t, text=x, numbers={}) for t, x in (("The bars", bars), ("The parts", states))]
        for one in outcomes:
            text = "" if one.part is None else one.part.text.rstrip()
            if one.log:
                text += "\n\nThe end of its log:\n\n```\n" + "\n".join(one.log[-12:]) + "\n```"
            if text:
                title = one.planned.title if one.part is None else one.part.title
                parts.append(Part(title=title, text=text, numbers={}))
        head = measured_on(self._machine, spent / 60)
        head.append(("time", f"{spent / 60:.1f} of {self._minutes:g} minutes"))
        return document(NO_GPU if not setting.on_gpu else "maskx on a GPU: make gpu-check", head, parts)
