"""The network as it is served: T baked into a table, images in, boxes and run lengths out (TorchScript-ready).

Evaluation and export run this very code; there is no second implementation.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.profiler import record_function
from torchvision.ops import clip_boxes_to_image, nms

from model.box_branch import BoxHead, BoxPredictor, ConvBoxHead, ConvFCBoxHead
from model.box_coding import decode_boxes
from model.c4 import Res5BoxHead
from model.canvas import Canvas
from model.keypoint_branch import KeypointBranch
from model.mask_branch import MaskBranch
from model.object_prior import object_prior
from model.pooling import PyramidRoIAlign, bucket_of
from model.rpn import CrowdAwareRPN
from model.run_lengths import mask_run_lengths


class Inference(nn.Module):
    """Mask^X R-CNN for one batch; every wish (threshold, count, classes, masks) is per image.

    Backbone, RPN head, box head and mask branch compute in the type of their weights, which may be float32, bfloat16 or
    float16; anchors, boxes, scores, NMS and run lengths are float32 always. Each stage has a name for the profiler.
    """

    mask_table: Tensor
    mask_bias: Tensor
    pixels_together: int
    mask_prior: torch.jit.Final[bool]
    mask_on_res5: torch.jit.Final[bool]

    def __init__(
        self,
        *,
        canvas: Canvas,
        backbone: nn.Module,
        rpn: CrowdAwareRPN,
        box_pool: PyramidRoIAlign,
        box_head: BoxHead | ConvBoxHead | ConvFCBoxHead | Res5BoxHead,
        box_predictor: BoxPredictor,
        mask_pool: PyramidRoIAlign,
        mask_branch: MaskBranch,
        mask_table: Tensor,
        mask_bias: Tensor,
        keypoint_branch: KeypointBranch | None = None,
        mask_prior: bool,
        mask_on_res5: bool = False,
        nms_iou: float,
        candidates_per_image: int,
    ) -> None:
        super().__init__()
        self.canvas = canvas
        self.backbone = backbone
        self.rpn = rpn
        self.box_pool = box_pool
        self.box_head = box_head
        self.box_predictor = box_predictor
        self.mask_pool = mask_pool
        self.mask_branch = mask_branch
        self.keypoint_branch = keypoint_branch
        self.register_buffer("mask_table", mask_table.detach().clone())
        self.register_buffer("mask_bias", mask_bias.detach().clone())
        self.mask_prior = mask_prior
        self.mask_on_res5 = mask_on_res5
        self.nms_iou = nms_iou
        self.candidates_per_image = candidates_per_image
        self.pixels_together = 0
        """Pixels of canvas that go through the network together, which bounds its memory; 0 for no bound. For whoever
        loads the network to set; at least one image goes."""

    def forward(
        self,
        images: list[Tensor],
        sizes: Tensor,
        score_threshold: Tensor,
        max_detections: Tensor,
        class_mask: Tensor,
        with_masks: Tensor,
    ) -> list[dict[str, Tensor]]:
        """Detect and segment.

        Args:
            images: uint8 [3, h, w], RGB, upright; any sizes, perhaps already scaled down by the decoder.
            sizes: int64 [N, 2], height and width of the upright originals, whose pixels the answers use.
            score_threshold: float32 [N], least class probability.
            max_detections: int64 [N], at most this many detections, the best first.
            class_mask: bool [N, C+1], the labels asked for; entry 0 (background) is never answered.
            with_masks: bool [N]; false leaves the run lengths of an image empty.

        Returns:
            Per image `boxes` float32 [D, 4] XYXY, `scores` [D], `labels` int64 [D], `rle_counts` int64
            (column-major run lengths of all masks, one after the other) and `rle_offsets` int64 [D+1]; of a network
            with keypoints also `keypoints` float32 [D, K, 3] (x, y, score; `model.keypoint_branch`).
        """
        answers: list[dict[str, Tensor]] = []
        for _ in range(len(images)):
            answers.append({})
        done: list[bool] = [False] * len(images)
        for first in range(len(images)):
            if not done[first]:
                height, width = self.canvas.padded_size_of(images[first])
                group: list[int] = []
                for i in range(first, len(images)):
                    h, w = self.canvas.padded_size_of(images[i])
                    if not done[i] and h == height and w == width:
                        group.append(i)
                        done[i] = True
                together = len(group)
                if self.pixels_together > 0:
                    together = max(self.pixels_together // (height * width), 1)
                for start in range(0, len(group), together):
                    part = group[start : start + together]
                    index = torch.tensor(part, dtype=torch.int64, device=sizes.device)
                    of_part = self.one_canvas(
                        [images[i] for i in part],
                        height,
                        width,
                        sizes[index],
                        score_threshold[index],
                        max_detections[index],
                        class_mask[index],
                        with_masks[index],
                    )
                    for k, i in enumerate(part):
                        answers[i] = of_part[k]
        return answers

    def one_canvas(
        self,
        images: list[Tensor],
        height: int,
        width: int,
        sizes: Tensor,
        score_threshold: Tensor,
        max_detections: Tensor,
        class_mask: Tensor,
        with_masks: Tensor,
    ) -> list[dict[str, Tensor]]:
        """`forward` for images that share a canvas of `height` x `width`."""
        image_sizes: list[tuple[int, int]] = []
        for image in images:
            image_sizes.append(self.canvas.size_of(image))
        dtype = self.box_head.weight_type()
        with record_function("maskx::resize"):
            canvas = self.canvas(images, height, width)
            canvas = canvas.to(dtype).contiguous(memory_format=torch.channels_last)
        with record_function("maskx::backbone"):
            features: dict[str, Tensor] = self.backbone(canvas)
        with record_function("maskx::rpn"):
            proposals = self.rpn.proposals(list(features.values()), height, width, image_sizes)
        with record_function("maskx::box_head"):
            features = self.for_pooling(features)
            rois = 0
            for proposal in proposals:
                rois += proposal.shape[0]
            pooled = self.box_pool(features, proposals, bucket_of(rois))
            pooled = self.box_head(pooled.to(dtype))[:rois].float()
            logits = self.box_predictor(pooled)
            boxes, scores, labels = self.detections_of(
                proposals, pooled, logits, image_sizes, score_threshold, max_detections, class_mask
            )
        wanted: list[Tensor] = []
        for i, box in enumerate(boxes):
            wanted.append(box if bool(with_masks[i].item()) else box[:0])
        with record_function("maskx::mask_head"):
            probabilities = self.mask_probabilities(
                features,
                wanted,
                torch.cat([labels[i][: box.shape[0]] for i, box in enumerate(wanted)]),
            )
        keypoints: list[Tensor] = []
        if self.keypoint_branch is not None:
            with record_function("maskx::keypoint_head"):
                keypoints = self.keypoint_branch.found(features, boxes, labels)
        with record_function("maskx::run_lengths"):
            answers: list[dict[str, Tensor]] = []
            start = 0
            for i, box in enumerate(boxes):
                h, w = int(sizes[i, 0].item()), int(sizes[i, 1].item())
                resized = image_sizes[i]
                box = self.to_original(box, resized, h, w)
                end = start + wanted[i].shape[0]
                if bool(with_masks[i].item()):
                    counts, offsets = mask_run_lengths(probabilities[start:end], box, h, w)
                else:
                    counts = torch.zeros((0,), dtype=torch.int64, device=box.device)
                    offsets = torch.zeros((box.shape[0] + 1,), dtype=torch.int64, device=box.device)
                start = end
                answers.append(
                    {
                        "boxes": box,
                        "scores": scores[i],
                        "labels": labels[i],
                        "rle_counts": counts,
                        "rle_offsets": offsets,
                    }
                )
                if self.keypoint_branch is not None:
                    scale = [float(w) / float(resized[1]), float(h) / float(resized[0]), 1.0]
                    answers[i]["keypoints"] = keypoints[i] * torch.tensor(scale, device=box.device)
        return answers

    def for_pooling(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """The levels that RoIs are pooled from, each brought once to the form that `PyramidRoIAlign` reads as it is."""
        levels: dict[str, Tensor] = {}
        for name, level in features.items():
            if name != "pool":
                if level.device.type == "cpu":
                    levels[name] = level.contiguous(memory_format=torch.channels_last)
                else:
                    levels[name] = level.float()
        return levels

    def detections_of(
        self,
        proposals: list[Tensor],
        pooled: Tensor,
        logits: Tensor,
        image_sizes: list[tuple[int, int]],
        score_threshold: Tensor,
        max_detections: Tensor,
        class_mask: Tensor,
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """`detections` of each image of a batch: boxes, scores, labels."""
        boxes: list[Tensor] = []
        scores: list[Tensor] = []
        labels: list[Tensor] = []
        start = 0
        for i, proposal in enumerate(proposals):
            end = start + proposal.shape[0]
            box, score, label = self.detections(
                proposal,
                pooled[start:end],
                logits[start:end],
                image_sizes[i],
                float(score_threshold[i].item()),
                int(max_detections[i].item()),
                class_mask[i].to(logits.device),
            )
            boxes.append(box)
            scores.append(score)
            labels.append(label)
            start = end
        return boxes, scores, labels

    def detections(
        self,
        proposals: Tensor,
        pooled_RD: Tensor,
        logits: Tensor,
        image_size: tuple[int, int],
        score_threshold: float,
        max_detections: int,
        class_mask: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (in the resized image's pixels), scores and labels of one image.

        Classes are filtered first, then the best K (proposal, class) pairs above the threshold are
        decoded, then NMS per class, then the best `max_detections`.
        """
        scores = torch.softmax(logits, dim=1)
        wanted = class_mask.clone()
        wanted[0] = False
        pair = torch.where(((scores > score_threshold) & wanted[None, :]).flatten())[0]
        flat = scores.flatten()[pair]
        if flat.numel() > self.candidates_per_image:
            flat, best = torch.topk(flat, self.candidates_per_image)
            pair = pair[best]
        proposal = torch.div(pair, scores.shape[1], rounding_mode="floor")
        label = pair - proposal * scores.shape[1]
        deltas = self.box_predictor.deltas_of(pooled_RD[proposal], label)
        box = clip_boxes_to_image(decode_boxes(deltas, proposals[proposal]), image_size)
        real = torch.where(((box[:, 2] - box[:, 0]) >= 0.01) & ((box[:, 3] - box[:, 1]) >= 0.01))[0]
        box, flat, label = box[real], flat[real], label[real]
        keep = nms_by_class(box, flat, label, self.nms_iou)[: max(max_detections, 0)]
        return box[keep], flat[keep], label[keep]

    def mask_probabilities(self, features: dict[str, Tensor], boxes: list[Tensor], labels: Tensor) -> Tensor:
        """Mask probabilities [D, M, M] of boxes (per image, resized pixels) for their labels [D]."""
        rows = bucket_of(labels.shape[0])
        pooled = self.mask_pool(features, boxes, rows).to(self.mask_branch.weight_type())
        of_row = F.pad(labels, [0, rows - labels.shape[0]])
        if self.mask_prior:
            of_box = self.box_pool(features, boxes, rows).to(self.box_head.weight_type())
            # `ModelConfig` sees to a convolutional box head.
            maps = self.box_head.maps(of_box)  # type: ignore
            prior = object_prior(maps, self.box_predictor.cls_score.weight[of_row], self.mask_pool.size)
            pooled = pooled + prior.unsqueeze(1).to(pooled.dtype)
        if self.mask_on_res5:
            pooled = self.box_head.maps(pooled)  # type: ignore
        bias = self.mask_bias
        if bias.dim() > 0:
            bias = bias[of_row].view(-1, 1, 1)
        logits = self.mask_branch(pooled, self.mask_table[of_row], bias)
        return torch.sigmoid(logits)[: labels.shape[0]]

    def to_original(self, boxes: Tensor, resized: tuple[int, int], height: int, width: int) -> Tensor:
        """Boxes from the resized image's pixels to the original's."""
        x = float(width) / float(resized[1])
        y = float(height) / float(resized[0])
        boxes = boxes * torch.tensor([x, y, x, y], dtype=torch.float32, device=boxes.device)
        return clip_boxes_to_image(boxes, (height, width))

    def masks_on_boxes(
        self, images: list[Tensor], boxes: list[Tensor], labels: list[Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        """Run lengths (counts, offsets) of the mask branch on given boxes (XYXY, each image's own pixels)."""
        answers: list[tuple[Tensor, Tensor]] = []
        for image, box, label in zip(images, boxes, labels, strict=True):
            probabilities = self.probabilities_on_boxes(image, box, label)
            answers.append(mask_run_lengths(probabilities, box, image.shape[1], image.shape[2]))
        return answers

    def probabilities_on_boxes(self, image: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        """Mask probabilities [D, M, M] of one image's boxes [D, 4] (XYXY, its own pixels) for their labels [D]."""
        height, width = self.canvas.padded_size_of(image)
        h, w = self.canvas.size_of(image)
        canvas = self.canvas([image], height, width).to(self.box_head.weight_type())
        canvas = canvas.contiguous(memory_format=torch.channels_last)
        features = self.for_pooling(self.backbone(canvas))
        y = float(h) / float(image.shape[1])
        x = float(w) / float(image.shape[2])
        scaled = boxes * torch.tensor([x, y, x, y], dtype=torch.float32, device=boxes.device)
        return self.mask_probabilities(features, [scaled], labels)


def nms_by_class(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> Tensor:
    """Non-maximum suppression within each class: indices of what is kept, the best first.

    Classes are moved apart, in float64: in float32 the boxes of class 3 000 would stand on a grid of 0.25 pixels.
    """
    if boxes.shape[0] == 0:
        return torch.zeros((0,), dtype=torch.int64, device=boxes.device)
    apart = labels.to(torch.float64) * (boxes.max().to(torch.float64) + 1.0)
    return nms(boxes.to(torch.float64) + apart[:, None], scores.to(torch.float64), iou)
