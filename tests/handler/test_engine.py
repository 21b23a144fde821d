"""Precision, casting, Winograd's form and memory of the module as it is served."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import maskx_engine
from export.metadata import build_metadata
from export.torchscript import export_network
from maskx_engine import choose_precision, ready_to_run
from maskx_model import ServedModel
from maskx_parameters import Parameters
from tests.export.tiny import CLASSES, tiny_network
from tests.served.standin import scene

CPU = torch.device("cpu")
PARTS = ("backbone",)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "maskx.pt"
    metadata = build_metadata(CLASSES, mask_size=14, max_detections=30, min_size=64, max_size=96)
    path.write_bytes(export_network(tiny_network(), metadata))
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

    ready = ready_to_run(torch.jit.script(Two()).eval(), CPU, "bfloat16", ["a"])
    low, full = ready(torch.randn(1, 2))
    assert (low.dtype, full.dtype) == (torch.bfloat16, torch.float32)
    assert not list(ready.parameters())


def test_precisions_answer_alike_and_float32_by_winograd_within_1e_4(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, wishes = scene(width=90, height=70), [Parameters(score_threshold=0.0, max_detections=20)]
    quick = ServedModel(path, CPU, precision="float32").predict([image], wishes)[0]
    monkeypatch.setattr(torch, "_nnpack_available", lambda: False)
    plain = ServedModel(path, CPU, precision="float32").predict([image], wishes)[0]
    assert plain.labels.tolist() == quick.labels.tolist()
    assert abs(plain.scores - quick.scores).max() <= 1e-4
    low = ServedModel(path, CPU, precision="bfloat16")
    assert low.precision == low.description()["precision"] == "bfloat16"
    answer = low.predict([image], wishes)[0]
    assert answer.boxes.dtype == answer.scores.dtype == "float32"
    assert abs(answer.scores[:5] - plain.scores[:5]).max() < 0.05


def test_an_image_scaled_down_is_answered_in_the_originals_pixels(path: Path) -> None:
    model = ServedModel(path, CPU, precision="float32")
    image, wishes = scene(width=90, height=70), [Parameters(score_threshold=0.0, max_detections=20)]
    own = model.predict([image], wishes)[0]
    doubled = model.predict([image], wishes, [(140, 180)])[0]
    assert abs(doubled.boxes - 2 * own.boxes).max() < 1e-3
    assert doubled.rle_counts[: doubled.rle_offsets[1]].sum() == 140 * 180


@pytest.mark.parametrize("together", [1, 10**9])
def test_float32_answers_of_an_image_do_not_depend_on_its_company(
    path: Path, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Canvases of three sizes in one batch; images of one canvas together, and one by one."""
    monkeypatch.setattr(maskx_engine, "PIXELS_TOGETHER_ON_CPU", together)
    model = ServedModel(path, CPU, precision="float32")
    images = [scene(width=w, height=h) for w, h in ((90, 70), (70, 90), (88, 70), (200, 64), (90, 70))]
    wishes = [Parameters(score_threshold=0.0, max_detections=20)] * len(images)
    batch = model.predict(images, wishes)
    assert len({answer.scores.tobytes() for answer in batch}) == 4, "the images are too alike to tell"
    for image, together_with_others in zip(images, batch, strict=True):
        (alone,) = model.predict([image], wishes[:1])
        assert alone.labels.tolist() == together_with_others.labels.tolist()
        assert abs(alone.scores - together_with_others.scores).max() <= 1e-4
        assert abs(alone.boxes - together_with_others.boxes).max() <= 1e-2


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_freed_memory_stays_with_the_process() -> None:
    """In a process of its own: 200 MB freed are still there afterwards, and given back without the setting."""
    program = """
import sys
import numpy as np
from maskx_engine import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
block = np.ones(200_000_000, dtype=np.uint8)
del block
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS")][0])
"""
    folder = Path(maskx_engine.__file__).parent
    kept, given_back = (
        int(
            subprocess.run(
                [sys.executable, "-c", program, how], cwd=folder, capture_output=True, check=True
            ).stdout
        )
        for how in ("keep", "give back")
    )
    assert kept - given_back > 150_000


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
