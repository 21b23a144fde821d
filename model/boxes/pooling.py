"""RoIAlign over the levels of a feature pyramid (Mask R-CNN, Sec. 3; FPN, eq. 1)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_pool

from model.boxes.pooling_training import pooled_at_once, pooled_by_operator

SMALL_LEVEL = 64 * 64
"""Up to this many cells a level is pooled by matrix products in training."""


def tent_weights(low: Tensor, high: Tensor, size: int, sampling_ratio: int, cells: int) -> Tensor:
    """Along one axis, how much each of `cells` cells adds to each of `size` bins: [R, size, cells].

    `low` and `high` [R] are the box's ends in cell coordinates (cell k has its centre at k). RoIAlign's
    rule at the border: a sample within one cell outside takes the border's value, one beyond takes none.
    """
    samples = size * sampling_ratio
    step = (high - low) / samples
    at = low[:, None] + (torch.arange(samples, device=low.device) + 0.5) * step[:, None]
    inside = ((at >= -1.0) & (at <= cells)).to(low.dtype)
    at = at.clamp(0, cells - 1)
    tent = (1.0 - (at[:, :, None] - torch.arange(cells, device=low.device)).abs()).clamp(min=0)
    return (tent * inside[:, :, None]).view(-1, size, sampling_ratio, cells).mean(dim=2)


def separable_roi_align(
    feature: Tensor, boxes: Tensor, size: int, scale: float, sampling_ratio: int
) -> Tensor:
    """RoIAlign of one image's level as two matrix products: bilinear sampling is separable.

    The numbers of `torchvision.ops.roi_align(..., aligned=True)`, with a gradient that runs as matrix
    products too. On a CPU that operator's backward pass is one scalar loop: on 32 x 32 levels it took half
    of a training step. The cost grows with the level's area, so large levels keep the operator.

    Args:
        feature: [C, H, W].
        boxes: [R, 4] XYXY in pixels of the image; `scale` brings them to cells.

    Returns:
        [R, C, size, size].
    """
    channels, height, width = feature.shape
    ends = (boxes * scale - 0.5).float()
    rows = tent_weights(ends[:, 1], ends[:, 3], size, sampling_ratio, height).to(feature.dtype)
    columns = tent_weights(ends[:, 0], ends[:, 2], size, sampling_ratio, width).to(feature.dtype)
    by_rows = rows.view(-1, height) @ feature.permute(1, 0, 2).reshape(height, channels * width)
    pooled = by_rows.view(-1, size * channels, width) @ columns.transpose(1, 2)
    return pooled.view(-1, size, channels, size).permute(0, 2, 1, 3)


def sample_rows(
    low: Tensor, high: Tensor, size: int, sampling_ratio: int, cells: Tensor
) -> tuple[Tensor, Tensor]:
    """Along one axis, the cells that each bin's samples lie between and their weights: [R, size, 2 * sampling_ratio].

    As `tent_weights`, by cell numbers: two for each sample, their weights summing to 1 / sampling_ratio each
    sample inside, to 0 outside. `cells` float32, [R, 1] or [1, 1], is how many there are.
    """
    samples = size * sampling_ratio
    step = (high - low) / samples
    at = low[:, None] + (torch.arange(samples, device=low.device) + 0.5) * step[:, None]
    weight = ((at >= -1.0) & (at <= cells)).to(low.dtype) / sampling_ratio
    last = cells - 1
    at = torch.minimum(at.clamp(min=0), last)
    below = at.floor()
    above = torch.minimum(below + 1, last)
    part = at - below
    index = torch.stack([below, above], dim=2).to(torch.int64)
    weights = torch.stack([weight * (1 - part), weight * part], dim=2)
    return index.view(-1, size, 2 * sampling_ratio), weights.view(-1, size, 2 * sampling_ratio)


def cubic_rows(
    low: Tensor, high: Tensor, size: int, sampling_ratio: int, cells: Tensor
) -> tuple[Tensor, Tensor]:
    """As `sample_rows` with the four cells around each sample: [R, size, 4 * sampling_ratio].

    Weights of the cubic convolution kernel (Keys, 1981) with a = -0.75, that of torch and OpenCV. Beyond the border
    lies the border's value.
    """
    samples = size * sampling_ratio
    step = (high - low) / samples
    at = low[:, None] + (torch.arange(samples, device=low.device) + 0.5) * step[:, None]
    inside = ((at >= -1.0) & (at <= cells)).to(low.dtype) / sampling_ratio
    last = cells - 1
    at = torch.minimum(at.clamp(min=0), last)
    below = at.floor()
    part = at - below
    a = -0.75
    indices: list[Tensor] = []
    weights: list[Tensor] = []
    for k in range(-1, 3):
        d = (part - k).abs()
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((d - 5) * d + 8) * d * a - 4 * a
        weights.append(inside * torch.where(d <= 1, near, far))
        indices.append(torch.minimum((below + k).clamp(min=0), last).to(torch.int64))
    index, weight = torch.stack(indices, dim=2), torch.stack(weights, dim=2)
    return index.view(-1, size, 4 * sampling_ratio), weight.view(-1, size, 4 * sampling_ratio)


def bags_of_cells(
    cells: Tensor, rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor], size: int
) -> Tensor:
    """The weighted sum of the cells of each bin, [R, size, size, C] of the cells' type: an embedding bag.

    Args:
        cells: [cells of all images and levels, C].
        rows: int64 [R, size, taps], the number of the first cell of each row that is read, and its weight.
        columns: int64 [R, size, taps], the cells read of each row, and their weights.
    """
    taken = rows[0].shape[2] * columns[0].shape[2]
    index = (rows[0][:, :, None, :, None] + columns[0][:, None, :, None, :]).view(-1, taken)
    weights = (rows[1][:, :, None, :, None] * columns[1][:, None, :, None, :]).view(-1, taken)
    pooled = F.embedding_bag(index, cells, mode="sum", per_sample_weights=weights.to(cells.dtype))
    return pooled.view(-1, size, size, cells.shape[1])


def gathered_roi_align(
    feature: Tensor, rois: Tensor, size: int, scale: float, sampling_ratio: int, cubic: bool = False
) -> Tensor:
    """RoIAlign as a weighted sum of whole cells, each cell's channels in one piece: an embedding bag.

    The numbers of `torchvision.ops.roi_align(..., aligned=True)`. That operator walks over the cells anew for each
    channel, one number at a time on one core; this reads 4 sampling_ratio^2 rows of channels per bin, in any
    floating type, on all cores: 1 000 RoIs of 256 channels took 33 ms instead of 356 (float32, 2 cores), 7 in bfloat16.

    Args:
        feature: [N, C, H, W], read without a copy where its channels lie together (channels_last).
        rois: [R, 5] float32: image, then XYXY in pixels of the image; `scale` brings them to cells.
        cubic: samples are bicubic, each a weighted sum of 16 cells.

    Returns:
        [R, size, size, C] of the feature's type.
    """
    height, width = feature.shape[2], feature.shape[3]
    ends = rois[:, 1:] * scale - 0.5
    high = torch.full((1, 1), float(height), device=rois.device)
    wide = torch.full((1, 1), float(width), device=rois.device)
    if cubic:
        rows, row_weights = cubic_rows(ends[:, 1], ends[:, 3], size, sampling_ratio, high)
        columns = cubic_rows(ends[:, 0], ends[:, 2], size, sampling_ratio, wide)
    else:
        rows, row_weights = sample_rows(ends[:, 1], ends[:, 3], size, sampling_ratio, high)
        columns = sample_rows(ends[:, 0], ends[:, 2], size, sampling_ratio, wide)
    first = rois[:, 0].to(torch.int64) * (height * width)
    return bags_of_cells(cells_of(feature), (rows * width + first[:, None, None], row_weights), columns, size)


def cells_of(feature: Tensor) -> Tensor:
    """[N, C, H, W] -> [N * H * W, C], without a copy where the channels of a cell lie together (channels_last)."""
    return feature.permute(0, 2, 3, 1).flatten(0, 2)


def with_cells(features: dict[str, Tensor], levels: int) -> dict[str, Tensor]:
    """The levels "0", "1", ..., and under "cells" the cells of them all, [cells, C]: a copy of the pyramid."""
    cells: list[Tensor] = []
    for k in range(levels):
        cells.append(cells_of(features[str(k)]))
    together = features.copy()
    together["cells"] = torch.cat(cells)
    return together


def roi_align_of_levels(
    cells: Tensor,
    rois: Tensor,
    level: Tensor,
    images: int,
    height: int,
    width: int,
    size: int,
    sampling_ratio: int,
    stride: int,
) -> Tensor:
    """`gathered_roi_align` of RoIs from whatever level, all in one: nothing is sorted by level, nothing waited for.

    Args:
        cells: `cells_of` each level, one after the other, each level half the height and width of the one before.
        rois: [R, 5] float32.
        level: [R], of each RoI, a whole float from 0.
        images, height, width: of the first level, whose cells are of `stride` pixels.
    """
    part = torch.exp2(-level)
    ends = rois[:, 1:] * (part / stride)[:, None] - 0.5
    high, wide = (height * part)[:, None], (width * part)[:, None]
    rows, row_weights = sample_rows(ends[:, 1], ends[:, 3], size, sampling_ratio, high)
    columns = sample_rows(ends[:, 0], ends[:, 2], size, sampling_ratio, wide)
    # Cells of all finer levels, 1 + 1/4 + ... of the first's, then those of the images before; exact in float64.
    quarter = (part * part).to(torch.float64)
    of_level = quarter * (height * width)
    first = (1.0 - quarter) * (images * height * width) * (4.0 / 3.0) + rois[:, 0] * of_level
    first = (first + 0.5).to(torch.int64)
    rows = rows * wide.to(torch.int64)[:, :, None] + first[:, None, None]
    return bags_of_cells(cells, (rows, row_weights), columns, size)


def bucket_of(rows: int) -> int:
    """`rows` rounded up to one of few counts: a library prepares its kernels anew, and keeps them, for every one."""
    if not torch.jit.is_scripting():  # noqa: SIM102  (TorchScript leaves out a branch by this condition alone)
        if torch.compiler.is_exporting():  # where the count is not known yet
            return rows
    if rows <= 128:
        return (rows + 3) // 4 * 4
    step = 20 if rows <= 1000 else 200
    return (rows + step - 1) // step * step


def image_of(counts: list[int], images: int, like: Tensor) -> Tensor:
    """The number of the image, float32 [R], of R rows that lie image after image, on the device of `like` [R, ...].

    `counts` says how many are of each image, or in one number that each has as many.
    """
    number = torch.arange(images, dtype=torch.float32, device=like.device)
    if len(counts) == 1:
        return number.unsqueeze(1).expand(images, counts[0]).flatten()
    return torch.repeat_interleave(
        number, torch.tensor(counts).to(like.device, non_blocking=True), output_size=like.shape[0]
    )


def rois_of(boxes: list[Tensor]) -> Tensor:
    """Boxes [R_i, 4] per image -> RoIs [sum R_i, 5]: the number of the image, then XYXY."""
    image: list[Tensor] = []
    for i, box in enumerate(boxes):
        image.append(torch.full_like(box[:, :1], float(i)))
    return torch.cat([torch.cat(image), torch.cat(boxes)], dim=1)


def without_alignment(rois: Tensor, stride: Tensor) -> Tensor:
    """RoIs [R, 5] that an aligned pooling of their level, of cells of `stride` [R] pixels, pools as one that takes
    no half cell away (torchvision's detectors): moved by that half, and no side below one cell."""
    stride = stride[:, None]
    low = rois[:, 1:3] + 0.5 * stride
    return torch.cat([rois[:, :1], low, low + torch.maximum(rois[:, 3:] - rois[:, 1:3], stride)], dim=1)


class PyramidRoIAlign(nn.Module):
    """RoIAlign from the level that fits each box: level k = floor(4 + log2(side / canonical_size)).

    The first of `levels` has stride `first_stride` and each next one twice that. Pixel-aligned (half a cell taken
    away), or not. In evaluation by gathering cells, in the features' type; in training by torchvision's operator, in
    float32, and so with `sampling_ratio` 0, which leaves the number of samples to it. `inclusive`: see
    `model.config.BoxConfig`.
    """

    def __init__(
        self,
        *,
        size: int,
        sampling_ratio: int,
        canonical_size: int,
        levels: int = 4,
        first_stride: int = 4,
        aligned: bool = True,
        inclusive: bool = False,
    ) -> None:
        super().__init__()
        self.size = size
        self.sampling_ratio = sampling_ratio
        self.canonical_size = canonical_size
        self.levels = levels
        self.first_stride = first_stride
        self.aligned = aligned
        self.inclusive = inclusive
        self.batched = False
        """Whether training pools without a wait of the host, as a GPU wants it (`model.boxes.pooling_training`)."""

    def forward(self, features: dict[str, Tensor], rois: Tensor, rows: int = 0) -> Tensor:
        """Features "0".."3" [N, F, H, W] and RoIs [R, 5] (image, then XYXY) -> [R, F, size, size].

        In evaluation, with `rows` above R, zeros follow up to so many. Where the features hold "cells", those of all
        levels together (`with_cells`), all RoIs are pooled at once, whatever their level.
        """
        rois, level = self.placed(rois)
        if self.sampling_ratio == 0:
            pooled = self.by_operator(features, rois, level, rows)
            if self.training:
                return pooled
            return pooled.to(features["0"].dtype).contiguous(memory_format=torch.channels_last)
        if not torch.jit.is_scripting():  # (TorchScript leaves out a branch by this condition alone)
            if self.training and self.batched:
                return pooled_at_once(
                    features, rois, level, self.levels, self.size, self.first_stride, self.sampling_ratio
                )
            if self.training and features["0"].shape[2] * features["0"].shape[3] <= SMALL_LEVEL:
                return self.by_matrix_products(features, rois, level)
        if "cells" in features:
            return self.together(features, rois, level, rows)
        if not self.training:
            return self.by_gathering(features, rois, level, max(rows, rois.shape[0]))
        return self.by_operator(features, rois, level, 0)

    def by_operator(self, features: dict[str, Tensor], rois: Tensor, level: Tensor, rows: int) -> Tensor:
        """The same numbers by torchvision's operator, level by level, in float32."""
        return pooled_by_operator(
            features, rois, level, self.levels, self.size, self.first_stride, self.sampling_ratio, rows
        )

    def placed(self, rois: Tensor) -> tuple[Tensor, Tensor]:
        """RoIs [R, 5] as they are to be pooled, and the level of each [R], a whole float."""
        side = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).clamp(min=0).sqrt()
        level = torch.floor(2 + torch.log2(side / self.canonical_size + 1e-6)).clamp(0, self.levels - 1)
        if self.inclusive:
            rois = torch.cat([rois[:, :3], rois[:, 3:] - 1.0], dim=1)
        if not self.aligned:
            rois = without_alignment(rois, self.first_stride * torch.exp2(level))
        return rois, level

    def together(self, features: dict[str, Tensor], rois: Tensor, level: Tensor, rows: int) -> Tensor:
        """The same numbers by `roi_align_of_levels`, as a view of [rows, size, size, F]."""
        if rows > rois.shape[0]:
            missing = rows - rois.shape[0]
            rois, level = F.pad(rois, [0, 0, 0, missing]), F.pad(level, [0, missing])
        finest = features["0"]
        pooled = roi_align_of_levels(
            features["cells"],
            rois,
            level,
            finest.shape[0],
            finest.shape[2],
            finest.shape[3],
            self.size,
            self.sampling_ratio,
            self.first_stride,
        )
        return pooled.permute(0, 3, 1, 2)

    def by_gathering(self, features: dict[str, Tensor], rois: Tensor, level: Tensor, rows: int) -> Tensor:
        """The same numbers by `of_level`, level by level, as a view of [rows, size, size, F]."""
        finest = features["0"]
        dtype = torch.float32 if self.training else finest.dtype
        pooled = torch.zeros([rows, self.size, self.size, finest.shape[1]], dtype=dtype, device=finest.device)
        for k in range(self.levels):
            mine = torch.where(level == k)[0]
            if mine.numel() > 0:
                scale = 1.0 / float(self.first_stride * 2**k)
                pooled.index_copy_(0, mine, self.of_level(features[str(k)], rois[mine], scale))
        return pooled.permute(0, 3, 1, 2)

    def of_level(self, feature: Tensor, rois: Tensor, scale: float) -> Tensor:
        """RoIs [R, 5] pooled from one level [N, F, H, W]: [R, size, size, F]."""
        return gathered_roi_align(feature, rois, self.size, scale, self.sampling_ratio)

    def by_matrix_products(self, features: dict[str, Tensor], rois: Tensor, level: Tensor) -> Tensor:
        """The same numbers by `separable_roi_align`, image by image and level by level."""
        order, pooled = [], []
        images = features["0"].shape[0]
        group = level.to(torch.int64) * images + rois[:, 0].to(torch.int64)
        for g in torch.unique(group).tolist():
            mine = torch.where(group == g)[0]
            k, image = divmod(g, images)
            order.append(mine)
            pooled.append(
                separable_roi_align(
                    features[str(k)][image],
                    rois[mine, 1:],
                    self.size,
                    1.0 / (self.first_stride * 2**k),
                    self.sampling_ratio,
                )
            )
        if not pooled:
            return rois.new_zeros((0, features["0"].shape[1], self.size, self.size))
        back = torch.empty_like(torch.cat(order))
        back[torch.cat(order)] = torch.arange(back.numel(), device=back.device)
        return torch.cat(pooled)[back]


class PyramidBicubicRoIAlign(PyramidRoIAlign):
    """RoIAlign whose samples are bicubic, for comparison: computed in float32, level by level."""

    def forward(self, features: dict[str, Tensor], rois: Tensor, rows: int = 0) -> Tensor:
        """As `PyramidRoIAlign.forward`; in training float32."""
        rois, level = self.placed(rois)
        return self.by_gathering(features, rois, level, max(rows, rois.shape[0]))

    def of_level(self, feature: Tensor, rois: Tensor, scale: float) -> Tensor:
        """RoIs [R, 5] pooled from one level [N, F, H, W]: [R, size, size, F]."""
        pooled = gathered_roi_align(feature.float(), rois, self.size, scale, self.sampling_ratio, True)
        return pooled if self.training else pooled.to(feature.dtype)


class PyramidRoIPool(PyramidBicubicRoIAlign):
    """RoIPool (Fast R-CNN, Sec. 2.1) in the place of RoIAlign: borders rounded to cells, the maximum of each bin;
    nothing is sampled and nothing aligned."""

    def forward(self, features: dict[str, Tensor], rois: Tensor, rows: int = 0) -> Tensor:
        """As `PyramidRoIAlign.forward`; in training float32."""
        rois, level = self.placed(rois)
        return self.by_gathering(features, rois, level, max(rows, rois.shape[0])).contiguous()

    def of_level(self, feature: Tensor, rois: Tensor, scale: float) -> Tensor:
        """RoIs [R, 5] pooled from one level [N, F, H, W]: [R, size, size, F]."""
        pooled = roi_pool(feature.float(), rois, (self.size, self.size), scale).permute(0, 2, 3, 1)
        return pooled if self.training else pooled.to(feature.dtype)
