"""Test-time augmentation: several views of an image (mirrored, at several scales) answer as one.

Each view finds its own detections; those of all views are merged (box union of Detectron), and the mask of what is
left is the mean of all views' mask probabilities on its box (Detectron's SOFT_AVG). The network is run twice
over each view, for boxes and for masks, as in Detectron2.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

import torch
from torch import Tensor
from torchvision.ops import box_iou

from model.boxes.suppression import nms_by_class
from model.canvas import Canvas
from model.inference import Inference
from model.masks.run_lengths import mask_run_lengths
from model.network import MaskXRCNN
from training.data.augment import mirrored_boxes


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """Which views, and how their boxes are merged. The default is the one plain view."""

    flip: bool = False
    """Every view mirrored left and right as well."""
    min_sizes: tuple[int, ...] = ()
    """Shorter sides of the views (Detectron: 400 to 1200 in steps of 100), the longer bounded in the model's own
    proportion. Empty: the model's own alone."""
    merge: Literal["nms", "vote"] = "nms"
    """NMS over the boxes of all views; or each box that NMS leaves becomes the mean, weighted by their scores, of all
    views' boxes of its class that overlap it (box voting: Gidaris and Komodakis, 2015)."""
    vote_iou: float = 0.9
    """Overlap from which a box has a vote (Detectron's)."""

    def __post_init__(self) -> None:
        if any(side < 1 for side in self.min_sizes) or len(set(self.min_sizes)) < len(self.min_sizes):
            raise ValueError(
                f"scales are {list(self.min_sizes)}; give different shorter sides of 1 pixel or more"
            )
        if not 0 < self.vote_iou <= 1:
            raise ValueError(f"vote_iou is {self.vote_iou}; it is above 0 and at most 1")

    @property
    def used(self) -> bool:
        """Whether there is more than the one plain view."""
        return self.flip or bool(self.min_sizes)


class Views:
    """A network that is evaluated by several views of each image; see `training.evaluate.predictions.Evaluable`.

    Args:
        network: in evaluation mode.
        config: which views.
        swapped: int64 [C+1], the label that each has in a mirrored image (`training.data.sides`); None: its own.
    """

    def __init__(self, network: MaskXRCNN, config: ViewsConfig, swapped: Tensor | None = None) -> None:
        if getattr(network, "keypoint_branch", None) is not None:
            raise ValueError(
                "keypoints of several views are not merged; evaluate this network by the plain one"
            )
        self.network = network
        self.config = config
        self.swapped = swapped

    def inference(self) -> "ViewsInference":
        """The network as it is now, in evaluation mode."""
        own = self.network.canvas
        scaled = []
        for side in self.config.min_sizes or (own.min_size,):
            served = self.network.inference()
            longest = max(round(own.max_size * side / own.min_size), side)
            served.canvas = Canvas(
                min_size=side,
                max_size=own.max_size if side == own.min_size else longest,
                step=own.step,
                mean=own.mean.flatten().tolist(),
                std=own.std.flatten().tolist(),
                round_down=own.round_down,
            ).to(own.mean.device)
            scaled.append(served)
        return ViewsInference(scaled, self.config, self.swapped)


class ViewsInference:
    """What `Views.inference` gives: `model.inference.Inference`'s answers, each from several views.

    Args:
        scaled: the network at each scale, on one device.
        config: the other views, and how they are merged.
        swapped: as of `Views`.
    """

    def __init__(
        self, scaled: Sequence[Inference], config: ViewsConfig, swapped: Tensor | None = None
    ) -> None:
        self.config = config
        self.swapped = swapped
        self.views = [
            (served, flip) for served in scaled for flip in ((False, True) if config.flip else (False,))
        ]
        self.nms_iou = scaled[0].box_predictor.nms_iou

    def __call__(
        self,
        images: list[Tensor],
        sizes: Tensor,
        score_threshold: Tensor,
        max_detections: Tensor,
        class_mask: Tensor,
        with_masks: Tensor,
    ) -> list[dict[str, Tensor]]:
        """See `Inference.forward`; the score of a merged detection is that of its best view."""
        none = torch.zeros_like(with_masks)
        found: list[list[dict[str, Tensor]]] = []
        for served, flip in self.views:
            seen = [image.flip(2) for image in images] if flip else images
            allowed = class_mask if not flip or self.swapped is None else class_mask[:, self.swapped]
            answers = served(seen, sizes, score_threshold, max_detections, allowed, none)
            for answer, (_, width) in zip(answers, sizes.tolist(), strict=True):
                if flip:
                    answer["boxes"] = mirrored_boxes(answer["boxes"], width)
                    answer["labels"] = self._of_other_sides(answer["labels"])
            found.append(answers)
        merged = []
        for i, image in enumerate(images):
            answer = self.merged([answers[i] for answers in found], int(max_detections[i]))
            height, width = sizes[i].tolist()
            boxes, labels = answer["boxes"], answer["labels"]
            offsets = torch.zeros(boxes.shape[0] + 1, dtype=torch.int64, device=boxes.device)
            counts = offsets[:0]
            if with_masks[i]:
                # In pixels of `image`, which the decoder may have scaled down from `sizes`.
                scale = boxes.new_tensor([image.shape[2] / width, image.shape[1] / height] * 2)
                counts, offsets = mask_run_lengths(
                    self.probabilities(image, boxes * scale, labels), boxes, height, width
                )
            merged.append({**answer, "rle_counts": counts, "rle_offsets": offsets})
        return merged

    def merged(self, views: Sequence[dict[str, Tensor]], max_detections: int) -> dict[str, Tensor]:
        """One image's detections of all views (`boxes`, `scores`, `labels`) as one's, the best first."""
        boxes, scores, labels = (
            torch.cat([view[key] for view in views]) for key in ("boxes", "scores", "labels")
        )
        kept = nms_by_class(boxes, scores, labels, self.nms_iou)[:max_detections]
        final = boxes[kept]
        if self.config.merge == "vote" and kept.numel():
            votes = (box_iou(final, boxes) >= self.config.vote_iou) & (labels[kept][:, None] == labels)
            weights = votes * scores.clamp(min=1e-6)
            final = weights @ boxes / weights.sum(1, keepdim=True)
        return {"boxes": final, "scores": scores[kept], "labels": labels[kept]}

    def probabilities(self, image: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        """Mask probabilities [D, M, M] on boxes (in pixels of the image): the mean over the views."""
        seen = []
        for served, flip in self.views:
            if flip:
                of_view = served.probabilities_on_boxes(
                    image.flip(2), mirrored_boxes(boxes, image.shape[2]), self._of_other_sides(labels)
                )
                seen.append(of_view.flip(2))
            else:
                seen.append(served.probabilities_on_boxes(image, boxes, labels))
        return torch.stack(seen).float().mean(0)

    def _of_other_sides(self, labels: Tensor) -> Tensor:
        """The labels that these have in a mirrored image."""
        return labels if self.swapped is None else self.swapped.to(labels.device)[labels]

    def masks_on_boxes(
        self, images: list[Tensor], boxes: list[Tensor], labels: list[Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        """See `Inference.masks_on_boxes`."""
        return [
            mask_run_lengths(self.probabilities(image, box, label), box, image.shape[1], image.shape[2])
            for image, box, label in zip(images, boxes, labels, strict=True)
        ]


def add_view_options(parser: argparse.ArgumentParser) -> None:
    """Options of a command line from which `views_of` makes a `ViewsConfig`."""
    parser.add_argument(
        "--flip",
        action="store_true",
        help="test-time augmentation: judge images and their mirror images as one",
    )
    parser.add_argument(
        "--scales",
        default="",
        metavar="SIDES",
        help="test-time augmentation: shorter sides, such as 400,600,800 (default: the model's own)",
    )
    parser.add_argument(
        "--merge",
        choices=get_args(get_type_hints(ViewsConfig)["merge"]),
        default=ViewsConfig.merge,
        help="how boxes of several views become one (default: %(default)s)",
    )


def views_of(options: argparse.Namespace) -> ViewsConfig:
    """The views that a command line asks for. Raises ValueError where its scales are not numbers."""
    try:
        sides = tuple(int(side) for side in options.scales.split(",") if side.strip())
    except ValueError as error:
        raise ValueError(
            f"--scales is {options.scales!r}; expected whole numbers such as 400,600,800"
        ) from error
    return ViewsConfig(flip=options.flip, min_sizes=sides, merge=options.merge)
