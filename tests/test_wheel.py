"""The wheel: what is in it, what it asks for, and its command in environments outside the tree."""

import json
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from PIL import Image

from client.command import VERBS
from export.metadata import MASKX_VERSION
from tests.client.faulty import ANSWER, over_grpc, rest
from tests.test_requirements import pinned
from tests.wheel import Environment, build_wheel, run


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(root, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def plain(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Without extras."""
    return Environment(tmp_path_factory.mktemp("plain") / "env", wheel)


@pytest.fixture(scope="module")
def full(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("full") / "env", wheel, "grpc", "serve")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.new("RGB", (40, 30), (90, 90, 90)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_it_holds_client_server_configuration_and_handler_under_names_of_its_own(
    root: Path, wheel: Path
) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    handler = {path.name for path in (root / "handler").glob("*.py")}
    tops = {name.partition("/")[0] for name in names}
    assert tops == handler | {"maskx_client", "maskx_server", f"maskx-{MASKX_VERSION}.dist-info"}
    for folder, package in (("client", "maskx_client"), ("server", "maskx_server")):
        modules = {path.relative_to(root / folder).as_posix() for path in (root / folder).rglob("*.py")}
        assert {f"{package}/{module}" for module in modules} <= names
    shipped = {f"maskx_server/serve_config/{path.name}" for path in (root / "serve_config").iterdir()}
    assert shipped <= names and "maskx_client/generated/inference_pb2_grpc.py" in names
    assert "maskx_server/light/generated/messages.bin" in names


def test_building_leaves_nothing_in_the_tree(root: Path, wheel: Path) -> None:
    patterns = ("*.egg-info", "*/*.egg-info", "build/lib", "build/bdist*")
    assert not [path for pattern in patterns for path in root.glob(pattern)]


def test_what_it_asks_for_admits_what_is_pinned_in_a_clone(root: Path) -> None:
    project: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    base = project["project"]["dependencies"]
    for file, asked in (
        ("client", [*base, *extras["grpc"]]),
        ("serve", extras["serve"]),
        ("light", extras["light"]),
        ("traces", extras["traces"]),
    ):
        pins = pinned(root / "requirements" / f"{file}.txt")
        for requirement in map(Requirement, asked):
            assert requirement.specifier.contains(pins[requirement.name.lower().replace("_", "-")]), (
                requirement
            )
    for requirement in map(Requirement, project["build-system"]["requires"]):
        pins = pinned(root / "requirements" / "constraints.txt")
        assert requirement.specifier.contains(pins[requirement.name]), requirement


@pytest.mark.parametrize("name", ["model", "client", "server", "handler", "training", "export"])
def test_no_module_of_the_tree_can_be_imported_by_its_name_there(plain: Environment, name: str) -> None:
    assert plain.imports("maskx_client, maskx_image, maskx_draw")
    assert not plain.imports(name)


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_the_command_and_each_verb_say_what_they_take(full: Environment, verb: str) -> None:
    said = full.maskx(*verb.split(), "--help")
    assert said.returncode == 0 and said.stderr == "" and said.stdout.startswith("usage: ")
    if not verb:
        assert all(f"\n  {name}" in said.stdout for name in VERBS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "error: a verb is missing"),
        (["ask"], "error: there is no verb 'ask'"),
        (["serve"], 'maskx serve needs psutil, yaml, torch, torchvision; run pip install "maskx[serve]"'),
        (["ready"], 'maskx ready needs psutil, yaml; run pip install "maskx[serve]"'),
        (["predict", "PHOTO", "--grpc", "127.0.0.1:1"], 'run pip install "maskx[grpc]"'),
        (["predict", "PHOTO", "--url", "http://127.0.0.1:1", "--retries", "0"], "start one with maskx serve"),
    ],
)  # fmt: skip
def test_a_verb_that_cannot_be_done_says_why_in_its_last_line(
    plain: Environment, photo: Path, arguments: list[str], words: str
) -> None:
    said = plain.maskx(*[photo if word == "PHOTO" else word for word in arguments])
    assert said.returncode == 2 and words in said.stderr.splitlines()[-1]


def test_serving_begins_with_the_archive_and_finds_its_configuration(full: Environment) -> None:
    said = full.maskx("serve", "--archive", "none.mar")
    assert (said.returncode, said.stdout) == (2, "starting TorchServe with none.mar ...\n")
    assert "there is no none.mar" in said.stderr
    files = "from maskx_server.settings import CONFIG, LOGGING, METRICS; print(CONFIG, LOGGING, METRICS, sep='\\n')"
    shipped = run(full.python, "-I", "-c", files, cwd=full.folder).stdout.split()
    assert len(shipped) == 3 and all(Path(path).is_file() for path in shipped)


@pytest.mark.parametrize(
    ("verb", "status", "words"),
    [
        ("stop", 0, "no server was running"),
        ("ready", 1, "not ready: no server was started from none"),
        ("versions", 2, "no server was started from none"),
    ],
)
def test_without_a_server_its_verbs_say_so(full: Environment, verb: str, status: int, words: str) -> None:
    said = full.maskx(verb, "--state", "none")
    assert said.returncode == status and words in said.stdout + said.stderr


def test_a_program_that_only_asks_keeps_pillows_limit_on_pixels(plain: Environment) -> None:
    look = "import maskx_client, PIL.Image; print(PIL.Image.MAX_IMAGE_PIXELS is None)"
    assert run(plain.python, "-I", "-c", look, cwd=plain.folder).stdout == "False\n"


def test_a_photo_becomes_a_table_and_an_overlay(plain: Environment, photo: Path) -> None:
    out = photo.with_name("overlay.png")
    with rest() as faulty:
        said = plain.maskx("predict", photo, "--overlay", out, "--url", faulty.url)
        assert faulty.seen[0].entries["data"] == photo.read_bytes()
    assert said.returncode == 0 and said.stdout.startswith("category"), said.stderr
    with Image.open(out) as drawn:
        assert drawn.size == (640, 480)


def test_results_of_a_folder_are_converted(plain: Environment, photo: Path) -> None:
    results, out = photo.with_name("results.json"), photo.with_name("a.xml")
    with rest() as faulty:
        asked = plain.maskx("predict", photo.parent, "--coco", results, "--url", faulty.url)
    assert asked.returncode == 0, asked.stderr
    said = plain.maskx("convert", results, "--to", "cvat", "--out", out)
    assert said.returncode == 0, said.stderr
    assert 'label="red disc"' in out.read_text()


def test_over_grpc_the_answer_is_the_same(full: Environment, photo: Path) -> None:
    with over_grpc() as faulty:
        said = full.maskx("predict", photo, "--json", "--url", faulty.url)
    assert json.loads(said.stdout or "null") == ANSWER, said.stderr
