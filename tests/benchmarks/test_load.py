"""The load test's own parts: percentiles, windows, slopes, both loops against a small server, sections joined."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.load import __main__ as load
from benchmarks.load.client import Bounds, RestSender, closed_loop, open_loop
from benchmarks.load.setting import given_images, tiny_network
from benchmarks.load.soak import rise
from benchmarks.load.times import Sample, percentile, rate_between, slope_percent, summary, without_server
from benchmarks.pictures import of_coco_sizes
from tests.benchmarks.setting import MACHINE
from tests.served.upstream import Answer, Seen, upstream


@pytest.mark.parametrize(
    ("percent", "expected"), [(50, 50.0), (90, 90.0), (99, 99.0), (1, 1.0), (98.5, 99.0)]
)
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(
    percent: float, expected: float
) -> None:
    assert percentile([float(value) for value in range(100, 0, -1)], percent) == expected


def test_a_percentile_that_so_few_values_cannot_have_is_none() -> None:
    assert percentile([1.0] * 999, 99.9) is None and percentile([1.0] * 1000, 99.9) == 1.0
    assert percentile([], 50) is None
    with pytest.raises(ValueError, match="between 0 and 100"):
        percentile([1.0], 100)


def test_a_rate_is_counted_from_one_answer_to_another_so_that_no_batch_is_cut() -> None:
    """Batches of 8 every 4 seconds are 2 a second wherever the window begins and ends."""
    ends = [4.0 * batch for batch in range(1, 11) for _ in range(8)]
    for begin, end in ((5.0, 30.0), (7.9, 28.0), (4.0, 39.9), (0.5, 40.0)):
        assert rate_between(ends, begin, end) == pytest.approx(2.0, rel=0.02), (begin, end)
    assert rate_between(ends, 50.0, 60.0) == 0.0 and rate_between([], 0.0, 1.0) == 0.0


def test_a_summary_counts_errors_apart_and_leaves_the_warm_up_out() -> None:
    samples = [Sample(begin=i, end=i + 0.5) for i in range(20)] + [Sample(begin=0, end=1, outcome="503")]
    found = summary(samples, warm_up=10.0, until=18.0)
    assert found["requests"] == 8 and found["p50"] == found["max"] == 0.5
    assert found["rate"] == pytest.approx(1.0) and found["errors"] == {"503": 1}
    assert found["p99"] is None


@pytest.mark.parametrize(
    ("batch", "clients", "seconds"), [(1, 1, 0.1), (4, 4, 0.1), (4, 8, 0.2), (4, 32, 0.8)]
)
def test_clients_whom_being_served_costs_nothing_wait_for_those_before_them(
    batch: int, clients: int, seconds: float
) -> None:
    ends = [0.1 * done for done in range(1, 21)]
    found = without_server(ends, batch=batch, clients=clients)
    assert len(found) == batch * (20 - clients // batch)
    assert [one.seconds for one in found] == pytest.approx([seconds] * len(found))
    with pytest.raises(ValueError, match="a multiple is expected"):
        without_server(ends, batch=3, clients=clients)


def test_a_slope_is_what_a_line_through_the_values_rises_in_percent_of_their_mean() -> None:
    moments = [5.0 * i for i in range(100)]
    assert slope_percent(moments, [200.0] * 100) == 0.0
    rising = [190.0 + 20.0 * i / 99 for i in range(100)]
    assert slope_percent(moments, rising) == pytest.approx(10.0)
    assert slope_percent([1.0], [5.0]) == 0.0
    with pytest.raises(ValueError, match="as many of each"):
        slope_percent([1.0, 2.0], [1.0])


def test_the_rise_of_a_soak_looks_at_the_last_three_quarters_alone() -> None:
    seen = [{"seconds": float(i), "front": 100.0 + min(i, 25) * 4.0} for i in range(101)]
    assert rise(seen, "front") == {"mean_mib": 200.0, "min_mib": 200.0, "max_mib": 200.0, "rise_percent": 0.0}


SECONDS = 0.05


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Of a server that answers one request after the other, each after `SECONDS`; the body "bad" is refused."""
    turn = threading.Lock()

    def answer(seen: Seen) -> Answer:
        with turn:
            time.sleep(SECONDS)
        return Answer(400 if seen.body == b"bad" else 200)

    with upstream() as slow:
        slow.answer = answer
        yield slow.port


def senders(port: int, count: int, *images: bytes) -> list[RestSender]:
    return [RestSender(port, "maskx", images or (b"good",), 30.0) for _ in range(count)]


def test_in_a_closed_loop_no_client_sends_before_it_has_its_answer(port: int) -> None:
    made = senders(port, 3)
    samples = closed_loop(made, Bounds(seconds=30, most=12))
    for sender in made:
        sender.close()
    assert len(samples) == 12 and all(sample.outcome == "" for sample in samples)
    for moment in (sample.begin for sample in samples):
        assert sum(sample.begin <= moment < sample.end for sample in samples) <= 3


def test_in_an_open_loop_the_wait_behind_slow_answers_counts(port: int) -> None:
    """100 a second to a server that answers at most 20: every request waits longer than the one before."""
    made = senders(port, 2)
    samples = sorted(open_loop(made, Bounds(seconds=0.2, most=1000), rate=100.0), key=lambda s: s.begin)
    for sender in made:
        sender.close()
    assert [sample.begin for sample in samples] == pytest.approx([i / 100 for i in range(20)])
    assert samples[-1].seconds > 20 * SECONDS - 0.2 - SECONDS
    assert samples[-1].seconds > samples[0].seconds


def test_an_error_is_an_outcome_and_the_connection_goes_on(port: int) -> None:
    made = senders(port, 1, b"bad", b"good")
    samples = closed_loop(made, Bounds(seconds=30, most=4))
    made[0].close()
    assert [sample.outcome for sample in samples] == ["400", "", "400", ""]
    nobody = RestSender(1, "maskx", (b"good",), 30.0)
    assert nobody.send(0) == "ConnectionRefusedError"


@pytest.mark.parametrize(("seconds", "most"), [(0.0, 1), (1e9, 1), (1.0, 0), (1.0, 10**9)])
def test_a_run_without_bounds_is_refused(seconds: float, most: int) -> None:
    with pytest.raises(ValueError, match="allowed"):
        Bounds(seconds=seconds, most=most)


def test_what_is_asked_for_is_what_is_measured() -> None:
    known = load.sections(1.0)

    def chosen(*arguments: str) -> list[str]:
        return load.choose(load.parser().parse_args(arguments), known)

    assert chosen() == ["overhead", "closed", "open", "faults", "hostile"]
    assert chosen("--only", "open,closed") == ["closed", "open"]
    assert chosen("--soak", "5") == ["soak"] and chosen("--faults") == ["faults"]
    assert chosen("--only", "hostile", "--soak", "1") == ["soak", "hostile"]
    for wrong, message in (
        (("--only", "clsed"), "unknown; known are"),
        (("--only", "soak"), "say --soak MINUTES"),
        (("--soak", "600"), "up to 60 are allowed"),
    ):
        with pytest.raises(ValueError, match=message):
            chosen(*wrong)


def test_without_a_trained_network_or_images_it_says_so_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = ["--tiny", str(tmp_path / "none.pt"), "--folder", str(tmp_path), "--images", str(tmp_path)]
    for arguments, message in ((nothing, "holds no .jpg"), (["--only", "nothing"], "unknown")):
        assert load.main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    with pytest.raises(ValueError, match="make archive"):
        tiny_network(tmp_path / "none.pt", quick=True)


def test_drawn_images_have_cocos_sizes_and_are_drawn_once(tmp_path: Path) -> None:
    first = of_coco_sizes(tmp_path, 3)
    times = [Path(path).stat().st_mtime_ns for path in first]
    assert of_coco_sizes(tmp_path, 3) == first and [Path(path).stat().st_mtime_ns for path in first] == times
    assert [Path(path).name for path in first] == ["0-640x480.jpg", "1-640x427.jpg", "2-480x640.jpg"]
    assert given_images(tmp_path, 2) == tuple(sorted(first)[:2])


TIMES: dict[str, Any] = {"rate": 2.0, "requests": 7, "errors": {}, "max": 1.0, "mean": 1.0}
TIMES |= {"client_cpu_ms": 1.0, "server_cpu_ms": 2.5}
TIMES |= {"p50": 0.5, "p90": 0.6, "p99": None, "p99.9": None}


def test_sections_measured_apart_stand_in_one_report_in_their_order_and_a_new_one_replaces_the_old(
    tmp_path: Path,
) -> None:
    path = tmp_path / "load.md"
    row = {"network": "tiny", "server": "light", "protocol": "REST", "clients": 8, **TIMES}
    alone = {"network": "tiny", "server": "in process", "clients": 8, **TIMES, "rate": 4.0}
    fault = {"fault": "SIGKILL", "requests": 9, "lost": {"Busy": 2}, "slowest": 3.0, "recovery": 4.25}
    for name, numbers in (
        ("faults", {"light": {"clients": 4, "response_timeout": 5, "rows": []}}),
        ("closed", {"rows": [alone, row]}),
        ("faults", {"light": {"clients": 4, "response_timeout": 5, "rows": [fault]}}),
    ):
        measured = {"numbers": numbers, "minutes": 1.5, "images": "drawn"}
        text = load.write(path, load.sections(0.0), name, measured, MACHINE)
    assert path.read_text() == text
    assert text.index("## Closed loop") < text.index("## Faults under load")
    times = "0.50 | 2.00 | 7 | 500 ms | 600 ms | - | - | 1.00 s | 0 | 1.0 ms | 2.5 ms |"
    assert (
        f"| tiny | 8 | light | REST | {times}" in text
        and "| tiny | 8 | in process | - | 1.00 | 4.00 |" in text
    )
    assert "## Faults under load" in text and "### light" in text
    assert text.count("SIGKILL") == 1 and "| 9 | 2 x Busy | 4.2 s | - | 3.0 s |" in text
    assert "1.5 minutes, load before 0.1, images drawn" in text


def test_the_overhead_says_which_networks_are_below_the_bar_and_which_batch_is_enough() -> None:
    times = TIMES | {"errors": {"503": 1}}
    rows = [
        {
            "network": "tiny",
            "server": server,
            "batch": batch,
            "workers": workers,
            "threads": 2 // workers,
            "rates": {"in process": [10.0, 12.0], "REST": [rate], "gRPC": [11.0]},
            "ratios": {"REST": rate / 11, "gRPC": 1.0},
            "times": {"REST": times, "gRPC": times},
        }
        for server, batch, workers, rate in (
            ("torchserve", 1, 1, 8.8),
            ("torchserve", 4, 1, 10.9),
            ("torchserve", 8, 1, 11.0),
            ("torchserve", 4, 2, 15.0),
            ("light", 1, 1, 11.0),
        )
    ]
    text = load.overhead_text({"concurrency": 8, "delay": 1, "threads": 2, "rows": rows})
    assert "below it: tiny, torchserve, batchSize 1, workers 1, REST (0.80)." in text
    assert "tiny, torchserve: batchSize 4 is the smallest within 2 %" in text
    assert "tiny, light: batchSize 1 is the smallest within 2 %" in text
    assert "| tiny | torchserve | 4 | 2 x 1 |" in text
    assert "11.00 (10.00 to 12.00)" in text and "1 x 503" in text
