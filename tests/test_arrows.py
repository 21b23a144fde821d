"""The arrows between the folders: who may import whom, and that nothing imports in a circle."""

import ast
import re
from pathlib import Path

import pytest

FOLDERS = ("model", "training", "export", "handler", "server", "client", "offline", "benchmarks", "tests")
LEAVES: dict[str, set[str]] = {
    "handler.maskx_image": {"handler.maskx_tiff"},
    "handler.maskx_tiff": set(),
    "handler.maskx_draw": set(),
}
"""What modules may import of the project that training and client use, to see and draw what serving does."""
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "model": ("model",),
    "training": ("training", "model", *LEAVES),
    "export": ("export", "model"),
    "handler": ("handler",),
    "server": ("server",),
    "client": ("client", *LEAVES),
    "offline": ("offline", "handler"),
    "benchmarks": FOLDERS,
    "tests": FOLDERS,
}


def modules(root: Path) -> dict[str, Path]:
    """Every module of the project by its name from the root, packages by the name of their folder."""
    found = {}
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            if "generated" not in parts:
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(root: Path) -> dict[str, set[str]]:
    """For every module the project's modules that it imports, at its top or inside a function.

    A flat name (`maskx_image`) is the module of handler/ that it means there and in the archive.
    """
    known = modules(root)
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        package = name if path.stem == "__init__" else name.rpartition(".")[0]
        graph[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for wanted in _names(node, package):
                if "generated" in wanted.split("."):
                    continue  # left out by `modules` too, or it would count as its package
                full = wanted if wanted.partition(".")[0] in FOLDERS else f"handler.{wanted}"
                # `from model.config import ModelConfig`: the module is model.config
                while full and full not in known:
                    full = full.rpartition(".")[0]
                if full and full != name:
                    graph[name].add(full)
    return graph


def _names(node: ast.AST, package: str) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        return [f"{base}.{alias.name}" for alias in node.names]
    return []


def forbidden(graph: dict[str, set[str]]) -> list[str]:
    """Imports against the arrows, each as "a -> b"."""
    return [
        f"{name} -> {other}"
        for name, others in sorted(graph.items())
        for other in sorted(others)
        if not _allowed(name, other)
    ]


def _allowed(name: str, other: str) -> bool:
    folders = MAY_IMPORT[name.partition(".")[0]]
    if name in LEAVES:
        return other in LEAVES[name]
    return any(other == may or other.startswith(f"{may}.") for may in folders)


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, first one repeated at the end; empty where there is none."""
    done: set[str] = set()
    path: list[str] = []

    def visit(name: str) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        path.append(name)
        for other in sorted(graph[name]):
            if found := visit(other):
                return found
        path.pop()
        done.add(name)
        return []

    for name in sorted(graph):
        if found := visit(name):
            return found
    return []


@pytest.fixture(scope="module")
def graph(root: Path) -> dict[str, set[str]]:
    return imports(root)


def test_every_folder_is_seen(graph: dict[str, set[str]]) -> None:
    seen = {name.partition(".")[0] for name in graph}
    assert {"model", "training", "export", "handler", "client", "server", "offline", "tests"} <= seen
    assert "model.network" in graph["model.build"]  # else an empty graph would pass all that follows


def test_no_import_goes_against_the_arrows(graph: dict[str, set[str]]) -> None:
    assert forbidden(graph) == []


def test_no_modules_import_each_other_in_a_circle(graph: dict[str, set[str]]) -> None:
    assert circle(graph) == []


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_leaf_imports_nothing_else_of_the_project(graph: dict[str, set[str]], leaf: str) -> None:
    assert graph[leaf] == LEAVES[leaf]


def test_the_handler_imports_its_modules_flat_as_they_lie_in_the_archive(root: Path) -> None:
    for path in sorted((root / "handler").glob("*.py")):
        assert path.stem.startswith("maskx_"), f"{path.name}: modules of the archive have the prefix maskx_"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for name in _names(node, "handler"):
                assert name.partition(".")[0] not in FOLDERS, (
                    f"{path.name}:{getattr(node, 'lineno', '')} imports {name}"
                )


@pytest.mark.parametrize(
    ("path", "line", "arrow"),
    [
        ("model/a.py", "from training.data.coco import CocoDataset", "model.a -> training.data.coco"),
        ("model/a.py", "from maskx_image import decode", "model.a -> handler.maskx_image"),
        ("training/a.py", "import client.retry", "training.a -> client.retry"),
        ("export/a.py", "def f():\n    from training.data import coco", "export.a -> training.data.coco"),
        ("client/a.py", "from model.network import MaskXRCNN", "client.a -> model.network"),
        ("handler/maskx_draw.py", "import maskx_a", "handler.maskx_draw -> handler.maskx_a"),
        ("client/a.py", "from maskx_a import x", "client.a -> handler.maskx_a"),
        ("handler/maskx_a.py", "import model.network", "handler.maskx_a -> model.network"),
        ("handler/maskx_image.py", "from maskx_a import x", "handler.maskx_image -> handler.maskx_a"),
        ("offline/a.py", "from training.data.coco import CocoDataset", "offline.a -> training.data.coco"),
        ("handler/maskx_a.py", "from offline.plan import Plan", "handler.maskx_a -> offline.plan"),
    ],
)
def test_an_import_against_the_arrows_is_found(tmp_path: Path, path: str, line: str, arrow: str) -> None:
    for other in (
        "training/data/coco", "client/retry", "model/network", "handler/maskx_a", "handler/maskx_image", "offline/plan"
    ):  # fmt: skip
        (tmp_path / other).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{other}.py").touch()
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text(line)
    assert forbidden(imports(tmp_path)) == [arrow]


def test_the_handlers_modules_have_one_name_everywhere(root: Path) -> None:
    for name, path in modules(root).items():
        if name != "tests.test_arrows":
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"(from|import) handler\b|\bhandler\.maskx_", text), name


def test_a_circle_of_three_modules_is_found(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for name, other in (("a", "b"), ("b", "c"), ("c", "a")):
        (tmp_path / "model" / f"{name}.py").write_text(f"from model.{other} import x\n")
    assert circle(imports(tmp_path)) == ["model.a", "model.b", "model.c", "model.a"]
