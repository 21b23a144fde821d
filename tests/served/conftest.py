"""Two servers with the stand-in for all tests that only ask them: TorchServe's, and for tests with the marker `engines`
the light server's too.

With MASKX_TEST_COMPILED=1 in the environment all of them run it with compiled parts, which takes a C++ compiler."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from export.archive import ROOT, build_archive
from server.processes import TORCHSERVE
from tests.served.compiled_standin import (
    kept_libraries,
    record_of,
    why_not_compiled,
    write_package,
    write_staged_standin,
)
from tests.served.machine import Machine, serving
from tests.served.upstream import Answer, Upstream, upstream


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test runs with TorchServe, or with each of the engines that its marker names, of the test or of its file."""
    if "engine" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("engines")
        engines = marker.args if marker is not None else (TORCHSERVE,)
        metafunc.parametrize("engine", engines, scope="session")


COMPILED = os.environ.get("MASKX_TEST_COMPILED", "") not in ("", "0")


@pytest.fixture(scope="session")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The maskx.pt of the stand-in in stages."""
    return write_staged_standin(tmp_path_factory.mktemp("staged") / "maskx.pt")


@pytest.fixture(scope="session")
def staged_package(staged: Path) -> Path:
    """Its package, of libraries compiled here and kept in build/, or a skip."""
    if reason := why_not_compiled():
        pytest.skip(reason)
    libraries = kept_libraries(ROOT / "build" / "compiled-standin")
    return write_package(staged.with_suffix(".pt2"), record_of(staged), libraries)


@pytest.fixture(scope="session")
def served_standin(request: pytest.FixtureRequest) -> tuple[Path, Path | None]:
    """What is served in the network's place, and the package of its compiled parts."""
    if COMPILED:
        return request.getfixturevalue("staged"), request.getfixturevalue("staged_package")
    return request.getfixturevalue("standin"), None


@pytest.fixture(scope="session")
def standin_archive(
    served_standin: tuple[Path, Path | None], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Packs the stand-in with the shipped model-config.yaml, changed by the keys given."""
    torchscript, package = served_standin
    folder = tmp_path_factory.mktemp("archives")

    def pack(name: str, *, version: str = "1.0", **changes: Any) -> Path:
        config = yaml.safe_load((ROOT / "serve_config" / "model-config.yaml").read_text())
        made = Path(tempfile.mkdtemp(prefix=name, dir=folder))
        configuration = made / "model-config.yaml"
        configuration.write_text(yaml.safe_dump({**config, **changes}))
        archive = made / "maskx.mar"
        build_archive(torchscript, archive, version=version, configuration=configuration, package=package)
        return archive

    return pack


@pytest.fixture(scope="session")
def shared(
    standin_archive: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Machine]]:
    """Serves the stand-in, by an engine and with changes of its configuration; what is asked for again is there still.

    A fixture with the parameter `engine` would end its server whenever the next test has the other engine, so in each
    file once more.
    """
    started: dict[tuple[object, ...], Machine] = {}
    with ExitStack() as stack:

        def served(engine: str, **changes: Any) -> Machine:
            key = (engine, *sorted(changes.items()))
            if key not in started:
                archive = standin_archive("shared", **changes)
                machine = serving(tmp_path_factory.mktemp("machine"), archive, "--engine", engine)
                started[key] = stack.enter_context(machine)
            return started[key]

        yield served


@pytest.fixture(scope="session")
def server(shared: Callable[..., Machine], engine: str) -> Machine:
    """The stand-in, served with batches of what there is, so that nobody waits for more."""
    return shared(engine, batchSize=4, maxBatchDelay=1)


@pytest.fixture(scope="session")
def batched(shared: Callable[..., Machine], engine: str) -> Machine:
    """The stand-in, served with batches of 8 that are waited for."""
    return shared(engine, batchSize=8, maxBatchDelay=300)


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
