"""The small bench, made once a process; nobody changes it."""

import pytest

from tests.benchmarks.small_bench import Bench, make_bench


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make_bench(tmp_path_factory.mktemp("bench"))
