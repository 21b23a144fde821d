"""The servers that a load test asks: which, in what order, and what is counted of each."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from benchmarks.load import __main__ as load
from benchmarks.load import setting as of_setting
from benchmarks.load.hostile import hostile_text
from benchmarks.load.sections import closed_numbers, closed_text, open_numbers, open_text, overhead_numbers
from benchmarks.load.server import is_front
from benchmarks.load.setting import LoadSetting, Network
from server.processes import ENGINES, LIGHT, TORCHSERVE
from tests.hostile.judge import all_cases, cases_for

CLIENT_CPU, SERVER_CPU = 0.5, 0.25
"""Seconds that a turn takes of the processor."""
IN_PROCESS = 20.0
"""Images a second."""


@dataclass
class FakeServed:
    """A server that takes SERVER_CPU between one look and the next."""

    engine: str
    settings: dict[str, Any]
    spent: float = 0.0

    def cpu_seconds(self) -> float:
        self.spent += SERVER_CPU
        return self.spent

    def description(self) -> dict[str, Any]:
        return {"threads": 1}


@dataclass
class FakeClient:
    """Ten answers a second, of 50 ms each; one more is an error. `told` is shared by all, in the order of the turns."""

    engine: str
    protocol: str
    told: list[tuple[str, str, str, float]] = field(default_factory=list)

    def call(self, what: str, **asked: Any) -> dict[str, Any]:
        self.told.append((self.engine, self.protocol, what, asked.get("concurrency", asked.get("rate", 0.0))))
        samples: list[list[Any]] = [[i / 10, i / 10 + 0.05, ""] for i in range(int(asked["seconds"] * 10))]
        return {"samples": [*samples, [0.0, 0.1, "503"]], "cpu": CLIENT_CPU}


class FakeOffline:
    """One process without a server."""

    def call(self, what: str, **asked: Any) -> dict[str, Any]:
        images = int(IN_PROCESS * asked["seconds"])
        ends = [done / IN_PROCESS for done in range(asked["batch"], images + 1, asked["batch"])]
        return {"images": images, "seconds": asked["seconds"], "ends": ends}


@dataclass(frozen=True, kw_only=True)
class Fakes(LoadSetting):
    """A setting without servers and processes."""

    told: list[tuple[str, str, str, float]] = field(default_factory=list)
    started: list[FakeServed] = field(default_factory=list)

    def served(self, network: Network, name: str, **settings: Any) -> Any:
        served = FakeServed(settings.pop("engine"), settings)
        self.started.append(served)
        return nullcontext(served)

    def client(self, served: Any, protocol: str) -> Any:
        return nullcontext(FakeClient(served.engine, protocol, self.told))

    def offline(self, network: Network, threads: int) -> Any:
        return cast(AbstractContextManager[Any], nullcontext(FakeOffline()))


@pytest.fixture
def both(tmp_path: Path) -> Fakes:
    network = Network(name="tiny", path=tmp_path / "none.pt", turn=4, rounds=2, warm_up=1, run_in=1)
    return Fakes(folder=tmp_path, images=(), networks=(network,), quick=True, engines=ENGINES)


def test_both_servers_have_turn_about_with_the_same_load(both: Fakes) -> None:
    rows = closed_numbers(both)["rows"]
    turns = [(p, e) for p in ("REST", "gRPC") for e in ENGINES]
    run_in, asked = both.told[:4], both.told[4:]
    assert [(p, e) for e, p, _, _ in run_in] == turns
    assert [(clients, p, e) for e, p, _, clients in asked] == [
        (clients, *turn) for clients in (1, 8, 32) for _ in range(2) for turn in turns
    ]
    assert [(row["clients"], row["server"]) for row in rows] == [
        (clients, server) for clients in (1, 8, 32) for server in ("in process", *ENGINES, *ENGINES)
    ]
    assert [served.engine for served in both.started] == list(ENGINES)


def test_a_row_has_all_turns_of_its_side_errors_and_the_processors_time_by_request(both: Fakes) -> None:
    alone, row = closed_numbers(both)["rows"][:2]
    assert alone["rate"] == IN_PROCESS and alone["p99"] == pytest.approx(1 / IN_PROCESS)
    assert row["rates"] == pytest.approx([10.0, 10.0]) and row["rate"] == pytest.approx(10.0)
    assert row["requests"] == 80 and row["errors"] == {"503": 2}
    assert row["p50"] == pytest.approx(0.05)
    assert row["client_cpu_ms"] == pytest.approx(1000 * 2 * CLIENT_CPU / 102)
    assert row["server_cpu_ms"] == pytest.approx(1000 * 2 * SERVER_CPU / 102)
    text = closed_text({"rows": [alone, row]})
    assert "| tiny | 1 | in process | - | 1.00 | 20.00 | 158 | 50 ms | 50 ms |" in text
    assert (
        "| tiny | 1 | torchserve | REST | 0.50 | 10.00 | 80 |" in text
        and "| 2 x 503 | 9.8 ms | 4.9 ms |" in text
    )


def test_the_open_loop_offers_every_server_the_same_share_of_one_process(both: Fakes) -> None:
    numbers = open_numbers(both)
    asked = {(engine, rate) for engine, _, what, rate in both.told if what == "open"}
    assert asked == {(engine, share * IN_PROCESS) for engine in ENGINES for share in (0.5, 0.8)}
    assert "| tiny | 10.00/s (50 %) | light | gRPC |" in open_text(numbers)


def test_the_overhead_has_a_row_for_each_server_beside_one_process(both: Fakes) -> None:
    rows = overhead_numbers(both)["rows"]
    assert {row["server"] for row in rows} == set(ENGINES)
    assert all(row["ratios"] == pytest.approx({"REST": 0.5, "gRPC": 0.5}) for row in rows)
    assert {served.settings["batch_size"] for served in both.started} == {1, 4, 8}
    assert load.overhead_text({"concurrency": 8, "delay": 1, "threads": 2, "rows": rows})


def test_sections_of_one_server_at_a_time_have_each_server_in_turn(both: Fakes) -> None:
    seen: list[tuple[str, ...]] = []

    def measure(setting: LoadSetting) -> dict[str, Any]:
        seen.append(setting.engines)
        return {"told": f"of {setting.engines[0]}"}

    section = load.one_by_one("Title", measure, lambda numbers: numbers["told"] + "\n")
    numbers = section.measure(both)
    assert seen == [(TORCHSERVE,), (LIGHT,)] and list(numbers) == list(ENGINES)
    assert section.show(numbers) == "### torchserve\n\nof torchserve\n\n### light\n\nof light\n"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [([], (TORCHSERVE,)), (["--engine", LIGHT], (LIGHT,)), (["--engine", "both"], ENGINES)],
)
def test_the_servers_under_test_are_those_of_the_command(asked: list[str], expected: tuple[str, ...]) -> None:
    assert load.engines_of(load.parser().parse_args(asked).engine) == expected


def test_the_first_engine_is_started_where_a_section_names_none(
    both: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of_setting, "pack", lambda path, folder, **changes: folder / "maskx.mar")
    started: list[dict[str, Any]] = []
    monkeypatch.setattr(of_setting, "Served", lambda archive, state, **settings: started.append(settings))
    made = LoadSetting(folder=both.folder, images=(), networks=both.networks, quick=True, engines=(LIGHT,))
    made.served(made.tiny, "faults", changes={})
    made.served(made.tiny, "race", engine=TORCHSERVE, workers=2)
    assert started == [{"engine": LIGHT}, {"engine": TORCHSERVE, "workers": 2}]


def test_a_front_is_java_or_the_light_servers_own_and_no_worker() -> None:
    class Process:
        def __init__(self, name: str, *words: str) -> None:
            self.name, self.cmdline = lambda: name, lambda: list(words)

    def front(name: str, *words: str) -> bool:
        return is_front(cast(psutil.Process, Process(name, *words)))

    assert front("java", "java", "-jar") and front(
        "python", "python", "-m", "maskx.server.light", "--state", "s"
    )
    assert not front("python", "python", "-P", "server/light/worker.py", "3")
    assert not front("python", "python", "-m", "ts.model_server")


def test_the_light_server_is_to_refuse_the_one_method_that_torchserve_predicts_for() -> None:
    cases = all_cases()
    differ = [one for one, other in zip(cases_for(LIGHT, cases), cases, strict=True) if one != other]
    assert [(case.name, case.statuses) for case in differ] == [("CONNECT", (405,))]
    assert cases_for(TORCHSERVE, cases) == cases


def test_hostile_requests_tell_how_many_answers_had_another_form() -> None:
    one = {"requests": 3, "valid_between": 1, "wrong": ["g: n: why"], "seconds": 2.0}
    one |= {"slowest": [{"name": "g: n", "seconds": 0.5}]}
    group = {"group": "g", "requests": 3, "statuses": {"400": 3}, "own_form": 2, "slowest": 0.5}
    text = hostile_text({"REST": one, "gRPC": one, "groups": [group], "same_worker": True})
    assert (
        "| in another form |" in text
        and "| g | 3 | 3 x 400 | 2 |" in text
        and "NOT as expected: g: n: why" in text
    )
