"""The compiled engine in real servers: true libraries answer, and what does not fit is a warning and no error."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.archive import ROOT, build_archive
from maskx_compiled import CompiledParts, load_libraries, package_for
from maskx_model import ServedModel
from maskx_parameters import Parameters
from server.life import ready
from server.processes import ENGINES
from tests.served.compiled_standin import record_of, write_package
from tests.served.machine import Machine, serving
from tests.served.nginx import wait_until
from tests.served.standin import png, scene

CPU = torch.device("cpu")
ALL = Parameters(score_threshold=0.5, max_detections=10)
IMAGES = [scene(red=(1, 1, 5, 5)), scene(width=200, height=99, blue=(20, 10, 6, 6)), scene()]
SHIPPED = ROOT / "serve_config" / "model-config.yaml"


def engine_of(machine: Machine) -> dict[str, Any]:
    """What the describe call says of it."""
    path = "/models/maskx?customized=true"
    (answer,) = json.loads(machine.ask(path=path, method="GET", port=machine.ports.management).body)
    told = answer["customizedMetadata"]
    engine: dict[str, Any] = (json.loads(told) if isinstance(told, str) else told)["engine"]
    return engine


def model_log(machine: Machine) -> str:
    return (machine.state / "logs" / "model_log.log").read_text()


def answered(machine: Machine) -> list[Any]:
    return [json.loads(machine.ask(png(image)).body)["detections"] for image in IMAGES]


def test_libraries_answer_as_the_torchscript_file_and_leave_no_file(
    staged: Path, staged_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = ServedModel(staged, CPU, engine="compiled")
    assert model.engine["used"] == "compiled", model.engine
    found, expected = (one.predict(IMAGES, [ALL] * 3) for one in (model, ServedModel(staged, CPU)))
    for one, other in zip(found, expected, strict=True):
        for name in ("boxes", "scores", "labels", "rle_counts", "rle_offsets"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name)
    assert list(tmp_path.iterdir()) == []


def test_where_a_library_cannot_be_loaded_from_memory_it_is_unpacked_and_answers_the_same(
    staged: Path, staged_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    canvas = torch.randint(0, 256, (1, 3, 64, 96)).float().contiguous(memory_format=torch.channels_last)
    expected = load_libraries(staged_package, ["trunk"], CPU)["trunk"].run([canvas])
    monkeypatch.delattr(os, "memfd_create", raising=False)
    found = load_libraries(staged_package, ["trunk"], CPU)["trunk"].run([canvas])
    assert [torch.equal(one, other) for one, other in zip(found, expected, strict=True)] == [True] * 3
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith(f"maskx-compiled-{os.getpid()}-")


def test_a_library_with_a_byte_too_few_is_not_used(
    staged: Path, staged_package: Path, tmp_path: Path
) -> None:
    path = tmp_path / "maskx.pt2"
    path.write_bytes(staged_package.read_bytes()[:-5000])
    found = package_for(path, torchscript=staged, device=CPU, precision="float32", wanted="auto")
    assert isinstance(found, str) and "cannot be read as a package" in found
    whole = package_for(staged_package, torchscript=staged, device=CPU, precision="float32", wanted="auto")
    assert isinstance(whole, CompiledParts)


@pytest.mark.engines(*ENGINES)
def test_a_server_takes_the_package_and_so_does_the_worker_that_follows_a_killed_one(
    staged: Path, staged_package: Path, tmp_path: Path, engine: str
) -> None:
    archive = tmp_path / "a" / "maskx.mar"
    build_archive(staged, archive, package=staged_package, configuration=SHIPPED)
    with serving(tmp_path / "machine", archive, "--engine", engine) as machine:
        assert engine_of(machine)["used"] == "compiled"
        assert engine_of(machine)["package"]["parts"] == ["box_head", "mask_head", "trunk"]
        assert "is ready on cpu in float32 by compiled" in model_log(machine)
        first = answered(machine)
        assert [len(one) for one in first] == [1, 1, 0]
        killed = machine.worker()
        killed.kill()
        wait_until(lambda: killed not in machine.workers() and not ready(state=machine.state))
        assert answered(machine) == first and engine_of(machine)["used"] == "compiled"


@pytest.mark.engines(*ENGINES)
def test_a_package_compiled_elsewhere_is_a_warning_and_the_torchscript_file_answers(
    staged: Path, staged_package: Path, tmp_path: Path, engine: str
) -> None:
    elsewhere = write_package(
        tmp_path / "elsewhere.pt2", record_of(staged, instructions=["amx_of_tomorrow"]), {}
    )
    archive = tmp_path / "a" / "maskx.mar"
    build_archive(staged, archive, package=elsewhere, configuration=SHIPPED)
    with serving(tmp_path / "machine", archive, "--engine", engine) as machine:
        told = engine_of(machine)
        reason = "it was compiled for a processor with amx_of_tomorrow, and this one lacks it"
        assert (told["asked"], told["used"]) == ("auto", "torchscript") and reason in told["reason"]
        assert model_log(machine).count(reason) == 1
        assert [len(one) for one in answered(machine)] == [1, 1, 0]
