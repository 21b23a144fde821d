"""Weights of an exported network (.mar, or the TorchScript file in it), in the form of the network that is trained.

What export has changed is changed back: normalisations were folded into the convolutions before them, fc6 reads
cell by cell, and T is a table of mask weights by then, so that T itself is not to be had.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import torch
import torchvision.ops  # noqa: F401  # the operators that the file calls
from torch import Tensor

from model.backbones.norms import FrozenBatchNorm2d
from model.boxes.head import FCBoxHead
from model.classes import ClassTable
from model.network import MaskXRCNN
from model.serving import norms_to_fold

METADATA = "metadata.json"


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
        )
    except (OSError, zipfile.BadZipFile, RuntimeError, KeyError, TypeError, ValueError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise ValueError(f"{path}: not an archive of this project that can be read: {first_line}") from error
    return dict(scripted.state_dict()), classes


def as_trained(network: MaskXRCNN, served: dict[str, Tensor], classes: ClassTable) -> dict[str, Tensor]:
    """Weights of an archive under the names, and in the form, of `network`; those of T are missing.

    The mask weights that all classes share are the mean of the table's rows of set A; class-specific ones are
    the rows themselves.

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
        of_a = list(classes.set_a_labels())
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
