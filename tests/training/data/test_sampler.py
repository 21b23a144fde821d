"""The order of images and the seeds of their augmentation."""

from collections import Counter

import pytest

from training.data.sampler import SeededBatches, mixed, sample_seed, shuffled


def batches(**changes: int) -> list[list[tuple[int, int]]]:
    arguments = {"size": 5, "batch_size": 2, "batches": 10, "seed": 3, **changes}
    return list(SeededBatches(**arguments))


def test_every_image_comes_once_in_each_pass_although_batches_reach_across_passes() -> None:
    indices = [index for batch in batches() for index, _ in batch]
    passes = [indices[start : start + 5] for start in range(0, 20, 5)]
    assert all(sorted(one) == [0, 1, 2, 3, 4] for one in passes)
    assert len({tuple(one) for one in passes}) > 1, "the passes should be shuffled differently"


def test_all_batches_are_full_even_where_the_set_is_smaller_than_a_batch() -> None:
    assert [len(batch) for batch in batches(size=3, batch_size=7, batches=4)] == [7] * 4


def test_going_on_at_a_position_gives_the_batches_the_whole_run_would_have_given() -> None:
    whole = batches()
    for done in range(10):
        assert batches(position=done * 2, batches=10 - done) == whole[done:]


def test_no_two_samples_of_a_run_share_a_seed() -> None:
    seeds = Counter(seed for batch in batches(batches=500) for _, seed in batch)
    assert max(seeds.values()) == 1


def test_another_seed_gives_another_order_and_other_augmentation() -> None:
    assert [shuffled(20, seed=s, epoch=0).tolist() for s in (0, 1)] != [
        shuffled(20, seed=0, epoch=0).tolist()
    ] * 2
    assert sample_seed(seed=0, position=7) != sample_seed(seed=1, position=7)


def test_the_order_for_a_seed_stays_what_it_was_in_earlier_versions() -> None:
    """A checkpoint of an earlier version must go on with the same images."""
    assert mixed(0, 1, 2) == 3384391416029321617
    assert batches(batches=2) == [
        [(4, 470380925222692991), (2, 7716143592125757362)],
        [(1, 6992063534824891432), (3, 5801690645536681376)],
    ]


@pytest.mark.parametrize("changes", [{"size": 0}, {"batch_size": 0}])
def test_an_empty_set_or_batch_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        batches(**changes)


def test_with_views_an_image_is_seen_in_so_many_ways_one_after_the_other_from_pass_to_pass() -> None:
    pairs = [pair for batch in batches(views=2, batches=10) for pair in batch]
    passes = [dict(pairs[start : start + 5]) for start in range(0, 20, 5)]
    assert passes[0] == passes[2] and passes[1] == passes[3]
    assert not set(passes[0].values()) & set(passes[1].values())
    assert len({seed for _, seed in pairs}) == 10
    assert [row for row, _ in pairs] == [row for batch in batches() for row, _ in batch]
    assert batches(views=2, position=6, batches=7) == batches(views=2)[3:]
