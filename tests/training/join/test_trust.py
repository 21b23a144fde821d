import numpy as np
import pytest

from tests.training.join.made_sources import (
    disc,
    made_objects,
    made_source,
    no_likeness,
    sources_of,
    true_radius,
)
from training.join import fusion
from training.join.trust import (
    BY_CLASS,
    BY_OBJECT,
    FUSED,
    best_way,
    choice,
    fit_trust,
    mask_weights,
    true_ious,
)

CLASSES, WITH_MASKS = 12, 8


def test_a_segmenter_that_claims_095_of_everything_is_trusted_for_those_unseen_classes_that_it_gets_right() -> (
    None
):
    objects = made_objects(CLASSES, each=10, known=lambda label: label <= WITH_MASKS)
    truth = made_objects(CLASSES, each=10, known=lambda label: True)
    said = sources_of(objects)
    trust, _ = fit_trust(said, objects, no_likeness(CLASSES))
    judged = trust.judge(said, objects)
    true = np.stack(
        [true_ious(one.maps, truth, np.arange(len(truth.objects))) for one in judged.said.values()], axis=1
    )
    unseen = objects.labels > WITH_MASKS
    taken = np.take_along_axis(true, trust.chosen(judged, objects.labels)[:, None], axis=1)[:, 0]
    names = list(judged.sources)
    for single in ("segmenter", "transfer", "box"):
        assert taken[unseen].mean() > true[unseen, names.index(single)].mean() + 0.03
    expected = judged.predicted[unseen, names.index("segmenter")]
    even = objects.labels[unseen] % 2 == 0
    assert expected[even].mean() < 0.3 < 0.85 < expected[~even].mean()


def test_true_masks_of_classes_without_masks_would_change_nothing_if_they_were_there() -> None:
    objects = made_objects(CLASSES, each=6, known=lambda label: label <= WITH_MASKS)
    said = sources_of(objects)
    trust, evidence = fit_trust(said, objects, no_likeness(CLASSES))
    assert evidence.known.sum() == WITH_MASKS * 6
    judged = trust.judge(said, objects)
    known = made_objects(CLASSES, each=6, known=lambda label: True)
    assert np.array_equal(judged.predicted, trust.judge(said, known).predicted)


@pytest.mark.parametrize("best", ["transfer", "segmenter"])
def test_of_drawn_objects_the_transfers_masks_are_taken_and_of_photographs_the_segmenters(best: str) -> None:
    """Whichever claims more: the segmenter claims .95 of everything, the other nothing."""
    objects = made_objects(8, each=8, known=lambda label: label <= 5)
    radii = {name: true_radius if name == best else (lambda label: 1.3) for name in ("transfer", "segmenter")}
    said = {
        name: made_source(objects, radius, claims=0.95 if name == "segmenter" else 0.0, noise=0.02)
        for name, radius in radii.items()
    }
    trust, _ = fit_trust(said, objects, no_likeness(8))
    judged = trust.judge(said, objects)
    truth = made_objects(8, each=8, known=lambda label: True)
    unseen = np.flatnonzero(objects.labels > 5)
    true = np.stack([true_ious(one.maps[unseen], truth, unseen) for one in judged.said.values()], axis=1)
    chosen = trust.chosen(judged, objects.labels)[unseen]
    right = true[:, judged.sources.index(best)]
    assert right.mean() > 0.9 > 0.5 > true[:, 1 - judged.sources.index(best)].mean()
    assert np.take_along_axis(true, chosen[:, None], axis=1).mean() > right.mean() - 0.01


def test_fused_masks_are_better_than_any_source_where_each_errs_by_itself() -> None:
    objects = made_objects(6, each=20, known=lambda label: True)
    said = {
        name: made_source(objects, true_radius, noise=0.25, seed=number)
        for number, name in enumerate(("transfer", "segmenter", "agnostic"))
    }
    _, evidence = fit_trust(said, objects, no_likeness(6))
    means = evidence.true.mean(axis=0)
    assert means[-1] > means[:-1].max() + 0.01


def test_no_choice_is_made_of_chance() -> None:
    random = np.random.default_rng(0)
    true = np.stack([random.normal(0.7, 0.1, 60), random.normal(0.7, 0.1, 60)], axis=1)
    labels = np.arange(60) % 6
    way, tried = best_way(("one", "other"), random.random((60, 2)), true, labels)
    assert way in ("one", "other")
    assert len(tried) == 4


def test_a_choice_by_object_is_made_where_predictions_are_right() -> None:
    random = np.random.default_rng(0)
    true = random.random((60, 2))
    way, tried = best_way(("one", "other"), true, true, np.arange(60) % 6)
    assert way == BY_OBJECT and tried[-1].iou == pytest.approx(true.max(axis=1).mean())


@pytest.mark.parametrize(("gain", "taken"), [(0.018, False), (0.022, True)])
def test_one_source_is_left_only_for_two_points(gain: float, taken: bool) -> None:
    """Of classes that all gain the same the error is none: without the bound the least gain would do."""
    labels = np.arange(60) % 6
    odd = np.arange(60) // 6 % 2 == 1
    true = np.full((60, 2), 0.7)
    true[odd, 1] += 2 * gain
    true[~odd, 1] -= 4 * gain
    way, tried = best_way(("one", "other"), true, true, labels)
    assert tried[-1].gain == pytest.approx(gain) and tried[-1].gain_error < 1e-9
    assert way == (BY_OBJECT if taken else "one")


@pytest.mark.parametrize(
    ("other", "gain", "taken"),
    [("prior", 0.018, False), ("prior", 0.022, True), ("box", 0.001, True)],
)
def test_what_learned_from_set_a_must_be_two_points_better_than_what_did_not(
    other: str, gain: float, taken: bool
) -> None:
    true = np.stack([np.full(60, 0.7), np.full(60, 0.7 + gain)], axis=1)
    way, tried = best_way(("segmenter", other), true, true, np.arange(60) % 6)
    assert way == (other if taken else "segmenter")
    assert [one.way for one in tried] == ["segmenter", other, BY_CLASS, BY_OBJECT]


def test_from_a_choice_by_class_to_one_by_object_any_sure_gain_will_do() -> None:
    labels = np.arange(60) % 6
    odd = np.arange(60) // 6 % 2 == 1
    true = np.full((60, 2), 0.5)
    true[labels < 3, 0] = true[labels >= 3, 1] = 0.8
    true[odd, 0] += 0.31 * (labels[odd] >= 3)
    true[odd, 1] += 0.31 * (labels[odd] < 3)
    way, tried = best_way(("one", "other"), true, true, labels)
    assert 0 < tried[-1].gain < 0.01
    assert way == BY_OBJECT


def test_a_choice_by_class_is_one_for_all_objects_of_a_class() -> None:
    predicted = np.array([[0.9, 0.1], [0.4, 0.6], [0.1, 0.3], [0.2, 0.25]])
    labels = np.array([1, 1, 2, 2])
    assert choice(BY_CLASS, ("a", "b"), predicted, labels).tolist() == [0, 0, 1, 1]
    assert choice(BY_OBJECT, ("a", "b"), predicted, labels).tolist() == [0, 1, 1, 1]
    assert choice("b", ("a", "b"), predicted, labels).tolist() == [1, 1, 1, 1]


def test_masks_that_nothing_is_sure_of_teach_nothing_or_less() -> None:
    assert mask_weights(np.array([0.2, 0.5, 0.625, 0.75, 1.0])).tolist() == [0, 0, 0.5, 1, 1]


def test_the_fused_mask_of_a_class_has_not_seen_its_truth(monkeypatch: pytest.MonkeyPatch) -> None:

    objects = made_objects(4, each=6, known=lambda label: True)
    said = sources_of(objects)
    expected = np.full((len(objects.objects), len(said)), 0.7)
    grids = np.stack([disc(true_radius(label)) for label in objects.labels.tolist()])
    mine = objects.labels == 3
    lied = np.where(mine[:, None, None], 255 - grids, grids)
    _, before = fusion.fit_fusion(said, tuple(said), expected, grids, objects.labels)
    _, after = fusion.fit_fusion(said, tuple(said), expected, lied, objects.labels)
    assert np.array_equal(before[mine], after[mine])
    assert not np.array_equal(before[~mine], after[~mine])  # else the line above proves nothing


def test_everything_again_is_the_same_to_the_last_bit() -> None:
    objects = made_objects(4, each=6, known=lambda label: label < 4)
    said = sources_of(objects)
    one, _ = fit_trust(said, objects, no_likeness(4))
    other, _ = fit_trust(said, objects, no_likeness(4))
    first, second = one.judge(said, objects), other.judge(said, objects)
    assert np.array_equal(first.predicted, second.predicted)
    assert np.array_equal(first.said[FUSED].maps, second.said[FUSED].maps)
