"""Mask branches on one frozen detector: for classes of set A those trained without their masks, for others all of A's.

Two kinds, the transfer and the class-agnostic branch (Sec. 3.2), so that what a class of set B may expect of either is
seen on classes whose masks are known.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from model.checkpoint import load_checkpoint, load_network
from model.classes import ClassTable
from model.inference import Inference
from model.masks.weight_transfer import normalised
from training.config import TrainingConfig, changed, config_from_dict
from training.experiments.held_out import Fold, hold_out_groups
from training.experiments.variants import (
    Train,
    detector_in,
    digest,
    finished_detector,
    mask_branch_alone,
    stamp_of,
    train_in,
)
from training.join.grids import SIDE, Maps, as_maps
from training.join.objects import Placed

KINDS: dict[str, dict[str, Any]] = {
    "transfer": {},
    "agnostic": {"model.transfer": {"kind": "class_agnostic"}},
}
"""The sources that are mask branches, and how the run's own configuration is changed for each."""


class Branches(NamedTuple):
    """The checkpoints of one kind: of each group of held-out classes, and of all of set A."""

    without: list[Path]
    of_all: Path


@dataclass(frozen=True, kw_only=True)
class Heads:
    """What was trained: checkpoints by source, and which group each label of set A was held out with."""

    branches: dict[str, Branches]
    group_of: dict[int, int]
    identity: str
    """Differs where another training would give other masks."""


def train_heads(
    config: TrainingConfig, classes: ClassTable, judged: Counter[int], folder: Path, train: Train
) -> Heads:
    """Train, or take from an earlier call, every mask branch that the join asks; runs lie in `folder`.

    Set A is dealt into `config.validate_transfer.groups`; each branch learns for as many steps as the run's own, or
    where it has none, for that table's `steps`. The run's own transfer is taken where it is of this configuration; the
    detector is found as `training.experiments.transfer_form.validate` does. `judged` counts the objects of each label.

    Raises:
        ValueError: the run has no weight transfer; or see `hold_out_groups`.
    """
    if config.model.transfer.kind != "transfer":
        raise ValueError(
            f"model.transfer.kind is {config.model.transfer.kind}, but the join compares the weight transfer with "
            "other sources; give model.transfer.kind=transfer and its form as further key=value"
        )
    wanted = config.validate_transfer
    groups = hold_out_groups(classes, judged, groups=wanted.groups, seed=config.seed)
    detector = finished_detector(config) or detector_in(folder / "detector", config, train)
    stamp = stamp_of(detector, Path(config.data.train_annotations))
    branches = {}
    for kind, changes in KINDS.items():
        steps = config.schedule.mask_steps or wanted.steps
        variant = mask_branch_alone(changed(config, changes), detector, steps=steps)
        own = None if changes else _own_transfer(config, detector)
        of_all = own or train_in(folder / f"{kind}-{stamp}" / "all", variant, train)
        without = []
        for number, group in enumerate(groups):
            kept = [classes.name_of_label(label) for label in sorted(judged) if label not in group]
            fold = Fold(group, tuple(map(classes.name_of_label, group)), kept)
            of_group = folder / f"{kind}-{stamp}" / f"group{number}_{digest(config, kept=kept)}"
            split = fold.write_split(of_group)
            without.append(train_in(split.parent, changed(variant, {"data.mask_classes": str(split)}), train))
        branches[kind] = Branches(without, of_all)
    return Heads(
        branches=branches,
        group_of={label: number for number, group in enumerate(groups) for label in group},
        identity=digest(config, groups=groups, stamp=stamp),
    )


def _own_transfer(config: TrainingConfig, detector: Path) -> Path | None:
    """The run's own checkpoint, where it has the detector and a finished mask branch of this very configuration."""
    if detector != Path(config.output.dir) / "checkpoint.pt":
        return None
    contents = load_checkpoint(detector)
    before = config_from_dict(contents["training_config"])
    finished = before.schedule.steps_done(contents["step"])["mask"] == config.schedule.mask_steps > 0
    return detector if finished and digest(before) == digest(config) else None


class HeadMasks:
    """The masks of all mask branches on given boxes, each object's from the branch that has not learned its class."""

    def __init__(self, heads: Heads, device: torch.device) -> None:
        self.names = tuple(heads.branches)
        self.identity = heads.identity
        self._group_of, self._device = heads.group_of, device
        self._served: dict[str, list[Inference]] = {
            kind: [_served(path, device) for path in (*branches.without, branches.of_all)]
            for kind, branches in heads.branches.items()
        }

    @torch.no_grad()
    def of_image(
        self, pixels: NDArray[np.uint8], objects: Sequence[Placed], before: Mapping[str, Maps]
    ) -> dict[str, tuple[Maps, NDArray[np.float32] | None]]:
        """Of each source the grids of an image's objects; a mask branch claims no quality."""
        image = torch.from_numpy(pixels).permute(2, 0, 1).contiguous().to(self._device)
        boxes = torch.tensor([one.box for one in objects], device=self._device)
        labels = torch.tensor([one.label for one in objects], device=self._device)
        branch = torch.tensor([self._branch_of(one) for one in objects], device=self._device)
        features, rois = self._served[self.names[0]][0].features_on_boxes(image, boxes)
        found: dict[str, tuple[Maps, NDArray[np.float32] | None]] = {}
        for kind, served in self._served.items():
            maps = np.zeros((len(objects), SIDE, SIDE), np.uint8)
            for number in branch.unique().tolist():
                mine = branch == number
                probabilities = served[number].probabilities_on_features(features, rois[mine], labels[mine])
                maps[mine.cpu().numpy()] = as_maps(probabilities)
            found[kind] = maps, None
        return found

    def _branch_of(self, one: Placed) -> int:
        """The position of an object's branch: an object whose own mask is not known takes all that set A teaches."""
        return -1 if one.truth is None else self._group_of.get(one.label, -1)


def _served(path: Path, device: torch.device) -> Inference:
    network, _, _ = load_network(path)
    network.set_mask_threshold(0.5, [])  # probabilities are compared as they are
    return network.to(device).inference()


def likeness(heads: Heads, classes: ClassTable) -> NDArray[np.float64]:
    """How near each label's w_det is to that of a class whose masks its branch has learned: cosine, [C + 1].

    Detection weights are centred on the mean of all classes. Of a class of set A the others of its group, which were
    held out with it, do not count.
    """
    network, _, _ = load_network(heads.branches["transfer"].of_all)
    w_det = normalised(network.box_predictor.cls_score.weight.detach().double())
    cosines = (w_det @ w_det.T / w_det.shape[1]).numpy()
    nearest = np.full(classes.num_classes + 1, -1.0)
    for label in range(1, classes.num_classes + 1):
        mine = heads.group_of.get(label)
        others = [one for one, group in heads.group_of.items() if group != mine]
        nearest[label] = max((cosines[label, one] for one in others), default=-1.0)
    return nearest
