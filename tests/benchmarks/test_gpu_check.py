"""`make gpu-check`: its bars, its minutes, a report that is written as it goes, and parts that cost only themselves."""

import contextlib
import json
import subprocess
import sys
import time
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.gpu_check import __main__ as command
from benchmarks.gpu_check import one_part
from benchmarks.gpu_check.bars import BARS, MET, MISSED, NOT_200, NOT_MEASURED, Bar, values_of, verdicts
from benchmarks.gpu_check.plan import MINUTES, PARTS, PREPARATIONS, SLACK, Planned, grant, worth
from benchmarks.gpu_check.report import Report
from benchmarks.gpu_check.running import DONE, FAILED, LEFT_OUT, OVER_TIME, Outcome
from benchmarks.gpu_check.setting import CheckSetting, Clock, first_line, measured
from benchmarks.tables import Part
from tests.benchmarks.setting import MACHINE, setting_in

# ---- bars


def test_a_bar_is_met_at_its_bound_and_missed_beyond() -> None:
    least = Bar(key="a", what="a", at_least=400)
    most = Bar(key="b", what="b", at_most=15)
    for bar, values in ((least, (400.0, 399.9, float("nan"))), (most, (15.0, 15.1, float("nan")))):
        assert [bar.judge(value, on_gpu=True) for value in values] == [MET, MISSED, MISSED]


def test_a_bar_for_a_gpu_is_not_judged_by_a_cpus_figure() -> None:
    assert Bar(key="a", what="a", at_least=1).judge(5.0, on_gpu=False) == NOT_MEASURED
    assert Bar(key="a", what="a", at_least=1).shown(5.0, on_gpu=False) == "(5.0 on the CPU)"
    assert Bar(key="a", what="a", at_least=1, gpu_only=False).judge(0.5, on_gpu=False) == MISSED


def test_a_bar_needs_exactly_one_bound() -> None:
    both: list[dict[str, Any]] = [{}, {"at_least": 1.0, "at_most": 2.0}]
    for bounds in both:
        with pytest.raises(ValueError, match="either"):
            Bar(key="a", what="a", **bounds)


def test_requests_without_a_200_are_added_up_over_the_parts() -> None:
    numbers = [measured(not_200=2, asked=9), measured(), measured({"engine": 500.0}, not_200=1, asked=3)]
    assert values_of(numbers) == {NOT_200: 3.0, "engine": 500.0}
    assert verdicts(numbers, on_gpu=True)[NOT_200] == MISSED
    assert verdicts(numbers, on_gpu=True)["engine"] == MET


def test_without_a_request_no_one_says_that_all_were_answered() -> None:
    assert set(verdicts([measured()], on_gpu=True).values()) == {NOT_MEASURED}


def test_no_two_bars_are_judged_by_one_figure() -> None:
    keys = [bar.key for bar in BARS]
    assert len(set(keys)) == len(keys) > 8


# ---- minutes


def planned(
    name: str = "a", *, seconds: float = 60, least: float = 1, needs: tuple[str, ...] = ()
) -> Planned:
    return Planned(name=name, title=f"Part {name}", seconds=seconds, least=least, needs=needs)


def test_parts_that_all_use_up_their_limits_end_within_the_minutes() -> None:
    for minutes in (0.5, 3.0, MINUTES, 20.0):
        left = minutes * 60
        for part in (*PREPARATIONS[:1], *PARTS):
            granted = grant(part, minutes=minutes, left=left)
            if granted is not None:
                assert part.least <= granted.seconds < granted.limit <= left
                left -= granted.limit
        assert left >= 0


def test_in_eight_minutes_every_part_is_granted_all_its_seconds() -> None:
    left = MINUTES * 60 - command.CLOSING
    left -= max(part.seconds for part in PREPARATIONS) / 2  # what a given checkpoint leaves of them
    for part in PARTS:
        if part.apart:
            continue
        granted = grant(part, minutes=MINUTES, left=left)
        assert granted is not None, part.name
        left -= min(granted.seconds, part.seconds)


def test_a_part_that_would_not_fit_is_left_out_and_a_smaller_one_after_it_is_not() -> None:
    large, small = planned(least=40), planned(least=5)
    assert grant(large, minutes=MINUTES, left=40 + SLACK - 1) is None
    granted = grant(small, minutes=MINUTES, left=40 + SLACK - 1)
    assert granted is not None and granted.seconds == 39


def test_with_half_the_minutes_a_part_is_told_half_its_seconds_but_never_less_than_it_needs() -> None:
    part = planned(least=40)
    granted = [grant(part, minutes=minutes, left=1000) for minutes in (MINUTES, MINUTES / 2)]
    assert [one and one.seconds for one in granted] == [60, 40]


def test_parts_alone_get_the_time_of_those_that_are_left_out_up_to_twice_their_own() -> None:
    small, large = planned("small", seconds=20), planned("large")
    assert worth(8, [small, large], [small, large]) == 8
    assert worth(8, [large], [small, large]) == pytest.approx(8 * 80 / 60)
    assert worth(8, [small], [small, large]) == 16


def test_a_clock_that_has_run_out_has_nothing_left() -> None:
    clock = Clock(-1.0)
    assert clock.left == 0.0 and not clock.has(0.1)
    assert Clock(1000.0).has(900)


# ---- parts


def script(text: str) -> Callable[..., "subprocess.Popen[bytes]"]:
    """Starts processes that run `text`, which finds the part's name in `name` and the result's path in `path`."""
    before = "import json, os, sys, time, pathlib\nname, path = sys.argv[1], pathlib.Path(sys.argv[2])\n"
    before += (
        "def write(finished, error='', numbers=None):\n"
        "    part = {'title': name, 'text': 'text of ' + name, 'numbers': numbers or {}, 'ratios': {}}\n"
        "    draft = path.with_suffix('.draft')\n"
        "    draft.write_text(json.dumps({'finished': finished, 'error': error, 'part': part}))\n"
        "    os.replace(draft, path)\n"
    )

    def start(
        name: str, seconds: float, result: Path, setting: CheckSetting, log: Path
    ) -> "subprocess.Popen[bytes]":
        with log.open("wb") as out:
            return subprocess.Popen(
                [sys.executable, "-c", before + text, name, str(result)],
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    return start


def run_check(
    folder: Path,
    text: str,
    parts: list[Planned],
    preparations: list[Planned] | None = None,
    minutes: float = 5,
) -> tuple[list[Outcome], Report]:
    setting = setting_in(folder)
    report = Report(folder / "out", setting, MACHINE, minutes)
    what: dict[str, Any] = {"parts": parts, "preparations": preparations or []}
    return command.check(setting, report, minutes, time.monotonic(), start=script(text), **what), report


def test_a_part_that_runs_apart_runs_only_where_it_is_named(tmp_path: Path) -> None:
    parts = [planned("usual"), replace(planned("apart"), apart=True)]
    for only, expected in (((), ["usual"]), (("apart",), ["apart"])):
        report = Report(tmp_path / "out", setting_in(tmp_path), MACHINE, 5)
        what: dict[str, Any] = {"parts": parts, "preparations": []}
        start = script("write(True)")
        outcomes = command.check(setting_in(tmp_path), report, 5, time.monotonic(), only, start=start, **what)
        assert [one.planned.name for one in outcomes] == expected


def test_a_part_that_fails_or_dies_costs_only_itself(tmp_path: Path) -> None:
    text = (
        "if name == 'fails': write(False, error='ValueError: it is so'); sys.exit(1)\n"
        "if name == 'dies': print('last words'); sys.stdout.flush(); os.kill(os.getpid(), 9)\n"
        "write(True, numbers={'bars': {'engine': 7.0}})\n"
    )
    outcomes, report = run_check(tmp_path, text, list(map(planned, ("fails", "dies", "good"))))
    assert [one.state for one in outcomes] == [FAILED, FAILED, DONE]
    assert outcomes[0].note == "ValueError: it is so"
    assert "status -9" in outcomes[1].note and outcomes[1].log == ("last words",)
    report.write(outcomes, spent=1.0)
    content = json.loads(report.path.with_suffix(".json").read_text())
    assert content["bars"]["engine"]["value"] == 7.0
    assert [part["state"] for part in content["parts"].values()] == [FAILED, FAILED, DONE]
    written = report.path.read_text()
    assert "ValueError: it is so" in written and "text of good" in written


def test_a_part_over_its_time_is_ended_and_keeps_what_it_had_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.gpu_check.plan.SLACK", 0.0)
    text = "write(name == 'next', numbers={'bars': {name: 1.0}})\nif name == 'hangs': time.sleep(1000)\n"
    parts = [planned("hangs", seconds=1, least=0.1), planned("next")]
    outcomes, _ = run_check(tmp_path, text, parts, minutes=MINUTES)
    assert [one.state for one in outcomes] == [OVER_TIME, DONE]
    assert outcomes[0].part is not None and outcomes[0].part.numbers == {"bars": {"hangs": 1.0}}


def test_nothing_that_a_part_started_outlives_it(tmp_path: Path) -> None:
    text = (
        "import subprocess\n"
        "child = subprocess.Popen(['sleep', '1000'])\n"
        "write(name == 'ends', numbers={'pid': child.pid})\n"
        "if name == 'dies': os.kill(os.getpid(), 9)\n"
    )
    outcomes, _ = run_check(tmp_path, text, [planned("ends"), planned("dies")])
    for one in outcomes:
        assert one.part is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(one.part.numbers["pid"]).wait(timeout=30)


def test_each_result_is_in_the_report_before_the_next_part_begins(tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = (
        f"found = [p.read_text() for p in pathlib.Path({str(out)!r}).glob('*.md')]\n"
        "write(True, numbers={'seen': 'text of first' in ''.join(found)})\n"
    )
    outcomes, _ = run_check(tmp_path, text, [planned("first"), planned("second")])
    seen = [one.part.numbers["seen"] for one in outcomes if one.part is not None]
    assert seen == [False, True]


def test_what_a_part_has_so_far_is_in_the_report_while_it_runs(tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = (
        "write(False)\n"
        "for _ in range(2000):\n"
        f"    found = ''.join(p.read_text() for p in pathlib.Path({str(out)!r}).glob('*.md'))\n"
        "    if 'text of only' in found: break\n"
        "    time.sleep(0.02)\n"
        "write(True, numbers={'running': '| running |' in found})\n"
    )
    (outcome,), _ = run_check(tmp_path, text, [planned("only")])
    assert outcome.part is not None and outcome.part.numbers == {"running": True}


def test_a_part_whose_preparation_failed_is_left_out_and_the_report_says_so(tmp_path: Path) -> None:
    text = "write(name != 'network', error='' if name != 'network' else 'ValueError: none')\n"
    parts = [planned("needy", needs=("network",)), planned("free")]
    outcomes, report = run_check(tmp_path, text, parts, [planned("network")])
    states = {one.planned.name: one.state for one in outcomes}
    assert states == {"network": FAILED, "needy": LEFT_OUT, "free": DONE}
    assert "without network" in report.path.read_text()


def test_parts_without_time_are_left_out_and_nothing_is_started(tmp_path: Path) -> None:
    outcomes, report = run_check(tmp_path, "raise SystemExit('started')", [planned("late")], minutes=0.1)
    assert [one.state for one in outcomes] == [LEFT_OUT]
    assert "it needs 1" in report.path.read_text()


def test_a_part_that_raises_leaves_its_error_and_what_it_had_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(setting: CheckSetting, seconds: float, keep: Callable[[Part], None]) -> Part:
        keep(Part(title="half", text="half", numbers={"seconds": seconds}))
        raise RuntimeError("trace\n  RuntimeError: the real reason\n")

    module = types.ModuleType("benchmarks.gpu_check.parts.fake")
    module.measure = measure  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    path = tmp_path / "result.json"
    assert one_part.main(["fake", "12.5", str(path), setting_in(tmp_path).to_json()]) == 1
    content = json.loads(path.read_text())
    assert content["part"]["numbers"] == {"seconds": 12.5} and not content["finished"]
    assert content["error"] == "RuntimeError: RuntimeError: the real reason"
    assert one_part.main(["no_such", "1", str(path), setting_in(tmp_path).to_json()]) == 1
    assert "no_such" in json.loads(path.read_text())["error"]


def test_every_planned_part_is_a_module_that_measures() -> None:
    for part in (*PREPARATIONS, *PARTS):
        module = __import__(f"benchmarks.gpu_check.parts.{part.name}", fromlist=["measure"])
        assert callable(module.measure)
        assert set(part.needs) <= {one.name for one in PREPARATIONS}


def test_a_setting_comes_through_the_command_line_as_it_was(tmp_path: Path) -> None:
    setting = CheckSetting(
        folder=str(tmp_path), device="cuda", precisions=("float32", "bfloat16"), short=False, workers=(1, 4)
    )
    assert CheckSetting.from_json(setting.to_json()) == setting
    assert setting.best_first() == ("bfloat16", "float32")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--checkpoint", "nowhere.pt"], "--checkpoint nowhere.pt: no such file"),
        (["--only", "answers", "nonsense"], "--only nonsense: unknown; parts are answers"),
        (["--minutes", "0"], "--minutes is 0; above 0"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(arguments: list[str], said: str) -> None:
    options = command.parser().parse_args(arguments)
    with pytest.raises(ValueError, match=said):
        command.setting_of(options, {"device": "cpu", "native_precisions": ["float32"]})


def test_an_error_is_told_in_one_line() -> None:
    assert first_line(ValueError("one\ntwo")) == "ValueError: one"
    assert first_line(ValueError()) == "ValueError: no message"
