"""The compiled package: what it must fit, what is said where it does not; then the TorchScript file answers."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import maskx_compiled
from maskx_compiled import CompiledParts, instructions_here, lacking_here, package_for, remove_left
from maskx_model import ServedModel
from tests.handler.compiled.parts import (
    CPU,
    Eager,
    put_package,
    why_not,
)
from tests.served.compiled_standin import (
    record_of,
    write_package,
)


def test_a_package_that_fits_is_taken_whatever_else_its_record_says(
    path: Path, loads: dict[str, Eager]
) -> None:
    package = put_package(path, parts=["trunk"], a_key_of_tomorrow=[1, 2])
    found = package_for(package, torchscript=path, device=CPU, precision="float32", wanted="compiled")
    assert isinstance(found, CompiledParts) and found.parts == ("trunk",)
    assert found.description()["precision"] == "float32"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format_version": 2}, "format_version 2, this handler reads 1; copy it again"),
        ({"torch": "2.11.0"}, "compiled for PyTorch 2.11.0, and here is 2."),
        ({"device": "cuda"}, "compiled for a device of type cuda, and here is cpu"),
        ({"architecture": "riscv64"}, "compiled for the architecture riscv64, and here is "),
        ({"capability": "AVX1024"}, "compiled for a processor with AVX1024, and this one has "),
        (
            {"instructions": ["amx_bf16_of_tomorrow", "made_up"]},
            "with amx_bf16_of_tomorrow, made_up, and this one lacks",
        ),
        ({"precision": "bfloat16"}, "it computes in bfloat16, and float32 is served here"),
        (
            {"torchscript_sha256": "0" * 64},
            "belongs to a maskx.pt with sha256 000000000000..., and this one has ",
        ),
        ({"parts": ["rpn"]}, "has the parts ['rpn']; some of box_head, mask_head, trunk are expected"),
        ({"parts": None}, "has the parts None"),
        ({"parts": []}, "has the parts []"),
    ],
)
def test_a_package_made_for_something_else_is_not_taken_and_the_reason_says_what(
    path: Path, loads: dict[str, Eager], changes: dict[str, Any], reason: str
) -> None:
    put_package(path, **changes)
    assert reason in why_not(path)
    assert not any(one.shapes for one in loads.values())


@pytest.mark.parametrize(
    "missing", ["format_version", "torch", "device", "architecture", "capability", "precision"]
)
def test_a_record_that_lacks_something_fits_nothing(
    path: Path, loads: dict[str, Eager], missing: str
) -> None:
    record = record_of(path)
    del record[missing]
    write_package(path.with_suffix(".pt2"), record, {})
    assert "None" in why_not(path)


@pytest.mark.parametrize(
    ("made", "here", "taken"),
    [
        ("AVX512", "AVX512", True),
        ("AVX2", "AVX512", True),
        ("AVX512", "AVX2", False),
        ("AVX2", "DEFAULT", False),
        ("SVE256", "SVE256", True),
        ("AVX2", "SVE256", False),
        ("SVE256", "AVX512", False),
    ],
)
def test_a_processor_that_knows_more_takes_what_was_compiled_for_less_and_not_the_other_way(
    path: Path, loads: dict[str, Eager], made: str, here: str, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: here)
    put_package(path, capability=made)
    found = package_for(path.parent, torchscript=path, device=CPU, precision="float32", wanted="auto")
    assert isinstance(found, CompiledParts) is taken
    assert taken or f"with {made}, and this one has {here}" in str(found)


def test_a_package_for_a_family_of_processors_needs_that_familys_instructions_alone(
    path: Path, loads: dict[str, Eager], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(maskx_compiled, "instructions_here", lambda: {"avx2", "fma"})
    put_package(path, capability="AVX512", march="x86-64-v3", instructions=["avx2", "fma"])
    assert isinstance(
        package_for(path.parent, torchscript=path, device=CPU, precision="float32", wanted="auto"),
        CompiledParts,
    )
    put_package(path, capability="AVX512", march="x86-64-v4", instructions=["avx2", "avx512f"])
    assert "with avx512f, and this one lacks it" in why_not(path)


def test_instructions_are_known_by_pytorchs_names_and_the_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        torch.cpu,
        "get_capabilities",
        lambda: {"avx2": True, "amx_bf16": False, "cpu_name": "x"},
        raising=False,
    )
    (tmp_path / "cpuinfo").write_text(
        "model name\t: x\nflags\t\t: fpu avx512f avx512_bf16\n\nflags : amx_bf16\n"
    )
    monkeypatch.setattr(maskx_compiled, "CPU_INFO", tmp_path / "cpuinfo")
    assert lacking_here(["avx512_f", "avx2", "avx512_bf16", "amx_bf16", "sse9"]) == ["amx_bf16", "sse9"]
    monkeypatch.setattr(maskx_compiled, "CPU_INFO", tmp_path / "nowhere")
    assert instructions_here() == {"avx2"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"not a zip", "cannot be read as a package: File is not a zip file; copy it again"),
        (b"", "cannot be read as a package"),
        (None, "has 0 records compiled.json"),
    ],
)
def test_a_damaged_package_is_not_taken(path: Path, content: bytes | None, reason: str) -> None:
    package = path.with_suffix(".pt2")
    if content is None:
        with zipfile.ZipFile(package, "w") as archive:
            archive.writestr("maskx/other.json", "{}")
    else:
        package.write_bytes(content)
    assert reason in why_not(path)


def test_a_package_cut_short_or_with_a_record_that_is_no_json_is_not_taken(path: Path) -> None:
    package = put_package(path)
    package.write_bytes(package.read_bytes()[:-30])
    assert "cannot be read as a package" in why_not(path)
    with zipfile.ZipFile(package, "w") as archive:
        archive.writestr("maskx/compiled.json", "{")
    assert "cannot be read as a package" in why_not(path)
    with zipfile.ZipFile(package, "w") as archive:
        archive.writestr("maskx/compiled.json", "[1]")
    assert "format_version None" in why_not(path)


def test_a_library_that_is_absent_or_no_library_is_not_taken(path: Path, tmp_path: Path) -> None:
    put_package(path, parts=["trunk"])
    assert "has no library of the part trunk" in why_not(path)
    (tmp_path / "a.so").write_bytes(b"\x7fELF of another world")
    write_package(
        path.with_suffix(".pt2"), record_of(path, parts=["trunk"]), {"trunk": [str(tmp_path / "a.so")]}
    )
    assert "maskx.pt2 cannot be loaded: " in why_not(path)


def test_torchscript_is_silent_and_so_is_auto_without_a_package_but_compiled_says_how_to_get_one(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert why_not(path) == ""
    assert why_not(path, wanted="compiled") == (
        "there is no maskx.pt2; make the archive with python -m export.archive --engine compiled"
    )
    put_package(path)
    assert why_not(path, wanted="torchscript") == ""
    assert ServedModel(path, CPU, engine="torchscript").engine == {
        "asked": "torchscript",
        "used": "torchscript",
    }
    assert caplog.records == []


def test_folders_of_killed_processes_are_removed_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maskx_compiled.tempfile, "gettempdir", lambda: str(tmp_path))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    names = [
        f"maskx-compiled-{ended.pid}-a",
        f"maskx-compiled-{os.getpid()}-b",
        "maskx-compiled-of-others",
        "c",
    ]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.so").touch()
    remove_left()
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(names[1:])


def test_the_record_that_is_read_is_the_one_that_was_written(path: Path) -> None:
    package = put_package(path, step=64)
    assert maskx_compiled.read_record(package) == json.loads(json.dumps(record_of(path, step=64)))
