"""Two TorchServes with the stand-in for all tests that only ask them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from export.archive import ROOT, build_archive
from tests.served.machine import Machine, serving
from tests.served.upstream import Answer, Upstream, upstream


@pytest.fixture(scope="session")
def standin_archive(standin: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Packs the stand-in with the shipped model-config.yaml, changed by the keys given."""
    folder = tmp_path_factory.mktemp("archives")

    def pack(name: str, *, version: str = "1.0", **changes: Any) -> Path:
        config = yaml.safe_load((ROOT / "serve_config" / "model-config.yaml").read_text())
        (folder / name).mkdir()
        configuration = folder / name / "model-config.yaml"
        configuration.write_text(yaml.safe_dump({**config, **changes}))
        archive = folder / name / "maskx.mar"
        build_archive(standin, archive, version=version, configuration=configuration)
        return archive

    return pack


@pytest.fixture(scope="session")
def server(
    standin_archive: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machine]:
    """The stand-in, served with batches of what there is, so that nobody waits for more."""
    archive = standin_archive("quick", batchSize=4, maxBatchDelay=1)
    with serving(tmp_path_factory.mktemp("machine"), archive) as machine:
        yield machine


@pytest.fixture(scope="session")
def batched(
    standin_archive: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machine]:
    """The stand-in, served with batches of 8 that are waited for."""
    archive = standin_archive("batched", batchSize=8, maxBatchDelay=300)
    with serving(tmp_path_factory.mktemp("batched"), archive) as machine:
        yield machine


@pytest.fixture(scope="module")
def behind() -> Iterator[Upstream]:
    """A server in TorchServe's place."""
    with upstream() as made:
        yield made


@pytest.fixture
def fresh(behind: Upstream) -> None:
    """It has seen nothing, and answers as at first."""
    behind.seen.clear()
    behind.answer = lambda _: Answer()
