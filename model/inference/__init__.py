"""The network as it is served: T baked into a table, images in, boxes and run lengths out (TorchScript-ready).

Evaluation and export run this very code; there is no second implementation.
"""

import torch
from torch import Tensor

from model.boxes.pooling import rois_of
from model.canvas import scaled_boxes
from model.detector import Detector
from model.inference.stages import Stages
from model.keypoints.head import KeypointBranch
from model.masks.run_lengths import mask_run_lengths

BOXES_TOGETHER = 1000
"""Given boxes whose masks are computed at once, which bounds the memory of images of very many."""


class Inference(Stages):
    """Mask^X R-CNN for one batch; what is asked for (threshold, count, classes, masks) is per image.

    Backbone, RPN head, box head and mask branch compute in the type of their weights, which may be float32, bfloat16 or
    float16; anchors, boxes, scores, NMS and run lengths are float32 always. Each stage has a name for the profiler.

    Args:
        network: whose parts are shared.
        mask_table: mask weights [C+1, F] of every label; mask_bias: [] or [C+1].
    """

    mask_table: Tensor
    mask_bias: Tensor
    batched: bool
    pixels_together: int

    def __init__(
        self, network: Detector, keypoint_branch: KeypointBranch | None, mask_table: Tensor, mask_bias: Tensor
    ) -> None:
        super().__init__(network)
        self.keypoint_branch = keypoint_branch
        self.register_buffer("mask_table", mask_table.detach().clone())
        self.register_buffer("mask_bias", mask_bias.detach().clone())
        self.batched = False
        """Whether all images of a canvas are one computation, in which the host waits for the device as seldom as can
        be: the way of a GPU. Else each image is handled by itself where that is less work: the way of a CPU. For
        whoever loads the network to set."""
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

        These five lie on the host: some of what they say decides what is computed.

        Returns:
            Per image `boxes` float32 [D, 4] XYXY, `scores` [D], `labels` int64 [D], `rle_counts` int64
            (column-major run lengths of all masks, one after the other) and `rle_offsets` int64 [D+1]; of a network
            with keypoints also `keypoints` float32 [D, K, 3] (x, y, score; `model.keypoints.head`).
        """
        answers: list[dict[str, Tensor]] = []
        for _ in range(len(images)):
            answers.append({})
        masks: list[bool] = with_masks.tolist()
        for part in self.canvas.parts_of(images, masks, self.pixels_together):
            found, counts = self.found_in(
                part, images, sizes, score_threshold, max_detections, class_mask, masks
            )
            ends = [0]
            for i, k in enumerate(part):
                ends.append(ends[i] + (counts[i] if masks[k] else 0))
            offsets = found["rle_offsets"]
            runs: list[int] = offsets[torch.tensor(ends).to(offsets.device, non_blocking=True)].tolist()
            start = 0
            for i, k in enumerate(part):
                end = start + counts[i]
                own: dict[str, Tensor] = {}
                for name in ("boxes", "scores", "labels", "keypoints"):
                    if name in found:
                        own[name] = found[name][start:end]
                own["rle_counts"] = found["rle_counts"][runs[i] : runs[i + 1]]
                if masks[k]:
                    own["rle_offsets"] = offsets[start : end + 1] - runs[i]
                else:
                    own["rle_offsets"] = torch.zeros_like(offsets[:1]).repeat(counts[i] + 1)
                answers[k] = own
                start = end
        return answers

    @torch.jit.export
    def packed(
        self,
        images: list[Tensor],
        sizes: Tensor,
        score_threshold: Tensor,
        max_detections: Tensor,
        class_mask: Tensor,
        with_masks: Tensor,
    ) -> tuple[Tensor, list[list[int]]]:
        """`forward`, its answers in one piece, so that whoever has them on a device copies once.

        Args:
            As of `forward`.

        Returns:
            words: int32, on the network's device.
            table: of each image [D, boxes, scores, labels, offsets, counts, keypoints]: how many detections, and the
                word at which each of these begins: 4 D of float32, D of float32, D, D + 1 (where the runs of each mask
                begin, counted from `counts` on, and where the last ends), the run lengths, and 3 D K of float32. -1
                for offsets and counts of an image without masks, and for keypoints of a network without.
        """
        masks: list[bool] = with_masks.tolist()
        parts = self.canvas.parts_of(images, masks, self.pixels_together)
        founds: list[dict[str, Tensor]] = []
        counts: list[list[int]] = []
        for part in parts:
            found, of_each = self.found_in(
                part, images, sizes, score_threshold, max_detections, class_mask, masks
            )
            founds.append(found)
            counts.append(of_each)
        return self.packed_of(parts, founds, counts, with_masks)

    @torch.jit.export
    def parts_of(self, images: list[Tensor], with_masks: Tensor) -> list[list[int]]:
        """Which images go through the network together (`model.canvas.Canvas.parts_of`)."""
        masks: list[bool] = with_masks.tolist()
        return self.canvas.parts_of(images, masks, self.pixels_together)

    @torch.jit.export
    def packed_of(
        self,
        parts: list[list[int]],
        founds: list[dict[str, Tensor]],
        counts: list[list[int]],
        with_masks: Tensor,
    ) -> tuple[Tensor, list[list[int]]]:
        """`packed` of what was found in each of the `parts_of` all images: the answers of `found_in`."""
        table: list[list[int]] = [[0]] * with_masks.shape[0]
        pieces: list[Tensor] = []
        masks: list[bool] = with_masks.tolist()
        at = 0
        for p, part in enumerate(parts):
            found = founds[p]
            every = found["scores"].shape[0]
            keypoints = torch.zeros_like(found["scores"][:0])
            if "keypoints" in found:
                keypoints = found["keypoints"]
            own = [
                bits_of(found["boxes"].flatten()),
                bits_of(found["scores"]),
                found["labels"].to(torch.int32),
                found["rle_offsets"].to(torch.int32),
                found["rle_counts"].to(torch.int32),
                bits_of(keypoints.flatten()),
            ]
            begins: list[int] = []
            for piece in own:
                begins.append(at)
                at += piece.shape[0]
                pieces.append(piece)
            of_each = keypoints.numel() // max(every, 1)
            start = 0
            for i, k in enumerate(part):
                count = counts[p][i]
                row = [count, begins[0] + 4 * start, begins[1] + start, begins[2] + start]
                row += [begins[3] + start, begins[4]] if masks[k] else [-1, -1]
                row.append(begins[5] + of_each * start if "keypoints" in found else -1)
                table[k] = row
                start += count
        if len(pieces) == 0:
            pieces.append(torch.zeros([0], dtype=torch.int32, device=self.mask_table.device))
        return torch.cat(pieces), table

    def found_in(
        self,
        part: list[int],
        images: list[Tensor],
        sizes: Tensor,
        score_threshold: Tensor,
        max_detections: Tensor,
        class_mask: Tensor,
        masks: list[bool],
    ) -> tuple[dict[str, Tensor], list[int]]:
        """What is found in the images `part`, which share a canvas: boxes, scores, labels (and keypoints) of all of
        them, image after image; run lengths and S + 1 offsets of the masks of those that want some, which come first;
        and how many detections each image has."""
        canvas, about = self.begun(part, images, sizes, score_threshold)
        height, width = canvas.shape[2], canvas.shape[3]
        levels, logits, deltas = self.dense_trunk(canvas)
        features, proposals, numbers, pooled = self.proposed(levels, logits, deltas, about, height, width)
        hidden = self.dense_box_head(pooled)
        found, counts = self.detected(
            part, proposals, numbers, hidden, about, score_threshold, max_detections, class_mask
        )
        with_mask = 0
        for i, k in enumerate(part):
            if masks[k]:
                with_mask += counts[i]
        crops, rows, bias = self.cropped(features, found, with_mask)
        probabilities = self.dense_mask_head(crops, rows, bias)
        return self.written(features, found, probabilities, about, with_mask), counts

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
        features, rois = self.features_on_boxes(image, boxes)
        return self.probabilities_on_features(features, rois, labels)

    def features_on_boxes(self, image: Tensor, boxes: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """What one image's masks are made of, the same for all mask branches on one frozen detector: levels to pool
        from, and RoIs [D, 5] of its boxes [D, 4] (XYXY, its own pixels)."""
        height, width = self.canvas.padded_size_of(image)
        h, w = self.canvas.size_of(image)
        canvas = self.canvas([image], height, width).to(self.box_head.weight_type())
        canvas = canvas.contiguous(memory_format=torch.channels_last)
        features = self.for_pooling(self.backbone(canvas))
        y = float(h) / float(image.shape[1])
        x = float(w) / float(image.shape[2])
        scale = torch.tensor([x, y, x, y], dtype=torch.float32, device=boxes.device)
        return features, rois_of([scaled_boxes(boxes, scale, self.box_pool.inclusive)])

    def probabilities_on_features(self, features: dict[str, Tensor], rois: Tensor, labels: Tensor) -> Tensor:
        """Mask probabilities [D, M, M] of RoIs [D, 5] for their labels [D], some at a time."""
        if rois.shape[0] <= BOXES_TOGETHER:
            return self.mask_probabilities(features, rois, labels)
        parts: list[Tensor] = []
        for start in range(0, rois.shape[0], BOXES_TOGETHER):
            some = slice(start, start + BOXES_TOGETHER)
            parts.append(self.mask_probabilities(features, rois[some], labels[some]))
        return torch.cat(parts)


def bits_of(numbers: Tensor) -> Tensor:
    """float32 [N] -> the same bits, int32 [N]; TorchScript takes `view(torch.int32)` for a view of size [3]."""
    return torch.view_copy(numbers, dtype=torch.int32)
