from collections.abc import Callable

import numpy as np
import pytest

from tests.training.join.made_sources import made_objects, no_likeness, sources_of
from training.join import rule
from training.join.features import Features, Floats, features_of
from training.join.rule import Labels, Scale, fit_rule, turns
from training.join.trust import true_ious

CLASSES = 8


@pytest.fixture(scope="module")
def judged() -> tuple[Features, Labels, dict[str, Floats]]:
    objects = made_objects(CLASSES, each=8, known=lambda label: True)
    said = sources_of(objects)
    every = np.arange(len(objects.objects))
    ious = {name: true_ious(one.maps, objects, every) for name, one in said.items()}
    return features_of(said, objects, no_likeness(CLASSES)), objects.labels, ious


def fitted(judged: tuple[Features, Labels, dict[str, Floats]], ious: dict[str, Floats]) -> rule.Fitted:
    features, labels, _ = judged
    return fit_rule(features, labels, ious, Scale.of(features.values, labels))


def test_what_is_said_of_a_class_left_out_has_not_seen_its_truth(
    judged: tuple[Features, Labels, dict[str, Floats]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, labels, ious = judged
    monkeypatch.setattr(rule, "PENALTIES", (10.0,))
    mine = labels == 3
    lied = {name: np.where(mine, 1 - values, values) for name, values in ious.items()}
    before, after = fitted(judged, ious).left_out, fitted(judged, lied).left_out
    assert np.array_equal(before[mine], after[mine])
    assert not np.allclose(before[~mine], after[~mine])  # else the line above proves nothing


def test_a_class_that_was_never_seen_is_predicted_by_what_the_sources_say_of_it(
    judged: tuple[Features, Labels, dict[str, Floats]],
) -> None:
    _, labels, ious = judged
    found = fitted(judged, ious)
    segmenter = list(ious).index("segmenter")
    for label in range(1, CLASSES + 1):
        mine = labels == label
        expected = found.left_out[mine, segmenter].mean()
        assert expected == pytest.approx(ious["segmenter"][mine].mean(), abs=0.15)


def test_a_class_with_truth_of_its_own_is_predicted_nearer_to_it(
    judged: tuple[Features, Labels, dict[str, Floats]],
) -> None:
    features, labels, ious = judged
    mine = labels == 2
    odd = {name: np.where(mine, np.clip(values - 0.3, 0, 1), values) for name, values in ious.items()}
    found = fitted(judged, odd)
    true = odd["transfer"][mine].mean()
    of_transfer = list(odd).index("transfer")
    known = found.rule.predicted(features, labels)[mine, of_transfer].mean()
    assert abs(known - true) < abs(found.left_out[mine, of_transfer].mean() - true)


def test_classes_are_left_out_one_by_one_while_there_are_few() -> None:
    labels = np.repeat(np.arange(1, 50), 2)
    assert len(set(turns(labels[:20]).tolist())) == 10
    assert len(set(turns(labels).tolist())) == rule.GROUPS
    assert turns(np.array([7, 7, 9])).tolist() == [0, 0, 1]


@pytest.mark.parametrize("change", [lambda values: values, lambda values: values * 1000])
def test_predictions_do_not_depend_on_a_features_unit(
    judged: tuple[Features, Labels, dict[str, Floats]], change: Callable[[Floats], Floats]
) -> None:
    features, labels, ious = judged
    moved = Features(names=features.names, values=change(features.values))
    found = fit_rule(moved, labels, ious, Scale.of(moved.values, labels))
    assert found.left_out == pytest.approx(fitted(judged, ious).left_out, abs=1e-6)


def test_reasons_name_the_features_that_move_a_class(
    judged: tuple[Features, Labels, dict[str, Floats]],
) -> None:
    features, labels, ious = judged
    found, mine = fitted(judged, ious).rule, labels == 2
    some = Features(names=features.names, values=features.values[mine])
    reasons = found.reasons(some, labels[mine], "segmenter")
    assert len(reasons) == 3 and sum(moved for _, moved in reasons) < -0.1
    assert any("agree" in name for name, _ in reasons)
