"""What happens to the images of one canvas, stage by stage, and the dense parts between the stages.

Each stage is a method of the TorchScript file, so that whoever loads it may go from one to the next by itself and let
something else compute the dense parts: the network's convolutions and matrix products, most of its arithmetic, whose
answers follow from their arguments and weights alone. `model.inference.dense` has them as modules.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.profiler import record_function

from model.boxes.head import within
from model.boxes.pooling import bucket_of, image_of, with_cells
from model.canvas import scaled_boxes
from model.detector import Detector
from model.masks.run_lengths import run_lengths_of_images


class Stages(Detector):
    """In this order, each taking what those before it gave: `begun`, `dense_trunk`, `proposed`, `dense_box_head`,
    `detected`, `cropped`, `dense_mask_head`, `written`. The parts of a `Detector`, and of `model.inference.Inference`
    its table, its keypoint branch and its switch."""

    mask_table: Tensor
    mask_bias: Tensor
    batched: bool

    # ---- the stages of `found_in`; between them stand the dense parts, which may be computed by something else ----

    @torch.jit.export
    def begun(
        self, part: list[int], images: list[Tensor], sizes: Tensor, score_threshold: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The canvas [N, 3, H, W] of the images `part`, in the network's type, channels_last; and about each image
        float64 [N, 5]: height and width on the canvas, then of the original, and the threshold."""
        height, width = self.canvas.padded_size_of(images[part[0]])
        index = torch.tensor(part)
        originals: list[list[int]] = sizes[index].tolist()
        thresholds: list[float] = score_threshold[index].tolist()
        chosen: list[Tensor] = []
        image_sizes: list[tuple[int, int]] = []
        rows: list[list[float]] = []
        for i, k in enumerate(part):
            chosen.append(images[k])
            h, w = self.canvas.size_of(images[k])
            image_sizes.append((h, w))
            rows.append([float(h), float(w), float(originals[i][0]), float(originals[i][1]), thresholds[i]])
        about = torch.tensor(rows, dtype=torch.float64).to(self.mask_table.device, non_blocking=True)
        with record_function("maskx::resize"):
            canvas = self.canvas.resized(chosen, image_sizes, height, width)
            canvas = canvas.to(self.box_head.weight_type()).contiguous(memory_format=torch.channels_last)
        return canvas, about

    @torch.jit.export
    def dense_trunk(self, canvas: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Canvas [N, 3, H, W] -> the backbone's levels, and of each the RPN's logits and deltas, float32."""
        with record_function("maskx::backbone"):
            features: dict[str, Tensor] = self.backbone(canvas)
            levels = list(features.values())
        with record_function("maskx::rpn"):
            logits, deltas = self.rpn.head(levels)
        return levels, logits, deltas

    @torch.jit.export
    def proposed(
        self,
        levels: list[Tensor],
        logits: list[Tensor],
        deltas: list[Tensor],
        about: Tensor,
        height: int,
        width: int,
    ) -> tuple[dict[str, Tensor], Tensor, list[int], Tensor]:
        """What `dense_trunk` gives of a canvas of that height and width -> levels to pool from, proposals [R, 4], how
        many are of each image (batched, every image has as many, and there is one number), and their crops
        [R', F, S, S] for the box head, R' being `bucket_of` R."""
        with record_function("maskx::rpn"):
            sizes_N2 = about[:, :2].to(torch.float32)
            proposals, numbers = self.rpn.proposals_of(logits, deltas, height, width, sizes_N2, self.batched)
        with record_function("maskx::box_head"):
            features = self.for_pooling(self.named(levels))
            rois = torch.cat([image_of(numbers, about.shape[0], proposals).unsqueeze(1), proposals], dim=1)
            pooled: Tensor = self.box_pool(features, rois, bucket_of(rois.shape[0]))
        return features, proposals, numbers, pooled

    @torch.jit.export
    def dense_box_head(self, pooled: Tensor) -> Tensor:
        """Crops [R', F, S, S] -> the box head's answers [R', D] float32."""
        with record_function("maskx::box_head"):
            hidden: Tensor = self.box_head(pooled)
            return hidden.float()

    @torch.jit.export
    def detected(
        self,
        part: list[int],
        proposals: Tensor,
        numbers: list[int],
        hidden: Tensor,
        about: Tensor,
        score_threshold: Tensor,
        max_detections: Tensor,
        class_mask: Tensor,
    ) -> tuple[dict[str, Tensor], list[int]]:
        """What is found in the images `part`, image after image: `boxes` [S, 4] in pixels of the canvas, `scores`,
        `labels` and `image` [S], which image of the part each is of; and how many detections each image has.

        Args:
            part: see `begun`, of which `about` is; score_threshold, max_detections, class_mask: see `forward`.
            proposals, numbers: of `proposed`.
            hidden: of `dense_box_head`; rows beyond the proposals count for nothing.
        """
        index = torch.tensor(part)
        thresholds: list[float] = score_threshold[index].tolist()
        most: list[int] = max_detections[index].tolist()
        with record_function("maskx::box_head"):
            hidden = hidden[: proposals.shape[0]]
            logits = self.box_predictor(hidden)
            asked = class_mask[index].to(about.device, non_blocking=True)
            sizes_N2, thresholds_N = about[:, :2].to(torch.float32), about[:, 4].to(torch.float32)
            boxes, scores, labels, image, counts = self.detections(
                proposals, numbers, hidden, logits, sizes_N2, thresholds_N, most, asked, thresholds
            )
        return {"boxes": boxes, "scores": scores, "labels": labels, "image": image}, counts

    @torch.jit.export
    def cropped(
        self, features: dict[str, Tensor], found: dict[str, Tensor], with_mask: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Crops [S', F, S, S] of the first `with_mask` detections, S' being `bucket_of` them, and the mask weights of
        each and the bias (`mask_rows`)."""
        with record_function("maskx::mask_head"):
            rois = rois_of_found(found)[:with_mask]
            return self.crops_of(features, rois, found["labels"][:with_mask])

    @torch.jit.export
    def dense_mask_head(self, crops: Tensor, rows: Tensor, bias: Tensor) -> Tensor:
        """What `cropped` gives -> mask probabilities [S', M, M] float32."""
        with record_function("maskx::mask_head"):
            logits: Tensor = self.mask_branch(self.box_head.for_masks(crops), rows, bias)
            return torch.sigmoid(logits)

    @torch.jit.export
    def written(
        self,
        features: dict[str, Tensor],
        found: dict[str, Tensor],
        probabilities: Tensor,
        about: Tensor,
        with_mask: int,
    ) -> dict[str, Tensor]:
        """What was `detected` as it is answered: boxes (and keypoints) in pixels of the originals, and run lengths of
        the first `with_mask` masks; rows of `probabilities` beyond them count for nothing."""
        boxes, labels, image = found["boxes"], found["labels"], found["image"]
        answer = {"scores": found["scores"], "labels": labels}
        scale = (about[:, 2:4] / about[:, :2]).to(torch.float32).flip(1)[image]
        if self.keypoint_branch is not None:
            with record_function("maskx::keypoint_head"):
                keypoints = self.keypoint_branch.found(features, rois_of_found(found), labels)
                answer["keypoints"] = keypoints * F.pad(scale, [0, 1], value=1.0).unsqueeze(1)
        with record_function("maskx::run_lengths"):
            originals_S2 = about[:, 2:4][image]
            boxes = scaled_boxes(boxes, scale.repeat(1, 2), self.box_pool.inclusive)
            boxes = within(boxes, originals_S2.to(torch.float32))
            counted, offsets = run_lengths_of_images(
                probabilities[:with_mask],
                boxes[:with_mask],
                originals_S2[:with_mask].to(torch.int64),
                self.batched,
            )
        answer["boxes"], answer["rle_counts"], answer["rle_offsets"] = boxes, counted, offsets
        return answer

    # ---- what the stages share ----

    def named(self, levels: list[Tensor]) -> dict[str, Tensor]:
        """The backbone's levels by their names, without "pool", from which nothing is pooled."""
        features: dict[str, Tensor] = {}
        for k in range(self.box_pool.levels):
            features[str(k)] = levels[k]
        return features

    def for_pooling(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """The levels that RoIs are pooled from, each brought once to the form that `PyramidRoIAlign` reads as it is."""
        levels: dict[str, Tensor] = {}
        for name, level in features.items():
            if name != "pool":
                levels[name] = level.contiguous(memory_format=torch.channels_last)
        return with_cells(levels, len(levels)) if self.batched else levels

    def detections(
        self,
        proposals: Tensor,
        numbers: list[int],
        hidden: Tensor,
        logits: Tensor,
        sizes_N2: Tensor,
        thresholds_N: Tensor,
        most: list[int],
        asked: Tensor,
        thresholds: list[float],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, list[int]]:
        """Boxes [S, 4] in pixels of the canvas, scores, labels and image of each detection, image after image, and how
        many each image has (`model.boxes.head.BoxPredictor`)."""
        if self.batched:
            return self.box_predictor.found_together(
                proposals, hidden, logits, sizes_N2, thresholds_N, most, asked
            )
        boxes: list[Tensor] = []
        scores: list[Tensor] = []
        labels: list[Tensor] = []
        counts: list[int] = []
        start = 0
        for i, number in enumerate(numbers):
            end = start + number
            box, score, label = self.box_predictor.found_in_image(
                proposals[start:end],
                hidden[start:end],
                logits[start:end],
                sizes_N2[i],
                thresholds[i],
                most[i],
                asked[i],
            )
            boxes.append(box)
            scores.append(score)
            labels.append(label)
            counts.append(box.shape[0])
            start = end
        box = torch.cat(boxes)
        image = image_of(counts, len(counts), box).to(torch.int64)
        return box, torch.cat(scores), torch.cat(labels), image, counts

    def mask_rows(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mask weights [R, F] of labels [R], and the bias: one for all [], or [R, 1, 1]."""
        bias = self.mask_bias
        if bias.dim() > 0:
            bias = bias[labels].view(-1, 1, 1)
        return self.mask_table[labels], bias

    def crops_of(
        self, features: dict[str, Tensor], rois: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`cropped` of RoIs [D, 5] (image, then XYXY on the canvas) and their labels [D]."""
        of_row = F.pad(labels, [0, bucket_of(labels.shape[0]) - labels.shape[0]])
        rows, bias = self.mask_rows(of_row)
        return self.mask_crops(features, rois, of_row), rows, bias

    def mask_probabilities(self, features: dict[str, Tensor], rois: Tensor, labels: Tensor) -> Tensor:
        """Mask probabilities [D, M, M] of RoIs [D, 5] (image, then XYXY on the canvas) for their labels [D]."""
        crops, rows, bias = self.crops_of(features, rois, labels)
        return self.dense_mask_head(crops, rows, bias)[: labels.shape[0]]


def rois_of_found(found: dict[str, Tensor]) -> Tensor:
    """RoIs [S, 5] (image, then XYXY on the canvas) of detections."""
    return torch.cat([found["image"].to(torch.float32).unsqueeze(1), found["boxes"]], dim=1)
