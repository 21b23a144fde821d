"""The network of one canvas through torch.export: the same answers, for sizes and batches that it never saw."""

import pytest
import torch
from torch import Tensor

from model.inference.dense import LEAST_STEPS
from model.serving import OneCanvas, export_one_canvas
from tests.model.small_network import asked, small_network, transfer

CLASSES, PLACES = 5, 20

pytestmark = [
    # torchvision's own shape of nms; nothing here can be written otherwise.
    pytest.mark.filterwarnings("ignore:`create_unbacked_symint` is deprecated:FutureWarning"),
    pytest.mark.skipif(
        tuple(map(int, torch.__version__.split(".")[:2])) < (2, 15),
        reason="torch.export of 2.11 was seen to fix the parity of a side, that of 2.15 leaves it free",
    ),
]


def module() -> OneCanvas:
    network = small_network(CLASSES, transfer=transfer(normalise=True)).eval()
    with torch.no_grad():
        network.box_predictor.cls_score.weight.mul_(20)
        network.box_predictor.bbox_pred.weight.mul_(50)
    return OneCanvas(network.inference(), most=PLACES).eval()


def arguments(images: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(height + width + images)
    classes = torch.ones(images, CLASSES + 1, dtype=torch.bool)
    classes[-1, 2] = False
    return (
        torch.randn(images, 3, height, width, generator=generator) * 0.5,
        torch.tensor([[height - 6.0, width - 9.0]] * images),
        torch.linspace(0.03, 0.4, images),
        classes,
    )


@pytest.mark.parametrize(("batch", "largest", "batches"), [(1, None, (1,)), (2, 8, (2, 5, 8))])
def test_the_exported_network_answers_as_the_network(
    batch: int, largest: int | None, batches: tuple[int, ...]
) -> None:
    own = module()
    exported = export_one_canvas(own, batch=batch, largest_batch=largest).module()
    taken = set()
    for images in batches:
        for height, width in ((96, 128), (128, 96), (160, 160), (96, 32 * LEAST_STEPS)):
            given = arguments(images, height, width)
            with torch.no_grad():
                expected, got = own(*given), exported(*given)
            for a, b in zip(expected, got, strict=True):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
            taken.update(expected[3].tolist())
    assert len(taken) > 1 or batch == 1
    assert max(taken) > 3


@torch.no_grad()
def test_the_padded_answers_are_the_served_ones() -> None:
    """One source: what is found on a canvas is what `Inference` finds in its image."""
    own = module()
    served = own.inference
    pictures = [torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8) for _ in range(3)]
    canvas = served.canvas(pictures, 64, 96)
    sizes = torch.tensor([[64.0, 96.0]] * 3)
    thresholds = torch.tensor([0.03, 0.05, 1.5])
    everything = torch.ones(3, CLASSES + 1, dtype=torch.bool)
    boxes, scores, labels, counts, masks = own(canvas, sizes, thresholds, everything)
    given, own_sizes, _, *wanted = asked(pictures, most=PLACES)
    answers = served(given, own_sizes, thresholds, *wanted)
    assert counts.tolist() == [len(one["labels"]) for one in answers] and counts[2] == 0 < counts[0]
    for i, one in enumerate(answers):
        count = int(counts[i])
        torch.testing.assert_close(boxes[i, :count], one["boxes"], atol=1e-4, rtol=0)
        torch.testing.assert_close(scores[i, :count], one["scores"], atol=1e-5, rtol=0)
        assert torch.equal(labels[i, :count], one["labels"])
        assert not boxes[i, count:].any() and not labels[i, count:].any()
    assert masks.shape == (3, PLACES, 28, 28)
