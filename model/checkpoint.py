"""Checkpoints: weights, configuration, class split and the state of the training, in one file.

A file is written whole or not at all, and holds only tensors and plain values, so that it is read with
`weights_only=True`: a checkpoint from somebody else runs no code.
"""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, is_zipfile

import torch
from torch import Tensor

from model.build import build_network
from model.classes import ClassTable
from model.config import ModelConfig, model_config_from_dict
from model.files import first_few, whole
from model.keypoints.layout import keypoint_labels
from model.network import MaskXRCNN

FORMAT = 1
"""Raised whenever a reader of the old form could not read the new one."""
KEYS = ("format", "model", "model_config", "training_config", "classes", "step")
"""What every checkpoint has; a training adds what it needs to go on."""
_MASK_SIDE = ("mask_branch.", "mask_weights.", "keypoint_branch.")


def save_checkpoint(path: str | Path, contents: dict[str, Any]) -> None:
    """Write `contents` (tensors and plain values, with `KEYS`) to `path`, whole or not at all (`model.files.whole`).

    Raises:
        ValueError: the file cannot be written (no room, no right); the old one is still there.
    """
    path = Path(path)
    missing = [key for key in KEYS if key not in contents]
    assert not missing, f"a checkpoint needs {missing}"
    try:
        with whole(path) as file:
            torch.save(contents, file)
    except OSError as error:
        raise ValueError(f"{path} could not be written: {error.strerror or error}") from error


def load_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """The contents of a checkpoint, its tensors on `device`.

    Raises:
        ValueError: no such file, no checkpoint of ours, a broken file, or a newer form.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint; train first, or give the path of one")
    if not is_zipfile(path):
        raise ValueError(f"{path}: not a checkpoint that can be read: cut off, or of another kind")
    try:
        contents = torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, BadZipFile, OSError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise ValueError(f"{path}: not a checkpoint that can be read: {first_line}") from error
    if not isinstance(contents, dict) or any(key not in contents for key in KEYS):
        found = sorted(map(str, contents)) if isinstance(contents, dict) else type(contents).__name__
        raise ValueError(f"{path}: not a checkpoint of this project; expected the keys {KEYS}, found {found}")
    if contents["format"] != FORMAT:
        raise ValueError(f"{path}: checkpoint of format {contents['format']}; this version reads {FORMAT}")
    return contents


def load_network(path: str | Path) -> tuple[MaskXRCNN, ClassTable, dict[str, Any]]:
    """The network of a checkpoint on the CPU in evaluation mode, its classes, and the whole contents.

    Raises:
        ValueError: see `load_checkpoint`; or configuration and weights do not belong together.
    """
    contents = load_checkpoint(path)
    try:
        classes = ClassTable.from_dict(contents["classes"])
        config = model_config_from_dict(contents["model_config"])
        network = build_network(without_pretrained(config), num_classes=classes.num_classes)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    load_weights(network, contents["model"], source=str(path))
    network.set_mask_threshold(config.transfer.mask_threshold, classes.set_b_labels())
    network.set_keypoint_labels(keypoint_labels(config.keypoints, classes))
    return network.eval(), classes, contents


def load_detector(network: MaskXRCNN, path: str | Path, classes: ClassTable) -> None:
    """Take everything but the mask branch and T from the checkpoint at `path`: a finished detector.

    Raises:
        ValueError: see `load_checkpoint`; other classes, or another detector than `network`'s.
    """
    contents = load_checkpoint(path)
    theirs = ClassTable.from_dict(contents["classes"])
    if (theirs.ids, theirs.names) != (classes.ids, classes.names):
        raise ValueError(
            f"{path}: a detector of {theirs.num_classes} classes ({first_few(theirs.names, 5)}); "
            f"the data has {classes.num_classes} ({first_few(classes.names, 5)}), and ids and names must be the same"
        )
    own = network.state_dict()
    weights = {key: value for key, value in contents["model"].items() if not key.startswith(_MASK_SIDE)}
    weights |= {key: value for key, value in own.items() if key.startswith(_MASK_SIDE)}
    load_weights(network, weights, source=str(path))


def load_weights(network: MaskXRCNN, weights: dict[str, Tensor], *, source: str) -> None:
    """`load_state_dict` with a ValueError that names `source` and the first keys that do not fit."""
    own = network.state_dict()
    differing = [key for key in own if key not in weights] + [key for key in weights if key not in own]
    differing += [key for key in own if key in weights and own[key].shape != weights[key].shape]
    if differing:
        raise ValueError(
            f"{source}: {len(differing)} weights are missing, left over or of another shape than the "
            f"configuration asks for ({first_few(differing, 5)}); set the [model] that these weights were trained with"
        )
    network.load_state_dict(weights)


def without_pretrained(config: ModelConfig) -> ModelConfig:
    """The same network, with nothing downloaded: for weights that come from a checkpoint."""
    return replace(config, backbone=replace(config.backbone, weights="none"))
