"""The wheel, and environments that hold it and what it asks for, with nothing of the tree."""

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command in a folder outside the tree, which is on no path of its environment either."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MASKX_TOKEN")
    }
    return subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def build_wheel(root: Path, folder: Path) -> Path:
    """The wheel of the tree, built with the packages that are here."""
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    built = run(*pip, "--wheel-dir", folder, root, cwd=folder)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


class Environment:
    """A virtual environment with the wheel and what its metadata asks for, as links to the packages that are here.

    `extras` are those of the wheel that are installed too.
    """

    def __init__(self, folder: Path, wheel: Path, *extras: str) -> None:
        self.folder = folder
        made = run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
        assert made.returncode == 0, made.stderr
        pip = [sys.executable, "-m", "pip", "--python", self.python, "install", "--no-deps", "--no-index"]
        installed = run(*pip, wheel, cwd=folder)
        assert installed.returncode == 0, installed.stdout + installed.stderr
        (self.packages,) = folder.glob("lib/python*/site-packages")
        (own,) = importlib.metadata.distributions(name="maskx", path=[str(self.packages)])
        self._link(own.requires or (), extras, set())

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def maskx(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """The command that the wheel brings."""
        return run(self.folder / "bin" / "maskx", *arguments, cwd=self.folder)

    def imports(self, name: str) -> bool:
        """Whether a module can be imported there."""
        return run(self.python, "-I", "-c", f"import {name}", cwd=self.folder).returncode == 0

    def _link(self, asked: Iterable[str], extras: Iterable[str], done: set[str]) -> None:
        """Links the packages of each requirement, and of theirs; those for another machine are not here."""
        for requirement in map(Requirement, asked):
            marker = requirement.marker
            if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                continue
            if requirement.name in done:
                continue
            done.add(requirement.name)
            try:
                found = importlib.metadata.distribution(requirement.name)
            except importlib.metadata.PackageNotFoundError:
                continue
            for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
                if not (self.packages / top).exists():
                    (self.packages / top).symlink_to(str(found.locate_file(top)))
            self._link(found.requires or (), requirement.extras, done)
