"""The network of one canvas for torch.export, on which TorchScript's successors are built (AOTInductor).

Nothing here is a second implementation: the modules and their code are those of `model.inference`, batched. What only
one of the two compilers can read stands behind `torch.jit.is_scripting()`:

* `model.boxes.rpn.CrowdAwareRPN.kept_together` and `model.boxes.head.BoxPredictor.found_at_most`: torchvision's
  operator in the place of passes until nothing changes, which is a loop on what was computed;
* `model.boxes.head.fewer`: the lesser of two counts that are not known yet;
* `model.boxes.pooling.bucket_of`: counts as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.canvas import Canvas
from model.inference import Inference

LEAST_STEPS = 3
"""Of a canvas' sides: below it the coarsest level is one cell wide, which torch.export takes for a constant."""


class OneCanvas(nn.Module):
    """From canvas to detections and mask probabilities, each image's in as many places.

    Resizing and run lengths stay outside: what goes in and comes out here has shapes that follow from N, H and W.

    Args:
        inference: the network as it is served; its switch `batched` is set.
        most: D, places for detections in each image.
    """

    def __init__(self, inference: Inference, *, most: int) -> None:
        super().__init__()
        self.inference = inference
        self.inference.batched = True
        self.most = most

    def forward(
        self, canvas: Tensor, sizes_N2: Tensor, thresholds_N: Tensor, class_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Detect and segment.

        Args:
            canvas: [N, 3, H, W] as `model.canvas.Canvas` makes it, H and W multiples of its step.
            sizes_N2: float32, height and width of what each image fills of the canvas.
            thresholds_N: float32, least class probability.
            class_mask: bool [N, C+1], the labels asked for.

        Returns:
            boxes [N, D, 4] XYXY in pixels of the canvas, scores [N, D], labels [N, D], how many of the places are
            taken, int64 [N] (zeros stand in the others), and mask probabilities [N, D, M, M].
        """
        network, height, width = self.inference, canvas.shape[2], canvas.shape[3]
        features, proposals, _, hidden = network.trunk(canvas, height, width, sizes_N2)
        boxes, scores, labels, counts = network.box_predictor.found_at_most(
            proposals,
            hidden,
            network.box_predictor(hidden),
            sizes_N2,
            thresholds_N,
            self.most,
            class_mask,
            network.nms_iou,
            network.candidates_per_image,
        )
        image = torch.arange(canvas.shape[0], dtype=torch.float32, device=canvas.device)
        rois = torch.cat([image.view(-1, 1, 1).expand(-1, self.most, 1), boxes], dim=2).flatten(0, 1)
        masks = network.mask_probabilities(features, rois, labels.flatten())
        return boxes, scores, labels, counts, masks.view(-1, self.most, masks.shape[1], masks.shape[2])


def export_one_canvas(
    module: OneCanvas, *, batch: int, largest_batch: int | None = None
) -> torch.export.ExportedProgram:
    """`module` as torch.export's program, for any height and width that are multiples of 32 up to the network's own.

    Args:
        module: in evaluation mode.
        batch: images of a batch, where `largest_batch` is None; else 2, for any number from 2 to that.

    Raises:
        torch._dynamo.exc.UserError, and others of torch.export's own: the network cannot be exported.
    """
    own: Canvas = module.inference.canvas
    step, device = own.step, own.mean.device
    classes = module.inference.box_predictor.cls_score.weight.shape[0]
    side = max(own.min_size // step, LEAST_STEPS) * step
    example = (
        torch.zeros(
            batch, 3, side, side + step, device=device, dtype=module.inference.box_head.weight_type()
        ),
        torch.tensor([[float(side), float(side)]] * batch, device=device),
        torch.full((batch,), 0.5, device=device),
        torch.ones(batch, classes, dtype=torch.bool, device=device),
    )
    most = max(-(-own.max_size // step), LEAST_STEPS) + 2
    height, width = (torch.export.Dim(name, min=LEAST_STEPS, max=most) for name in ("height", "width"))
    images = {} if largest_batch is None else {0: torch.export.Dim("images", min=2, max=largest_batch)}
    shapes = ({2: step * height, 3: step * width, **images}, images or None, images or None, images or None)
    with torch.no_grad():
        return torch.export.export(module.eval(), example, dynamic_shapes=shapes)
