"""A seeded part of the hostile annotation files, and that the judging of them can fail.

All of them: `python -m tests.hostile.annotations`.
"""

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from model.files import exit_status
from tests.hostile.annotations import Road, counts, see
from tests.hostile.annotations import run as run_all
from tests.hostile.coco_files import EITHER, REFUSED, WORKS, HostileFile, all_files, some_files

SOME = 40


@pytest.mark.timeout(1200)  # half a minute of a core, which other work may hold
def test_hostile_annotations_work_or_end_in_one_error_that_names_file_and_place(tmp_path: Path) -> None:
    files = some_files(SOME)
    assert len(files) == SOME and len({file.group for file in files}) >= 7
    seen = run_all(files, tmp_path)
    faults = [f"{one.file.group}: {one.file.name}: {one.road}: {one.fault}" for one in seen if one.fault]
    assert not faults, "\n".join(faults)
    assert len(seen) >= 3 * SOME
    for road in {one.road for one in seen}:  # else a road that refuses everything would pass
        assert {one.outcome for one in seen if one.road == road} == {WORKS, REFUSED}
    assert f"{SOME} files" in counts(seen)


def test_there_are_as_many_files_as_wanted_and_the_part_of_the_suite_is_the_same_every_time() -> None:
    assert len(all_files()) >= 300
    once, again = ([(file.group, file.name, file.data()) for file in some_files(40)] for _ in range(2))
    assert once == again


def ends(status: int, errors: str = "", output: str = "") -> Callable[[Path], int]:
    def run(path: Path) -> int:
        print(output.format(path), end="")
        print(errors.format(path), end="", file=sys.stderr)
        return status

    return run


def raises(error: BaseException) -> Callable[[Path], int]:
    def run(path: Path) -> int:
        with exit_status():
            raise error
        return 0

    return run


def takes_memory(path: Path) -> int:
    return len(bytearray(2**30)) & 1


@pytest.mark.parametrize(
    ("run", "expect", "fault"),
    [
        (raises(KeyError("bbox")), EITHER, "KeyError"),
        (raises(RecursionError("too deep")), EITHER, "RecursionError"),
        (raises(MemoryError()), EITHER, "MemoryError"),
        (ends(1, "error: {}: annotation 5: wrong\n"), EITHER, "status 1"),
        (ends(2), EITHER, "no error is named"),
        (ends(2, "error: annotation 5: wrong\n"), EITHER, "the file is not named"),
        (ends(2, "error: {}: wrong\n"), EITHER, "no place is named"),
        (ends(2, "error: {}: annotation 5: \x1b[2J\n"), EITHER, "not printable"),
        (ends(2, "error: {}: annotation 5: a\nb\n"), EITHER, "begins another error"),
        (ends(2, "error: {}: annotation " + "5" * 10_000), EITHER, "a line of"),
        (ends(2, "error: {}:" + "\n  annotation 5: wrong" * 100), EITHER, "lines"),
        (ends(0, "Traceback (most recent call last):\n"), EITHER, "a trace"),
        (ends(0), REFUSED, "works, but should not"),
        (ends(2, "error: {}: annotation 5: wrong\n"), WORKS, "refused, but should work"),
        (takes_memory, EITHER, "took 1"),
    ],
)
def test_each_wrong_end_is_a_fault(
    tmp_path: Path, run: Callable[[Path], int], expect: str, fault: str
) -> None:
    file = HostileFile(group="made up", name="one", data=lambda: b"{}", expect=expect)
    path = tmp_path / "hostile.json"
    path.write_bytes(file.data())
    seen = see(file, path, Road(name="train", run=run))
    assert fault in seen.fault and seen.outcome == "fault", seen


def test_an_alarm_that_was_set_before_is_still_set(tmp_path: Path) -> None:
    file = HostileFile(group="made up", name="one", data=lambda: b"{}")
    handler = signal.signal(signal.SIGALRM, signal.SIG_IGN)
    before = signal.setitimer(signal.ITIMER_REAL, 5000)
    try:
        see(file, tmp_path, Road(name="train", run=ends(0)))
        assert 4000 < signal.getitimer(signal.ITIMER_REAL)[0] <= 5000
        assert signal.getsignal(signal.SIGALRM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *before)


def test_a_right_end_is_no_fault(tmp_path: Path) -> None:
    file = HostileFile(group="made up", name="one", data=lambda: b"{}")
    path = tmp_path / "hostile.json"
    path.write_bytes(file.data())
    for ended, outcome in ((ends(0), WORKS), (ends(2, "error: {}:\n  annotation 5: wrong\n"), REFUSED)):
        seen = see(file, path, Road(name="train", run=ended))
        assert not seen.fault and seen.outcome == outcome
