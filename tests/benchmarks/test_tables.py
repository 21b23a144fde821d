"""What a result says is what its numbers say."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.speed.__main__ import parser, write
from benchmarks.speed.setting import Setting
from benchmarks.tables import Part, Times, document, shown, speed_up, table


def test_a_ratio_is_that_of_the_medians() -> None:
    slow, fast = Times((9.0, 6.0, 100.0)), Times((2.0, 3.0, 1.0))
    assert (slow.median, fast.median, fast.least) == (9.0, 2.0, 1.0)
    assert speed_up(slow, fast) == 4.5


def test_the_ratio_in_the_document_is_the_one_its_numbers_give() -> None:
    slow, fast = Times((9.0,)), Times((2.0,))
    part = Part(title="A part", text="text", numbers={}, ratios={"a / b": speed_up(slow, fast)})
    lines = document("Title", [("machine", "m")], [part]).splitlines()
    row = next(line for line in lines if line.startswith("| a / b"))
    assert float(row.split("|")[2]) == slow.median / fast.median
    assert lines.index("## Ratios") < lines.index("## A part") < lines.index("text")


def test_without_a_run_there_is_no_time() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Times(())


def test_a_row_of_another_length_than_the_headers_is_refused() -> None:
    with pytest.raises(ValueError, match="3 cells under 2 headers"):
        table(["a", "b"], [["1", "2", "3"]])
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| :-- | --: |\n| 1 | 2 |\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(12.345, "12.35 s"), (0.9994, "999 ms"), (0.0123, "12 ms"), (0.00123, "1.23 ms")]
)
def test_seconds_are_shown_in_a_readers_unit(seconds: float, text: str) -> None:
    assert shown(seconds) == text


def test_markdown_and_json_are_written_beside_each_other(tmp_path: Path) -> None:
    size: dict[str, Any] = {"min_size": 800, "max_size": 1333, "rounds": 3, "quick": False}
    setting = Setting(folder=tmp_path, device="cpu", precisions=("float32",), **size)
    part = Part(title="A part", text="text", numbers={"x": 1}, ratios={"a / b": 2.0})
    for text in ("another", "the text"):
        path = write(tmp_path / "out", setting, {"date": "2026-01-02 03:04 UTC"}, [part], text, 1.5)
    assert path.name == "cpu-2026-01-02.md"
    assert path.read_text() == "the text"
    assert len(list(path.parent.iterdir())) == 2  # no draft is left
    content = json.loads(path.with_suffix(".json").read_text())
    assert content["ratios"] == {"a / b": 2.0}
    assert content["parts"] == {"A part": {"x": 1}}
    assert content["machine"]["date"].startswith("2026-01-02")


def test_a_part_that_is_not_known_is_refused() -> None:
    assert parser().parse_args(["--parts", "memory"]).parts == ["memory"]
    with pytest.raises(SystemExit):
        parser().parse_args(["--parts", "everything"])
