"""The object-prior map: where in its box the classifier sees the class (OPMask: Biertimpel et al., 2021)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.boxes.head import ConvBoxHead


def object_prior(maps: Tensor, w_cls_RD: Tensor, size: int) -> Tensor:
    """Class activation map of each RoI for its own class: [R, size, size] float32 in [0, 1].

    Args:
        maps: the convolutional box head's answer per cell [R, D, S, S], whose mean the classifier reads.
        w_cls_RD: class weights of each RoI's class, float32; no gradient reaches them, but one reaches the maps, so
            that the box features learn from the masks of set A.
        size: side of the pooled mask features.

    The map is brought to [0, 1] by its own least and greatest value; a flat one is all zero.
    """
    rois, width, cells = maps.shape[0], maps.shape[1], maps.shape[2]
    flat = torch.bmm(w_cls_RD.detach().unsqueeze(1), maps.reshape(rois, width, cells * cells).float()).float()
    low, high = flat.amin(dim=2, keepdim=True), flat.amax(dim=2, keepdim=True)
    scaled = (flat - low) / (high - low).clamp(min=1e-6)
    as_map = scaled.view(rois, 1, cells, cells)
    return F.interpolate(as_map, size=[size, size], mode="bilinear", align_corners=False)[:, 0]


class BoxHeadWithPrior(ConvBoxHead):
    """`ConvBoxHead` whose maps say where in its crop the mask branch should look."""

    has_prior = True

    def prior(self, pooled: Tensor, w_cls_RD: Tensor, size: int) -> Tensor:
        """`object_prior` of the pooled features [R, F, S, S] of the boxes."""
        return object_prior(self.maps(pooled), w_cls_RD, size)
