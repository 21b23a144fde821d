"""What every test shares: one thread per process, the sample of COCO where it lies, no deadline."""

import os
from collections.abc import Iterator
from pathlib import Path

# For the processes that tests start, too: two test processes share two cores. OMP_NUM_THREADS=2 tries two threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A process that is started as another user is forked, and gRPC's own hooks for that were seen to crash the child.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import hypothesis
import pytest
import torch

from maskx_engine import give_freed_memory_back
from tests.served.standin import write_standin

ROOT = Path(__file__).resolve().parent.parent

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"].partition(",")[0]))

# A slow machine is no failure: no test asserts a time.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


@pytest.fixture(scope="session", autouse=True)
def nothing_tells_malloc_to_keep_what_is_freed() -> Iterator[None]:
    """Serving and training do, for the life of a process, and this one lives through all tests.

    What they tell it is tested in processes of their own.
    """
    with pytest.MonkeyPatch.context() as patched:
        for user in ("maskx_model", "training.train"):
            patched.setattr(f"{user}.keep_freed_memory", lambda: True)
        yield


@pytest.fixture(autouse=True)
def freed_memory_goes_back() -> Iterator[None]:
    """By itself glibc keeps most of it: 1.4 GB after the export of a ResNeXt-101, of which nothing was in use."""
    yield
    give_freed_memory_back()


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The maskx.pt of a stand-in for the network, in a folder of its own."""
    return write_standin(tmp_path_factory.mktemp("standin") / "maskx.pt")


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
