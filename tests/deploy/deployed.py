"""What the tests of deploy/ read: its YAML, the Dockerfile's instructions, and the settings they must agree with."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml


class Instruction(NamedTuple):
    """One instruction of a Dockerfile, lines joined, with the stage it belongs to ('' before the first)."""

    stage: str
    name: str
    arguments: str


def instructions(dockerfile: Path) -> list[Instruction]:
    """The Dockerfile's instructions in order, comments left out."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    found, stage = [], ""
    for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        if not line.strip():
            continue
        name, _, arguments = line.partition(" ")
        if name == "FROM":
            stage = arguments.rpartition(" AS ")[2]
        found.append(Instruction(stage, name, arguments.strip()))
    return found


def documents(path: Path) -> list[dict[str, Any]]:
    """Every document of a YAML file."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document is not None]


def manifests(root: Path) -> dict[str, dict[str, Any]]:
    """The resources of deploy/kubernetes/base by kind; a second one of a kind by kind/name."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((root / "deploy" / "kubernetes" / "base").glob("*.yaml")):
        for document in documents(path):
            kind = document["kind"]
            found[f"{kind}/{document['metadata']['name']}" if kind in found else kind] = document
    return found


def pods(root: Path) -> dict[str, dict[str, Any]]:
    """The pod specifications that are shipped, by the file they stand in."""
    service = documents(root / "deploy" / "kserve" / "inference_service.yaml")[0]
    deployment = manifests(root)["Deployment"]
    return {
        "kubernetes": deployment["spec"]["template"]["spec"],
        "kserve": service["spec"]["predictor"],
    }


def containers(pod: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A pod's containers by the image they run, or by image and name where it is run twice."""
    found: dict[str, dict[str, Any]] = {}
    for container in pod["containers"]:
        image = container["image"].partition(":")[0]
        found[f"{image}/{container['name']}" if image in found else image] = container
    return found


def proxy_defaults(root: Path) -> dict[str, list[str]]:
    """Each setting of the proxy's entrypoint.sh, with its default in each place that reads it."""
    text = (root / "deploy" / "nginx" / "entrypoint.sh").read_text()
    found: dict[str, list[str]] = {}
    for name, default in re.findall(r"^\s*(?:setting|substitute) (\w+) .* (\S+)$", text, re.MULTILINE):
        found.setdefault(name, []).append(default)
    for name, default in re.findall(r"\$\{MASKX_(\w+):-([^}]+)\}", text):
        found.setdefault(name, []).append(default)
    return found


def properties(root: Path) -> dict[str, str]:
    """The shipped config.properties."""
    lines = (root / "serve_config" / "config.properties").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def strings(content: Any) -> Iterator[str]:
    """Every string inside a YAML or JSON document, keys left out."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict):
        for value in content.values():
            yield from strings(value)
    elif isinstance(content, list):
        for value in content:
            yield from strings(value)
