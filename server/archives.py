"""An archive (.mar) as it is before TorchServe has it: whole, by its sha256, and what it says of itself."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

MODEL = "maskx"
MANIFEST = "MAR-INF/MANIFEST.json"
VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""A version stands in addresses and in a file's name."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The model's version, and its model-config.yaml, parsed."""

    version: str
    settings: Mapping[str, Any]


def checked_copy(archive: Path, copy: Path) -> bool:
    """Copies the archive and compares the copy with the sha256 beside the archive; False where there is none.

    Raises:
        ValueError: there is no archive, or the two do not agree; then there is no copy either.
    """
    if not archive.is_file():
        raise ValueError(f"there is no {archive}; make it with make archive, or name one with --archive")
    shutil.copyfile(archive, copy)
    beside = archive.with_name(archive.name + ".sha256")
    if not beside.is_file():
        return False
    with open(copy, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    expected = (beside.read_text().split() or ["nothing"])[0]
    if digest != expected:
        copy.unlink()
        raise ValueError(
            f"{archive} has sha256 {digest}, but {beside.name} says {expected}: it was changed or not copied whole. "
            "Make it again (make archive), or copy both files again"
        )
    return True


def read_contents(archive: Path) -> Contents:
    """What is in an archive. Raises ValueError where it is none of ours, or damaged."""
    try:
        with zipfile.ZipFile(archive) as file:
            model = json.loads(file.read(MANIFEST))["model"]
            name, version = str(model["modelName"]), str(model["modelVersion"])
            configuration = model.get("configFile")
            settings = yaml.safe_load(file.read(configuration)) if configuration else {}
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, yaml.YAMLError) as error:
        raise ValueError(
            f"{archive} cannot be read as an archive of make archive: {type(error).__name__}: {error}. Make it again, "
            "or copy it again"
        ) from error
    if name != MODEL:
        raise ValueError(f"{archive} holds the model {name!r}, and only {MODEL} is served here")
    if VERSION.fullmatch(version) is None:
        raise ValueError(
            f"{archive} has version {version!r}; letters, digits, dots, hyphens and underscores are allowed, at most 64"
        )
    if not isinstance(settings, dict):
        raise ValueError(f"{archive} has a {configuration} that is no section of keys and values")
    return Contents(version=version, settings=settings)
