"""The cores that a process may use: all, those it is bound to, or what a container is given of their time."""

import os
from pathlib import Path

import pytest

import maskx_engine
from maskx_engine import usable_cores


@pytest.mark.parametrize(
    ("affinity", "given", "cores"),
    [
        ({0}, "max 100000", 1),
        ({1, 5}, "max 100000", 2),
        (set(range(64)), "max 100000", 64),
        (set(range(64)), "400000 100000", 4),
        (set(range(64)), "150000 100000", 2),
        (set(range(64)), "10000 100000", 1),
        ({0, 1}, "6400000 100000", 2),
        ({0, 1, 2}, "what is this", 3),
        ({0, 1, 2}, None, 3),
    ],
)
def test_cores_are_those_of_the_affinity_and_no_more_than_the_control_groups_share(
    affinity: set[int], given: str | None, cores: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "cpu.max"
    if given is not None:
        file.write_text(given + "\n")
    monkeypatch.setattr(maskx_engine, "CPU_MAX", file)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: affinity, raising=False)
    assert usable_cores() == cores


def test_a_system_that_tells_nothing_counts_as_one_core(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(maskx_engine, "CPU_MAX", tmp_path / "none")
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1
