"""Real photographs with COCO's own annotations, where they lie beside the repository."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from model.build import build_network
from model.targets import mask_windows
from tests.model.pasting import paste_crop
from tests.model.small_network import SMALL
from training.data.coco import CocoDataset

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_masks_of_photographs_are_pycocotools_and_those_of_set_b_are_not_there(
    coco_mini: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations = coco_mini / "instances_val2017.json"
    data = CocoDataset(str(coco_mini / "images"), str(annotations), mask_classes="nonvoc")
    truth = COCO(str(annotations))
    capsys.readouterr()
    compared = 0
    for i in range(12):
        image, target = data[i]
        height, width = image.shape[1:]
        of_image = [a for a in truth.imgToAnns[target["image_id"]] if not a["iscrowd"]]
        assert [data.classes.id_of_label(int(label)) for label in target["labels"]] == [
            a["category_id"] for a in of_image
        ]
        windows = mask_windows(target["boxes"], height, width)
        for annotation, has_mask, crop, window in zip(
            of_image, target["has_mask"].tolist(), target["masks"], windows, strict=True
        ):
            name = truth.cats[annotation["category_id"]]["name"]
            assert has_mask is data.classes.has_mask[data.classes.names.index(name)]
            if has_mask:
                expected = truth.annToMask(annotation)
                assert np.array_equal(paste_crop(crop, window, height, width).numpy(), expected)
                compared += 1
            else:
                assert crop.numel() == 0
    assert compared > 20


def test_a_photograph_gives_finite_losses(coco_mini: Path) -> None:
    data = CocoDataset(
        str(coco_mini / "images"), str(coco_mini / "instances_val2017.json"), mask_classes="voc"
    )
    network = build_network(SMALL, num_classes=data.classes.num_classes).train()
    images, targets = zip(*(data[i] for i in range(3)), strict=True)
    losses = network.losses(list(images), list(targets))
    assert len(losses) == 5 and all(bool(torch.isfinite(loss)) for loss in losses.values())
