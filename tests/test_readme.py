"""The README is true: its commands exist and take what they are given, its files are there, its example decodes."""

import json
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from training.config import load_config

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = ".venv/bin/python"


def blocks(language: str) -> list[str]:
    """The README's fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.M | re.S)


def commands() -> list[str]:
    """Every command of the bash blocks, comments and continued lines resolved."""
    text = "\n".join(blocks("bash")).replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


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
    """Of each module that the README starts: status and text of its --help, by one process that loads torch once."""
    modules = {module_and_options(command)[0] for command in started_with(PYTHON)}
    done = run(
        sys.executable, "-c", HELP, *sorted(modules), PYTHONHASHSEED="0"
    )  # else the export starts anew
    assert done.returncode == 0, done.stderr
    found: dict[str, tuple[object, str]] = json.loads(done.stdout)
    return found


def makefile_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), flags=re.M))


def overrides_of(words: list[str]) -> list[str]:
    return [word for word in words if re.match(r"[a-z_.]+=", word)]


def test_the_two_commands_come_first() -> None:
    assert started_with("make")[:2] == ["make demo", "make test"]


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
def test_a_module_of_the_readme_takes_the_options_that_are_shown(command: str) -> None:
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
    drawing = [line for line in done.stdout.splitlines() if " -m training.drawn shapes " in line]
    assert len(drawing) == 1, done.stdout + done.stderr
    words = shlex.split(drawing[0].replace("build/shapes", str(tmp_path / "shapes")))
    drawn = run(sys.executable, *words[1:])
    assert drawn.returncode == 0, drawn.stderr
    assert len(json.loads((tmp_path / "shapes" / "train.json").read_text())["images"]) == 6
    assert (tmp_path / "shapes" / "val" / "000000.png").is_file()  # the image that the README predicts


@pytest.mark.parametrize("command", started_with("curl"))
def test_curl_asks_the_address_that_the_server_is_configured_to_listen_on(command: str) -> None:
    addresses = [word for word in shlex.split(command) if word.startswith("http")]
    configured = re.search(
        r"^inference_address=(.+)$", (ROOT / "serve_config" / "config.properties").read_text(), flags=re.M
    )
    assert configured
    assert addresses == [f"{configured[1].strip()}/predictions/maskx"]


def test_every_file_that_the_readme_names_exists() -> None:
    folders = (
        "model|training|export|handler|serve_config|client|benchmarks|deploy|examples|tests|requirements"
    )
    named = set(re.findall(rf"\b((?:{folders})/[\w./-]*)", README)) | set(
        re.findall(r"\]\(([\w./-]+)\)", README)
    )
    assert len(named) > 10
    assert {path for path in named if not (ROOT / path).exists()} == set()


def test_every_configuration_key_that_the_readme_names_exists() -> None:
    """A key is known where setting it to what it is changes nothing; `load_config` refuses the others."""
    keys = set(re.findall(r"`((?:model|data|schedule|optimiser|augment|output)\.[a-z_.]+[a-z])`", README))
    assert len(keys) > 8
    config = load_config(ROOT / "training/presets/shapes.toml")
    for key in keys:
        value: object = config
        for part in key.split("."):
            value = getattr(value, part)  # AttributeError: no such key


def test_the_example_answer_is_a_coco_result_whose_mask_has_the_area_and_box_it_says() -> None:
    (answer,) = (json.loads(block) for block in blocks("json"))
    assert set(answer) == {"model", "image", "detections"}
    for detection in answer["detections"]:
        dense = coco_mask.decode(detection["segmentation"])
        assert list(dense.shape) == [answer["image"]["height"], answer["image"]["width"]]
        assert int(dense.sum()) == detection["area"]
        rows, columns = np.nonzero(dense)
        x, y, width, height = detection["bbox"]
        assert x - 1 <= columns.min() <= columns.max() <= x + width + 1
        assert y - 1 <= rows.min() <= rows.max() <= y + height + 1


def test_the_licence_is_the_whole_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
