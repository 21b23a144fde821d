"""The network before its first step: new, with the detector of another run, or with the weights of a whole one.

Fine-tuning (`data.start_from`): every weight that fits is taken over from a checkpoint or an archive, rows of
classes by their names; classes that it does not know start with new rows. T is taken over where it reads the same.

What export has changed in an archive is changed back: normalisations were folded into the convolutions before them,
fc6 reads cell by cell, and T is a table of mask weights by then, so that T itself is not to be had.
"""

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision.ops  # noqa: F401  # the operators that an archive calls
from torch import Tensor

from model.backbones.norms import FrozenBatchNorm2d
from model.boxes.head import FCBoxHead
from model.build import build_network
from model.checkpoint import load_checkpoint, load_detector, without_pretrained
from model.classes import ClassTable
from model.config import ModelConfig, TransferConfig, model_config_from_dict
from model.files import first_few
from model.masks.class_rows import rows_of_a_class, unlike, with_rows_of
from model.masks.word_vectors import drawn_word_vectors, read_word_vectors
from model.network import MaskXRCNN
from model.serving import norms_to_fold
from training.config import TrainingConfig

METADATA = "metadata.json"
"""The extra file of an archive that tells its classes."""
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
    if network.mask_weights.is_kept is not None and not bool(network.mask_weights.is_kept.any()):
        raise ValueError(
            "model.transfer.kept_rows is true, but no class has kept its mask weights: it wants data.start_from with a "
            "checkpoint that has them (training.recipes.fit_transfer writes such); or set it to false"
        )
    return network


def fill_rows(network: MaskXRCNN, config: ModelConfig, classes: ClassTable) -> None:
    """Give T the rows that names decide where it reads such (Table 1a); ValueError as `read_word_vectors`."""
    transfer, weights = config.transfer, network.mask_weights
    if weights.rows is None:
        return
    if transfer.input == "words":
        weights.set_rows(read_word_vectors(transfer.word_vectors, classes.names, width=transfer.vector_width))
    elif transfer.random_rows == "word":
        weights.set_rows(drawn_word_vectors(classes.names, width=transfer.vector_width))


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
            f"({first_few(of_backbone, 3)}); set the [model.backbone] that it was trained with"
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
        lines += f", {len(left)} start anew ({first_few(left, 4)})"
    lines += f"; {classes.num_classes - len(fresh)} of {classes.num_classes} classes are known by name"
    if fresh:
        lines += f", new: {first_few(fresh)}"
    return lines


def is_archive(path: Path) -> bool:
    """Whether a file is a .mar or a TorchScript file."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = {name.rpartition("/")[2] for name in archive.namelist()}
    return bool({"MANIFEST.json", "constants.pkl"} & names)


def read_archive(path: Path) -> tuple[dict[str, Tensor], ClassTable]:
    """The weights of an exported network as they are in the file, and its classes.

    Raises:
        ValueError: the file is broken, or not an archive of ours.
    """
    try:
        data = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if "MAR-INF/MANIFEST.json" in archive.namelist():
                manifest = json.loads(archive.read("MAR-INF/MANIFEST.json"))
                data = archive.read(manifest["model"]["serializedFile"])
        extra: dict[str, Any] = {METADATA: ""}
        scripted = torch.jit.load(io.BytesIO(data), map_location="cpu", _extra_files=extra)
        categories = sorted(json.loads(extra[METADATA])["categories"], key=lambda one: one["label"])
        classes = ClassTable(
            ids=tuple(one["id"] for one in categories),
            names=tuple(one["name"] for one in categories),
            has_mask=tuple(one["mask_supervised"] for one in categories),
            mask_sources=tuple(one["mask_source"] for one in categories if "mask_source" in one),
        )
    except (OSError, zipfile.BadZipFile, RuntimeError, KeyError, TypeError, ValueError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise ValueError(f"{path}: not an archive of this project that can be read: {first_line}") from error
    return dict(scripted.state_dict()), classes


def as_trained(network: MaskXRCNN, served: dict[str, Tensor], classes: ClassTable) -> dict[str, Tensor]:
    """Weights of an archive under the names, and in the form, of `network`; those of T are missing.

    The mask weights that all classes share are the mean of the table's rows of set A, without one of all;
    class-specific ones are the rows themselves.

    Raises:
        ValueError: the network's normalisations use statistics of batches, which an archive does not have.
    """
    weights = dict(served)
    table, bias = weights.pop("mask_table"), weights.pop("mask_bias")
    _unfold(network, weights)
    if isinstance(network.box_head, FCBoxHead) and "box_head.fc6.weight" in weights:
        fc6, side = weights["box_head.fc6.weight"], network.box_pool.size
        if fc6.shape[1] % side**2 == 0:
            by_cell = fc6.view(fc6.shape[0], side, side, -1).permute(0, 3, 1, 2)
            weights["box_head.fc6.weight"] = by_cell.reshape(fc6.shape)
    bias_C = bias.expand(table.shape[0])
    if network.mask_weights.specific is not None:
        weights |= {"mask_weights.specific": table, "mask_weights.bias": bias_C}
    elif network.mask_weights.agnostic is not None:
        of_a = list(classes.set_a_labels() or classes.set_b_labels())
        weights |= {
            "mask_weights.agnostic": table[of_a].mean(dim=0),
            "mask_weights.bias": bias_C[of_a].mean(),
        }
    return weights


def _unfold(network: MaskXRCNN, weights: dict[str, Tensor]) -> None:
    """Give the folded backbone its normalisations back, as ones that only shift."""
    side = 2 * network.canvas.step
    name_of = {module: name for name, module in network.backbone.named_modules()}
    training = network.backbone.training
    network.backbone.eval()
    with torch.no_grad():
        norms = norms_to_fold(network.backbone, torch.zeros(1, 3, side, side))
    network.backbone.train(training)
    for name, (norm, convolution) in norms.items():
        if not isinstance(norm, FrozenBatchNorm2d):
            raise ValueError(
                "an archive holds no statistics of normalisations, they are folded into its convolutions: set "
                "model.backbone.norm=frozen, or start from the checkpoint that it was made of"
            )
        folded = weights.get(f"backbone.{name_of[convolution]}.bias")
        if folded is None:
            continue
        shift, key = folded, f"backbone.{name}."
        if convolution.bias is None:
            del weights[f"backbone.{name_of[convolution]}.bias"]
        else:
            shift = torch.zeros_like(folded)
        ones = torch.ones_like(shift)
        weights |= {f"{key}weight": ones, f"{key}bias": shift, f"{key}running_mean": ones * 0.0}
        weights[f"{key}running_var"] = ones - norm.eps
