"""Word vectors of class names from files in GloVe's text format (Table 1a)."""

from pathlib import Path

import pytest
import torch

from model.masks.word_vectors import drawn_word_vectors, read_word_vectors

GLOVE = """the 0.1 0.2 0.3
cat 1 2 3
dog -1 0 1e-1
fire 2 2 2
hydrant 4 0 -2
t-shirt 7 7 7
at name@domain.com 5 5 5
dog 9 9 9
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "glove.3d.txt"
    path.write_text(GLOVE, encoding="utf-8")
    return path


def test_a_class_has_the_first_vector_of_its_word_and_several_words_have_their_mean(file: Path) -> None:
    rows = read_word_vectors(file, ["dog", "Fire Hydrant", "cat"], width=3)
    torch.testing.assert_close(rows, torch.tensor([[-1, 0, 0.1], [3, 1, 0], [1, 2, 3]]))


@pytest.mark.parametrize("name", ["fire_hydrant.n.01", "fire-hydrant", "hydrant (fire)", " FIRE hydrant "])
@pytest.mark.parametrize("first_line", ["", "2 3\n"], ids=["GloVe", "word2vec"])
def test_underscores_hyphens_brackets_capitals_and_the_ending_of_a_synset_are_no_part_of_a_word(
    name: str, first_line: str, file: Path
) -> None:
    """A name that the file has whole is not taken apart."""
    file.write_text(first_line + GLOVE, encoding="utf-8")
    assert read_word_vectors(file, [name, "T-shirt"], width=3).tolist() == [[3, 1, 0], [7, 7, 7]]


def test_words_that_are_missing_are_one_error_that_names_their_classes(file: Path) -> None:
    named = (
        r"words of 3 of 4 classes: 'hair drier' \(hair, drier\); 'fire engine' \(engine\); '\?' \(no word\)"
    )
    with pytest.raises(ValueError, match=named):
        read_word_vectors(file, ["cat", "hair drier", "fire engine", "?"], width=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat 1 2\n", r"line 1 has 2 numbers after its word, and model\.transfer\.vector_width is 3"),
        ("the 1 2 3\ncat 1 2\n", "line 2: 2 numbers, 2 of them finite; expected 3"),
        ("the 1 2 3\ncat 1 2 nan\n", "line 2: 3 numbers, 2 of them finite"),
        (
            "the 1 2 3\ncat 1 2 x\n",
            "line 2: could not convert string to float.*expected a word and 3 numbers",
        ),
    ],
)
def test_a_line_that_is_no_vector_is_named(text: str, message: str, file: Path) -> None:
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_word_vectors(file, ["cat"], width=3)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="glove.txt: no such file of word vectors"):
        read_word_vectors(tmp_path / "glove.txt", ["cat"], width=3)


# ---- the random rows of Table 1a ----


def test_drawn_rows_are_means_of_vectors_that_names_share() -> None:
    """As in the paper's code: a name of one word has length 1, of two words sqrt(1 / 2), and bears are alike."""
    torch.manual_seed(0)
    names = ["bear", "teddy bear", "Teddy_Bear.n.01", "teddy", "?", "!"]
    rows = drawn_word_vectors(names, width=3000)
    assert rows.shape == (6, 3000) and rows.dtype == torch.float32
    bear, both, again, teddy = rows[:4]
    torch.testing.assert_close(both, (bear + teddy) / 2)
    assert torch.equal(both, again) and not torch.equal(rows[4], rows[5])
    length = rows.norm(dim=1)
    torch.testing.assert_close(length[[0, 3, 4, 5]], torch.ones(4), atol=0.06, rtol=0)
    assert float(length[1]) == pytest.approx(0.5**0.5, abs=0.05)
    assert float(bear @ both / length[0] / length[1]) == pytest.approx(0.5**0.5, abs=0.05)


def test_drawn_rows_follow_the_seed() -> None:
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(drawn_word_vectors(["bear", "cat"], width=3))
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
