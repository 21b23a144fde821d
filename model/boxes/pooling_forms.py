"""Other ways to pool an RoI, for comparison with RoIAlign: RoIPool, and RoIAlign that samples bicubically."""

import torch
from torch import Tensor
from torchvision.ops import roi_pool

from model.boxes.pooling import PyramidRoIAlign, bags_of_cells, cells_of


def cubic_rows(
    low: Tensor, high: Tensor, size: int, sampling_ratio: int, cells: int
) -> tuple[Tensor, Tensor]:
    """As `model.boxes.pooling.sample_rows` with the four cells around each sample: [R, size, 4 * sampling_ratio].

    Weights of the cubic convolution kernel (Keys, 1981) with a = -0.75, that of torch and OpenCV. Beyond the border
    lies the border's value.
    """
    samples = size * sampling_ratio
    step = (high - low) / samples
    at = low[:, None] + (torch.arange(samples, device=low.device) + 0.5) * step[:, None]
    inside = ((at >= -1.0) & (at <= cells)).to(low.dtype) / sampling_ratio
    at = at.clamp(0, cells - 1)
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
        indices.append((below + k).clamp(0, cells - 1).to(torch.int64))
    index, weight = torch.stack(indices, dim=2), torch.stack(weights, dim=2)
    return index.view(-1, size, 4 * sampling_ratio), weight.view(-1, size, 4 * sampling_ratio)


def bicubic_roi_align(feature: Tensor, rois: Tensor, size: int, scale: float, sampling_ratio: int) -> Tensor:
    """As `model.boxes.pooling.gathered_roi_align`, each sample a weighted sum of 16 cells: [R, size, size, C]."""
    height, width = feature.shape[2], feature.shape[3]
    ends = rois[:, 1:] * scale - 0.5
    rows, row_weights = cubic_rows(ends[:, 1], ends[:, 3], size, sampling_ratio, height)
    columns = cubic_rows(ends[:, 0], ends[:, 2], size, sampling_ratio, width)
    first = rois[:, 0].to(torch.int64) * (height * width)
    return bags_of_cells(cells_of(feature), (rows * width + first[:, None, None], row_weights), columns, size)


class PyramidBicubicRoIAlign(PyramidRoIAlign):
    """`PyramidRoIAlign` whose samples are bicubic."""

    def of_rois(self, features: dict[str, Tensor], rois: Tensor, rows: int = 0) -> Tensor:
        """As `PyramidRoIAlign.of_rois`, float32, level by level."""
        rois, level = self.placed(rois)
        finest = features["0"]
        rows = rois.shape[0] if self.training else max(rows, rois.shape[0])
        pooled = torch.zeros([rows, self.size, self.size, finest.shape[1]], device=finest.device)
        for k in range(self.levels):
            mine = torch.where(level == k)[0]
            if mine.numel() > 0:
                scale = 1.0 / float(self.first_stride * 2**k)
                of_level = bicubic_roi_align(
                    features[str(k)].float(), rois[mine], self.size, scale, self.sampling_ratio
                )
                pooled = pooled.index_copy(0, mine, of_level)
        return pooled.permute(0, 3, 1, 2)


class PyramidRoIPool(PyramidRoIAlign):
    """RoIPool (Fast R-CNN, Sec. 2.1) in the place of RoIAlign: borders rounded to cells, the maximum of each bin.

    Nothing is sampled and nothing aligned: `sampling_ratio` and `aligned` mean nothing here.
    """

    def of_rois(self, features: dict[str, Tensor], rois: Tensor, rows: int = 0) -> Tensor:
        """As `PyramidRoIAlign.of_rois`, float32, level by level."""
        rois, level = self.placed(rois)
        finest = features["0"]
        rows = rois.shape[0] if self.training else max(rows, rois.shape[0])
        pooled = torch.zeros([rows, finest.shape[1], self.size, self.size], device=finest.device)
        for k in range(self.levels):
            mine = torch.where(level == k)[0]
            if mine.numel() > 0:
                scale = 1.0 / float(self.first_stride * 2**k)
                of_level = roi_pool(features[str(k)].float(), rois[mine], (self.size, self.size), scale)
                pooled = pooled.index_copy(0, mine, of_level)
        return pooled
