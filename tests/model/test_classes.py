"""Ids, labels and names of classes, and the choice of set A."""

from pathlib import Path
from typing import Any

import pytest
import torch

from model.classes import VOC_NAMES, ClassTable, class_table

CATEGORIES = [
    {"id": 90, "name": "toothbrush"},
    {"id": 1, "name": "person"},
    {"id": 17, "name": "cat"},
    {"id": 13, "name": "stop sign"},
]


def test_labels_run_from_1_in_the_order_of_ids_whatever_the_order_of_the_file() -> None:
    table = class_table(CATEGORIES, "all")
    assert table.ids == (1, 13, 17, 90)
    assert table.names == ("person", "stop sign", "cat", "toothbrush")
    assert [table.label_of_id(i) for i in table.ids] == [1, 2, 3, 4]
    assert [table.id_of_label(label) for label in (1, 2, 3, 4)] == [1, 13, 17, 90]
    assert table.name_of_label(3) == "cat"
    assert table.label_of_name("toothbrush") == 4
    assert table.num_classes == 4


@pytest.mark.parametrize(
    ("choice", "set_a", "set_b"),
    [
        ("all", (1, 2, 3, 4), ()),
        ("voc", (1, 3), (2, 4)),
        ("nonvoc", (2, 4), (1, 3)),
        ("cat", (3,), (1, 2, 4)),
        (" stop sign , person,", (1, 2), (3, 4)),
    ],
)
def test_set_a_is_what_was_asked_for_and_set_b_the_rest(
    choice: str, set_a: tuple[int, ...], set_b: tuple[int, ...]
) -> None:
    table = class_table(CATEGORIES, choice)
    assert table.set_a_labels() == set_a
    assert table.set_b_labels() == set_b


def test_a_file_names_set_a_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "mask_classes.txt"
    file.write_text("# with masks\n\ncat\n  stop sign  \n", encoding="utf-8")
    assert class_table(CATEGORIES, str(file)).set_a_labels() == (2, 3)


def test_an_unknown_name_in_a_file_is_refused_with_the_file_and_a_near_name(tmp_path: Path) -> None:
    file = tmp_path / "mask_classes.txt"
    file.write_text("stop sing\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"mask_classes\.txt.*'stop sing'.*did you mean 'stop sign'"):
        class_table(CATEGORIES, str(file))


def test_the_voc_split_has_20_different_classes() -> None:
    assert len(set(VOC_NAMES)) == 20


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("persn", "'persn'.*did you mean 'person'"),
        ("nowhere/names.txt", "nowhere/names.txt.*nor is.*a file"),
        ("", "leaves no class with masks"),
        ("none", "'none'"),
    ],
)
def test_a_choice_that_names_no_class_is_refused(choice: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        class_table(CATEGORIES, choice)


def test_voc_is_refused_where_the_set_has_none_of_its_classes() -> None:
    with pytest.raises(ValueError, match="none of the 20"):
        class_table([{"id": 1, "name": "bolt"}], "nonvoc")


def test_nonvoc_is_refused_where_every_class_is_a_voc_class() -> None:
    with pytest.raises(ValueError, match="no class with masks"):
        class_table([{"id": 1, "name": "cat"}], "nonvoc")


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([], "empty"),
        ([{"id": 1}], "number 1"),
        ([{"id": "1", "name": "a"}], "whole number"),
        ([{"id": True, "name": "a"}], "whole number"),
        ([{"id": 1, "name": " "}], "expected a text"),
        ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "two categories have the id 1"),
        ([{"id": 1, "name": "a"}, {"id": 2, "name": "a"}], "two categories have the name 'a'"),
        (["cat"], "number 1"),
    ],
)
def test_broken_categories_are_refused(categories: list[dict[str, object]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        class_table(categories, "all")


def test_background_and_strangers_have_no_entry() -> None:
    table = class_table(CATEGORIES, "all")
    for label in (0, 5, -1):
        with pytest.raises(ValueError, match="label -?[0-9]+ is not in 1"):
            table.name_of_label(label)
    with pytest.raises(ValueError, match="no category has the id 2"):
        table.label_of_id(2)


def test_holding_out_moves_classes_from_a_to_b_and_nothing_else() -> None:
    table = class_table(CATEGORIES, "person,cat")
    held_out = table.without_masks([3])
    assert held_out.set_a_labels() == (1,)
    assert (held_out.ids, held_out.names) == (table.ids, table.names)
    assert table.set_a_labels() == (1, 3)


def test_holding_out_refuses_classes_of_set_b_and_the_whole_of_set_a() -> None:
    table = class_table(CATEGORIES, "person,cat")
    with pytest.raises(ValueError, match=r"labels \[2\] are not in set A"):
        table.without_masks([1, 2])
    with pytest.raises(ValueError, match="none is left"):
        table.without_masks([1, 3])


def test_a_table_survives_a_checkpoint_that_loads_only_weights(tmp_path: Path) -> None:
    table = class_table(CATEGORIES, "cat")
    torch.save(table.to_dict(), tmp_path / "table.pt")
    assert ClassTable.from_dict(torch.load(tmp_path / "table.pt", weights_only=True)) == table


def test_a_stored_table_with_other_keys_is_refused() -> None:
    with pytest.raises(ValueError, match="seen"):
        ClassTable.from_dict({"ids": [1], "names": ["a"]})


def test_a_table_out_of_order_is_refused() -> None:
    with pytest.raises(ValueError, match="ascend"):
        ClassTable(ids=(2, 1), names=("a", "b"), has_mask=(True, True))
    with pytest.raises(ValueError, match="2 ids, 1 names"):
        ClassTable(ids=(1, 2), names=("a",), has_mask=(True, True))


def test_a_table_says_by_itself_what_its_masks_were_learned_from_as_one_of_before_does() -> None:
    values: dict[str, list[Any]] = {"ids": [1, 2], "names": ["a", "b"], "has_mask": [True, False]}
    assert ClassTable.from_dict(values).mask_sources == ("masks", "boxes")


def test_sources_survive_a_checkpoint_and_go_by_name() -> None:
    table = class_table(CATEGORIES, "all")
    told = table.with_sources(["masks", *["taught"] * (table.num_classes - 1)])
    assert ClassTable.from_dict(told.to_dict()) == told != table
    assert told.set_a_labels() == (1,)
    fewer = ClassTable(ids=(7,), names=told.names[1:2], has_mask=(False,), mask_sources=("some_masks",))
    assert told.with_sources_of(fewer).mask_sources == (
        "boxes",
        "some_masks",
        *["boxes"] * (told.num_classes - 2),
    )


def test_sources_that_contradict_set_a_are_refused() -> None:
    for sources in (("masks", "masks"), ("some_masks", "boxes"), ("masks",)):
        with pytest.raises(ValueError, match="exactly where the mark is true"):
            ClassTable(ids=(1, 2), names=("a", "b"), has_mask=(True, False), mask_sources=sources)
    with pytest.raises(ValueError, match="a mask source is 'human'"):
        ClassTable(ids=(1, 2), names=("a", "b"), has_mask=(True, False), mask_sources=("masks", "human"))


def test_classes_held_out_learn_from_boxes_and_the_others_from_what_they_had() -> None:
    table = ClassTable(
        ids=(1, 2, 3),
        names=("a", "b", "c"),
        has_mask=(True, True, False),
        mask_sources=("masks", "masks", "taught"),
    )
    assert table.without_masks([2]).mask_sources == ("masks", "boxes", "taught")


def test_class_specific_masks_want_some_masks_of_every_class_and_no_more() -> None:
    table = class_table([{"id": i, "name": name} for i, name in enumerate("ab")], "all")
    table.with_sources(["some_masks", "taught"]).require_masks()
    with pytest.raises(ValueError, match="1 of 2 have none"):
        table.with_sources(["masks", "boxes"]).require_masks()
