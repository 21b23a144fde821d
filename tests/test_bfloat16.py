"""What takes "auto" for bfloat16 on a CPU, in serving, compiling and training, beside what oneDNN then does."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ASKED = """
import json, sys
import torch
sys.path.insert(0, "handler")
import maskx_engine
from export.compiled import Wanted, precision_of
from training.run import under_bfloat16
cpu = torch.device("cpu")
layer = torch.nn.Conv2d(64, 64, 3, padding=1, bias=False, dtype=torch.bfloat16)
torch.nn.init.constant_(layer.weight, 2.0**20)
with torch.inference_mode():
    product = layer(torch.full((1, 64, 8, 8), 1e-39, dtype=torch.bfloat16))
serving = maskx_engine.choose_precision("auto", cpu, ["backbone"]) == "bfloat16"
compiling = precision_of(Wanted()) == "bfloat16"
print(json.dumps([serving, compiling, under_bfloat16("auto", cpu), not bool(product.any())]))
"""
"""The processor's products of bfloat16 take 1e-39 for zero, as its manual says; those of float32 that emulate them
do not."""


def asked(root: Path, **variables: str) -> list[bool]:
    """Whether serving takes bfloat16, whether a package and training do, and whether a convolution was not emulated."""
    held = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
    environment = {name: value for name, value in os.environ.items() if name not in held} | variables
    done = subprocess.run(
        [sys.executable, "-c", ASKED], cwd=root, env=environment, capture_output=True, check=True
    )
    answer: list[bool] = json.loads(done.stdout)
    return answer


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="the names of ISAs are those of x86"
)
@pytest.mark.parametrize("isa", ["AVX512_CORE_BF16", "ALL"])
def test_auto_is_bfloat16_exactly_where_onednn_does_not_emulate_it(root: Path, isa: str) -> None:
    serving, compiling, training, multiplied = asked(root, ONEDNN_MAX_CPU_ISA=isa)
    assert serving is compiling is training is multiplied


@pytest.mark.parametrize(
    "variables",
    [
        {"ONEDNN_MAX_CPU_ISA": "AVX2"},
        {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
        {"ONEDNN_MAX_CPU_ISA": "avx512_core"},
        {"DNNL_MAX_CPU_ISA": "AVX512_CORE_VNNI"},
    ],
    ids=" ".join,
)
def test_auto_is_float32_on_a_processor_held_to_instructions_without_bfloat16(
    root: Path, variables: dict[str, str]
) -> None:
    assert asked(root, **variables) == [False, False, False, False]
