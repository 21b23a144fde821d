"""How many cores this process may use: its affinity, and in a container the share of time that it is given.

More threads than that are worse than none: PyTorch's threads wait for each other spinning, and one that is not running
holds up all. Knows nothing of the server.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
"""Linux' control group, version 2, as a container sees its own: quota and period in microseconds, or "max"."""


def usable_cores() -> int:
    """Cores that this process may run on, where the system tells; else all there are. At least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min(cores, _quota(cores)), 1)


def _quota(without: int) -> int:
    """Cores' worth of time that the control group is given, rounded up; `without` where it is given all."""
    try:
        quota, period = CPU_MAX.read_text().split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError, ZeroDivisionError):  # no such file; "max"; another system's form
        return without
