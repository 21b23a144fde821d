"""Files that are whole or not there, hints and lists in messages, and how a command ends."""

from pathlib import Path

import pytest

from model.files import did_you_mean, exit_status, first_few, one_line, whole, write_whole


@pytest.mark.parametrize(("mode", "text"), [("wb", b"caf\xc3\xa9"), ("w", "caf\u00e9")])
def test_a_file_is_there_whole_in_a_new_folder_and_an_error_leaves_the_old_one(
    tmp_path: Path, mode: str, text: bytes | str
) -> None:
    path = tmp_path / "new" / "a.txt"
    with whole(path, mode=mode) as file:
        file.write(text)
    with pytest.raises(TypeError), whole(path, mode=mode) as file:
        file.writelines([text[:2], None])
    assert path.read_bytes() == b"caf\xc3\xa9" and list(path.parent.iterdir()) == [path]
    write_whole(path, "caf\u00e9s")
    assert path.read_text(encoding="utf-8") == "caf\u00e9s"


def test_the_nearest_known_word_is_meant_and_no_other() -> None:
    assert did_you_mean("lenght", ("width", "length")) == "; did you mean length?"
    assert did_you_mean("lenght", ("width", "length"), before="", shown=repr) == "did you mean 'length'?"
    assert did_you_mean("colour", ("width", "length")) == ""


def test_lists_in_messages_say_that_there_is_more() -> None:
    assert first_few(["a", "b"], 2) == "a, b"
    assert first_few(["a", "b", "c"], 2, separator="; ") == "a; b; ..."


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (None, 0, ""),
        (ValueError("no such file"), 2, "error: no such file\n"),
        (FileNotFoundError("gone"), 2, "error: gone\n"),
        (MemoryError("full"), 2, "error: full\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
    ],
)
def test_a_command_ends_with_a_status_and_a_line(
    error: BaseException | None, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with exit_status(MemoryError, interrupted="stopped") as status:
        if error is not None:
            raise error
    assert (status.code, capsys.readouterr().err) == (code, said)


def test_errors_of_the_program_itself_and_an_interrupt_without_words_go_on_up() -> None:
    for error in (KeyError("x"), KeyboardInterrupt()):
        with pytest.raises(type(error)), exit_status():
            raise error


def test_an_error_of_a_loaders_worker_is_said_in_its_own_last_line() -> None:
    passed_on = (
        "Caught ValueError in DataLoader worker process 0.\nTraceback:\n  File\nValueError: 7.png: broken"
    )
    assert one_line(ValueError(passed_on)) == "7.png: broken"
    assert one_line(ValueError("two\n  lines")) == "two lines"
    assert one_line(KeyError()) == "KeyError"
