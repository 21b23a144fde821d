"""The compiled package: what it must fit, what is said where it does not, and that the TorchScript file then answers.

Libraries are stood in for by the stand-in's modules; tests/served/test_compiled_engine.py has true ones.
"""

import json
import logging
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import maskx_compiled
import maskx_stages
from export.metadata import build_metadata
from export.torchscript import export_network
from maskx_answer import Detections
from maskx_compiled import CompiledParts, instructions_here, lacking_here, package_for, remove_left
from maskx_engine import prepared
from maskx_forward import predict_each
from maskx_image import DecodedImage
from maskx_model import ServedModel
from maskx_parameters import Parameters
from maskx_stages import StagedNetwork
from model.serving import REDUCIBLE
from tests.export.tiny import CLASSES, CONFIG, tiny_network
from tests.served.compiled_standin import (
    BoxHead,
    MaskHead,
    Trunk,
    record_of,
    write_package,
    write_staged_standin,
)
from tests.served.standin import (
    ALWAYS_OUT_OF_MEMORY,
    NETWORK_FAULT,
    OUT_OF_MEMORY_ABOVE_TWO,
    plain,
    scene,
    write_standin,
)

CPU = torch.device("cpu")
PARTS = ("box_head", "mask_head", "trunk")
ALL = Parameters(score_threshold=0.5, max_detections=10)
NO_MASKS = Parameters(score_threshold=0.5, max_detections=10, mask_format="none")
IMAGES = [
    scene(red=(1, 1, 5, 5), green=(10, 10, 5, 5)),
    scene(width=50, blue=(20, 10, 6, 6)),
    scene(),
    scene(width=130, height=33, red=(3, 3, 9, 9)),
]


class Eager:
    """A module in a library's place; `factor` makes its answers wrong."""

    def __init__(self, module: nn.Module, factor: float = 1.0) -> None:
        self.module, self.factor = module, factor
        self.shapes: list[tuple[int, ...]] = []

    def run(self, inputs: list[Tensor]) -> list[Tensor]:
        self.shapes.append(tuple(inputs[0].shape))
        answers = self.module(*inputs)
        if isinstance(answers, Tensor):
            answers = ([answers],)
        return [one * self.factor for some in answers for one in some]


def eager(parts: Sequence[str] = PARTS, **factors: float) -> dict[str, Eager]:
    modules = {"trunk": Trunk(), "box_head": BoxHead(), "mask_head": MaskHead()}
    return {part: Eager(modules[part], factors.get(part, 1.0)) for part in parts}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A maskx.pt in stages."""
    return write_staged_standin(tmp_path / "maskx.pt")


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> dict[str, Eager]:
    """What is loaded in the place of a package's libraries."""
    made = eager()
    monkeypatch.setattr(
        maskx_compiled, "load_libraries", lambda path, parts, device: {part: made[part] for part in parts}
    )
    return made


def put_package(path: Path, **changes: Any) -> Path:
    """A package for the maskx.pt, without libraries, its record changed."""
    return write_package(path.with_suffix(".pt2"), record_of(path, **changes), {})


def why_not(path: Path, *, wanted: str = "auto", device: torch.device = CPU) -> str:
    found = package_for(path.parent, torchscript=path, device=device, precision="float32", wanted=wanted)
    assert isinstance(found, str), found
    return found


def same(found: Sequence[Detections], expected: Sequence[Detections]) -> bool:
    names = ("boxes", "scores", "labels", "rle_counts", "rle_offsets")
    return len(found) == len(expected) and all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for one, other in zip(found, expected, strict=True)
        for name in names
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


def test_the_compiled_parts_answer_as_the_torchscript_file(path: Path, loads: dict[str, Eager]) -> None:
    put_package(path)
    compiled = ServedModel(path, CPU, engine="auto")
    assert compiled.engine["used"] == compiled.description()["engine"]["used"] == "compiled"
    assert compiled.engine["package"]["parts"] == list(PARTS)
    tried = {part: len(one.shapes) for part, one in loads.items()}
    wished = [ALL, ALL, ALL, NO_MASKS]
    found = compiled.predict(IMAGES, wished)
    assert [len(one.labels) for one in found] == [2, 1, 0, 1]
    assert same(found, ServedModel(path, CPU).predict(IMAGES, wished))
    assert same(found, ServedModel(write_standin(path.parent / "plain.pt"), CPU).predict(IMAGES, wished))
    # an image without masks asks nothing of the mask head
    assert {part: len(one.shapes) - tried[part] for part, one in loads.items()} == {
        "trunk": 4,
        "box_head": 4,
        "mask_head": 2,
    }


@pytest.mark.parametrize("parts", [["trunk"], ["box_head", "mask_head"]])
def test_parts_that_a_package_has_not_stay_with_the_file(
    path: Path, loads: dict[str, Eager], parts: list[str]
) -> None:
    put_package(path, parts=parts)
    model = ServedModel(path, CPU, engine="compiled")
    assert model.engine["package"]["parts"] == parts
    assert same(model.predict(IMAGES, [ALL] * 4), ServedModel(path, CPU).predict(IMAGES, [ALL] * 4))
    assert all(bool(one.shapes) is (part in parts) for part, one in loads.items())


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("factor", [1.5, 0.0, float("nan")])
def test_a_library_that_answers_something_else_is_found_out_before_the_first_request(
    path: Path, loads: dict[str, Eager], part: str, factor: float, caplog: pytest.LogCaptureFixture
) -> None:
    put_package(path)
    loads[part].factor = factor
    model = ServedModel(path, CPU, engine="auto")
    assert model.engine["used"] == "torchscript"
    assert f"its {part} answers something else than the TorchScript file" in model.engine["reason"]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert model.engine["reason"] in caplog.text
    assert same(model.predict(IMAGES, [ALL] * 4), ServedModel(path, CPU).predict(IMAGES, [ALL] * 4))


def test_a_library_that_answers_in_another_form_or_fails_is_not_used(
    path: Path, loads: dict[str, Eager], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_package(path)
    monkeypatch.setattr(loads["box_head"], "run", lambda inputs: [inputs[0].double()])
    assert "its box_head answers [" in ServedModel(path, CPU, engine="auto").engine["reason"]

    def fails(inputs: list[Tensor]) -> list[Tensor]:
        raise RuntimeError("no such symbol\nand a trace")

    monkeypatch.setattr(loads["box_head"], "run", fails)
    reason = ServedModel(path, CPU, engine="auto").engine["reason"]
    assert reason == "its parts cannot be run here: no such symbol"


def test_a_file_without_stages_is_served_as_it_is(tmp_path: Path, loads: dict[str, Eager]) -> None:
    path = write_standin(tmp_path / "maskx.pt")
    put_package(path)
    model = ServedModel(path, CPU, engine="auto")
    assert "has no parts_of: it is of an older version; export the checkpoint again" in model.engine["reason"]
    assert len(model.predict(IMAGES, [ALL] * 4)) == 4


def test_no_image_at_all_and_images_without_objects_are_answered(path: Path, loads: dict[str, Eager]) -> None:
    put_package(path)
    model = ServedModel(path, CPU, engine="auto")
    assert model.predict([], []) == []
    assert [len(one.labels) for one in model.predict([IMAGES[2]] * 2, [ALL] * 2)] == [0, 0]


def test_a_part_of_more_images_than_the_package_takes_goes_in_several(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The stand-in's own parts are one image each: a network is stood in for that puts all in one."""
    seen: list[list[int]] = []

    class Frozen:
        def parts_of(self, images: Any, masks: Any) -> list[list[int]]:
            return [[0, 2, 4, 1, 3]]

        def begun(self, part: list[int], *_: Any) -> Any:
            seen.append(part)
            return torch.zeros(len(part), 3, 32, 32), torch.zeros(len(part), 5)

        def proposed(self, *_: Any) -> Any:
            return {}, torch.zeros(0, 4), [0], torch.zeros(0, 3, 7, 7)

        def detected(self, part: list[int], *_: Any) -> Any:
            return {}, [1] * len(part)

        def cropped(self, features: Any, found: Any, with_mask: int) -> Any:
            seen.append([with_mask])
            return torch.zeros(0, 3, 14, 14), torch.zeros(0, 1), torch.zeros([])

        def written(self, *_: Any) -> Any:
            return {}

        def packed_of(self, parts: Any, founds: Any, counts: Any, masks: Any) -> Any:
            return torch.zeros(0), parts + counts

    monkeypatch.setattr(maskx_stages, "ServedStages", lambda module: nn.Identity())
    monkeypatch.setattr(torch.jit, "script", lambda module: module)
    monkeypatch.setattr(torch.jit, "freeze", lambda module, preserved_attrs: Frozen())
    network = StagedNetwork(nn.Module(), CompiledParts({"most_images": 2}, eager()), mask_size=28)
    masks = torch.tensor([True, False, True, False, True])
    none = torch.zeros(5)
    _, table = network.packed([none] * 5, none, none, none, none, masks)
    assert seen == [[0, 2], [2], [4, 1], [1], [3], [0]]
    assert table == [[0, 2], [4, 1], [3], [1, 1], [1, 1], [1]]


def test_memory_that_runs_out_in_a_library_costs_nobody_else_an_answer(
    path: Path, loads: dict[str, Eager], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_package(path)
    model = ServedModel(path, CPU, engine="auto")
    run = loads["trunk"].run

    def short(inputs: list[Tensor]) -> list[Tensor]:
        if inputs[0].shape[3] > 100:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return run(inputs)

    monkeypatch.setattr(loads["trunk"], "run", short)
    images = [*IMAGES, plain(NETWORK_FAULT), plain(ALWAYS_OUT_OF_MEMORY), plain(OUT_OF_MEMORY_ABOVE_TWO)]
    decoded = [DecodedImage(pixels=one, height=one.shape[0], width=one.shape[1]) for one in images]
    found = predict_each(model, decoded, [ALL] * len(images))
    kinds = [len(one.labels) if isinstance(one, Detections) else one.kind.name for one in found]
    assert kinds == [2, 1, 0, "OutOfMemory", "InternalError", "OutOfMemory", 0]


def test_the_weights_of_compiled_parts_are_not_kept_by_the_file(path: Path) -> None:
    module: Any = torch.jit.load(str(path))
    whole = StagedNetwork(prepared(module, CPU, "float32", ()), CompiledParts({}, eager()), mask_size=28)
    names = {name for name, _ in whole._stages.named_buffers()}
    methods = {name for name in maskx_stages.DENSE.values() if hasattr(whole._stages, name)}
    assert (names, methods) == (set(), set())
    half = StagedNetwork(torch.jit.load(str(path)), CompiledParts({}, eager(["trunk"])), mask_size=28)
    kept = {name for name in maskx_stages.DENSE.values() if hasattr(half._stages, name)}
    assert kept == {"dense_box_head", "dense_mask_head"}


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


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network as it is exported."""
    path = tmp_path_factory.mktemp("tiny") / "maskx.pt"
    least, most = CONFIG.input.min_size, CONFIG.input.max_size
    metadata = build_metadata(CLASSES, mask_size=14, max_detections=30, min_size=least, max_size=most)
    path.write_bytes(export_network(tiny_network(), metadata))
    return path


class Own:
    """A dense part of an exported file in a library's place, in the precision of the library."""

    def __init__(self, path: Path, part: str, precision: str) -> None:
        module: Any = torch.jit.load(str(path))
        prepared(module, CPU, precision, REDUCIBLE)
        self.method = getattr(module, maskx_stages.DENSE[part])
        self.rows: list[int] = []

    def run(self, inputs: list[Tensor]) -> list[Tensor]:
        self.rows.append(inputs[0].shape[0])
        answers = self.method(*inputs)
        if isinstance(answers, Tensor):
            return [answers]
        return [one for some in answers for one in some]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("parts", [PARTS, ("trunk",)])
def test_an_exported_network_in_stages_answers_as_it_does_whole(
    exported: Path, precision: str, parts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {part: Own(exported, part, precision) for part in parts}
    monkeypatch.setattr(maskx_compiled, "load_libraries", lambda *_: made)
    package = write_package(
        exported.with_name("a.pt2"),
        record_of(exported, precision=precision, parts=list(parts), most_images=2),
        {},
    )
    model = ServedModel(exported, CPU, precision=precision, engine="auto", package=package)
    assert model.engine["used"] == "compiled", model.engine
    random = np.random.default_rng(0)
    sizes = [(60, 80), (80, 60), (64, 64), (60, 80), (61, 80), (60, 81), (400, 11)]
    images = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    every = Parameters(score_threshold=0.0, max_detections=20)
    wished = [replace(every, mask_format="none") if i % 3 == 1 else every for i in range(len(sizes))]
    found = model.predict(images, wished)
    assert all(len(one.labels) == 20 for one in found)
    assert max(made["trunk"].rows) == 2
    assert same(found, ServedModel(exported, CPU, precision=precision).predict(images, wished))
