"""The network of the bench does what it was calibrated to, and is the same on both sides."""

import functools

import pytest
import torch
from torchvision.ops import poolers, roi_align

from benchmarks.pictures import photograph
from benchmarks.speed.calibration import background_for, bisect, coco_size_shares, standardise
from benchmarks.speed.floor import run_eagerly
from benchmarks.speed.network import config_of_size, with_weights_of
from benchmarks.speed.peer import decode_to_float, pixels_of
from tests.benchmarks.small_bench import MAX_SIZE, MIN_SIZE, PAIRS, PROPOSALS, Bench


def test_the_pairs_that_were_asked_for_pass_the_threshold_on_both_sides(bench: Bench) -> None:
    assert 0.9 * PAIRS <= bench.reached.pairs <= PAIRS
    assert 0.9 * PAIRS <= bench.pairs_ours <= PAIRS
    assert bench.reached.proposals == PROPOSALS


def test_both_sides_find_the_same_with_the_same_weights(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchvision pools half a cell off; but for that, and where nothing is resized, detections are the same."""
    monkeypatch.setattr(poolers, "roi_align", functools.partial(roi_align, aligned=True))
    with torch.no_grad():
        theirs = bench.peer([decode_to_float(bench.picture)])[0]
        mine = run_eagerly(bench.ours, pixels_of(bench.picture))
    same_label = mine["labels"][:, None] == theirs["labels"][None, :]
    near_box = (mine["boxes"][:, None] - theirs["boxes"][None]).abs().amax(dim=2) < 0.05
    near_score = (mine["scores"][:, None] - theirs["scores"][None]).abs() < 2e-3
    matched = same_label & near_box & near_score
    assert len(mine["labels"]) > 50
    # One that stands at the threshold, or at the IoU of NMS, may fall on either side.
    assert int((~matched.any(dim=1)).sum()) <= 2
    assert int((~matched.any(dim=0)).sum()) <= 2


def test_a_weight_without_counterpart_is_an_error(bench: Bench) -> None:
    config = config_of_size(MIN_SIZE, MAX_SIZE)
    classes = bench.peer.roi_heads.box_predictor.cls_score.out_features
    assert with_weights_of(bench.peer, config).mask_table.shape == (classes, 256)
    narrow = torch.nn.Sequential(*list(bench.peer.roi_heads.mask_head)[:-1])
    whole = bench.peer.roi_heads.mask_head
    bench.peer.roi_heads.mask_head = narrow
    try:
        with pytest.raises(RuntimeError, match="size mismatch"):
            with_weights_of(bench.peer, config)
    finally:
        bench.peer.roi_heads.mask_head = whole


def test_masks_are_one_blob_each_of_about_half_their_box(bench: Bench) -> None:
    assert bench.reached.mask_share == pytest.approx(0.55, abs=0.01)
    with torch.no_grad():
        masks = bench.peer([decode_to_float(bench.picture)])[0]["masks"][:, 0] > 0.5
    columns = masks.any(dim=1).sum(dim=1)
    begins = (masks[:, 1:] & ~masks[:, :-1]).sum(dim=(1, 2)) + masks[:, 0].sum(dim=1)
    # Speckles would give several to a column.
    assert 1.0 <= float((begins / columns.clamp(min=1)).median()) < 1.5


def test_sizes_are_counted_as_if_the_shorter_side_were_cocos() -> None:
    boxes = torch.tensor([[0, 0, 63, 63], [0, 0, 65, 65], [0, 0, 191, 191], [0, 0, 193, 193]]).float()
    assert coco_size_shares(boxes, 960) == (0.25, 0.5, 0.25)
    assert coco_size_shares(boxes, 480) == (0.0, 0.5, 0.5)
    assert coco_size_shares(boxes[:0], 480) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (torch.nn.Linear(5, 3), (400, 5)),
        (torch.nn.Conv2d(5, 3, 3), (4, 5, 12, 12)),
        (torch.nn.ConvTranspose2d(5, 3, 2, stride=2), (4, 5, 12, 12)),
    ],
)
def test_a_standardised_layer_gives_the_deviation_asked_for(
    layer: torch.nn.Linear | torch.nn.Conv2d | torch.nn.ConvTranspose2d, shape: tuple[int, ...]
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 7 + 3
    wanted = torch.tensor([1.0, 2.0, 0.5])
    with torch.no_grad():
        standardise(layer, [layer(x)], wanted)
        y = layer(x).transpose(0, 1).flatten(1)
    torch.testing.assert_close(y.std(dim=1), wanted)
    torch.testing.assert_close(y.mean(dim=1), torch.zeros(3), rtol=0, atol=1e-4)


def test_bisection_finds_where_a_falling_function_crosses() -> None:
    assert bisect(lambda x: 10 - x, 7.0, 0.0, 10.0) == pytest.approx(3.0, abs=1e-6)


def test_a_higher_background_lets_fewer_pairs_pass() -> None:
    logits = torch.randn(50, 9, generator=torch.Generator().manual_seed(0)) * 4
    low, many = background_for(logits.clone(), 0.05, 60)
    high, few = background_for(logits.clone(), 0.05, 20)
    assert low < high
    assert 18 <= few <= 20
    assert 58 <= many <= 60


def test_a_photograph_is_the_same_for_the_same_seed_and_has_its_size() -> None:
    data = photograph(64, 48, seed=3)
    assert data == photograph(64, 48, seed=3)
    assert data != photograph(64, 48, seed=4)
    assert pixels_of(data).shape == (3, 48, 64)
