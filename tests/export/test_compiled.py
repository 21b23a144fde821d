"""The package of compiled parts: the answers of the TorchScript file, for sizes never seen by the compiler; a record.

Compiling takes a minute or so, so it is done once, and in float32; bfloat16 differs in the types alone.
"""

import dataclasses
import hashlib
import json
import platform
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree

from export import compiler
from export.compiled import Wanted, compile_package, main, network_of
from export.compiler import CompileError, instructions, loaded, require_compiler, require_torch
from export.parts_check import Figures, Served, allowed_of, canvases, require_same_answers
from model.config import InputConfig
from model.inference.dense import PARTS, dense_parts, example_of_parts, exported, unused_weights
from model.keypoints.layout import KeypointsConfig
from model.serving import prepared_for_serving
from tests.export.tiny import CONFIG, run_module, save_network, tiny_network
from tests.model.backbones.test_c4 import SMALL_C4

WIDE = dataclasses.replace(
    CONFIG,
    input=InputConfig(min_size=96, max_size=160),
    mask=dataclasses.replace(CONFIG.mask, mlp="none"),
)
"""The tiny network on canvases of 3 to 5 steps, without the MLP, which Inductor (2.15) refuses with free rows."""


def why_not() -> str:
    """Why nothing can be compiled here; empty where it can."""
    try:
        require_torch()
        require_compiler()
    except ValueError as error:
        return str(error)
    return ""


can_compile = pytest.mark.skipif(bool(why_not()), reason=why_not())
slow_where_busy = pytest.mark.timeout(900)


@dataclasses.dataclass(frozen=True)
class Made:
    """Files of one network, and the record of its package."""

    checkpoint: Path
    torchscript: Path
    package: Path
    record: dict[str, Any]
    said: list[str]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint, and its maskx.pt."""
    folder = tmp_path_factory.mktemp("wide")
    checkpoint = save_network(folder / "checkpoint.pt", tiny_network(config=WIDE), WIDE)
    out = folder / "maskx.pt"
    done = run_module("export.torchscript", "--checkpoint", checkpoint, "--out", out)
    assert done.returncode == 0, done.stderr
    return checkpoint, out


@pytest.fixture(scope="module")
def made(files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Made:
    """All parts, whether faster or not; what is not worth measuring is not optimised either."""
    from torch._inductor import config

    out, said = tmp_path_factory.mktemp("compiled") / "maskx.pt2", list[str]()
    wanted = Wanted(precision="float32", measure=False)
    with config.patch({"aot_inductor.compile_wrapper_opt_level": "O0"}):
        record = compile_package(files[1], files[0], out, wanted, said.append)
    return Made(*files, out, record, said)


@can_compile
@slow_where_busy
@torch.inference_mode()
def test_compiled_parts_answer_as_the_network_for_sizes_and_batches_never_seen(
    made: Made, tmp_path: Path
) -> None:
    assert made.record["parts"] == list(PARTS), made.said
    data = made.package.read_bytes()
    served = network_of(made.checkpoint, made.torchscript, made.torchscript.read_bytes(), "cpu")
    parts = dense_parts(served)
    for name, part in parts.items():
        run = loaded(data, name, tmp_path)
        for height, width, images, rows in (
            (96, 160, 1, 4),
            (160, 128, 3, 20),
            (32, 160, 2, 36),
            (64, 64, 1, 1),
        ):
            given = example_of_parts(served, height, width, images=images, rows=rows)[name]
            got, expected = pytree.tree_leaves(run(*given)), pytree.tree_leaves(part.module(*given))
            assert len(got) == len(expected)
            for one, other in zip(got, expected, strict=True):
                scale = float(other.abs().max())
                torch.testing.assert_close(one, other, atol=1e-4 * scale, rtol=0)


@can_compile
@slow_where_busy
def test_the_record_says_what_the_package_is_for(made: Made) -> None:
    with zipfile.ZipFile(made.package) as package:
        (name,) = [one for one in package.namelist() if one.endswith("compiled.json")]
        text = package.read(name).decode()
    record = json.loads(text)
    assert record == made.record and text == json.dumps(record, indent=1, sort_keys=True) + "\n"
    assert record["torchscript_sha256"] == hashlib.sha256(made.torchscript.read_bytes()).hexdigest()
    assert record["torch"] == torch.__version__.partition("+")[0]
    assert (record["device"], record["precision"], record["step"]) == ("cpu", "float32", 32)
    assert record["architecture"] == platform.machine()
    assert record["capability"] == torch.backends.cpu.get_cpu_capability()
    assert record["unused_weights"] == ["backbone.", "box_head.", "mask_branch.", "rpn.head."]


@pytest.fixture
def reader() -> Iterator[None]:
    """Nothing that needs a compiler is reached."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.compiled.require_compiler", lambda: None)
        patch.setattr("export.compiled.require_torch", lambda: None)
        yield


def test_a_checkpoint_of_another_network_is_named(
    files: tuple[Path, Path], tmp_path: Path, reader: None, capsys: pytest.CaptureFixture[str]
) -> None:
    network = tiny_network(config=WIDE)
    with torch.no_grad():
        network.box_head.fc7.bias += 1
    other = save_network(tmp_path / "other.pt", network, WIDE)
    out = tmp_path / "maskx.pt2"
    asked = ["--torchscript", str(files[1]), "--checkpoint", str(other), "--out", str(out)]
    assert main(asked) == 2 and not out.exists()
    said = capsys.readouterr().err
    assert "was not made from" in said and "box_head.fc7.bias is the first" in said


def test_missing_files_are_named(tmp_path: Path, reader: None, files: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match="there is no .*none.pt; write it with python -m export.torchscript"):
        compile_package(tmp_path / "none.pt", files[0], tmp_path / "out.pt2")
    with pytest.raises(ValueError, match="there is no checkpoint"):
        compile_package(files[1], tmp_path / "none.pt", tmp_path / "out.pt2")


def test_without_a_compiler_the_message_says_what_was_looked_for() -> None:
    from torch._inductor import config, cpp_builder

    cpp_builder.cpp_compiler_search.cache_clear()
    # Not monkeypatch, whose undoing takes the setting away for the rest of the process.
    said = r"no C\+\+ compiler \(looked for no-such-compiler\)"
    with config.patch({"cpp.cxx": ("no-such-compiler",)}), pytest.raises(ValueError, match=said):
        require_compiler()
    assert config.cpp.cxx


def test_a_pytorch_that_fixes_the_parity_of_sides_is_refused() -> None:
    require_torch("2.15.0+cpu")
    with pytest.raises(
        ValueError, match=r"PyTorch 2\.11\.0 fixes the parity .* compile with PyTorch 2\.15 or later"
    ):
        require_torch("2.11.0")


@torch.no_grad()
@pytest.mark.parametrize("wrong", ["numbers", "shape", "fails", "not a number"])
def test_a_part_that_answers_otherwise_is_refused(wrong: str) -> None:
    """A compiled part is whatever may be called; each way of being wrong has its own sentence."""
    served = prepared_for_serving(tiny_network(config=WIDE).inference())
    part = dense_parts(served)["box_head"].module

    def run(pooled: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = part(pooled)
        if wrong == "fails":
            raise RuntimeError("sizes must be even")
        if wrong == "shape":
            return hidden[1:]
        return hidden * (1.001 if wrong == "numbers" else float("nan"))

    script = Served(exact={"box_head": part}, frozen={"box_head": part})
    require_same_answers("box_head", part, script, served)
    said = {"shape": "and in TorchScript", "fails": "it fails: sizes must be even"}.get(wrong, "is allowed")
    with pytest.raises(CompileError, match=said):
        require_same_answers("box_head", run, script, served)


@pytest.mark.parametrize(("numbers", "times"), [(16, 3.0), (10_000, 1.56)])
def test_a_mean_of_few_numbers_may_wander_further_and_one_of_many_may_not(numbers: int, times: float) -> None:
    right = torch.zeros(numbers)
    assert allowed_of(right, right + 0.01, reduced=True) == pytest.approx(times * 0.01)
    assert allowed_of(right + 2, right + 3, reduced=False) == pytest.approx(2e-4)


ONE_BY_ONE = ([0, 0], [1, 1], [1, 1], 1)
"""Padding, stride, dilation and groups of a convolution."""


def forms(monkeypatch: pytest.MonkeyPatch, told: Callable[[Sequence[int]], int]) -> list[list[int]]:
    """Sizes at which oneDNN is asked for a weight's form, which is `told` of the size."""
    asked: list[list[int]] = []

    def reorder(weight: torch.Tensor, *rest: Any) -> torch.Tensor:
        assert not isinstance(weight, FakeTensor) and rest[:-1] == ONE_BY_ONE
        asked.append(rest[-1])
        return torch.tensor([told(rest[-1])])

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_convolution_weight", reorder)
    monkeypatch.setattr(torch.ops.mkldnn, "_get_mkldnn_serialized_md", lambda form: form)
    return asked


@pytest.mark.parametrize(("narrow", "expected"), [(8, False), (1, True)])
def test_a_weight_is_packed_only_where_its_form_is_the_same_at_other_sizes(
    narrow: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = forms(monkeypatch, lambda size: int(size[-1] < narrow))
    with FakeTensorMode():
        weight = torch.empty(1152, 192, 1, 1)
        assert compiler._has_one_form(weight, False, ONE_BY_ONE, (2, 192, 8, 10)) is expected
    assert {(one[0], *one[2:]) for one in asked} >= {(2, 8, 10), (1, 2, 2), (8, 16, 20)}


@pytest.mark.parametrize("packed", [True, False])
def test_a_weight_of_several_forms_stays_as_it_is(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    mkldnn_fusion = pytest.importorskip("torch._inductor.fx_passes.mkldnn_fusion")
    if not hasattr(mkldnn_fusion, "CpuMkldnnDeviceOp"):
        pytest.skip("this PyTorch packs weights elsewhere")
    monkeypatch.setattr(compiler, "_has_one_form", lambda *_: packed)
    graph = torch.fx.Graph()
    weight = graph.placeholder("weight")
    weight.meta["val"] = torch.empty(8, 8, 1, 1)
    with compiler.weights_packed():
        made = mkldnn_fusion.CpuMkldnnDeviceOp().pack_conv_weight(
            graph, False, weight, ONE_BY_ONE, [2, 8, 4, 4]
        )
    assert (made is weight) is not packed


def test_sizes_are_compared_that_the_export_does_not_have() -> None:
    served = prepared_for_serving(tiny_network(config=WIDE).inference())
    seen = dense_parts(served)
    sizes = {(images, height, width) for height, width, images, _ in canvases(served)}
    assert (seen["trunk"].example[0].shape[0], *seen["trunk"].example[0].shape[2:]) not in sizes
    assert {images for images, _, _ in sizes} >= {1, 3} and {height // 32 % 2 for _, height, _ in sizes} == {
        0,
        1,
    }


FORMS = {
    "C4": SMALL_C4,
    "keypoints": dataclasses.replace(
        WIDE, keypoints=KeypointsConfig(layout="own", names=("a", "b"), width=16, convolutions=1)
    ),
}


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < compiler.LEAST_TORCH, reason="PyTorch is too old"
)
@pytest.mark.parametrize("form", list(FORMS))
def test_other_forms_export_the_parts_they_have(form: str) -> None:
    served = prepared_for_serving(tiny_network(config=FORMS[form]).inference())
    for name, part in dense_parts(served).items():
        program = exported(part)
        given = example_of_parts(served, 128, 96, images=3, rows=20)[name]
        with torch.no_grad():
            got = pytree.tree_leaves(program.module(check_guards=False)(*given))
            for one, other in zip(got, pytree.tree_leaves(part.module(*given)), strict=True):
                torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_weights_stay_where_torchscript_still_reads_them() -> None:
    served = prepared_for_serving(tiny_network(config=WIDE).inference())
    assert unused_weights(served, ["trunk"]) == ["backbone.", "rpn.head."]
    assert unused_weights(served, ["box_head", "mask_head"]) == ["box_head.", "mask_branch."]
    served.box_head.has_prior = True
    assert unused_weights(served, ["box_head", "mask_head"]) == ["mask_branch."]


def test_the_instructions_of_a_family_are_those_of_the_smaller_ones_too() -> None:
    third, fourth = instructions("x86-64-v3"), instructions("x86-64-v4")
    assert "avx2" in third and "avx512f" not in third and set(third) < set(fourth)
    with pytest.raises(ValueError, match="expected one of x86-64-v3, x86-64-v4"):
        instructions("sandybridge")


def test_a_part_that_gains_nothing_counts_as_slower() -> None:
    assert (
        Figures(torchscript=1.0, compiled=0.99).slower and not Figures(torchscript=1.0, compiled=0.9).slower
    )
    assert not Figures().slower and Figures().milliseconds() == {}
    assert Figures(torchscript=0.2, compiled=0.1).milliseconds() == {"torchscript": 200.0, "compiled": 100.0}
