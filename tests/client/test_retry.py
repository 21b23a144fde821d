"""When to ask again, with a clock and a chance of the test's own."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from client.errors import ServerUnreachable, TimedOut, refused
from client.retry import Attempts, Failure, Retries, seconds_of


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def attempting(
    *, chance: float = 1.0, attempts: int = 10, deadline: float = 1000.0, clock: Clock | None = None
) -> Attempts:
    retries = Retries(attempts=attempts, first=1.0, longest=8.0)
    return Attempts(retries, deadline, clock=clock or Clock(), chance=lambda: chance)


def busy(retry_after: float | None = None) -> Failure:
    return refused(503, "Busy", "m", retry_after=retry_after)


def test_waits_double_up_to_the_longest_and_half_of_each_is_chance() -> None:
    for chance, share in ((1.0, 1.0), (0.0, 0.5), (0.5, 0.75)):
        one = attempting(chance=chance)
        assert [one.wait(busy()) for _ in range(6)] == [share * s for s in (1, 2, 4, 8, 8, 8)]


def test_a_retry_after_is_never_undercut_and_never_shortens_the_back_off() -> None:
    one = attempting()
    assert [one.wait(busy(after)) for after in (3.0, 0.0, 20.0)] == [3.0, 2.0, 20.0]


def test_the_last_attempt_ends_in_its_own_error() -> None:
    one, last = attempting(attempts=3), ServerUnreachable("gone")
    one.wait(busy())
    one.wait(busy())
    with pytest.raises(ServerUnreachable, match="gone"):
        one.wait(last)


def test_a_wait_beyond_the_deadline_is_not_begun_and_the_last_error_is_told() -> None:
    clock = Clock()
    one = attempting(deadline=10.0, clock=clock)
    assert one.left() == 10.0
    assert one.wait(busy()) == 1.0
    clock.now += 8.5
    with pytest.raises(TimedOut, match="within 10 s and 2 attempts; the last one: .*503 Busy"):
        one.wait(busy())
    clock.now += 8.5
    assert one.left() == 0.0


def test_what_would_come_again_is_raised_as_it_is() -> None:
    for error in (
        refused(400, "InvalidImage", "m"),
        refused(500, "InternalError", "m"),
        refused(507, "X", "m"),
    ):
        assert not error.transient
        with pytest.raises(type(error)):
            attempting().wait(error)


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (429, "TooManyRequests", "m"),
        (502, "Unreachable", "m"),
        (503, "Restarting", "m"),
        (504, "Timeout", "m"),
        (500, "InternalServerException", "Worker died."),
        (500, "WorkerDied", "the proxy's words"),
    ],
)
def test_what_passes_is_waited_for(code: int, kind: str, message: str) -> None:
    assert attempting().wait(refused(code, kind, message)) == 1.0


def test_retry_after_is_read_as_seconds_or_as_a_date() -> None:
    assert seconds_of("120") == 120.0 and seconds_of(" 0 ") == 0.0
    assert seconds_of(None) is None and seconds_of("soon") is None and seconds_of("-5") is None
    ahead = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert 90 < (seconds_of(ahead) or 0) <= 100
    assert seconds_of("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0


@pytest.mark.parametrize("arguments", [{"attempts": 0}, {"first": -1.0}, {"first": 6.0}])
def test_numbers_that_cannot_be_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="attempts is|first is"):
        Retries(**arguments)  # type: ignore[arg-type]
