"""Test-time augmentation: several views of an image answer as one."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pycocotools import mask as mask_utils
from torch import Tensor

from model.classes import ClassTable
from model.network import MaskXRCNN
from tests.export.tiny import save_network
from tests.model.small_network import SMALL, asked, image, small_network
from tests.training.tiny_set import NAMES, write_tiny_set
from training.data.augment import mirrored_boxes
from training.evaluate.__main__ import main
from training.evaluate.precision import masks_from_counts
from training.evaluate.views import Views, ViewsConfig

HEIGHT, WIDTH = 70, 90


@pytest.fixture(scope="module")
def network() -> MaskXRCNN:
    """Random weights, large enough that scores and masks differ from place to place."""
    network = small_network()
    with torch.no_grad():
        network.box_predictor.cls_score.weight.mul_(60)
        for name, parameter in network.mask_weights.named_parameters():
            if name.endswith("weight"):
                parameter.copy_(torch.randn_like(parameter))
    return network.eval()


def answered(network: Any, picture: Tensor, *, most: int = 10, masks: bool = True) -> dict[str, Tensor]:
    (answer,) = network.inference()(*asked([picture], threshold=0.2, most=most, with_masks=masks))
    return dict(answer)


def masks_of(answer: dict[str, Tensor]) -> list[Any]:
    return masks_from_counts(answer["rle_counts"], answer["rle_offsets"], HEIGHT, WIDTH)


@torch.no_grad()
def test_one_plain_view_answers_as_the_network_itself(network: MaskXRCNN) -> None:
    plain, viewed = (answered(one, image(HEIGHT, WIDTH)) for one in (network, Views(network, ViewsConfig())))
    assert plain["scores"].numel() == 10
    assert torch.equal(plain["boxes"], viewed["boxes"])
    assert torch.equal(plain["scores"], viewed["scores"])
    pixels = [torch.from_numpy(mask_utils.decode(masks_of(one))) for one in (plain, viewed)]
    assert int((pixels[0] != pixels[1]).sum()) < 20  # boxes went to the original's pixels and back
    assert int(pixels[0].sum()) > 100  # else all of them could be empty


@pytest.mark.parametrize("scales", [(), (48, 64)])
def test_a_view_rounds_sizes_as_the_network_itself(scales: tuple[int, ...]) -> None:
    """A converted torchvision network rounds down."""
    network = small_network(input=dataclasses.replace(SMALL.input, rounding="down")).eval()
    for served, _ in Views(network, ViewsConfig(flip=True, min_sizes=scales)).inference().views:
        side = served.canvas.min_size
        assert served.canvas.size_of(image(4 * side, 5 * side + 3)) == (side, 5 * side // 4)


@pytest.mark.parametrize("merge", ["nms", "vote"])
@torch.no_grad()
def test_a_mirrored_image_has_the_mirrored_answer(network: MaskXRCNN, merge: Any) -> None:
    views = Views(network, ViewsConfig(flip=True, min_sizes=(48, 64), merge=merge))
    picture = image(HEIGHT, WIDTH)
    answer, of_mirror = answered(views, picture), answered(views, picture.flip(2))
    assert torch.equal(answer["scores"], of_mirror["scores"])
    assert torch.equal(answer["labels"], of_mirror["labels"])
    torch.testing.assert_close(mirrored_boxes(of_mirror["boxes"], WIDTH), answer["boxes"], atol=1e-3, rtol=0)
    pixels = [torch.from_numpy(mask_utils.decode(masks_of(one))) for one in (answer, of_mirror)]
    assert int(pixels[0].sum()) > 100
    assert int((pixels[0] != pixels[1].flip(1)).sum()) < 20
    # Else nothing was to be shown:
    plain, of_mirror = answered(network, picture), answered(network, picture.flip(2))
    assert not torch.equal(plain["scores"], of_mirror["scores"])


@torch.no_grad()
def test_masks_on_given_boxes_are_the_mean_of_the_views(network: MaskXRCNN) -> None:
    picture, boxes, labels = image(HEIGHT, WIDTH), torch.tensor([[10.0, 12.0, 50.0, 60.0]]), torch.tensor([2])
    served = Views(network, ViewsConfig(flip=True)).inference()
    plain = network.inference()
    one = plain.probabilities_on_boxes(picture, boxes, labels)
    other = plain.probabilities_on_boxes(picture.flip(2), torch.tensor([[40.0, 12.0, 80.0, 60.0]]), labels)
    torch.testing.assert_close(served.probabilities(picture, boxes, labels), (one + other.flip(2)) / 2)
    assert not torch.allclose(one, other.flip(2), atol=1e-3)
    counts, _ = served.masks_on_boxes([picture], [boxes], [labels])[0]
    assert int(counts.sum()) == HEIGHT * WIDTH


@torch.no_grad()
def test_a_mirrored_view_answers_in_the_classes_of_the_other_side(network: MaskXRCNN) -> None:
    """Of the mirrored view alone: what it sees as label 1 is a 2, asked for by the mask of class 2."""
    swapped = torch.tensor([0, 2, 1, 3, 4, 5])
    picture = image(HEIGHT, WIDTH)
    views, plain = (Views(network, ViewsConfig(flip=True), sides) for sides in (swapped, None))
    answers = [answered(one, picture, most=60) for one in (views, plain)]
    assert not torch.equal(answers[0]["labels"], answers[1]["labels"])
    alone = views.inference()
    alone.views = [view for view in alone.views if view[1]]
    (of_two,) = alone(*asked([picture], most=7, labels=[0, 2]))
    (of_mirror,) = network.inference()(*asked([picture.flip(2)], most=7, labels=[0, 1]))
    assert of_two["labels"].unique().tolist() == [2] and of_mirror["labels"].unique().tolist() == [1]
    assert torch.equal(of_two["scores"], of_mirror["scores"])
    boxes = mirrored_boxes(of_two["boxes"], WIDTH)
    of_view = alone.probabilities(picture, of_two["boxes"], of_two["labels"])
    seen = network.inference().probabilities_on_boxes(picture.flip(2), boxes, of_mirror["labels"])
    torch.testing.assert_close(of_view.flip(2), seen)


def view(*rows: tuple[float, float, float, float, float, int]) -> dict[str, Tensor]:
    table = torch.tensor(rows)
    return {"boxes": table[:, :4], "scores": table[:, 4], "labels": table[:, 5].to(torch.int64)}


SEEN = [
    view((0, 0, 100, 100, 0.8, 1), (0, 0, 100, 100, 0.3, 2)),
    view((0, 0, 104, 100, 0.4, 1), (200, 0, 240, 40, 0.9, 1), (0, 0, 60, 100, 0.7, 1)),
]
"""Two views: one object of class 1 seen by both, one of class 2 at its place, others."""


def merged(network: MaskXRCNN, most: int = 100, **options: Any) -> dict[str, Tensor]:
    return Views(network, ViewsConfig(flip=True, **options)).inference().merged(SEEN, most)


def test_nms_keeps_the_best_box_of_an_object_and_what_only_one_view_has_seen(network: MaskXRCNN) -> None:
    answer = merged(network)
    assert answer["scores"].tolist() == pytest.approx([0.9, 0.8, 0.3])
    assert answer["labels"].tolist() == [1, 1, 2]
    assert answer["boxes"].tolist() == [[200, 0, 240, 40], [0, 0, 100, 100], [0, 0, 100, 100]]
    assert merged(network, most=1)["scores"].tolist() == pytest.approx([0.9])


def test_boxes_that_overlap_enough_vote_by_their_scores_within_their_class(network: MaskXRCNN) -> None:
    answer = merged(network, merge="vote")
    assert answer["boxes"][1].tolist() == pytest.approx([0, 0, (0.8 * 100 + 0.4 * 104) / 1.2, 100], abs=1e-3)
    assert answer["boxes"][2].tolist() == [0, 0, 100, 100]
    strict = merged(network, merge="vote", vote_iou=0.99)
    assert strict["boxes"][1].tolist() == [0, 0, 100, 100]


@torch.no_grad()
def test_an_image_of_which_nothing_is_found_has_an_empty_answer(network: MaskXRCNN) -> None:
    views = Views(network, ViewsConfig(flip=True, merge="vote"))
    answer = answered(views, image(HEIGHT, WIDTH), most=0)
    assert answer["boxes"].shape == (0, 4)
    assert answer["rle_offsets"].tolist() == [0]
    assert answered(views, image(HEIGHT, WIDTH), masks=False)["rle_counts"].numel() == 0


@pytest.mark.parametrize("settings", [{"min_sizes": (0,)}, {"min_sizes": (8, 8)}, {"vote_iou": 0.0}])
def test_views_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings)).replace("min_sizes", "scales")):
        ViewsConfig(**settings)


def test_the_command_judges_by_views_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny_set(tmp_path)
    checkpoint = tmp_path / "checkpoint.pt"
    data = {"val_images": str(tmp_path / "images"), "val_annotations": str(tmp_path / "train.json")}
    classes = ClassTable(ids=(1, 2, 3), names=NAMES, has_mask=(True, True, False))
    save_network(checkpoint, small_network(3), SMALL, classes, training_config={"data": data})
    command = ["--checkpoint", str(checkpoint), "--device", "cpu", "--out", str(tmp_path / "judged")]

    def judged(*more: str) -> dict[str, Any]:
        assert main([*command, *more]) == 0
        found: dict[str, Any] = json.loads((tmp_path / "judged" / "results.json").read_text())
        return found

    plain, viewed = judged(), judged("--flip", "--scales", "48,64", "--merge", "vote")
    assert "views" not in plain
    assert viewed.pop("views") == {"flip": True, "min_sizes": [48, 64], "merge": "vote", "vote_iou": 0.9}
    assert viewed["all"]["mask_iou"] != plain["all"]["mask_iou"]
    assert main([*command, "--scales", "48,x"]) == 2
    assert "--scales is '48,x'" in capsys.readouterr().err
