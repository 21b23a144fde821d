"""What every test shares: one thread per process, the sample of COCO where it lies, one server at a time."""

import os
from pathlib import Path

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # the processes that tests start; two test processes share two cores

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with a real server run in one process, one after the other, so that one server serves them all."""
    for item in items:
        if (ROOT / "tests" / "served") in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("served"))


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
