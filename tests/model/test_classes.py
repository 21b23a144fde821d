"""Ids, labels and names of classes, and the choice of set A."""

from pathlib import Path

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
