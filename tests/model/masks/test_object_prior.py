"""The object-prior map: what it is, whom its gradient reaches, and that the box head can be read cell by cell."""

import torch
from torch import nn

from model.boxes.head import ConvBoxHead
from model.boxes.pooling import rois_of
from model.masks.object_prior import object_prior
from tests.model.masks.test_mask_heads import small
from tests.model.small_network import image, target


def test_the_mean_of_the_class_map_is_the_class_score() -> None:
    """So that a cell's value is its part in the decision."""
    head, classifier = ConvBoxHead(channels=4, width=16), nn.Linear(16, 3, bias=False)
    pooled = torch.randn(2, 4, 7, 7)
    maps = head.maps(pooled)
    assert maps.shape == (2, 16, 7, 7) and head(pooled).shape == (2, 16)
    of_class = torch.einsum("rdhw,cd->rchw", maps, classifier.weight)
    torch.testing.assert_close(of_class.mean(dim=(2, 3)), classifier(head(pooled)))


def test_the_map_goes_from_0_to_1_and_is_that_of_the_rois_own_class() -> None:
    maps = torch.zeros(3, 2, 4, 4)
    maps[:, 0, 1, 2] = 5.0
    maps[:, 1, 3, 0] = 2.0
    weights = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    prior = object_prior(maps, weights, 4)
    assert prior[0].argmax() == 1 * 4 + 2 and prior[1].argmax() == 3 * 4
    assert prior[:2].amax() == 1.0 and prior[:2].amin() == 0.0
    assert not prior[2].any(), "a flat map is no prior"
    assert object_prior(maps, weights, 14).shape == (3, 14, 14)
    assert object_prior(maps[:0], weights[:0], 14).shape == (0, 14, 14)


def test_masks_teach_the_box_features_and_not_the_class_weights() -> None:
    """OPMask: the class weights are held still, or set-A classes would drift away from set B."""
    for prior in ("cam", "none"):
        network = small(box_head="conv", prior=prior, train_on="ground_truth").train()
        network.losses([image()], [target(4)])["loss_mask"].backward()
        assert network.box_predictor.cls_score.weight.grad is None
        reached = [p.grad is not None and bool(p.grad.any()) for p in network.box_head.parameters()]
        assert all(reached) if prior == "cam" else not any(reached)


@torch.no_grad()
def test_the_prior_is_added_to_every_channel_of_the_crop_in_training_and_as_served() -> None:
    network = small(box_head="conv", prior="cam").eval()
    rois, labels = rois_of([target(3)["boxes"]]), target(3)["labels"]
    features = network.backbone(network.canvas([image()], 64, 64))
    added = network.mask_features(features, rois, labels) - network.mask_pool(features, rois)
    assert bool(added.amax(dim=(1, 2, 3)).gt(0.5).all())
    torch.testing.assert_close(added, added[:, :1].expand_as(added))
    other = network.mask_features(features, rois, labels % 5 + 1) - network.mask_pool(features, rois)
    assert not torch.allclose(other, added, atol=1e-2)
    expected = torch.sigmoid(network.mask_logits(features, rois, labels))
    inference = network.inference()
    got = inference.mask_probabilities(inference.for_pooling(features), rois, labels)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
