"""The network before its first step: new, with the detector of another run, or with the weights of a whole one.

Fine-tuning (`data.start_from`): every weight that fits is taken over from a checkpoint or an archive, rows of
classes by their names; classes that it does not know start with new rows. T is taken over where it reads the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from model.build import build_network
from model.checkpoint import load_checkpoint, load_detector, without_pretrained
from model.classes import ClassTable
from model.config import ModelConfig, TransferConfig, model_config_from_dict
from model.masks.class_rows import rows_of_a_class, unlike, with_rows_of
from model.masks.word_vectors import read_word_vectors
from model.network import MaskXRCNN
from training.archive_weights import as_trained, is_archive, read_archive
from training.config import TrainingConfig

T_READS = ("input", "layers", "activation", "normalise", "residual")
"""Settings that make another function of T."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a fine-tuning starts.

    `weights` by the names of the network that is trained (of an archive still as they are in the file);
    `transfer`: how T was configured, None for an archive.
    """

    source: str
    weights: dict[str, Tensor]
    classes: ClassTable
    transfer: TransferConfig | None


def starting_network(config: TrainingConfig, classes: ClassTable, *, from_checkpoint: bool) -> MaskXRCNN:
    """The network before its first step; `from_checkpoint`: with weights that are about to be replaced.

    With both `data.start_from` and `data.detector_from`, the detector is the latter's.

    Raises:
        ValueError: a file that weights or word vectors come from is missing or does not fit.
    """
    if from_checkpoint:
        return build_network(without_pretrained(config.model), num_classes=classes.num_classes)
    taken = bool(config.data.detector_from or config.data.start_from)
    model = without_pretrained(config.model) if taken else config.model
    network = build_network(model, num_classes=classes.num_classes)
    fill_rows(network, config.model, classes)
    if config.data.start_from:
        print(take_over(network, read_start(config.data.start_from), config.model, classes))
    if config.data.detector_from:
        load_detector(network, config.data.detector_from, classes)
    if network.mask_weights.mean is not None and not bool(network.mask_weights.mean.isfinite().all()):
        raise ValueError(
            "model.transfer.kept_mean is true, but no mean was kept: it wants data.start_from with a checkpoint "
            "that has it (training.recipes.grow and training.recipes.two_stage write such); or set it to false"
        )
    return network


def fill_rows(network: MaskXRCNN, config: ModelConfig, classes: ClassTable) -> None:
    """Give T its rows of word vectors where it reads them (Table 1a); ValueError as `read_word_vectors`."""
    transfer = config.transfer
    if transfer.input == "words" and network.mask_weights.rows is not None:
        rows = read_word_vectors(transfer.word_vectors, classes.names, width=transfer.vector_width)
        network.mask_weights.set_rows(rows)


def read_start(path: str | Path) -> Start:
    """A checkpoint or an archive to start from; ValueError where it is neither, or broken."""
    path = Path(path)
    if path.is_file() and is_archive(path):
        weights, classes = read_archive(path)
        return Start(source=str(path), weights=weights, classes=classes, transfer=None)
    contents = load_checkpoint(path)
    try:
        classes = ClassTable.from_dict(contents["classes"])
        transfer = model_config_from_dict(contents["model_config"]).transfer
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return Start(source=str(path), weights=contents["model"], classes=classes, transfer=transfer)


def new_labels(start: Start, classes: ClassTable) -> tuple[int, ...]:
    """Labels of the classes that a start does not know by name; ValueError where it knows them all."""
    labels = tuple(
        label for label, name in enumerate(classes.names, start=1) if name not in start.classes.names
    )
    if not labels:
        raise ValueError(
            f"{start.source}: knows all {classes.num_classes} classes of the data, so schedule.classes_steps has none "
            "to train; for training on with all weights take another stage"
        )
    return labels


def take_over(network: MaskXRCNN, start: Start, config: ModelConfig, classes: ClassTable) -> str:
    """Give `network` all weights of a start that fit, and say which did not.

    Args:
        network: new, of the configuration `config` and the classes `classes`.

    Raises:
        ValueError: the backbones differ, so that nothing above them could make sense of its features.
    """
    own = network.state_dict()
    weights = start.weights
    if start.transfer is None:
        try:
            weights = as_trained(network, weights, start.classes)
        except ValueError as error:
            raise ValueError(f"{start.source}: {error}") from error
    left = unlike(weights, own)
    if of_backbone := [name for name in left if name.startswith("backbone.")]:
        raise ValueError(
            f"{start.source}: {len(of_backbone)} weights of its backbone are missing or of another shape "
            f"({', '.join(of_backbone[:3])}, ...); set the [model.backbone] that it was trained with"
        )
    of_t = [name for name in own if name.startswith("mask_weights.transfer.")]
    if start.transfer is not None and any(
        getattr(start.transfer, name) != getattr(config.transfer, name) for name in T_READS
    ):
        left += [name for name in of_t if name not in left]
    if config.transfer.input == "words":
        left += [name for name in own if name == "mask_weights.rows" and name not in left]
    for name in own.keys() - set(left):
        rows = rows_of_a_class(name, own[name])
        if rows:
            own[name] = with_rows_of(own[name], weights[name], start.classes.names, classes.names, rows)
        else:
            own[name] = weights[name]
    network.load_state_dict(own)
    if network.mask_weights.mean is not None and "mask_weights.mean" in left and start.transfer is not None:
        keep_mean_of(network, weights)
        left.remove("mask_weights.mean")
    return _report(start, classes, taken=len(own) - len(left), left=left)


def keep_mean_of(network: MaskXRCNN, weights: dict[str, Tensor]) -> None:
    """Keep the mean over the classes that the network of `weights` has (`model.transfer.kept_mean`)."""
    network.mask_weights.keep_mean(
        weights["box_predictor.cls_score.weight"],
        weights["box_predictor.bbox_pred.weight"],
        weights.get("mask_weights.rows"),
    )


def _report(start: Start, classes: ClassTable, *, taken: int, left: list[str]) -> str:
    fresh = [name for name in classes.names if name not in start.classes.names]
    lines = f"{start.source}: {taken} weights taken over"
    if left:
        lines += f", {len(left)} start anew ({', '.join(left[:4])}{', ...' if len(left) > 4 else ''})"
    lines += f"; {classes.num_classes - len(fresh)} of {classes.num_classes} classes are known by name"
    if fresh:
        lines += f", new: {', '.join(fresh[:8])}{', ...' if len(fresh) > 8 else ''}"
    return lines
