"""The inputs of T of Table 1a beside w_det, from the configuration to the served table: random rows, word vectors."""

from pathlib import Path

import pytest
import torch

from export.verify import verify_mask_table
from model.checkpoint import load_checkpoint, load_network
from tests.training.tiny_set import SIDE, tiny_changes
from training.train import main

VECTORS = {"brick": [1.0, 0.0, 2.0], "tile": [0.0, 3.0, 1.0], "slab": [-2.0, 1.0, 0.5]}


@pytest.fixture
def glove(tmp_path: Path) -> Path:
    path = tmp_path / "glove.txt"
    path.write_text("".join(f"{word} {' '.join(map(str, row))}\n" for word, row in VECTORS.items()))
    return path


def rows_of(checkpoint: Path) -> torch.Tensor:
    rows: torch.Tensor = load_checkpoint(checkpoint)["model"]["mask_weights.rows"]
    return rows


@pytest.mark.parametrize("given", ["random", "words"])
def test_fixed_rows_are_kept_by_the_checkpoint_and_words_need_their_file_no_more(
    given: str, tiny_set: Path, glove: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = [*tiny_changes(tiny_set, out), "model.transfer.vector_width=3", f"model.transfer.input={given}"]
    words += [f"model.transfer.word_vectors={glove}"] if given == "words" else []
    assert main([*words, "schedule.mask_steps=1"]) == 0
    rows = rows_of(out / "checkpoint.pt")
    if given == "words":
        assert rows.tolist() == [[0.0, 0.0, 0.0], *VECTORS.values()]
    glove.unlink()
    assert main([*words, "--resume"]) == 0
    assert torch.equal(rows_of(out / "checkpoint.pt"), rows), "the rows are fixed"
    network, _, _ = load_network(out / "checkpoint.pt")
    assert network.mask_weights.rows is not None and torch.equal(network.mask_weights.rows, rows)
    served = network.inference()
    verify_mask_table(network, served)  # as export does
    assert not torch.equal(served.mask_table[1], served.mask_table[2])
    network.score_threshold = 0.0
    (answer,) = network([torch.zeros((3, SIDE, SIDE), dtype=torch.uint8)])
    assert answer["labels"].numel() > 0


def test_random_rows_of_words_are_drawn_as_the_training_starts_and_kept(
    tiny_set: Path, tmp_path: Path
) -> None:
    changes = [*tiny_changes(tiny_set, tmp_path / "run"), "model.transfer.input=random"]
    changes += ["model.transfer.random_rows=word", "schedule.mask_steps=1"]
    assert main(changes) == 0
    rows = rows_of(tmp_path / "run/checkpoint.pt")
    assert rows.shape[1] == 300 and not bool(rows[0].any())
    torch.testing.assert_close(rows[1:].norm(dim=1), torch.ones(3), atol=0.2, rtol=0)  # not sqrt(300)
    network, _, _ = load_network(tmp_path / "run/checkpoint.pt")
    assert network.mask_weights.rows is not None and torch.equal(network.mask_weights.rows, rows)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.transfer.input=words"], "input is words and word_vectors ''; the one wants the other"),
        (["model.transfer.word_vectors=FILE"], "the one wants the other"),
        (["model.transfer.input=random", "model.transfer.stop_gradient=false"], "no gradient reaches"),
        (
            ["model.transfer.input=random", "model.transfer.vector_width=0"],
            "vector_width is 0; give 1 or more",
        ),
        (["model.transfer.input=words", "model.transfer.word_vectors=FILE"], "has 3 numbers after its word"),
        (
            [
                "model.transfer.input=words",
                "model.transfer.word_vectors=FILE",
                "model.transfer.vector_width=3",
            ],
            "no vector for words of 1 of 3 classes: 'tile' (tile)",
        ),
        (["model.transfer.normalise=false", "model.transfer.kept_mean=true"], "set normalise to true too"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_settings_that_make_no_sense_are_refused_in_one_line(
    words: list[str],
    message: str,
    tiny_set: Path,
    glove: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    glove.write_text(glove.read_text().replace("tile", "tiles"))
    words = [word.replace("FILE", str(glove)) for word in words]
    assert main([*tiny_changes(tiny_set, tmp_path / "run"), *words]) == 2
    said = capsys.readouterr().err
    assert message in said.splitlines()[-1] and said.count("error") == 1 and not (tmp_path / "run").exists()
