"""Memory that a step of the training frees is there for the next one."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

STEPS = """
import ctypes
import resource
import torch
from training.process import keep_freed_memory

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: a huge page is asked for once, whatever its size
ctypes.CDLL(None).mallopt(-3, 2**20)  # M_MMAP_THRESHOLD, which glibc else moves: then where the heap lies decides

def asked_for_anew():
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        parts = [torch.ones(10 * 2**18) for _ in range(4)]  # 10 MiB each
        del parts
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = asked_for_anew()
kept = keep_freed_memory()
print([before, kept, asked_for_anew()])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_what_a_step_frees_the_next_one_has_without_asking_the_kernel(root: Path) -> None:
    """40 MiB are 10 240 pages of 4 KiB."""
    pages = 40 * 2**20 // resource.getpagesize()
    answer = subprocess.run(
        [sys.executable, "-c", STEPS], cwd=root, capture_output=True, text=True, check=True
    )
    before, kept, after = json.loads(answer.stdout.replace("True", "true").replace("False", "false"))
    if not kept:
        pytest.skip("this system's malloc has no such settings")
    assert before > 0.9 * pages
    assert after < pages / 50
