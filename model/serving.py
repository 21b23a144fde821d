"""The network as it goes into maskx.pt: the same numbers from fewer operations, still float32 and not frozen.

And the network of one canvas for torch.export, on which TorchScript's successors are built (AOTInductor): no second
implementation, the modules and their code are those of `model.inference`, batched. What only one of the two compilers
can read stands behind `torch.jit.is_scripting()`:

* `model.boxes.rpn.CrowdAwareRPN.kept_together` and `model.boxes.head.BoxPredictor.found_at_most`: torchvision's
  operator in the place of passes until nothing changes, which is a loop on what was computed;
* `model.boxes.head.fewer`: the lesser of two counts that are not known yet;
* `model.boxes.pooling.bucket_of`: counts as they are.
"""

import copy

import torch
from torch import Tensor, nn

from model.backbones.c4 import Res5BoxHead
from model.backbones.norms import FrozenBatchNorm2d
from model.boxes.head import FCBoxHead
from model.canvas import Canvas
from model.inference import Inference
from model.inference.dense import LEAST_STEPS

REDUCIBLE = ("backbone", "rpn.head", "box_head", "mask_branch")
"""Modules whose weights may be cast to a lower precision, all of them or none; all others stay float32."""

REDUCIBLE_WITH_KEYPOINTS = (*REDUCIBLE, "keypoint_branch.convs")
"""The same of a network with keypoints, whose last layer stays float32: neighbouring cells differ by little."""


@torch.no_grad()
def prepared_for_serving(inference: Inference) -> Inference:
    """A copy of `inference` with batch normalisation folded into its convolutions and fc6 reading cell by cell.

    Raises:
        ValueError: a normalisation does not follow a convolution, so that it cannot be folded.
    """
    served = copy.deepcopy(inference).eval().requires_grad_(False)
    side = 2 * served.canvas.step
    fold_batch_norms(served.backbone, torch.zeros(1, 3, side, side, device=served.canvas.mean.device))
    box_head, size = served.box_head, served.box_pool.size
    if isinstance(box_head, Res5BoxHead):
        channels, device = served.backbone.out_channels, served.canvas.mean.device
        assert isinstance(channels, int)
        fold_batch_norms(box_head, torch.zeros(1, channels, size, size, device=device))
    if isinstance(box_head, FCBoxHead):
        weight = box_head.fc6.weight
        by_cell = weight.view(weight.shape[0], -1, size, size).permute(0, 2, 3, 1)
        box_head.fc6.weight = nn.Parameter(
            by_cell.reshape(weight.shape[0], -1).contiguous(), requires_grad=False
        )
        box_head.cell_by_cell = True
    return served


def fold_batch_norms(network: nn.Module, example: Tensor) -> None:
    """Folds every batch normalisation into the convolution before it, in place and in float64.

    Raises:
        ValueError: a normalisation does not follow a convolution.
    """
    for name, (norm, convolution) in norms_to_fold(network, example).items():
        _fold(convolution, norm)
        parent, _, own = name.rpartition(".")
        setattr(network.get_submodule(parent), own, nn.Identity())


def norms_to_fold(
    network: nn.Module, example: Tensor
) -> dict[str, tuple[nn.BatchNorm2d | FrozenBatchNorm2d, nn.Conv2d]]:
    """Every batch normalisation by its name, with the convolution before it.

    Which one that is, one forward pass of `example` tells: the one whose answer the normalisation is given.
    ValueError where no convolution comes before it.
    """
    norms = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d)
    }
    # Answers are kept alive, so that no two of them have the same identity.
    answers: list[tuple[Tensor, nn.Conv2d]] = []
    before: dict[nn.Module, nn.Conv2d] = {}

    def remember(module: nn.Module, _: tuple[Tensor, ...], answer: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        answers.append((answer, module))

    def find(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        for answer, convolution in answers:
            if answer is given[0]:
                before[module] = convolution

    hooks = [m.register_forward_hook(remember) for m in network.modules() if isinstance(m, nn.Conv2d)]
    hooks += [norm.register_forward_pre_hook(find) for norm in norms.values()]
    try:
        network(example)
    finally:
        for hook in hooks:
            hook.remove()
    for name, norm in norms.items():
        if norm not in before:
            raise ValueError(f"{name} does not normalise the answer of a convolution, so it cannot be folded")
    return {name: (norm, before[norm]) for name, norm in norms.items()}


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d | FrozenBatchNorm2d) -> None:
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None
    scale = norm.weight.double() * torch.rsqrt(variance.double() + norm.eps)
    bias = torch.zeros_like(mean) if convolution.bias is None else convolution.bias
    shift = norm.bias.double() + (bias.double() - mean.double()) * scale
    folded = convolution.weight.double() * scale[:, None, None, None]
    convolution.weight = nn.Parameter(folded.to(convolution.weight.dtype), requires_grad=False)
    convolution.bias = nn.Parameter(shift.to(convolution.weight.dtype), requires_grad=False)


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
        levels, logits, deltas = network.dense_trunk(canvas)
        features, proposals, _, pooled = network.proposed(levels, logits, deltas, sizes_N2, height, width)
        hidden = network.dense_box_head(pooled)[: proposals.shape[0]]
        boxes, scores, labels, counts = network.box_predictor.found_at_most(
            proposals, hidden, network.box_predictor(hidden), sizes_N2, thresholds_N, self.most, class_mask
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
