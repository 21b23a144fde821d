"""README.md and the pages of docs/ are true: commands exist and take what they are given, files, configuration keys,
functions and links are there, the example decodes.
"""

import ast
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pycocotools import mask as coco_mask

from client.command import VERBS
from tests.test_arrows import FOLDERS, modules
from training.config import load_config

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ".venv/bin/python"
INCLUDED = re.compile(r'^--8<-- "(.+)"$', re.M)
"""A page that is a file of another folder, in the site."""
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}
TEXT = "\n".join(PAGES.values())


def blocks(language: str, text: str = TEXT) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.M | re.S)


def commands(text: str = TEXT) -> list[str]:
    """Every command of the bash blocks, once."""
    lines = "\n".join(blocks("bash", text)).splitlines()
    return list(dict.fromkeys(line.strip() for line in lines if line.strip()))


def started_with(word: str) -> list[str]:
    return [command for command in commands() if shlex.split(command)[0] == word]


def run(*words: str, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    """A process as a user starts it; a make above this test passes nothing on."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        words, cwd=cwd, env=environment | variables, text=True, capture_output=True, timeout=280
    )


HELP = """
import contextlib, io, json, runpy, sys, traceback
shown = {}
for module in sys.argv[1:]:
    sys.argv = [module, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as text:
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            status = "did not end"
        except SystemExit as end:
            status = end.code
        except Exception:
            status = traceback.format_exc()
    shown[module] = [status, text.getvalue()]
print(json.dumps(shown))
"""


def module_and_options(command: str) -> tuple[str, list[str]]:
    """What a command of python starts, and the words after it."""
    words = shlex.split(command)[1:]
    assert words[0] == "-m"
    if words[1] == "torch.distributed.run":  # starts what comes after its own options
        words = words[words.index("-m", 1) :]
    return words[1], words[2:]


@cache
def helps() -> dict[str, tuple[object, str]]:
    """Of each module that the pages start: status and text of its --help, by one process that loads torch once."""
    started = {module_and_options(command)[0] for command in started_with(PYTHON)}
    # Without the seed the export would start anew.
    done = run(sys.executable, "-c", HELP, *sorted(started), PYTHONHASHSEED="0")
    assert done.returncode == 0, done.stderr
    found: dict[str, tuple[object, str]] = json.loads(done.stdout)
    return found


def makefile_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), flags=re.M))


def overrides_of(words: list[str]) -> list[str]:
    return [word for word in words if re.match(r"[a-z_.]+=", word)]


def test_the_two_commands_come_first() -> None:
    assert commands(PAGES["README.md"])[:2] == ["make demo", "make test"]


def test_every_command_is_of_a_kind_that_a_test_here_checks() -> None:
    kinds = {"make", PYTHON, "curl"}
    assert [command for command in commands() if shlex.split(command)[0] not in kinds] == []
    assert {shlex.split(command)[0] for command in commands()} == kinds


@pytest.mark.parametrize("command", started_with("make"))
def test_make_knows_the_target_and_its_variables(command: str) -> None:
    words = shlex.split(command)[1:]
    variables = dict(word.split("=", 1) for word in words if "=" in word)
    makefile = (ROOT / "Makefile").read_text()
    assert {word for word in words if "=" not in word} <= makefile_targets()
    assert {name for name in variables if not re.search(rf"^{name} +\?=", makefile, flags=re.M)} == set()
    done = run("make", "--dry-run", *words)
    assert done.returncode == 0, done.stderr
    if "train" in words:
        config = ROOT / variables.get("CONFIG", "training/presets/shapes.toml")
        load_config(config, shlex.split(variables.get("ARGS", "")))


def test_make_alone_lists_every_target_of_the_makefile_once() -> None:
    listed = re.findall(r"^  make ([a-z-]+) ", run("make").stdout, flags=re.M)
    assert sorted(listed) == sorted(makefile_targets())
    phony = re.search(r"^\.PHONY:(.*)$", (ROOT / "Makefile").read_text(), flags=re.M)
    assert phony
    assert set(listed) == set(phony[1].split()) - {"FORCE"}


@pytest.mark.parametrize("command", started_with(PYTHON))
def test_a_module_of_the_pages_takes_the_options_that_are_shown(command: str) -> None:
    module, options = module_and_options(command)
    status, text = helps()[module]
    assert status == 0, f"python -m {module} --help: {status}"
    for flag in (word for word in options if word.startswith("--")):
        assert re.search(rf"{flag}\b", text), f"{module} has no {flag}"
    if module == "training.train":
        load_config(ROOT / options[options.index("--config") + 1], overrides_of(options))


def test_drawing_and_reading_the_default_data_set_works_as_it_is_written(tmp_path: Path) -> None:
    """The cheap half of `make data`, run for real; the rest of the steps are the served tests' and the demo's."""
    done = run("make", "--dry-run", "--always-make", "data", "DATA_ARGS=--train 6 --val 3")
    drawing = [line for line in done.stdout.splitlines() if " -m training.drawn" in line]
    assert len(drawing) == 1, done.stdout + done.stderr
    words = shlex.split(drawing[0].replace("build/shapes", str(tmp_path / "shapes")))
    drawn = run(sys.executable, *words[1:])
    assert drawn.returncode == 0, drawn.stderr
    assert len(json.loads((tmp_path / "shapes" / "train.json").read_text())["images"]) == 6
    assert (tmp_path / "shapes" / "val" / "000000.png").is_file()  # the image that README.md predicts


@pytest.mark.parametrize("command", started_with("curl"))
def test_curl_asks_the_address_that_the_server_is_configured_to_listen_on(command: str) -> None:
    addresses = [word for word in shlex.split(command) if word.startswith("http")]
    configured = re.search(
        r"^inference_address=(.+)$", (ROOT / "serve_config" / "config.properties").read_text(), flags=re.M
    )
    assert configured
    assert addresses == [f"{configured[1].strip()}/predictions/maskx"]


@pytest.mark.parametrize("module", sorted(set(re.findall(r"python -m ([a-z_.]+\w)", TEXT))))
def test_a_module_that_a_sentence_starts_exists(module: str) -> None:
    # setuptools, asked for pip, gives up distutils for good, and torch's compiler cannot be imported then
    assert module in ("pip", "torch.distributed.run") or importlib.util.find_spec(module)


def test_what_the_examples_in_python_import_exists() -> None:
    found = [node for block in blocks("python") for node in ast.walk(ast.parse(block))]
    imported = [node for node in found if isinstance(node, ast.ImportFrom)]
    assert imported
    for node in imported:
        module = importlib.import_module(node.module or "")
        assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_exists(page: str) -> None:
    folders = "|".join((*FOLDERS, "serve_config", "deploy", "docs", "requirements"))
    named = set(re.findall(rf"\b((?:{folders})/[\w./-]*)", PAGES[page]))
    assert {path for path in named if not (ROOT / path).exists()} == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", PAGES[page]):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.is_file(), f"{page}: {target}"
        assert not anchor or anchor in anchors(path), f"{page}: {target}#{anchor}"
        if page.startswith("docs/"):  # the site holds no other folder
            assert path.resolve().is_relative_to(ROOT / "docs"), f"{page}: {target}"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the site and the usual forges make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", one.lower())).strip("-") for one in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_configuration_key_that_a_page_names_exists(page: str) -> None:
    """A key is known where the configuration has it as an attribute."""
    sections = "model|data|schedule|optimiser|augment|output|box_losses|teacher"
    for key in re.findall(rf"[`'\" ]((?:{sections})\.[a-z_.]+[a-z])[=`]", PAGES[page]):
        value: object = load_config(ROOT / "training/presets/shapes.toml")
        for part in key.split("."):
            value = getattr(value, part)  # AttributeError: no such key


def test_every_function_that_a_page_names_is_defined() -> None:
    functions: set[str] = set()
    methods: dict[str, set[str]] = {}
    bases: dict[str, list[str]] = {}
    for path in modules(ROOT).values():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef):
                functions.add(node.name)
            elif isinstance(node, ast.ClassDef):
                methods[node.name] = {one.name for one in node.body if isinstance(one, ast.FunctionDef)}
                bases[node.name] = [base.id for base in node.bases if isinstance(base, ast.Name)]

    def has(owner: str, method: str) -> bool:
        return method in methods.get(owner, ()) or any(has(base, method) for base in bases.get(owner, ()))

    named = re.findall(r"`(?:(\w+)\.)?(\w+)\(\)`", TEXT)
    assert len(named) > 30
    assert [one for one in named if not (has(*one) if one[0] else one[1] in functions)] == []


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if blocks("json", text)])
def test_the_example_answer_is_a_coco_result_whose_mask_has_the_area_and_box_it_says(page: str) -> None:
    (answer,) = (json.loads(block) for block in blocks("json", PAGES[page]))
    assert set(answer) == {"model", "image", "detections"}
    for detection in answer["detections"]:
        dense = coco_mask.decode(detection["segmentation"])
        assert list(dense.shape) == [answer["image"]["height"], answer["image"]["width"]]
        assert int(dense.sum()) == detection["area"]
        rows, columns = np.nonzero(dense)
        x, y, width, height = detection["bbox"]
        assert x - 1 <= columns.min() <= columns.max() <= x + width + 1
        assert y - 1 <= rows.min() <= rows.max() <= y + height + 1


def test_the_readme_is_short_and_the_pictures_are_few_small_and_shown() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 200
    pictures = list((ROOT / "docs" / "pictures").iterdir())
    assert 0 < len(pictures) <= 5
    assert sum(path.stat().st_size for path in pictures) <= 300 * 1024
    assert [path.name for path in pictures if not re.search(rf"!\[.+\]\(.*{path.name}\)", TEXT)] == []


def named_in(nav: Any) -> list[str]:
    """The pages of a site's navigation, at any depth."""
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in named_in(part)]


def test_the_site_has_every_page_once_and_fetches_nothing() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert sorted(f"docs/{page}" for page in named_in(site["nav"])) == sorted(set(PAGES) - {"README.md"})
    assert site["strict"] is True
    assert site["theme"]["font"] is False
    assert "offline" in site["plugins"]
    own = [*site["extra"]["polyfills"], *site["extra_css"], *INCLUDED.findall(TEXT)]
    assert [path for path in own if not ((ROOT / path).is_file() or (ROOT / "docs" / path).is_file())] == []


def test_the_licence_is_the_whole_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_every_verb_of_the_installed_command_exists() -> None:
    words = [line.split()[:2] for block in blocks("console") for line in block.splitlines()]
    verbs = [verb for command, verb in words if command == "maskx"]
    assert set(verbs) == set(VERBS) and {command for command, _ in words} == {"maskx", "pip"}
