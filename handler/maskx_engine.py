"""A TorchScript module made ready to run on one device: nothing compiled later, precision, memory layout, frozen; and
how many cores there are to run on.

The file is float32 and not frozen, for a frozen module has no weights left to cast. Knows nothing of the server.
"""

import ctypes
import logging
import math
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

PRECISIONS = ("auto", "float32", "bfloat16", "float16")

PIXELS_TOGETHER_ON_CPU = 2 * 768 * 1344
"""Two photographs of 800 x 1333: more at once are no faster on a CPU, and take 0.3 to 0.75 GB each (ResNet-50)."""

PACKED = "packed"
"""The method that gives all answers of a batch in one tensor (`maskx_model.unpack`), in files that have it."""

_FUSERS = {
    "_jit_texpr_fuser_enabled": "_jit_set_texpr_fuser_enabled",
    "_jit_can_fuse_on_gpu": "_jit_override_can_fuse_on_gpu",
    "_jit_can_fuse_on_cpu": "_jit_override_can_fuse_on_cpu",
    "_jit_can_fuse_on_cpu_legacy": "_jit_override_can_fuse_on_cpu_legacy",
}
"""TorchScript's fusers: what tells whether one is on, and what sets it. nvFuser left TorchScript before torch 2.11."""

CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
"""Linux' control group, version 2, as a container sees its own: quota and period in microseconds, or "max"."""

_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_operators() -> None:
    """Registers torchvision's operators, which the file calls, for the whole process.

    From its library alone, as a C++ host does: the package brings PyTorch's compilers with it, which take as long to
    import as torch itself and 170 MB, and nothing here runs them.
    """
    package = find_spec("torchvision")
    folders = [] if package is None else package.submodule_search_locations or []
    for folder in () if "torchvision" in sys.modules else folders:
        for name in ("_C_stable", "_C"):  # newer versions, older ones
            for library in (Path(folder, name + suffix) for suffix in EXTENSION_SUFFIXES):
                if library.is_file():
                    torch.ops.load_library(str(library))
                    return
    import_module("torchvision")


def fusers_off() -> None:
    """Keeps TorchScript from compiling or rewriting anything by what requests bring; for the whole process.

    The fusers compile a GPU kernel for every new shape that a graph meets, while its request waits, and the one for a
    tensor without elements does not compile in bfloat16, after which its graph fails for every image. Without them, but
    with a depth above 0, every node that watched shapes stays in the graph and runs each time (2 811 in the network of
    `make demo`). With a depth of 0 a method is optimised once, before its first run, by its code alone: no second run
    that rewrites it, no new plan later.

    Must be called before the module is run, best before it is loaded. Calling it again changes nothing.
    """
    for name in _FUSERS.values():
        switch = getattr(torch._C, name, None)
        if switch is not None:
            switch(False)
    torch.jit.set_fusion_strategy([("STATIC", 0)])


def fusers() -> str:
    """ "off" where PyTorch says that none of TorchScript's fusers may be used in this process, else "on"."""
    tests = (getattr(torch._C, name, None) for name in _FUSERS)
    return "on" if any(test is not None and test() for test in tests) else "off"


def choose_precision(asked: str, device: torch.device, reducible: Sequence[str]) -> str:
    """The precision to compute in: what was asked for, or for "auto" the fastest that costs no accuracy.

    "auto" is bfloat16 where the processor multiplies it natively (AVX512-BF16 or AMX on a CPU; compute capability 8.0
    of a GPU), float16 on older GPUs, float32 on other CPUs and for a file that does not say what may be cast.

    Args:
        asked: one of `PRECISIONS`.
        device: to run on.
        reducible: names of the parts that may be cast, from the file's metadata.

    Raises:
        ValueError: an unknown precision, or one that the device or the file is not made for.
    """
    if asked not in PRECISIONS:
        raise ValueError(f"precision is {asked!r}; allowed are {', '.join(PRECISIONS)}")
    if asked == "float16" and device.type == "cpu":
        raise ValueError("precision float16 is for GPUs; on a CPU take bfloat16, float32 or auto")
    if asked == "float32" or (asked == "auto" and not reducible):
        return "float32"
    if not reducible:
        raise ValueError(
            f"the model's metadata does not name the parts that may be cast to {asked}; export the checkpoint again, "
            "or set precision: float32"
        )
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float16"
    return "bfloat16" if cpu_multiplies_bfloat16() else "float32"


def cpu_multiplies_bfloat16() -> bool:
    """Whether oneDNN, which computes on a CPU, multiplies bfloat16 by instructions made for it.

    The processor must have them (AVX512-BF16, a part of AMX too), and oneDNN must not have been told to leave them
    alone: it says that it supports bfloat16 with plain AVX-512 as well, but emulates it there, and a convolution takes
    six times as long as in float32. The same rule is in model/processor.py, which may not import this file.
    """
    on_processor = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    in_onednn = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    if on_processor is None or in_onednn is None or not (on_processor() and in_onednn()):
        return False
    told = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
    return told.upper() not in ("AVX512_CORE", "AVX512_CORE_VNNI")


def frozen(module: Any) -> Any:
    """The module frozen, with the method that packs the answers of a batch where it has one."""
    return torch.jit.freeze(module.eval(), preserved_attrs=[PACKED] if hasattr(module, PACKED) else None)


def prepared(module: Any, device: torch.device, precision: str, reducible: Sequence[str]) -> Any:
    """The module itself, with the weights of its `reducible` parts cast, and convolutions channels_last; not frozen.

    A module that knows a way for GPUs beside the one for CPUs (`batched`) is told which it is.

    Args:
        module: the loaded TorchScript module, in evaluation mode.
        device: that it was loaded to.
        precision: "float32", "bfloat16" or "float16".
        reducible: names of the parts that may be cast.
    """
    dtype = _TYPES[precision]
    if dtype == torch.float32:
        ask_for_winograd(module)
    if device.type == "cpu" and hasattr(module, "pixels_together"):
        module.pixels_together = PIXELS_TOGETHER_ON_CPU
    if hasattr(module, "batched"):
        module.batched = device.type != "cpu"
    prefixes = tuple(f"{name}." for name in reducible)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            value = parameter.data
            if name.startswith(prefixes):
                value = value.to(dtype)
            if value.dim() == 4:
                value = value.contiguous(memory_format=torch.channels_last)
            parameter.data = value
    return module.eval()


def ask_for_winograd(module: Any) -> None:
    """Lets the convolutions that know Winograd's form use it, where PyTorch can run it (NNPACK, on many CPUs)."""
    if torch._nnpack_available():  # this also starts NNPACK, without which its convolution fails
        for part in module.modules():
            if hasattr(part, "winograd"):
                part.winograd = True


def keep_freed_memory() -> None:
    """Tells glibc to keep what is freed for the next request, on the CPU; elsewhere, does nothing.

    By itself it asks the kernel for every tensor above 32 MiB anew and gives it back, and the kernel clears the pages
    each time: 17 % of a float32 request of ResNet-50 at 1080p. The process stays at its largest size.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    if not (mallopt(mmap_max, 0) and mallopt(trim_threshold, 2**31 - 1)):
        logger.info("malloc keeps no freed memory here; requests are served all the same")


def give_freed_memory_back() -> None:
    """Gives the kernel what `keep_freed_memory` has kept, where glibc can; about a tenth of a second for 500 MiB."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def usable_cores() -> int:
    """Cores that this process may run on, where the system tells; else all there are. At least 1.

    By its affinity, and in a container by the share of time that it is given. More threads than that are worse than
    none: PyTorch's threads wait for each other spinning, and one that is not running holds up all.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min(cores, _quota(cores)), 1)


def _quota(without: int) -> int:
    """Cores' worth of time that the control group is given, rounded up; `without` where it is given all."""
    try:
        quota, period = CPU_MAX.read_text().split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError, ZeroDivisionError):  # no such file; "max"; another system's form
        return without
