"""Which keypoints an object has: names, mirror images and tolerances (COCO keypoints; Mask R-CNN, Sec. 5)."""

from dataclasses import dataclass
from typing import Literal

from model.classes import ClassTable

Pairs = tuple[tuple[str, str], ...]

COCO_NAMES: tuple[str, ...] = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip
"""The 17 keypoints of COCO's persons, in its order."""

COCO_SIGMAS: tuple[float, ...] = (
    0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089,
    0.089,
)  # fmt: skip
"""How far annotators were apart, by which object keypoint similarity forgives (pycocotools)."""

COCO_SKELETON: Pairs = (
    ("left_ankle", "left_knee"), ("left_knee", "left_hip"), ("right_ankle", "right_knee"), ("right_knee", "right_hip"),
    ("left_hip", "right_hip"), ("left_shoulder", "left_hip"), ("right_shoulder", "right_hip"),
    ("left_shoulder", "right_shoulder"), ("left_shoulder", "left_elbow"), ("right_shoulder", "right_elbow"),
    ("left_elbow", "left_wrist"), ("right_elbow", "right_wrist"), ("left_eye", "right_eye"), ("nose", "left_eye"),
    ("nose", "right_eye"), ("left_eye", "left_ear"), ("right_eye", "right_ear"), ("left_ear", "left_shoulder"),
    ("right_ear", "right_shoulder"),
)  # fmt: skip
"""What a drawing joins by lines (the category of COCO's person_keypoints files)."""

OWN_SIGMA = 0.07
"""Of keypoints without sigmas of their own: near the mean of COCO's."""


@dataclass(frozen=True, kw_only=True)
class KeypointsConfig:
    """The keypoints of an object and the branch that finds them (Mask R-CNN, Sec. 5); off by default.

    They are found beside the masks, on the same RoIs, and trained in the stages that train masks.
    """

    layout: Literal["none", "coco", "own"] = "none"
    """No keypoints, the 17 of COCO's persons, or those of `names`."""
    names: tuple[str, ...] = ()
    """Of layout "own": as the category's `keypoints` in the annotation file, in that order."""
    flip_pairs: Pairs = ()
    """Of layout "own": two names that change places where an image is mirrored. Absent: names that differ by
    "left" and "right" alone."""
    sigmas: tuple[float, ...] = ()
    """Of layout "own": one for each name, see `COCO_SIGMAS`. Absent: `OWN_SIGMA` for all."""
    skeleton: Pairs = ()
    """Of layout "own": pairs of names that a drawing joins."""
    classes: tuple[str, ...] = ()
    """Names of the classes that have keypoints. Absent: all."""
    width: int = 512
    """Channels of the branch's convolutions (the paper: 512)."""
    convolutions: int = 8
    roi_size: int = 14
    """Side of the crop; that of a keypoint's mask is four times as much (the paper: 56)."""
    sampling_ratio: int = 2
    """As `model.box.sampling_ratio`, of the keypoint branch."""

    def __post_init__(self) -> None:
        if min(self.width, self.convolutions, self.roi_size, self.sampling_ratio + 1) < 1:
            raise ValueError(
                f"width is {self.width}, convolutions {self.convolutions}, roi_size {self.roi_size}, sampling_ratio "
                f"{self.sampling_ratio}; give 1 or more each, of the last 0 or more"
            )
        if self.layout != "own":
            if self.names or self.flip_pairs or self.sigmas or self.skeleton:
                raise ValueError(
                    f"layout is {self.layout}, but names, flip_pairs, sigmas or skeleton are given; they belong to "
                    'layout "own"'
                )
            if self.layout == "none" and self.classes:
                raise ValueError(
                    f'classes are {list(self.classes)}, but layout is none; set it to "coco" or "own"'
                )
            return
        if not self.names:
            raise ValueError('layout is own, but names is empty; name the keypoints, or take layout "coco"')
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"names are {list(self.names)}; each keypoint needs a name of its own")
        if self.sigmas and len(self.sigmas) != len(self.names):
            raise ValueError(
                f"{len(self.sigmas)} sigmas for {len(self.names)} names; give one for each, or none"
            )
        if any(not sigma > 0 for sigma in self.sigmas):
            raise ValueError(f"sigmas are {list(self.sigmas)}; each must be above 0")
        for what, pairs in (("flip_pairs", self.flip_pairs), ("skeleton", self.skeleton)):
            strangers = sorted({name for pair in pairs for name in pair} - set(self.names))
            if strangers:
                raise ValueError(f"{what} has {strangers}, which are not among names {list(self.names)}")
        paired = [name for pair in self.flip_pairs for name in pair]
        if len(set(paired)) < len(paired):
            raise ValueError(f"flip_pairs are {self.flip_pairs}; a keypoint has one mirror image at most")

    @property
    def used(self) -> bool:
        """Whether there are keypoints."""
        return self.layout != "none"

    @property
    def all_names(self) -> tuple[str, ...]:
        """The K names."""
        return COCO_NAMES if self.layout == "coco" else self.names

    @property
    def all_sigmas(self) -> tuple[float, ...]:
        """One of each keypoint."""
        return COCO_SIGMAS if self.layout == "coco" else self.sigmas or (OWN_SIGMA,) * len(self.names)

    @property
    def mirrored(self) -> tuple[int, ...]:
        """Of each keypoint the number of the one that stands in its place in a mirrored image."""
        names = self.all_names
        pairs = self.flip_pairs or tuple(
            (name, name.replace("left", "right", 1))
            for name in names
            if "left" in name and name.replace("left", "right", 1) in names
        )
        other = dict(pairs) | {right: left for left, right in pairs}
        return tuple(names.index(other.get(name, name)) for name in names)

    @property
    def lines(self) -> tuple[tuple[int, int], ...]:
        """The skeleton by the keypoints' numbers."""
        names = self.all_names
        pairs = COCO_SKELETON if self.layout == "coco" else self.skeleton
        return tuple((names.index(one), names.index(other)) for one, other in pairs)


def keypoint_labels(config: KeypointsConfig, classes: ClassTable) -> list[int]:
    """Labels of the classes that have keypoints.

    Raises:
        ValueError: one of `model.keypoints.classes` is not in the table.
    """
    if not config.used:
        return []
    try:
        return [classes.label_of_name(name) for name in config.classes or classes.names]
    except ValueError as error:
        raise ValueError(f"model.keypoints.classes: {error}") from error
