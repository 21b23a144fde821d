"""`--compile`: a package made once for this machine and taken again, and serving without one where none can be made.

A stand-in makes the package; the true one is tests/export/test_compiled.py's.
"""

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import server.compiling
from server.__main__ import main
from server.compiling import KEPT, newest_checkpoint, package_for, remove_oldest, with_package

MAKER = """
import sys
from pathlib import Path

told = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
Path("made.txt").open("a").write(told["--precision"] + "\\n")
assert Path(told["--checkpoint"]).read_text() == "weights"
if Path("fails").exists():
    sys.exit("something\\nerror: no C++ compiler here; install g++")
Path(told["--out"]).write_bytes(b"package of " + Path(told["--torchscript"]).read_bytes()[:2])
"""


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone whose exporter is the stand-in, with a checkpoint of the last run; the working folder."""
    for name, content in (
        ("export/__init__.py", ""),
        ("export/compiled.py", MAKER),
        ("model/__init__.py", ""),
        ("build/run.txt", "build/mine\n"),
        ("build/mine/checkpoint.pt", "weights"),
    ):
        path = tmp_path / "clone" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    monkeypatch.setattr(server.compiling, "ROOT", tmp_path / "clone")
    monkeypatch.chdir(tmp_path / "clone")
    return tmp_path / "clone"


class Said(list[str]):
    """What was said, and a package for an archive with it."""

    def package(self, archive: Path, **more: Any) -> Path | None:
        return package_for(archive, say=self.append, **more)


def made(clone: Path) -> list[str]:
    """The precision of each package that was made."""
    log = clone / "made.txt"
    return log.read_text().split() if log.exists() else []


def test_the_first_start_makes_the_package_and_the_second_takes_it(
    clone: Path, standin_archive: Callable[..., Path]
) -> None:
    archive, said = standin_archive("compiling"), Said()
    first = said.package(archive)
    assert first is not None and first.read_bytes() == b"package of PK"
    assert first.parent == Path("build/compiled")
    assert said[0].startswith("compiling build/mine/checkpoint.pt for this machine, once") and len(said) == 2
    assert said.package(archive) == first
    assert made(clone) == ["auto"] and said[2] == f"compiled for this machine already: {first}"


@pytest.mark.parametrize("what", ["torch", "source", "processor", "precision"])
def test_whatever_a_package_was_made_for_changes_another_is_made(
    clone: Path, standin_archive: Callable[..., Path], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, said = standin_archive("compiling"), Said()
    first = said.package(archive)
    if what == "torch":
        monkeypatch.setattr(server.compiling.importlib.metadata, "version", lambda name: "9.9")
    elif what == "source":
        (clone / "model" / "more.py").write_text("# another network\n")
    elif what == "processor":
        (clone / "cpuinfo").write_text("model name : another\nflags : fpu\n")
        monkeypatch.setattr(server.compiling, "CPU_INFO", clone / "cpuinfo")
    else:
        archive = standin_archive("compiling", maskx={"precision": "float32"})
    second = said.package(archive)
    assert second not in (None, first)
    assert made(clone) == ["auto", "float32" if what == "precision" else "auto"]


def test_what_cannot_be_made_is_a_warning_and_no_package(
    clone: Path, standin_archive: Callable[..., Path]
) -> None:
    archive, said = standin_archive("compiling"), Said()
    (clone / "fails").touch()
    assert said.package(archive) is None
    assert said[-1] == "warning: not compiled, TorchScript serves: no C++ compiler here; install g++"
    (clone / "build" / "mine" / "checkpoint.pt").unlink()
    assert (
        said.package(archive) is None and "name what the archive was exported from: --checkpoint" in said[-1]
    )
    assert said.package(archive, checkpoint=Path("nowhere.pt")) is None
    assert "there is no checkpoint nowhere.pt" in said[-1]
    (clone / "export" / "compiled.py").unlink()
    assert said.package(archive) is None and "--compile needs a clone of maskx" in said[-1]
    assert not list(Path("build/compiled").glob("*"))


def test_an_archive_that_asks_for_torchscript_alone_is_refused(
    clone: Path, standin_archive: Callable[..., Path]
) -> None:
    archive = standin_archive("compiling", maskx={"engine": "torchscript"})
    with pytest.raises(ValueError, match="says maskx.engine: torchscript; take that out"):
        package_for(archive)
    assert made(clone) == []


def test_the_checkpoint_is_that_of_the_last_run_or_of_the_first(clone: Path) -> None:
    assert newest_checkpoint() == Path("build/mine/checkpoint.pt")
    Path("build/run.txt").unlink()
    assert newest_checkpoint() is None
    Path("build/train").mkdir()
    Path("build/train/checkpoint.pt").touch()
    assert newest_checkpoint() == Path("build/train/checkpoint.pt")


def test_the_packages_that_were_used_last_stay(tmp_path: Path) -> None:
    for age in range(KEPT + 3):
        path = tmp_path / f"{age}.pt2"
        path.touch()
        os.utime(path, (1e9 - age, 1e9 - age))
    remove_oldest(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{age}.pt2" for age in range(KEPT)]


def test_a_package_goes_into_the_copy_in_the_place_of_another(
    tmp_path: Path, standin_archive: Callable[..., Path]
) -> None:
    copy = tmp_path / "maskx.mar"
    copy.write_bytes(standin_archive("compiling").read_bytes())
    with zipfile.ZipFile(copy) as archive:
        before = {name: archive.read(name) for name in archive.namelist() if name != "maskx.pt2"}
    for content in (b"one", b"another"):
        (tmp_path / "a.pt2").write_bytes(content)
        with_package(copy, tmp_path / "a.pt2")
        with zipfile.ZipFile(copy) as archive:
            assert {name: archive.read(name) for name in archive.namelist()} == before | {
                "maskx.pt2": content
            }
            assert archive.testzip() is None and len(archive.namelist()) == len(before) + 1


def test_a_checkpoint_without_compile_and_an_archive_that_is_not_there_are_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = str(tmp_path / "none.mar")
    assert main(["start", "--archive", archive, "--checkpoint", "a.pt"]) == 2
    assert "--checkpoint is what --compile compiles" in capsys.readouterr().err
    assert main(["start", "--archive", archive, "--compile"]) == 2
    assert f"there is no {archive}; make it with make archive" in capsys.readouterr().err


def test_the_maker_is_called_by_the_name_it_has() -> None:
    """Whether `export.compiled` takes these arguments, said by itself."""
    told = subprocess.run(
        [sys.executable, "-m", "export.compiled", "--help"], capture_output=True, text=True, check=False
    )
    assert told.returncode == 0
    for flag in ("--torchscript", "--checkpoint", "--out", "--precision"):
        assert flag in told.stdout
