"""What a frozen detector sees of several images, put together: RoIAlign reads what each image's own levels hold."""

import torch
from torchvision.ops import roi_align

from model.boxes.seen import levels_together, proposals_together

CPU = torch.device("cpu")


def seen(height: int, width: int, proposals: int) -> list[torch.Tensor]:
    return [torch.randn(3, height, width), torch.randn(3, height // 2, width // 2), torch.rand(proposals, 4)]


def test_roi_align_gives_the_same_at_the_border_of_a_smaller_image() -> None:
    small, large = seen(8, 6, 2), seen(12, 10, 3)
    together = levels_together([small, large], CPU)
    assert [level.shape for level in together.values()] == [(2, 3, 12, 10), (2, 3, 6, 5)]
    box = torch.tensor([[0.0, 2.5, 3.0, 6.2, 8.2]])  # its last samples lie within a cell outside
    for k, level in together.items():
        own = small[int(k)][None]
        scale = 1.0 / 2 ** int(k)
        wanted = roi_align(own, box, (7, 7), scale, 2, aligned=True)
        torch.testing.assert_close(roi_align(level, box, (7, 7), scale, 2, aligned=True), wanted)
        assert wanted[..., -1].abs().min() > 0
    assert torch.equal(together["0"][1], large[0])


def test_images_with_fewer_proposals_have_places_that_are_not_valid() -> None:
    one, other = seen(4, 4, 0), seen(4, 4, 2)
    boxes, valid = proposals_together([one, other], CPU)
    assert valid.tolist() == [[False, False], [True, True]]
    assert torch.equal(boxes[1], other[-1]) and not boxes[0].any()
