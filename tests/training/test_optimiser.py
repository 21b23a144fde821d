"""The fused optimiser takes the steps of the plain one, and goes on from its state."""

import copy
from typing import Literal

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from training.optimiser import build_optimiser, set_rate
from training.optimiser_config import OptimiserConfig

Name = Literal["sgd", "adamw"]


class Part(nn.Module):
    """Parameters of each kind, the convolution's in channels_last as the presets train it."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(8, 6, 3, bias=False)  # the norm takes a bias away again
        self.norm = nn.BatchNorm2d(6)
        self.last = nn.Linear(6, 5)

    def loss(self, seed: int) -> torch.Tensor:
        x = torch.randn(4, 8, 5, 5, generator=torch.Generator().manual_seed(seed))
        x = x.to(memory_format=torch.channels_last)
        return self.last(self.norm(self.convolution(x)).mean(dim=(2, 3))).square().sum()


def part() -> Part:
    torch.manual_seed(0)
    return Part().to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def trained(module: Part, optimiser: Optimizer, steps: range) -> list[torch.Tensor]:
    for seed in steps:
        optimiser.zero_grad()
        module.loss(seed).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return [p.detach() for p in module.parameters()]


def plain(optimiser: Optimizer) -> Optimizer:
    """The same optimiser, before its first step, one operation after the other."""
    for group in optimiser.param_groups:
        group["fused"] = None
    return optimiser


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_fused_steps_are_the_plain_ones(name: Name) -> None:
    config = OptimiserConfig(name=name, learning_rate=0.05, weight_decay=0.01)
    fused, other = part(), part()
    start = [p.detach().clone() for p in fused.parameters()]
    optimiser = build_optimiser(fused, config, "end_to_end")
    assert all(group["fused"] for group in optimiser.param_groups)
    mine = trained(fused, optimiser, range(5))
    theirs = trained(other, plain(build_optimiser(other, config, "end_to_end")), range(5))
    assert fused.convolution.weight.stride() == (72, 1, 24, 8)  # else its order would not matter
    for one, two, before in zip(mine, theirs, start, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
        assert not torch.equal(one, before)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_state_from_before_goes_on_as_it_would_have(name: Name) -> None:
    """To the same bits: a run that is resumed by a newer version is the run that was begun."""
    config = OptimiserConfig(name=name, learning_rate=0.05, weight_decay=0.01)
    before = part()
    old = plain(build_optimiser(before, config, "end_to_end"))
    trained(before, old, range(3))
    resumed = copy.deepcopy(before)
    new = build_optimiser(resumed, config, "end_to_end")
    new.load_state_dict(copy.deepcopy(old.state_dict()))
    for one, two in zip(trained(before, old, range(3, 6)), trained(resumed, new, range(3, 6)), strict=True):
        assert torch.equal(one, two)


# ---- biases with a learning rate of their own ----


def test_biases_of_convolutions_and_layers_have_twice_the_rate_and_no_decay() -> None:
    """As optimizer.py of the paper's code: gradients of biases are doubled and not decayed. Norms are none."""
    module = part()
    optimiser = build_optimiser(module, OptimiserConfig(learning_rate=0.05, bias_rate=2), "end_to_end")
    found = {id(p): (g["lr"], g["weight_decay"]) for g in optimiser.param_groups for p in g["params"]}
    assert {name: found[id(p)] for name, p in module.named_parameters()} == {
        "convolution.weight": (0.05, 1e-4),
        "norm.weight": (0.05, 0.0),
        "norm.bias": (0.05, 0.0),
        "last.weight": (0.05, 1e-4),
        "last.bias": (0.1, 0.0),
    }
    set_rate(optimiser, 0.01)  # as the schedule does before every step
    assert sorted({group["lr"] for group in optimiser.param_groups}) == [0.01, 0.02]


def test_a_step_moves_a_bias_twice_as_far_and_nothing_else() -> None:
    moved = []
    for bias_rate in (1.0, 2.0):
        module = part()
        start = {name: p.detach().clone() for name, p in module.named_parameters()}
        config = OptimiserConfig(learning_rate=0.05, bias_rate=bias_rate)
        trained(module, build_optimiser(module, config, "end_to_end"), range(1))
        moved.append({name: p.detach() - start[name] for name, p in module.named_parameters()})
    for name, by in moved[0].items():
        torch.testing.assert_close(moved[1][name], 2 * by if name == "last.bias" else by)
        assert bool(by.any())


def test_without_it_the_groups_are_those_of_before() -> None:
    """So that an optimiser's state from before fits."""
    groups = build_optimiser(part(), OptimiserConfig(), "end_to_end").param_groups
    assert [len(group["params"]) for group in groups] == [2, 3] and not any(
        "share" in group for group in groups
    )
    state = build_optimiser(part(), OptimiserConfig(bias_rate=2), "end_to_end").state_dict()
    again = build_optimiser(part(), OptimiserConfig(bias_rate=2), "end_to_end")
    again.load_state_dict(state)
    assert [group["share"] for group in again.param_groups if "share" in group] == [2]
