"""The random splits of Figure 3: the draws of the paper's own code, and how `mask_classes` names them."""

import random
from collections.abc import Iterator

import pytest

from model.classes import class_table
from training.data.splits import random_splits, split_classes

EIGHTY = [{"id": 2 * i + 1, "name": f"class {i}"} for i in range(80)]


def mersenne_twister(seed: int) -> random.Random:
    """Numpy's legacy seeding (init_genrand of the 2002 reference) of the generator that Python has, too."""
    words = [seed]
    for i in range(1, 624):
        words.append((1812433253 * (words[-1] ^ (words[-1] >> 30)) + i) & 0xFFFFFFFF)
    generator = random.Random()
    generator.setstate((3, (*words, 624), None))
    return generator


def shuffled(generator: random.Random, count: int) -> list[int]:
    """Fisher-Yates from the end, each index drawn by masking 32 bits and rejecting: numpy's RandomState.permutation."""
    order = list(range(count))
    for last in range(count - 1, 0, -1):
        mask = (1 << last.bit_length()) - 1
        while (chosen := generator.getrandbits(32) & mask) > last:
            pass
        order[last], order[chosen] = order[chosen], order[last]
    return order


def by_hand() -> Iterator[tuple[str, list[int]]]:
    """Names and draws in the order of the source: trials outside, sizes inside, one generator of seed 3."""
    generator = mersenne_twister(3)
    for trial in range(1, 6):
        for size in (20, 30, 40, 50, 60):
            yield f"E{trial}_A{size}B{80 - size}", sorted(shuffled(generator, 80)[:size])


def test_the_25_splits_of_80_classes_are_those_of_another_implementation_of_the_generator() -> None:
    expected = list(by_hand())
    found = random_splits(80)
    assert list(found) == [name for name, _ in expected]
    assert [list(positions) for positions in found.values()] == [positions for _, positions in expected]


def test_the_first_split_stays_what_it_is() -> None:
    """Written down, so that a change of numpy and of this repository at once is seen, too."""
    assert random_splits(80)["E1_A20B60"] == FIRST
    assert random_splits(80)["E5_A60B20"] != random_splits(80)["E4_A60B20"]


FIRST = (6, 8, 9, 12, 13, 27, 34, 35, 45, 47, 50, 54, 55, 57, 59, 61, 63, 66, 73, 77)


def test_sizes_for_another_number_of_classes_are_eighths_of_it() -> None:
    assert list(random_splits(48))[:5] == ["E1_A12B36", "E1_A18B30", "E1_A24B24", "E1_A30B18", "E1_A36B12"]
    assert list(random_splits(20))[:5] == ["E1_A5B15", "E1_A7B13", "E1_A10B10", "E1_A12B8", "E1_A15B5"]
    for name, positions in random_splits(20).items():
        assert len(set(positions)) == int(name.partition("_A")[2].partition("B")[0])
        assert set(positions) <= set(range(20))


def test_a_split_counts_categories_by_ascending_id_and_not_as_the_file_has_them() -> None:
    table = split_classes(EIGHTY[::-1], " random: E3_A40B40 ")
    assert table.ids == tuple(2 * i + 1 for i in range(80))
    expected = dict(by_hand())["E3_A40B40"]
    assert [label - 1 for label in table.set_a_labels()] == expected


@pytest.mark.parametrize(
    ("choice", "seen"),
    [
        ("random:E3_A40B4", "no such split of 80 classes.*random:E3_A40B40"),
        ("random:E6_A40B40", "there are 25, such as random:E"),
        ("random:", "there are 25"),
    ],
)
def test_an_unknown_split_is_refused_with_near_names(choice: str, seen: str) -> None:
    with pytest.raises(ValueError, match=seen):
        split_classes(EIGHTY, choice)


def test_fewer_than_8_classes_have_no_random_splits() -> None:
    with pytest.raises(ValueError, match="at least 8 classes; there are 7"):
        split_classes(EIGHTY[:7], "random:E1_A20B60")
    assert len(random_splits(8)) == 25


@pytest.mark.parametrize("choice", ["all", "class 3, class 5"])
def test_other_words_mean_what_they_always_meant(choice: str) -> None:
    assert split_classes(EIGHTY, choice) == class_table(EIGHTY, choice)
