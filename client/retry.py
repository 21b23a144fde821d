"""When to ask again: exponential back-off with jitter, the server's Retry-After, and a deadline for all attempts.

Knows no protocol and does no waiting itself; errors say by `transient` whether another attempt can help.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from .errors import ServerRefused, ServerUnreachable, TimedOut

Failure = ServerRefused | ServerUnreachable | TimedOut


@dataclass(frozen=True, kw_only=True)
class Retries:
    """How often, and after how many seconds, a request is sent again.

    The defaults wait about 20 s in all, which covers a worker that dies and loads its model again.
    """

    attempts: int = 10
    """Attempts in all, the first one too; 1 never asks again."""
    first: float = 0.2
    """Seconds to the second attempt; each later wait is twice the one before."""
    longest: float = 5.0
    """No wait of the back-off is longer, in seconds. A Retry-After may be."""

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts is {self.attempts}; at least 1 is needed, and 1 never asks again")
        if not 0 <= self.first <= self.longest:
            seen = f"first is {self.first} and longest {self.longest}"
            raise ValueError(f"{seen}; expected 0 <= first <= longest")


@dataclass
class Attempts:
    """One request on its way through its attempts.

    `deadline`: seconds that all attempts and waits may take together. `clock` and `chance` (0..1) are those of the
    standard library but in tests.
    """

    retries: Retries
    deadline: float
    clock: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = random.random
    attempt: int = 1
    _end: float = field(init=False)

    def __post_init__(self) -> None:
        self._end = self.clock() + self.deadline

    def left(self) -> float:
        """Seconds until the deadline, 0 at least."""
        return max(0.0, self._end - self.clock())

    def wait(self, failure: Failure) -> float:
        """Seconds to wait before the next attempt, after one that ended in `failure`.

        Half of the back-off is fixed, half is chance, so that clients that failed together do not come back together.
        A Retry-After is never undercut.

        Raises:
            The failure itself, where it would come again or no attempt is left.
            TimedOut: the wait would pass the deadline, or an attempt ended with it.
        """
        if not failure.transient or self.retries.attempts == 1:
            raise failure
        backoff = min(self.retries.longest, self.retries.first * 2.0 ** min(self.attempt - 1, 60))
        seconds = backoff * (0.5 + 0.5 * self.chance())
        if failure.retry_after is not None:
            seconds = max(failure.retry_after, seconds)
        if self.attempt >= self.retries.attempts:
            raise failure
        if seconds >= self.left():
            raise TimedOut(
                f"no answer within {self.deadline:g} s and {self.attempt} attempts; the last one: {failure}"
            ) from failure
        self.attempt += 1
        return seconds


def seconds_of(retry_after: str | None) -> float | None:
    """A Retry-After header in seconds from now: a number of seconds or a date; None where it is neither."""
    if retry_after is None:
        return None
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
