"""Memory of this process, as Linux counts it: what is held now, and the most it ever was."""

import gc
import resource
from pathlib import Path

import torch

from maskx_engine import give_freed_memory_back


def resident_mib() -> float:
    """Memory held now (VmRSS), in MiB."""
    return _status_kib("VmRSS") / 1024


def peak_mib() -> float:
    """The most that this process held since it began, or since `forget_peak` (VmHWM), in MiB.

    Not `ru_maxrss`, which a child inherits from a larger parent; that is the answer only where /proc is not there.
    """
    kib = _status_kib("VmHWM")
    return (kib or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 1024


def forget_peak() -> None:
    """Lets `peak_mib` begin anew at what is held now, where Linux can do that."""
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5", encoding="ascii")


def cuda_peak_mib(device: torch.device) -> float | None:
    """The most of a GPU's memory that tensors took since `forget_cuda_peak`; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None


def forget_cuda_peak(device: torch.device) -> None:
    """Lets `cuda_peak_mib` begin anew, where the device is a GPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def settle() -> None:
    """Collects what is garbage and gives free pages back, so that only what is in use is counted."""
    gc.collect()
    give_freed_memory_back()


def _status_kib(name: str) -> int:
    path = Path("/proc/self/status")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)
