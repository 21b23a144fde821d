"""The optimiser of one stage: which parameters, with which decay (SGD as in the paper's own code, or AdamW)."""

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import SGD, AdamW, Optimizer

from training.optimiser_config import OptimiserConfig
from training.schedule import Stage

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm)
_TRANSFER = "mask_weights.transfer."
_SHARE = "share"
"""Key of a group whose learning rate is another than the optimiser's: how many times as large it is."""


def build_optimiser(network: nn.Module, config: OptimiserConfig, stage: Stage) -> Optimizer:
    """An optimiser over the parameters of `network` that require a gradient, all of them, each once.

    Three groups: what decays, what does not (biases, scales of normalisations), and T with its own decay; with a
    `bias_rate` other than 1 a fourth, biases, those of normalisations aside. Torch's fused form, one kernel for each
    parameter: on a CPU AdamW takes a fifth of the time. It goes through a parameter and its gradient in the order of
    memory, which autograd keeps the same for both. A state from before goes on unfused.
    """
    decay, no_decay, transfer = [], [], []
    biases: list[nn.Parameter] = []
    of_norms = {
        id(p) for m in network.modules() if isinstance(m, _NORMS) for p in m.parameters(recurse=False)
    }
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in of_norms:
            no_decay.append(parameter)
        elif name.rpartition(".")[2] == "bias":
            (no_decay if config.bias_rate == 1 else biases).append(parameter)
        elif name.startswith(_TRANSFER):
            transfer.append(parameter)
        else:
            decay.append(parameter)
    of_transfer = config.transfer_weight_decay
    groups = [
        {"params": decay, "weight_decay": config.weight_decay},
        {"params": no_decay, "weight_decay": 0.0},
        {"params": transfer, "weight_decay": config.weight_decay if of_transfer is None else of_transfer},
        {"params": biases, "weight_decay": 0.0, _SHARE: config.bias_rate},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ValueError(f"stage {stage} has no parameter to train with this [model]")
    rate = peak_rate(config, stage)
    if config.name == "sgd":
        optimiser: Optimizer = SGD(groups, lr=rate, momentum=config.momentum, fused=True)
    else:
        optimiser = AdamW(groups, lr=rate, fused=True)
    set_rate(optimiser, rate)
    return optimiser


def peak_rate(config: OptimiserConfig, stage: Stage) -> float:
    """The highest learning rate of a stage."""
    if stage == "mask" and config.mask_learning_rate is not None:
        return config.mask_learning_rate
    return config.learning_rate


def set_rate(optimiser: Optimizer, rate: float) -> None:
    """Give all parameter groups the learning rate `rate`, or their share of it."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group.get(_SHARE, 1.0)
