"""Which labels a request means by names and ids."""

from typing import Any

import pytest

from maskx_errors import INVALID_REQUEST, RequestError
from maskx_parameters import LONGEST_TEXT, Category, CategoryIndex

INDEX = CategoryIndex(
    {
        1: Category(id=5, name="person", mask_supervised=True),
        2: Category(id=7, name="handbag, purse", mask_supervised=True),
        3: Category(id=90, name="v\u00e9lo", mask_supervised=False),
        4: Category(id=91, name="person", mask_supervised=False),
        5: Category(id=92, name="911", mask_supervised=False),
        6: Category(id=93, name="tv, the set that stands in the living room", mask_supervised=False),
    }
)


@pytest.mark.parametrize(
    ("value", "labels"),
    [
        ("person", {1, 4}),
        (["person"], {1, 4}),
        (5, {1}),
        ("5", {1}),
        (b"5", {1}),
        (["5", 90], {1, 3}),
        ("v\u00e9lo", {3}),
        ("v\u00e9lo".encode(), {3}),
        (bytearray("v\u00e9lo , 91".encode()), {3, 4}),
        ('["handbag, purse", 90]', {2, 3}),
        (b' ["handbag, purse"]', {2}),
        (["handbag, purse", "v\u00e9lo"], {2, 3}),
        ("person,person,5", {1, 4}),
        ("92", {5}),
    ],
)
def test_names_and_ids_are_found_however_they_are_sent(value: Any, labels: set[int]) -> None:
    found = INDEX.labels_of(value, "the header")
    assert found == labels and isinstance(found, frozenset)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("Person", "unknown name 'Person'; did you mean 'person'\\?"),
        ("persn", "unknown name 'persn'; did you mean 'person'\\?"),
        ("velo", "did you mean 'v\u00e9lo'"),
        ("handbag, purse", "did you mean 'handbag, purse'\\?; a name with a comma goes into a JSON list"),
        ("tv", "unknown name 'tv'; did you mean 'tv, the set that stands in the living room'"),
        ("zzz", "unknown name 'zzz'; the model has 5 names, such as 'person'"),
        ("person,", "unknown name ''"),
        ("911", "unknown id 911; the model has 6 categories with ids from 5 to 93"),
        (6, "unknown id 6"),
        ("-1", "unknown id -1"),
        (10**30, "unknown id 10000"),
        ("9" * 40, "unknown name '999"),
        ("\u0665", "unknown name '\u0665'"),
        ("x" * 100_000, "unknown name 'xxx"),
        ("", "is empty; leave it out"),
        (b"  ", "is empty"),
        ([], "is empty"),
        ("[]", "is empty"),
        ("[5", "'\\[5', which begins like a JSON list"),
        ("[" * 100_000, "begins like a JSON list"),
        ("person," * LONGEST_TEXT, "characters; at most 200000"),
        ([5.0], "has 5.0; names and whole numbers"),
        ([True], "has True"),
        ([["person"]], "has \\['person'\\]"),
        ('[{"id": 5}]', "has {'id': 5}"),
        (True, "is True; allowed are"),
        (5.0, "is 5.0; allowed are"),
        (None, "is None; allowed are"),
        ({"person": 1}, "is {'person': 1}; allowed are"),
        (b"v\xe9lo", "not UTF-8"),
    ],
)
def test_what_is_no_category_is_refused_with_what_is_near(value: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message) as raised:
        INDEX.labels_of(value, "the header")
    assert "categories in the header" in raised.value.message
    assert raised.value.kind is INVALID_REQUEST and len(raised.value.message) < 300


def test_no_label_is_found_twice_where_ids_are_shared() -> None:
    index = CategoryIndex({label: Category(id=3, name=f"{label}", mask_supervised=True) for label in (1, 2)})
    assert index.labels_of([3, 3], "the JSON") == {1, 2}
