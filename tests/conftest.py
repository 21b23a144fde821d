"""What every test shares: one thread per process, the sample of COCO where it lies, no deadline."""

import os
from pathlib import Path

# For the processes that tests start, too: two test processes share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A process that is started as another user is forked, and gRPC's own hooks for that were seen to crash the child.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import hypothesis
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

torch.set_num_threads(1)

# A slow machine is no failure: no test asserts a time.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def coco_mini() -> Path:
    """Folder of a small sample of COCO, or a skip: it is no part of the repository.

    It is looked for in MASKX_COCO_MINI, then beside the repository.
    """
    named = os.environ.get("MASKX_COCO_MINI")
    folder = Path(named) if named else ROOT.parent / "shared" / "data" / "coco_mini"
    if not folder.is_dir():
        pytest.skip(f"no sample of COCO at {folder}; name its folder in MASKX_COCO_MINI")
    return folder
