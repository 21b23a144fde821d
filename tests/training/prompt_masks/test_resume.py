"""A run that was stopped, by whatever, goes on where it was, and ends with the bytes of one that was not."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.training.prompt_masks.boxes_set import boxes_document, write_boxes_set
from tests.training.prompt_masks.tiny_segmenter import describe
from training.prompt_masks import run as running
from training.prompt_masks.__main__ import main
from training.prompt_masks.journal import journal_of, opened
from training.prompt_masks.objects import Mask

IMAGES = 12

SLOWLY = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
from training.prompt_masks import run
from training.prompt_masks.__main__ import main
made = run._made
def slowly(*arguments):
    time.sleep(0.5)
    return made(*arguments)
run._made = slowly
sys.exit(main(sys.argv[1:]))
"""


def many_images() -> dict[str, Any]:
    """The set with more images, of the same files."""
    document = boxes_document()
    images, annotations = document["images"], document["annotations"]
    document["images"] = [{**images[n % 3], "id": n + 1} for n in range(IMAGES)]
    document["annotations"] = [
        {**one, "id": 10 * n + one["id"], "image_id": n + 1}
        for n in range(IMAGES)
        for one in annotations
        if one["image_id"] == n % 3 + 1
    ]
    return document


@pytest.fixture
def words(tiny: Path, tmp_path: Path) -> list[str]:
    return write_boxes_set(tmp_path, many_images())


def done_in(journal: Path) -> int:
    """Images in a journal that some process may be writing."""
    return journal.read_bytes().count(b"\n") - 1 if journal.exists() else 0


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(
    words: list[str], tmp_path: Path, root: Path, by: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    out, journal = tmp_path / "masks.json", journal_of(tmp_path / "masks.json")
    assert main(words) == 0
    expected = out.read_bytes()
    out.unlink()
    begun = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, *words], cwd=root, stderr=subprocess.PIPE, text=True
    )
    while done_in(journal) < 3:
        assert begun.poll() is None, begun.communicate()
        time.sleep(0.05)
    begun.send_signal(by)
    said = begun.communicate()[1]
    done = done_in(journal)
    assert 3 <= done < IMAGES and not out.exists()
    if by is signal.SIGINT:
        assert begun.returncode == 130 and "stopped; start it again" in said and "Traceback" not in said
    capsys.readouterr()
    assert main(words) == 0
    assert f"{done} images are done already" in capsys.readouterr().out
    assert out.read_bytes() == expected
    assert not journal.exists()


def test_images_that_are_done_are_not_prompted_again(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = running._made
    prompted: list[int] = []

    def stopping(segmenter: Any, picture: Any, images_dir: Path) -> Any:
        if len(prompted) == 5:
            raise KeyboardInterrupt
        prompted.append(picture.row)
        return made(segmenter, picture, images_dir)

    monkeypatch.setattr(running, "_made", stopping)
    assert main(words) == 130
    assert main(words) == 130  # at the first image, of those that are left

    def going_on(segmenter: Any, picture: Any, images_dir: Path) -> Any:
        prompted.append(picture.row)
        return made(segmenter, picture, images_dir)

    monkeypatch.setattr(running, "_made", going_on)
    assert main(words) == 0
    assert sorted(prompted) == list(range(IMAGES))


def test_several_images_at_once_make_the_same_bytes(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(words) == 0
    expected = (tmp_path / "masks.json").read_bytes()
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    assert main(words) == 0
    assert (tmp_path / "masks.json").read_bytes() == expected


@pytest.mark.parametrize(
    ("threads", "split"), [(1, (1, 1)), (2, (2, 1)), (4, (4, 1)), (7, (4, 1)), (16, (4, 4))]
)
def test_threads_are_for_images_first(threads: int, split: tuple[int, int]) -> None:
    assert running.split_threads(threads) == split


def begun_with(journal: Path, **header: Any) -> None:
    journal.write_text(
        json.dumps({"format": 1, "segmenter": "s", "annotations": "a", "--all": False, **header}) + "\n"
    )


HEADER = {"segmenter": "s", "annotations": "a", "--all": False}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"segmenter": "t"}, "was begun with another segmenter .t; now s."),
        ({"annotations": "b"}, "was begun with another annotations .b; now a."),
        ({"--all": True}, "was begun with another --all .True; now False."),
        ({"format": 2}, "is no journal of this program"),
    ],
)
def test_a_journal_of_another_run_is_refused(tmp_path: Path, other: dict[str, Any], message: str) -> None:
    begun_with(tmp_path / "journal", **other)
    before = (tmp_path / "journal").read_bytes()
    with pytest.raises(ValueError, match=message), opened(tmp_path / "journal", HEADER):
        pass
    assert (tmp_path / "journal").read_bytes() == before


@pytest.mark.parametrize("text", ["a letter", "a letter\n", "{}\n", "[1]\n", '{"format": 1, "segm\n'])
def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / "journal").write_text(text)
    with (
        pytest.raises(ValueError, match="is no journal of this program"),
        opened(tmp_path / "journal", HEADER),
    ):
        pass
    assert (tmp_path / "journal").read_text() == text


def test_a_line_that_was_not_finished_is_written_anew(tmp_path: Path) -> None:
    masks = {7: Mask({"size": [2, 2], "counts": "04"}, 0.5), 9: Mask(None, 0.25)}
    with opened(tmp_path / "journal", HEADER) as journal:
        journal.add(0, masks)
        journal.add(1, {})
    whole = (tmp_path / "journal").read_bytes()
    for end in range(0, len(whole), 9):
        (tmp_path / "journal").write_bytes(whole[:end])
        with opened(tmp_path / "journal", HEADER) as journal:
            lines = whole[:end].count(b"\n")
            assert journal.done == dict([(0, masks), (1, {})][: max(lines - 1, 0)])
            for row, some in list({0: masks, 1: {}}.items())[max(lines - 1, 0) :]:
                journal.add(row, some)
        assert (tmp_path / "journal").read_bytes() == whole


def test_a_line_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    begun_with(tmp_path / "journal")
    with (tmp_path / "journal").open("a") as file:
        file.write('{"image": 3}\n')
    with pytest.raises(ValueError, match="a line that cannot be read"), opened(tmp_path / "journal", HEADER):
        pass


def test_two_processes_do_not_write_one_journal(tmp_path: Path) -> None:
    again = pytest.raises(ValueError, match="another process is making these masks")
    with opened(tmp_path / "journal", HEADER), again, opened(tmp_path / "journal", HEADER):
        pass


def test_another_segmenter_does_not_go_on_with_the_masks_of_the_first(
    words: list[str], tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun_with(journal_of(tmp_path / "masks.json"), segmenter="other 1234")
    assert main(words) == 2
    assert "was begun with another segmenter (other 1234; now tiny " in capsys.readouterr().err
    describe(tiny, 'choice = "best"')
    assert main(words) == 2
