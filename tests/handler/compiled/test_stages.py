"""The compiled package in stages: the answers, and what is found out before the first request.

Libraries are stood in for by the stand-in's modules; tests/served/test_compiled_engine.py has true ones.
"""

import logging
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
from maskx_compiled import CompiledParts
from maskx_engine import prepared
from maskx_forward import predict_each
from maskx_image import DecodedImage
from maskx_model import ServedModel
from maskx_parameters import Parameters
from maskx_stages import StagedNetwork
from model.serving import REDUCIBLE
from tests.export.tiny import CLASSES, CONFIG, tiny_network
from tests.handler.compiled.parts import ALL, CPU, IMAGES, NO_MASKS, PARTS, Eager, eager, put_package, same
from tests.served.compiled_standin import (
    record_of,
    write_package,
)
from tests.served.standin import (
    ALWAYS_OUT_OF_MEMORY,
    NETWORK_FAULT,
    OUT_OF_MEMORY_ABOVE_TWO,
    plain,
    write_standin,
)


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
