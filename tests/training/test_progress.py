"""What a long step shows on a terminal and in a log."""

import io
from types import SimpleNamespace

import pytest

import training.progress
from training.progress import counted, duration, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands still but for what a test adds to `now`."""
    made = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(training.progress, "time", SimpleNamespace(monotonic=lambda: made.now))
    return made


def test_a_log_gets_plain_lines_with_share_rate_and_no_carriage_return() -> None:
    log = io.StringIO()
    for _ in progress(range(4), "reading", file=log, seconds_between_lines=0):
        pass
    lines = log.getvalue().splitlines()
    assert (
        lines[0].startswith("reading: 1/4 images (25 %), ") and "images/s" in lines[0] and " left" in lines[0]
    )
    assert lines[-1].startswith("reading: 4/4 images (100 %), ") and " left" not in lines[-1]
    assert "\r" not in log.getvalue() and "\x1b" not in log.getvalue()


def test_a_log_gets_no_line_per_item(clock: SimpleNamespace) -> None:
    log = io.StringIO()
    for _ in progress(range(1000), "reading", file=log, seconds_between_lines=10):
        clock.now += 0.025
    assert len(log.getvalue().splitlines()) == 3  # after 10 and 20 s, and at the end


def test_a_terminal_gets_a_bar_with_the_note() -> None:
    terminal = Terminal()
    with progress(range(4), "training", unit="steps", file=terminal) as shown:
        shown.note("loss 0.5")
        shown.advance(4)
    assert "\r" in terminal.getvalue()
    assert "training: 100%" in terminal.getvalue() and "loss 0.5" in terminal.getvalue()


def test_a_line_of_its_own_does_not_get_lost_in_the_bar() -> None:
    terminal, log = Terminal(), io.StringIO()
    for file in (terminal, log):
        with progress(range(4), "training", file=file) as shown:
            shown.say("stage mask")
        assert "stage mask\n" in file.getvalue()


def test_steps_of_an_earlier_run_count_for_the_share_and_not_for_the_rate(clock: SimpleNamespace) -> None:
    log = io.StringIO()
    with progress(range(100), "training", unit="steps", done=90, file=log) as shown:
        clock.now += 10
        shown.advance(5)
    assert "95/100 steps (95 %), 0.5 steps/s, 0:10 left" in log.getvalue()


def test_items_without_a_length_are_counted_all_the_same() -> None:
    log = io.StringIO()
    assert list(progress(iter("abc"), "reading", unit="letters", file=log)) == ["a", "b", "c"]
    assert log.getvalue().startswith("reading: 3 letters, ")


def test_a_step_that_reports_by_callback_is_shown_to_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    report = counted("checking")
    for done in range(1, 4):
        report(done, 3)
    assert capsys.readouterr().err.startswith("checking: 3/3 images (100 %), ")


def test_no_rate_is_told_where_the_first_report_is_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    counted("checking")(8, 8)
    assert capsys.readouterr().err == "checking: 8/8 images (100 %)\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (3599.7, "1:00:00"), (7325, "2:02:05")]
)
def test_durations_carry_into_the_next_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_rate_of_a_step_that_reports_by_callback_counts_from_its_first_report(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    report = counted("checking")
    clock.now += 50  # the file before it
    report(0, 8)
    clock.now += 4
    report(8, 8)
    assert capsys.readouterr().err == "checking: 8/8 images (100 %), 2 images/s\n"
