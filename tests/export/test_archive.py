"""maskx.mar: everything that serving needs, the same bytes every time, and clear words where it cannot be made."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import export.archive
from export.archive import MANIFEST, ROOT, build_archive, main, normalised_archive
from tests.export.tiny import run_module
from tests.served.compiled_standin import record_of, write_package

Build = Callable[..., str]


@pytest.fixture
def handler_folder(tmp_path: Path) -> Path:
    """A handler of three modules, and files beside it that do not belong into an archive."""
    folder = tmp_path / "handler, with a comma"
    folder.mkdir()
    for name in ("maskx_handler.py", "maskx_image.py", "maskx_answer.py", "notes.py", "maskx_image.txt"):
        (folder / name).write_text(f"# {name}\n")
    (folder / "__pycache__").mkdir()
    return folder


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    path = tmp_path / "model-config.yaml"
    path.write_text("minWorkers: 1\n")
    return path


@pytest.fixture
def build(exported: Path, handler_folder: Path, configuration: Path) -> Build:
    """Of an archive of these."""
    return partial(build_archive, exported, handler_folder=handler_folder, configuration=configuration)


def test_the_archive_holds_model_handler_and_configuration(
    exported: Path, build: Build, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "other name.mar"
    build(out, version="2.5")
    with zipfile.ZipFile(out) as archive:
        assert archive.testzip() is None
        modules = ["maskx_answer.py", "maskx_handler.py", "maskx_image.py"]
        assert archive.namelist() == [MANIFEST, "maskx.pt", *modules, "model-config.yaml"]
        assert archive.read("maskx.pt") == exported.read_bytes()
        assert archive.read("maskx_answer.py") == b"# maskx_answer.py\n"
        manifest = json.loads(archive.read(MANIFEST))
    assert manifest["runtime"] == "python"
    assert manifest["model"] == {
        "configFile": "model-config.yaml",
        "handler": "maskx_handler.py",
        "modelName": "maskx",
        "modelVersion": "2.5",
        "serializedFile": "maskx.pt",
    }


def test_the_sum_beside_the_archive_is_what_sha256sum_checks(build: Build, tmp_path: Path) -> None:
    out = tmp_path / "maskx.mar"
    digest = build(out)
    assert digest == hashlib.sha256(out.read_bytes()).hexdigest()
    check = ["sha256sum", "-c", "maskx.mar.sha256"]
    assert subprocess.run(check, cwd=tmp_path, capture_output=True, check=False).stdout == b"maskx.mar: OK\n"
    out.write_bytes(out.read_bytes()[:-1] + b"x")
    assert subprocess.run(check, cwd=tmp_path, capture_output=True, check=False).returncode == 1


def test_two_folders_two_processes_and_two_dates_give_the_same_archive(
    exported: Path, handler_folder: Path, configuration: Path, tmp_path: Path
) -> None:
    """The files have other dates and permissions; `createdOn` has a step of a second."""
    sums = []
    for name, seed, mode, date in (("one", "1", 0o644, 1_500_000_000), ("two", "2", 0o600, 1_700_000_000)):
        root = tmp_path / name
        shutil.copytree(ROOT / "export", root / "export")
        (root / "model").mkdir()
        shutil.copy(ROOT / "model" / "files.py", root / "model" / "files.py")  # all of model/ that it needs
        shutil.copytree(handler_folder, root / "handler")
        (root / "serve_config").mkdir()
        shutil.copy(configuration, root / "serve_config" / "model-config.yaml")
        shutil.copy(exported, root / "maskx.pt")
        for path in (*root.glob("handler/*.py"), root / "maskx.pt"):
            path.chmod(mode)
            os.utime(path, (date, date))
        begin = int(time.time())
        done = run_module("export.archive", "--torchscript", "maskx.pt", root=root, PYTHONHASHSEED=seed)
        assert done.returncode == 0, done.stderr
        sums.append((root / "build" / "maskx.mar.sha256").read_text())
        assert sums[-1].split()[0] in done.stdout
        while int(time.time()) == begin:
            time.sleep(0.05)
    assert sums[0] == sums[1]


def test_normalising_changes_no_content_but_the_date_of_the_manifest(tmp_path: Path) -> None:
    raw = tmp_path / "raw.mar"
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("b.py", "b" * 1000)
        archive.writestr("a.py", "a")
        archive.writestr(MANIFEST, json.dumps({"createdOn": "21/11/2026 04:51:53", "model": {"x": [1, 2]}}))
    with zipfile.ZipFile(raw) as before:
        data = normalised_archive(raw.read_bytes())
        out = tmp_path / "out.mar"
        out.write_bytes(data)
        with zipfile.ZipFile(out) as after:
            assert after.namelist() == [MANIFEST, "a.py", "b.py"]
            assert after.read("b.py") == before.read("b.py")
            assert json.loads(after.read(MANIFEST)) == {
                "createdOn": "01/01/1980 00:00:00",
                "model": {"x": [1, 2]},
            }
            assert {entry.date_time for entry in after.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_the_temporary_folder_of_another_model_archiver_is_left_alone(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch-model-archiver removes <temporary folder>/maskx, whoever made it."""
    somebody = tmp_path / "tmp" / "maskx"
    somebody.mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(somebody.parent))
    build(tmp_path / "maskx.mar")
    assert somebody.is_dir()


def test_the_error_of_the_archiver_is_shown_and_the_old_archive_kept(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = tmp_path / "torch-model-archiver"
    failing.write_text("#!/bin/sh\necho no space >&2\nexit 3\n")
    failing.chmod(0o755)
    monkeypatch.setattr(export.archive, "archiver_command", lambda: str(failing))
    out = tmp_path / "maskx.mar"
    out.write_bytes(b"old")
    with pytest.raises(ValueError, match=r"torch-model-archiver failed \(3\):\nno space"):
        build(out)
    assert out.read_bytes() == b"old"


def test_an_archiver_that_is_not_installed_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="torch-model-archiver is not installed; run make setup"):
        export.archive.archiver_command()


def test_what_is_not_exported_is_refused_by_name(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.pt"
    text.write_text("no model")
    for path, message in (
        (tmp_path / "none.pt", "there is no"),
        (text, "is not a file of python -m export.torchscript"),
        (checkpoint, "is not a file of python -m export.torchscript"),
    ):
        assert main(["--torchscript", str(path), "--out", str(tmp_path / "maskx.mar")]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert str(path) in error
    assert list(tmp_path.iterdir()) == [text]


def test_a_missing_handler_or_configuration_is_named(
    exported: Path, build: Build, configuration: Path, tmp_path: Path
) -> None:
    out = tmp_path / "maskx.mar"
    with pytest.raises(ValueError, match=r"there is no maskx_handler.py in .*exported"):
        build(out, handler_folder=exported.parent)
    configuration.unlink()
    with pytest.raises(ValueError, match=r"there is no .*model-config.yaml"):
        build(out)
    assert not out.exists()


@pytest.fixture
def package(exported: Path, tmp_path: Path) -> Path:
    """A package of compiled parts that belongs to the exported file, as far as an archive looks at it."""
    return write_package(tmp_path / "a, package.pt2", record_of(exported), {})


def test_an_archive_with_compiled_parts_has_the_package_beside_the_whole_torchscript_file(
    exported: Path, build: Build, package: Path, tmp_path: Path
) -> None:
    with_package = tmp_path / "with.mar"
    digests = {build(with_package, package=package) for _ in range(2)}
    assert digests == {hashlib.sha256(with_package.read_bytes()).hexdigest()}
    build(tmp_path / "without.mar")
    with zipfile.ZipFile(with_package) as archive, zipfile.ZipFile(tmp_path / "without.mar") as plain:
        assert set(archive.namelist()) == {*plain.namelist(), "maskx.pt2"}
        assert archive.read("maskx.pt2") == package.read_bytes()
        assert archive.read("maskx.pt") == exported.read_bytes()
        assert archive.getinfo("maskx.pt2").compress_type == zipfile.ZIP_STORED


def test_the_command_packs_the_package_that_it_is_told(
    exported: Path, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ["--torchscript", str(exported), "--out", str(tmp_path / "maskx.mar")]
    assert main([*told, "--engine", "compiled", "--package", str(package)]) == 0
    assert "MiB, 0.0 of them compiled), sha256" in capsys.readouterr().out
    assert main([*told, "--package", str(package)]) == 2
    assert "--package is for --engine compiled" in capsys.readouterr().err


def test_a_package_that_is_missing_damaged_or_of_another_file_is_refused(
    exported: Path, build: Build, package: Path, tmp_path: Path
) -> None:
    out = tmp_path / "maskx.mar"
    with pytest.raises(ValueError, match="there is no .*none.pt2; make it with python -m export.compiled"):
        build(out, package=tmp_path / "none.pt2")
    write_package(package, record_of(exported, torchscript_sha256="1" * 64), {})
    with pytest.raises(ValueError, match="was made from a TorchScript file with sha256 1{64}, and .* has "):
        build(out, package=package)
    for content in (b"text", b""):
        package.write_bytes(content)
        with pytest.raises(ValueError, match="is not a whole package of compiled parts"):
            build(out, package=package)
    assert not out.exists()
