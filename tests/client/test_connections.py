"""Connections are kept and used again, and a server may close one at any time."""

import pytest

from client import Client, Retries, ServerUnreachable
from tests.client.faulty import ANSWER, Step, rest


def test_a_kept_connection_that_was_closed_meanwhile_costs_no_attempt() -> None:
    """As a server does that goes, or has waited long enough, just when the next request is sent."""
    with rest(Step(), Step(cut=0)) as faulty, Client(faulty.url, retries=Retries(attempts=1)) as client:
        for _ in range(2):
            assert client.predict(b"image").content() == ANSWER
        assert len(faulty.seen) == 3


@pytest.mark.parametrize(
    "steps",
    [
        [Step(), Step(cut=20)],  # an answer had begun
        [Step(), Step(cut=0), Step(cut=0)],  # nor does it answer over a new connection
    ],
)
def test_a_kept_connection_that_breaks_otherwise_is_an_error(steps: list[Step]) -> None:
    with rest(*steps) as faulty, Client(faulty.url, retries=Retries(attempts=1)) as client:
        client.predict(b"image")
        with pytest.raises(ServerUnreachable, match="was lost before the answer was whole"):
            client.predict(b"image")
        assert len(faulty.seen) == len(steps)
