"""`--compile`: the package of compiled parts for this very machine, made at the first start and kept for the next.

It is made by `export.compiled` of a clone of maskx, in a process of its own, out of the archive's maskx.pt and the
checkpoint that it was exported from. What cannot be made is no reason not to serve: the TorchScript file is there.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .settings import HERE, MANIFEST, read_contents

ROOT = HERE.parent
EXPORTER = "export.compiled"
KEPT_IN = Path("build/compiled")
KEPT = 4
"""Packages that stay; the ones that were used longest ago go. Each is about as large as its maskx.pt."""
NEWEST = Path("build/run.txt")
"""Names the folder of the training that `make` used last."""
PACKAGE = "maskx.pt2"
CPU_INFO = Path("/proc/cpuinfo")

Say = Callable[[str], object]


def package_for(
    archive: Path, *, checkpoint: Path | None = None, folder: Path = KEPT_IN, say: Say = print
) -> Path | None:
    """The package for an archive on this machine, kept or made; None, said why, where there is none.

    Args:
        archive: the .mar.
        checkpoint: that its maskx.pt was exported from; None for that of the last run.
        folder: where packages are kept.
        say: is told what is done.

    Raises:
        ValueError: there is no archive, it cannot be read, or it asks for TorchScript alone.
    """
    section = read_contents(archive).settings.get("maskx") or {}
    if section.get("engine") == "torchscript":
        raise ValueError(
            f"--compile was asked for, but the model-config.yaml in {archive} says maskx.engine: torchscript; take "
            "that out and make the archive again, or leave --compile out"
        )
    precision = str(section.get("precision", "auto"))
    with torchscript_of(archive) as torchscript:
        made_from = [_digest(torchscript), precision, *versions(), *processor()]
        package = folder / f"{hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:32]}.pt2"
        if package.is_file():
            os.utime(package)
            say(f"compiled for this machine already: {package}")
            return package
        reason = _make(torchscript, package, precision=precision, checkpoint=checkpoint, say=say)
    if reason:
        say(f"warning: not compiled, TorchScript serves: {reason}")
        return None
    remove_oldest(folder)
    return package


def with_package(archive: Path, package: Path) -> None:
    """Puts the package into a copy of an archive, where the handler looks for it, in the place of one that is there."""
    with zipfile.ZipFile(archive) as file:
        names = file.namelist()
    if PACKAGE in names:
        rest = archive.with_name(f"{archive.name}.rest")
        with zipfile.ZipFile(archive) as file, zipfile.ZipFile(rest, "w") as kept:
            for name in names:
                if name != PACKAGE:
                    kept.writestr(name, file.read(name))
        rest.replace(archive)
    with zipfile.ZipFile(archive, "a") as file:
        file.write(package, PACKAGE, zipfile.ZIP_STORED)


@contextmanager
def torchscript_of(archive: Path) -> Iterator[Path]:
    """The archive's maskx.pt, unpacked for a while."""
    with zipfile.ZipFile(archive) as file, tempfile.TemporaryDirectory(prefix="maskx-compile-") as folder:
        name = json.loads(file.read(MANIFEST))["model"]["serializedFile"]
        file.extract(name, folder)
        yield Path(folder) / name


def versions() -> list[str]:
    """Of PyTorch, and of the source that makes a package."""
    source = hashlib.sha256()
    for part in ("export", "model"):
        for path in sorted((ROOT / part).rglob("*.py")):
            source.update(path.read_bytes())
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch = "none"
    return [torch, source.hexdigest()]


def processor() -> list[str]:
    """What tells this machine's processor from one that knows other instructions."""
    about = [platform.machine(), platform.processor()]
    told = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "TORCHINDUCTOR_CPP_MARCH")
    about += [f"{name}={os.environ[name]}" for name in told if name in os.environ]
    try:
        lines = CPU_INFO.read_text().splitlines()
    except OSError:
        return about
    for kind in ("model name", "flags", "Features"):
        about += [line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == kind][
            :1
        ]
    return about


def _make(torchscript: Path, package: Path, *, precision: str, checkpoint: Path | None, say: Say) -> str:
    """Makes the package; returns why it could not be made, "" where it was."""
    if not (ROOT / "export" / "compiled.py").is_file():
        return (
            "--compile needs a clone of maskx, whose export/ makes the package; make the archive there with python -m "
            "export.archive --engine compiled"
        )
    checkpoint = checkpoint or newest_checkpoint()
    if checkpoint is None or not checkpoint.is_file():
        missing = f"checkpoint {checkpoint}" if checkpoint else f"{NEWEST.parent}/train/checkpoint.pt"
        return f"there is no {missing}; name what the archive was exported from: --checkpoint FILE"
    say(f"compiling {checkpoint} for this machine, once; that takes some minutes ...")
    command = [sys.executable, "-m", EXPORTER, "--torchscript", str(torchscript), "--precision", precision]
    command += ["--checkpoint", str(checkpoint.resolve()), "--out", str(package.resolve())]
    begin = time.monotonic()
    package.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not package.is_file():
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error:")] or lines[-1:] or ["no reason given"]
        return errors[0].removeprefix("error: ")
    say(f"compiled in {time.monotonic() - begin:.0f} s: {package}")
    return ""


def newest_checkpoint() -> Path | None:
    """The checkpoint of the run that `make` used last; None where there is none."""
    try:
        run = NEWEST.read_text().strip()
    except OSError:
        run = "build/train"
    checkpoint = Path(run) / "checkpoint.pt"
    return checkpoint if checkpoint.is_file() else None


def remove_oldest(folder: Path) -> None:
    """Leaves the packages that were used last."""
    packages = sorted(folder.glob("*.pt2"), key=lambda path: path.stat().st_mtime, reverse=True)
    for package in packages[KEPT:]:
        package.unlink(missing_ok=True)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
