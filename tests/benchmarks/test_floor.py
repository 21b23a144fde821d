"""Operations are counted by their definition, and rates by time."""

import itertools
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from benchmarks import clock
from benchmarks.speed.floor import flops_of, matmul_rates, network_flops
from benchmarks.speed.peer import pixels_of
from tests.benchmarks.small_bench import PROPOSALS, Bench


@pytest.mark.parametrize("winograd", [False, True])
def test_a_convolution_counts_by_its_definition(winograd: bool) -> None:
    """Computed in Winograd's form, too, which takes fewer multiplications."""
    if winograd and not torch._nnpack_available():
        pytest.skip("this PyTorch, or this processor, has no NNPACK")
    x, weight = torch.zeros(2, 8, 16, 20), torch.zeros(12, 8, 3, 3)

    def run() -> torch.Tensor:
        if winograd:
            return torch._nnpack_spatial_convolution(x, weight, None, [1, 1], [1, 1])
        return torch.conv2d(x, weight, padding=1)

    assert flops_of(run)["whole"] == 2 * 2 * (16 * 20) * (8 * 9) * 12


def test_modules_are_told_apart_and_add_up_to_the_whole() -> None:
    pair = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Sequential(torch.nn.Linear(5, 7)))
    assert flops_of(lambda: pair(torch.zeros(4, 3))) == {"whole": 400, "0": 120, "1": 280}


def test_the_networks_operations_contain_all_its_stages(bench: Bench) -> None:
    flops = network_flops(bench.ours, pixels_of(bench.picture))
    # fc6 and fc7 on each proposal, known by hand.
    assert flops["box_head"] == 2 * PROPOSALS * (256 * 49 * 1024 + 1024 * 1024)
    assert {"backbone", "box_head", "box_predictor", "mask_branch"} <= set(flops)
    assert sum(value for name, value in flops.items() if name.startswith("rpn")) > 0
    assert sum(flops.values()) <= 2 * flops["whole"]
    assert 2 * flops["whole"] - sum(flops.values()) < 0.01 * flops["whole"]


def test_the_rate_is_operations_over_the_fastest_run(monkeypatch: pytest.MonkeyPatch) -> None:
    durations = itertools.chain([0.5, 0.25], itertools.repeat(1.0))

    def ticks() -> Iterator[float]:
        now = 0.0
        while True:
            yield now
            now += next(durations)
            yield now

    ticking = ticks()
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: next(ticking)))
    rates = matmul_rates("float32", "cpu", sides=(8,), seconds=3.0)
    assert rates == {"8": 2 * 8**3 / 0.25}
