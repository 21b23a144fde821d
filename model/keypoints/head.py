"""The keypoint branch (Mask R-CNN, Sec. 5): each keypoint is a mask of a single pixel, found by a softmax over all."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.backbones.convolution import he_initialised, with_winograd
from model.boxes.ground_truth import Batch
from model.boxes.pooling import PyramidRoIAlign, bucket_of
from model.boxes.rois import RoIs
from model.host import read


class KeypointBranch(nn.Module):
    """3x3 convolutions, a deconvolution and bilinear enlargement: the paper's head, its maps 4 times the crop's side.

    The deconvolution is 4x4 of stride 2, as the paper's own code has it (Detectron, `KRCNN.DECONV_KERNEL`). The
    convolutions compute in the type of their weights, all after them in float32.

    Args:
        pool: of the pyramid's levels; its side S makes maps of M = 4 S.
        channels: of the levels; width: of the convolutions.
        keypoints: K.
        num_classes: C, without background.
    """

    of_label: Tensor

    def __init__(
        self,
        *,
        pool: PyramidRoIAlign,
        channels: int,
        width: int,
        convolutions: int,
        keypoints: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.pool = pool
        self.keypoints = keypoints
        blocks: list[nn.Module] = []
        for i in range(convolutions):
            blocks += [nn.Conv2d(width if i else channels, width, 3, padding=1), nn.ReLU(inplace=True)]
        self.convs = nn.Sequential(*blocks)
        self.deconv = nn.ConvTranspose2d(width, keypoints, 4, stride=2, padding=1)
        he_initialised(self, mode="fan_out")
        with_winograd(self.convs, many=True)
        self.register_buffer("of_label", torch.ones(num_classes + 1, dtype=torch.bool), persistent=False)

    def weight_type(self) -> torch.dtype:
        """The type that the convolutions compute in."""
        return self.convs[0].weight.dtype  # type: ignore[return-value]

    def forward(self, features: dict[str, Tensor], rois: Tensor, rows: int = 0) -> Tensor:
        """Logits [R, K, M, M] float32 of RoIs [R, 5] (image, then XYXY in pixels of the canvas).

        In evaluation, with `rows` above R, those of zeros follow up to so many.
        """
        pooled = self.pool(features, rois, rows).to(self.weight_type())
        coarse = self.deconv(self.convs(pooled).to(self.deconv.weight.dtype)).float()
        logits: Tensor = F.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=False)
        return logits

    def found(self, features: dict[str, Tensor], rois: Tensor, labels: Tensor) -> Tensor:
        """[R, K, 3] of RoIs [R, 5] and their labels [R]: x, y in pixels of the canvas and the score of `keypoints_of`.

        Zeros where a label has no keypoints; for use in evaluation mode. The host waits once.
        """
        wanted = torch.where(self.of_label[labels])[0]
        answer = torch.zeros([rois.shape[0], self.keypoints, 3], dtype=torch.float32, device=rois.device)
        if wanted.shape[0] > 0:
            some = rois[wanted]
            logits = self(features, some, bucket_of(some.shape[0]))[: some.shape[0]]
            answer[wanted] = keypoints_of(logits, some[:, 1:])
        return answer

    @torch.jit.unused
    def loss(self, batch: Batch, rois: RoIs) -> Tensor:
        """The loss of `keypoint_loss` over foreground RoIs whose own object has a keypoint inside the RoI; its divisor
        counts keypoints."""
        assert batch.truth.keypoints is not None
        placed = rois.on_images(rois.foreground)
        keypoints = batch.truth.keypoints.flatten(0, 1)[rois.objects[rois.foreground]]
        cells = keypoint_cells(keypoints, placed[:, 1:], 4 * self.pool.size)
        has_one = (cells >= 0).any(dim=1).to(torch.int64)
        chosen = has_one.argsort(descending=True, stable=True)[: read(has_one.sum())]
        logits = self(batch.features, placed[chosen])
        return keypoint_loss(logits, cells[chosen], batch.total((cells >= 0).sum()))


def keypoint_cells(keypoints_RK3: Tensor, boxes: Tensor, side: int) -> Tensor:
    """The one pixel of each keypoint's mask: int64 [R, K], row * side + column; -1 where it is not labelled or lies
    outside the RoI.

    Args:
        keypoints_RK3: x, y in the pixels of the boxes (the first pixel from 0 to 1) and COCO's visibility, 0 for none.
        boxes: RoIs [R, 4] XYXY.
        side: M.
    """
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    at = (keypoints_RK3[:, :, :2] - low) / (high - low).clamp(min=1e-6)
    inside = ((at >= 0) & (at <= 1)).all(dim=2) & (keypoints_RK3[:, :, 2] > 0)
    place = (at.clamp(0, 1) * side).to(torch.int64).clamp(max=side - 1)
    return torch.where(inside, place[:, :, 1] * side + place[:, :, 0], -1)


def keypoint_loss(logits_RKMM: Tensor, cells_RK: Tensor, keypoints: float | Tensor) -> Tensor:
    """Softmax cross-entropy over the M^2 pixels of each keypoint's mask (Mask R-CNN, Sec. 5), divided by `keypoints`.

    Keypoints whose cell is -1 teach nothing. With no RoI the loss is a zero that still reaches every parameter of the
    branch.
    """
    pixels = logits_RKMM.shape[2] * logits_RKMM.shape[3]
    logits = logits_RKMM.reshape(-1, pixels)
    return F.cross_entropy(logits, cells_RK.reshape(-1), ignore_index=-1, reduction="sum") / keypoints


def keypoints_of(logits_RKMM: Tensor, boxes: Tensor) -> Tensor:
    """Where each keypoint most likely is: [R, K, 3], x and y in the boxes' pixels, and a score in [0, 1].

    The most likely pixel, moved by up to half a pixel to the vertex of the parabola through it and its neighbours,
    along each axis. The score is the softmax's sum over that pixel and the eight around it.
    """
    rois, keypoints, side = logits_RKMM.shape[0], logits_RKMM.shape[1], logits_RKMM.shape[2]
    flat = logits_RKMM.reshape(rois, keypoints, side * side)
    best = flat.argmax(dim=2, keepdim=True)
    row = torch.div(best, side, rounding_mode="floor")
    column = best - row * side
    middle = flat.gather(2, best)
    moved_x = vertex(
        flat.gather(2, (best - 1).clamp(min=0)), middle, flat.gather(2, (best + 1).clamp(max=side * side - 1))
    )
    moved_y = vertex(
        flat.gather(2, (best - side).clamp(min=0)),
        middle,
        flat.gather(2, (best + side).clamp(max=side * side - 1)),
    )
    moved_x = moved_x * ((column > 0) & (column < side - 1))
    moved_y = moved_y * ((row > 0) & (row < side - 1))
    likely = torch.softmax(flat, dim=2).view(rois, keypoints, side, side)
    around = F.avg_pool2d(likely, 3, stride=1, padding=1) * 9.0
    score = around.view(rois, keypoints, side * side).gather(2, best).clamp(max=1.0)
    at = (torch.cat([column + moved_x, row + moved_y], dim=2) + 0.5) / side
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    return torch.cat([low + at * (high - low), score], dim=2)


def vertex(before: Tensor, middle: Tensor, after: Tensor) -> Tensor:
    """Where between -0.5 and 0.5 the parabola through three values at -1, 0, 1 is greatest, the middle one being the
    greatest of them; 0 where all are equal."""
    bend = 2.0 * middle - before - after
    return torch.where(
        bend > 0, 0.5 * (after - before) / bend.clamp(min=1e-12), torch.zeros_like(bend)
    ).clamp(-0.5, 0.5)
