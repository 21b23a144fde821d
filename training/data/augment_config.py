"""Which augmentation a training makes: the table [augment] of its configuration."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How much to change. A jitter of s draws a factor from [1 - s, 1 + s]; 0, as in the paper, is off."""

    horizontal_flip: float = 0.5
    """Probability of mirroring left and right (Detectron's training: one half)."""
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    """Largest turn of the hue, in full circles, at most 0.5."""
    swapped_classes: tuple[tuple[str, str], ...] = ()
    """Pairs of class names that change places where an image is mirrored, such as [["left_light", "right_light"]]; the
    masks follow their objects (see `training.data.sides`). Classes of no pair stay what they are."""
    on_device: bool = False
    """Colours are changed where the network is, by the numbers that would be drawn anyway: for a GPU whose reading
    processes cannot keep up. Sizes are changed there always."""
    min_sizes: tuple[int, ...] = ()
    """Multi-scale training: the shorter side is drawn from these instead of being model.input.min_size; the longer
    stays within model.input.max_size (Detectron2: 640 to 800 in steps of 32; Mask R-CNN's pose: 640 to 800)."""
    min_sizes_per: Literal["image", "step"] = "image"
    """Each image its own draw, or one for all images of a step (no padding between them, less memory wasted)."""
    scale_jitter: tuple[float, float] = (1.0, 1.0)
    """Large-scale jitter: least and largest factor by which an image is scaled; of what grows beyond its frame, a part
    is cut out (0.1, 2.0 in Ghiasi et al., arXiv:2012.07177; 0.8, 1.25 is their standard one)."""

    views: int = 0
    """How many fixed ways stage "mask" sees each image in, drawn from the run's seed; 0: another one each time. The
    frozen detector then sees every image on a canvas of its own, as in answers, and what it sees can be kept
    (`data.features`)."""

    @property
    def changes_colour(self) -> bool:
        """Whether images have other colours than in evaluation."""
        return any((self.brightness, self.contrast, self.saturation, self.hue))

    @property
    def changes_size(self) -> bool:
        """Whether the network sees images at other sizes than in evaluation."""
        return bool(self.min_sizes) or self.scale_jitter != (1.0, 1.0)

    def __post_init__(self) -> None:
        for name, most in (
            ("horizontal_flip", 1.0),
            ("brightness", 1.0),
            ("contrast", 1.0),
            ("saturation", 1.0),
            ("hue", 0.5),
        ):
            value = getattr(self, name)
            if not 0.0 <= value <= most:
                raise ValueError(f"augment.{name} = {value}; expected a number from 0 to {most}")
        paired = [name for pair in self.swapped_classes for name in pair]
        if twice := sorted({name for name in paired if paired.count(name) > 1}):
            raise ValueError(
                f"augment.swapped_classes has {', '.join(map(repr, twice))} more than once; a class has one other side"
            )
        if any(side < 1 for side in self.min_sizes):
            raise ValueError(f"augment.min_sizes = {list(self.min_sizes)}; each must be 1 pixel or more")
        least, largest = self.scale_jitter
        if not 0 < least <= largest <= 10:
            raise ValueError(
                f"augment.scale_jitter = {list(self.scale_jitter)}; expected the least and the largest factor, "
                "above 0 and at most 10, such as [0.1, 2.0]"
            )
        if self.views < 0:
            raise ValueError(f"augment.views = {self.views}; give 0 (another view each time) or more")
        if self.views and (self.changes_size or self.on_device):
            raise ValueError(
                f"augment.views = {self.views} keeps the views of an image, but min_sizes, scale_jitter and on_device "
                "change it in the step; leave them out, or set views to 0"
            )
        if self.min_sizes and self.scale_jitter != (1.0, 1.0):
            raise ValueError(
                "augment.min_sizes and augment.scale_jitter both say how large an image is; set one of them"
            )
