"""A class-specific network becomes one with T: fitted on its classes, which keep the mask weights that they have."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch

from model.build import build_network
from model.checkpoint import load_network, without_pretrained
from model.classes import ClassTable
from model.config import TransferConfig
from model.masks.weight_transfer import MaskWeights
from model.network import MaskXRCNN
from training.config import TrainingConfig, config_from_dict
from training.recipes.fit_transfer.ridge import STRENGTHS, Ridge, best_ridge

Input = Literal["cls", "box", "cls+box"]
INPUTS: tuple[Input, ...] = get_args(Input)


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A finished class-specific network; `labels` are those of set A, whose mask weights were learned from masks."""

    source: Path
    network: MaskXRCNN
    config: TrainingConfig
    classes: ClassTable
    labels: tuple[int, ...]

    @property
    def names(self) -> list[str]:
        """Of the classes of `labels`."""
        return [self.classes.name_of_label(label) for label in self.labels]


def read_finished(checkpoint: Path) -> Finished:
    """The network of `checkpoint`.

    Raises:
        ValueError: no such checkpoint; its mask weights are not class-specific, or compete in a softmax.
    """
    network, classes, contents = load_network(checkpoint)
    try:
        config = config_from_dict(contents["training_config"])
    except ValueError as error:
        raise ValueError(f"{checkpoint}: {error}") from error
    if network.mask_weights.specific is None:
        raise ValueError(
            f"{checkpoint}: model.transfer.kind is {config.model.transfer.kind}, so no class has mask weights of its "
            "own to fit T on; expected class_specific, as a Mask R-CNN of torchvision or detectron2 has when it is "
            "converted (to a network of another kind training.recipes.grow adds classes as it is)"
        )
    if network.mask_softmax:
        raise ValueError(
            f"{checkpoint}: model.mask.loss is softmax, where each class's mask weights depend on those of all others; "
            "T wants a network trained by sigmoid"
        )
    return Finished(
        source=checkpoint,
        network=network,
        config=config,
        classes=classes,
        labels=tuple(classes.set_a_labels()),
    )


def transfer_config(given: Input, of: TransferConfig) -> TransferConfig:
    """T of one layer on centred and scaled rows of `given`, beside kept rows; the threshold is that of before."""
    return TransferConfig(
        kind="transfer",
        input=given,
        layers=1,
        normalise=True,
        kept_mean=True,
        kept_rows=True,
        residual=True,
        mask_threshold=of.mask_threshold,
    )


def mask_weights(finished: Finished, given: Input) -> MaskWeights:
    """The table's maker of the new network, T still unfitted: it knows the mean of w_det and the rows that stay."""
    box, specific = finished.network.box_predictor, finished.network.mask_weights
    assert specific.specific is not None and specific.bias is not None
    made = MaskWeights(
        transfer_config(given, finished.config.model.transfer),
        num_classes=finished.classes.num_classes,
        box_width=box.cls_score.weight.shape[1],
        mask_width=specific.specific.shape[1],
    )
    made.keep_mean(box.cls_score.weight, box.bbox_pred.weight)
    labels = list(finished.labels)
    made.keep_rows(labels, specific.specific[labels], specific.bias[labels])
    return made


@torch.no_grad()
def best_fits(
    finished: Finished, inputs: Sequence[Input] = INPUTS, strengths: Sequence[float] = STRENGTHS
) -> dict[Input, Ridge]:
    """For each input of T the fit that predicts left-out classes best; ValueError as `best_ridge`."""
    box, labels = finished.network.box_predictor, list(finished.labels)
    fits = {}
    for given in inputs:
        made = mask_weights(finished, given)
        assert made.kept is not None
        w_det = made.detection_weights(box.cls_score.weight, box.bbox_pred.weight)
        try:
            fits[given] = best_ridge(w_det[labels], made.kept[labels], strengths)
        except ValueError as error:
            raise ValueError(f"{finished.source}: {error}") from error
    return fits


@torch.no_grad()
def with_transfer(finished: Finished, given: Input, fit: Ridge) -> tuple[MaskXRCNN, TrainingConfig]:
    """The network with T = `fit`, and its configuration. Classes without a row of their own have the mean bias."""
    config = replace(
        finished.config,
        schedule=replace(finished.config.schedule, end_to_end_steps=0, detector_steps=0),  # the mean is kept
        model=replace(finished.config.model, transfer=transfer_config(given, finished.config.model.transfer)),
    )
    made = mask_weights(finished, given)
    assert made.transfer is not None and made.agnostic is not None and made.bias is not None
    assert made.kept_bias is not None
    (layer,) = made.transfer.layers
    assert isinstance(layer, torch.nn.Linear)
    layer.weight.copy_(fit.weight)
    layer.bias.zero_()
    made.agnostic.copy_(fit.offset)
    made.bias.copy_(made.kept_bias[list(finished.labels)].mean())
    network = build_network(without_pretrained(config.model), num_classes=finished.classes.num_classes)
    theirs = {k: v for k, v in finished.network.state_dict().items() if not k.startswith("mask_weights.")}
    network.load_state_dict(theirs | {f"mask_weights.{k}": v for k, v in made.state_dict().items()})
    return network.eval(), config
