"""The requirement files: every version is held, nothing names a registry, and each folder finds what it imports."""

import ast
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.test_arrows import FOLDERS

DISTRIBUTIONS = {
    "PIL": "pillow",
    "yaml": "pyyaml",
    "grpc": "grpcio",
    "google": "protobuf",
    "opentelemetry": "opentelemetry-sdk",
}
"""Distribution of an imported name, where the two differ."""
GIVEN = {"ts", "model_archiver"}
"""Imported by the names of their packages' inside: torchserve, torch-model-archiver."""


def pinned(path: Path) -> dict[str, str]:
    """Version of every package that a requirement file asks for itself, by normalised name."""
    found = {}
    for line in path.read_text().splitlines():
        if line and not line.startswith(("#", "-")):
            requirement = Requirement(line)
            assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), f"{path.name}: {line} is not pinned"
            found[requirement.name.lower().replace("_", "-")] = str(requirement.specifier)[2:]
    return found


def third_party(root: Path, folder: str) -> set[str]:
    """Distributions that a folder's modules import."""
    names: set[str] = set()
    for path in (root / folder).rglob("*.py"):
        if "generated" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    flat = {path.stem for path in (root / "handler").glob("*.py")}
    names -= set(sys.stdlib_module_names) | set(FOLDERS) | flat | GIVEN
    return {DISTRIBUTIONS.get(name, name).lower().replace("_", "-") for name in names}


@pytest.mark.parametrize(
    "name", ["serve", "train", "client", "light", "offline", "timm", "dev", "docs", "constraints"]
)
def test_every_requirement_is_pinned_and_names_no_registry(root: Path, name: str) -> None:
    path = root / "requirements" / f"{name}.txt"
    assert len(pinned(path)) > 3
    assert not re.search(r"://|index|find.links| @ ", path.read_text())


def test_a_package_has_one_version_in_all_files(root: Path) -> None:
    versions: dict[str, set[str]] = {}
    for path in (root / "requirements").glob("*.txt"):
        for name, version in pinned(path).items():
            versions.setdefault(name, set()).add(version)
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}


@pytest.mark.parametrize(
    ("folder", "files"),
    [
        ("handler", ["serve", "heif"]),
        ("server", ["serve", "light", "traces"]),
        ("client", ["client"]),
        ("offline", ["serve", "offline"]),
        ("model", ["train"]),
        ("training", ["train"]),
        ("export", ["train"]),
        ("tests", ["serve", "train", "client", "light", "traces", "dev"]),
    ],
)
def test_a_folder_imports_only_what_its_requirement_file_installs(
    root: Path, folder: str, files: list[str]
) -> None:
    asked = {name for file in files for name in pinned(root / "requirements" / f"{file}.txt")}
    if folder == "tests":
        asked.add("packaging")  # of pytest's own
    assert third_party(root, folder) - asked == set()


def test_imports_are_seen_under_the_names_that_they_are_installed_by(root: Path) -> None:
    """Else the test above would compare nothing."""
    assert third_party(root, "model") >= {"torch", "torchvision"}
    assert third_party(root, "handler") == {"torch", "torchvision", "numpy", "pillow", "pillow-heif"}
