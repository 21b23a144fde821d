"""The module as it is served: precision, casting, Winograd's form, memory, cores; and that nothing is compiled or
rewritten by what requests bring."""

import dataclasses
import importlib.util
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import maskx_engine
from export import fresh_process
from export.metadata import build_metadata
from export.torchscript import export_network
from maskx_engine import choose_precision, frozen, fusers, fusers_off, prepared, usable_cores
from maskx_model import ServedModel
from maskx_parameters import Parameters
from model.build import build_network
from model.serving import REDUCIBLE, prepared_for_serving
from tests.export.tiny import CLASSES, CONFIG, tiny_network, unverified
from tests.served.standin import scene

CPU = torch.device("cpu")
PARTS = ("backbone",)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "maskx.pt"
    metadata = build_metadata(CLASSES, mask_size=14, max_detections=30, min_size=64, max_size=96)
    path.write_bytes(unverified(tiny_network(), metadata))
    return path


@pytest.mark.parametrize(("native", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_auto_is_bfloat16_where_the_processor_multiplies_it_and_the_file_allows_it(
    native: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maskx_engine, "cpu_multiplies_bfloat16", lambda: native)
    assert choose_precision("auto", CPU, PARTS) == expected
    assert choose_precision("auto", CPU, ()) == "float32"
    assert choose_precision("float32", CPU, PARTS) == "float32"
    assert choose_precision("bfloat16", CPU, PARTS) == "bfloat16"


@pytest.mark.parametrize(("capability", "expected"), [((9, 0), "bfloat16"), ((7, 5), "float16")])
def test_older_gpus_take_float16(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_precision("auto", torch.device("cuda", 0), PARTS) == expected


@pytest.mark.parametrize(
    ("asked", "reducible", "message"),
    [
        ("half", PARTS, "allowed are auto, float32, bfloat16, float16"),
        ("float16", PARTS, "float16 is for GPUs"),
        ("bfloat16", (), "export the checkpoint again"),
    ],
)
def test_a_precision_that_cannot_be_had_is_refused(
    asked: str, reducible: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        choose_precision(asked, CPU, reducible)


def test_only_the_reducible_parts_are_cast_and_no_parameter_is_left() -> None:
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Linear(2, 2)
            self.ab = torch.nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.a(x.to(self.a.weight.dtype)), self.ab(x)

    ready = frozen(prepared(torch.jit.script(Two()).eval(), CPU, "bfloat16", ["a"]))
    low, full = ready(torch.randn(1, 2))
    assert (low.dtype, full.dtype) == (torch.bfloat16, torch.float32)
    assert not list(ready.parameters())


def test_precisions_answer_alike_and_float32_by_winograd_within_1e_4(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, parameters = scene(width=90, height=70), [Parameters(score_threshold=0.0, max_detections=20)]
    quick = ServedModel(path, CPU, precision="float32").predict([image], parameters)[0]
    monkeypatch.setattr(torch, "_nnpack_available", lambda: False)
    plain = ServedModel(path, CPU, precision="float32").predict([image], parameters)[0]
    assert plain.labels.tolist() == quick.labels.tolist()
    assert abs(plain.scores - quick.scores).max() <= 1e-4
    low = ServedModel(path, CPU, precision="bfloat16")
    assert low.precision == low.description()["precision"] == "bfloat16"
    answer = low.predict([image], parameters)[0]
    assert answer.boxes.dtype == answer.scores.dtype == "float32"
    assert abs(answer.scores[:5] - plain.scores[:5]).max() < 0.05


def test_an_image_scaled_down_is_answered_in_the_originals_pixels(path: Path) -> None:
    model = ServedModel(path, CPU, precision="float32")
    image, parameters = scene(width=90, height=70), [Parameters(score_threshold=0.0, max_detections=20)]
    own = model.predict([image], parameters)[0]
    doubled = model.predict([image], parameters, [(140, 180)])[0]
    assert abs(doubled.boxes - 2 * own.boxes).max() < 1e-3
    assert doubled.rle_counts[: doubled.rle_offsets[1]].sum() == 140 * 180


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("together", [1, 10**9])
def test_float32_answers_of_an_image_do_not_depend_on_its_company(
    path: Path, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Canvases of three sizes in one batch; images of one canvas together, and one by one.

    By one thread: several round by the size of a batch, which decides ties among an untrained network's proposals.
    """
    monkeypatch.setattr(maskx_engine, "PIXELS_TOGETHER_ON_CPU", together)
    model = ServedModel(path, CPU, precision="float32")
    images = [scene(width=w, height=h) for w, h in ((90, 70), (70, 90), (96, 70), (200, 64), (90, 70))]
    parameters = [Parameters(score_threshold=0.0, max_detections=20)] * len(images)
    batch = model.predict(images, parameters)
    assert len({answer.scores.tobytes() for answer in batch}) == 4, "the images are too alike to tell"
    for image, together_with_others in zip(images, batch, strict=True):
        (alone,) = model.predict([image], parameters[:1])
        assert alone.labels.tolist() == together_with_others.labels.tolist()
        assert abs(alone.scores - together_with_others.scores).max() <= 1e-4
        assert abs(alone.boxes - together_with_others.boxes).max() <= 1e-2


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_freed_memory_stays_with_the_process() -> None:
    """In a process of its own: 200 MB freed are still there afterwards, but not without the setting, or when told."""
    program = """
import sys
import numpy as np
from maskx_engine import give_freed_memory_back, keep_freed_memory
if sys.argv[1] != "give back":
    keep_freed_memory()
block = np.ones(200_000_000, dtype=np.uint8)
del block
if sys.argv[1] == "told":
    give_freed_memory_back()
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS")][0])
"""
    folder = Path(maskx_engine.__file__).parent
    kept, given_back, told = (
        int(
            subprocess.run(
                [sys.executable, "-c", program, how], cwd=folder, capture_output=True, check=True
            ).stdout
        )
        for how in ("keep", "give back", "told")
    )
    assert kept - max(given_back, told) > 150_000


def test_the_operators_are_there_without_importing_torchvision() -> None:
    """In a process of its own, with all that a worker imports of the handler."""
    program = """
import sys
import maskx_engine, maskx_served, maskx_service, maskx_warm_up
import torch
maskx_engine.load_operators()
maskx_engine.load_operators()
boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0], [0.0, 0.0, 9.0, 8.0], [20.0, 20.0, 29.0, 29.0]])
kept = torch.ops.torchvision.nms(boxes, torch.tensor([0.5, 0.9, 0.1]), 0.5).tolist()
print(kept, [name for name in ("torchvision", "torch._dynamo", "sympy") if name in sys.modules])
import torchvision
assert torchvision.ops.nms(boxes, torch.tensor([0.5, 0.9, 0.1]), 0.5).tolist() == kept
"""
    folder = Path(maskx_engine.__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[1, 2] []\n"


def test_a_torchvision_whose_library_is_not_found_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    imported: list[str] = []
    monkeypatch.delitem(sys.modules, "torchvision")
    monkeypatch.setattr(maskx_engine, "EXTENSION_SUFFIXES", [".none"])
    monkeypatch.setattr(maskx_engine, "import_module", imported.append)
    maskx_engine.load_operators()
    assert imported == ["torchvision"]


@pytest.mark.parametrize("missing", ["_is_avx512_bf16_supported", "_is_mkldnn_bf16_supported"])
def test_auto_is_float32_where_torch_cannot_tell(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    onednn = SimpleNamespace(_is_mkldnn_bf16_supported=lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    monkeypatch.setattr(torch.ops, "mkldnn", onednn)
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    assert choose_precision("auto", CPU, PARTS) == "bfloat16"  # else what follows proves nothing
    monkeypatch.delattr(onednn if "mkldnn" in missing else torch.cpu, missing)
    assert choose_precision("auto", CPU, PARTS) == "float32"


@pytest.mark.parametrize(
    ("affinity", "given", "cores"),
    [
        ({0}, "max 100000", 1),
        ({1, 5}, "max 100000", 2),
        (set(range(64)), "max 100000", 64),
        (set(range(64)), "400000 100000", 4),
        (set(range(64)), "150000 100000", 2),
        (set(range(64)), "10000 100000", 1),
        ({0, 1}, "6400000 100000", 2),
        ({0, 1, 2}, "what is this", 3),
        ({0, 1, 2}, None, 3),
    ],
)
def test_cores_are_those_of_the_affinity_and_no_more_than_the_control_groups_share(
    affinity: set[int], given: str | None, cores: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "cpu.max"
    if given is not None:
        file.write_text(given + "\n")
    monkeypatch.setattr(maskx_engine, "CPU_MAX", file)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: affinity, raising=False)
    assert usable_cores() == cores


def test_a_system_that_tells_nothing_counts_as_one_core(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(maskx_engine, "CPU_MAX", tmp_path / "none")
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


@pytest.fixture
def as_pytorch_starts() -> Iterator[None]:
    """Fusers on, and two rounds of watching shapes; afterwards as the handler wants it."""
    torch._C._jit_set_texpr_fuser_enabled(True)
    torch._C._jit_override_can_fuse_on_gpu(True)
    torch.jit.set_fusion_strategy([("STATIC", 2), ("DYNAMIC", 10)])
    yield
    fusers_off()


@pytest.mark.usefixtures("as_pytorch_starts")
def test_whoever_loads_a_model_has_the_fusers_off_and_says_what_pytorch_says(standin: Path) -> None:
    assert fusers() == "on"
    model = ServedModel(standin, CPU, precision="float32")
    assert fusers() == model.description()["fusers"] == "off"
    assert not torch._C._jit_can_fuse_on_gpu()
    torch._C._jit_override_can_fuse_on_gpu(True)
    assert model.description()["fusers"] == "on", "a constant, not what PyTorch says"


@pytest.mark.usefixtures("as_pytorch_starts")
def test_the_verification_turns_off_what_the_handler_turns_off() -> None:
    assert fusers() == "on"
    fresh_process.fusers_off()
    assert fusers() == "off"


@pytest.mark.usefixtures("as_pytorch_starts")
def test_a_switch_that_this_pytorch_does_not_have_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch._C, "_jit_override_can_fuse_on_cpu_legacy")
    monkeypatch.delattr(torch._C, "_jit_can_fuse_on_cpu_legacy")
    fusers_off()
    fresh_process.fusers_off()
    assert fusers() == "off"


def plans(switch: Callable[[], None]) -> list[str]:
    """The graphs that a method was run by, for images of several sizes, some with nothing in them."""
    switch()

    @torch.jit.script
    def heads(images: list[Tensor], threshold: float) -> list[Tensor]:
        answers: list[Tensor] = []
        for image in images:
            found = image.flatten()[torch.where(image.flatten() > threshold)[0]]
            found = (found * 2 + 1).sigmoid() * found - 0.5
            answers.append(found / found.max() if found.numel() > 0 else found)
        return answers

    seen = []
    with torch.inference_mode():
        for side, threshold in ((4, 0.0), (4, 0.0), (5, 2.0), (9, 0.5), (6, 2.0), (4, 0.1)):
            heads([torch.rand(side, side + 1)] * (side - 3), threshold)
            seen.append(str(torch.jit.last_executed_optimized_graph()))
    return seen


@pytest.mark.usefixtures("as_pytorch_starts")
def test_a_method_is_run_by_one_plan_whatever_it_is_given() -> None:
    settled = plans(fusers_off)
    assert len(set(settled)) == 1 and "prim::profile" not in settled[0]


@pytest.mark.usefixtures("as_pytorch_starts")
def test_without_the_switches_pytorch_rewrites_a_method_after_it_ran() -> None:
    """Else the test above proves nothing."""
    assert len(set(plans(lambda: None))) > 1


@pytest.mark.usefixtures("as_pytorch_starts")
def test_with_the_fusers_alone_off_what_watched_shapes_runs_for_ever() -> None:
    def switches_alone() -> None:
        for name in maskx_engine._FUSERS.values():
            getattr(torch._C, name)(False)

    assert "prim::profile" in plans(switches_alone)[-1]


CONFIGURATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "C4, masks on conv5, bicubic RoIAlign, focal loss": {
        "backbone": {"norm": "group"},
        "box": {"head": "res5", "width": 192, "roi_size": 4, "pooling": "bicubic", "loss": "focal"},
        "mask": {"head": "res5", "roi_size": 4, "pooling": "bicubic"},
    },
    "timm, RoIPool": {
        "backbone": {"name": "timm:test_efficientnet", "norm": "sync"},
        "box": {"pooling": "roi_pool"},
        "mask": {"pooling": "roi_pool"},
    },
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_served_form_runs_in_the_handlers_engine_in_both_precisions(name: str) -> None:
    """That it is exported as it was trained, tests/training/test_options.py has for all but timm."""
    if name.startswith("timm") and importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed: requirements/timm.txt")
    changes = {
        section: dataclasses.replace(getattr(CONFIG, section), **fields)
        for section, fields in CONFIGURATIONS[name].items()
    }
    torch.manual_seed(0)
    network = build_network(dataclasses.replace(CONFIG, **changes), num_classes=CLASSES.num_classes).eval()
    with torch.no_grad():
        network.box_predictor.cls_score.weight.mul_(10)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(prepared_for_serving(network.inference())), buffer)
    photograph = torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8)
    scores = []
    for precision in ("float32", "bfloat16"):
        loaded = torch.jit.load(io.BytesIO(buffer.getvalue()))
        model = frozen(prepared(loaded, CPU, precision, REDUCIBLE))
        with torch.inference_mode():
            (answer,) = model(
                [photograph],
                torch.tensor([[70, 90]]),
                torch.zeros(1),
                torch.tensor([8]),
                torch.ones(1, CLASSES.num_classes + 1, dtype=torch.bool),
                torch.ones(1, dtype=torch.bool),
            )
        assert answer["labels"].shape == (8,) and answer["boxes"].dtype == torch.float32
        runs = answer["rle_counts"].tensor_split(answer["rle_offsets"][1:-1])
        assert [int(run.sum()) for run in runs] == [70 * 90] * 8
        scores.append(answer["scores"])
    torch.testing.assert_close(scores[1], scores[0], atol=0.1, rtol=0)


@pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="timm is not installed: requirements/timm.txt"
)
def test_a_network_on_timm_is_exported_as_it_is_and_needs_no_timm_then() -> None:
    backbone = dataclasses.replace(CONFIG.backbone, name="timm:test_resnet")
    torch.manual_seed(0)
    network = build_network(dataclasses.replace(CONFIG, backbone=backbone), num_classes=CLASSES.num_classes)
    metadata = build_metadata(CLASSES, mask_size=14, max_detections=30, min_size=64, max_size=96)
    data = export_network(network.eval(), metadata)  # eager == scripted == reloaded elsewhere, or it raises
    assert hasattr(torch.jit.load(io.BytesIO(data)), "backbone")
