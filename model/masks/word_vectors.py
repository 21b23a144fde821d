"""Word vectors of class names (Table 1a, T of word embeddings): from a file in GloVe's text format, or drawn."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.files import first_few

_SYNSET = re.compile(r"\.[a-z]\.\d+$")
_BETWEEN = re.compile(r"[^\w']+|_")


def read_word_vectors(path: str | Path, names: Sequence[str], *, width: int) -> Tensor:
    """One row for each class name, float32 [C, width]: its word's vector, or the mean of its words' vectors.

    A line of the file is a word and `width` numbers, separated by single spaces; a first line of two numbers, as
    word2vec and fastText write, is passed over. The file is read once, and only wanted words are kept.

    Raises:
        ValueError: no such file, vectors of another width, numbers that cannot be read, or words that the file does not
            have, with the classes they are of.
    """
    path = Path(path)
    whole = [plain_name(name) for name in names]
    vectors = _vectors(path, {word for name in whole for word in (name, *words_of(name))}, width)
    rows, missing = [], []
    for name, plain in zip(names, whole, strict=True):
        found = [plain] if plain in vectors else words_of(plain)
        lacking = [word for word in found if word not in vectors]
        if lacking or not found:
            missing.append(f"{name!r} ({', '.join(lacking) or 'no word'})")
        else:
            rows.append(np.stack([vectors[word] for word in found]).mean(axis=0))
    if missing:
        shown = first_few(missing, separator="; ")
        raise ValueError(
            f"{path}: no vector for words of {len(missing)} of {len(names)} classes: {shown}. Add lines for them to "
            "a copy of the file, or rename the classes"
        )
    return torch.from_numpy(np.stack(rows).astype(np.float32))


def drawn_word_vectors(names: Sequence[str], *, width: int) -> Tensor:
    """One row for each class name, float32 [C, width]: the mean of random vectors of its words, by torch's generator.

    So the "randn" row of Table 1a has it (the paper's code, fixed_embedding_mat_coco_randn_0.npy): a word's numbers
    are normal with variance 1 / width, so that its vector's length is about 1, and is the same in every name.
    """
    of_name = [words_of(plain_name(name)) or [name] for name in names]
    words = list(dict.fromkeys(word for words in of_name for word in words))
    vectors = dict(zip(words, torch.randn(len(words), width) / width**0.5, strict=True))
    return torch.stack([torch.stack([vectors[word] for word in words]).mean(dim=0) for words in of_name])


def plain_name(name: str) -> str:
    """The name in small letters, without the ending of a synset: "Fire_Hydrant.n.01" -> "fire_hydrant"."""
    return _SYNSET.sub("", name.strip().lower())


def words_of(plain: str) -> list[str]:
    """The words of a plain name: "baseball-bat (wooden)" -> ["baseball", "bat", "wooden"]."""
    return [word for word in _BETWEEN.split(plain) if word]


def _vectors(path: Path, wanted: set[str], width: int) -> dict[str, NDArray[np.float64]]:
    """The vectors of the wanted words that the file has; of a word that comes twice the first."""
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file of word vectors; give model.transfer.word_vectors in GloVe's text format"
        )
    sought = {word.encode() for word in wanted}
    vectors: dict[str, NDArray[np.float64]] = {}
    with path.open("rb") as file:
        for number, line in enumerate(_lines(file), start=1):
            word = line.partition(b" ")[0]
            if number > 1 and word not in sought:
                continue
            fields = line.split(b" ")[1:]
            if number == 1 and len(fields) == 1:
                continue
            if number == 1 and len(fields) != width:
                raise ValueError(
                    f"{path}: line 1 has {len(fields)} numbers after its word, and model.transfer.vector_width is "
                    f"{width}; set it to the width of the file's vectors"
                )
            if word not in sought or word.decode() in vectors or len(fields) > width:
                continue  # longer ones are of words with spaces in them, which GloVe's largest file has
            vectors[word.decode()] = _numbers(fields, width, f"{path}: line {number}")
    return vectors


def _lines(file: Iterable[bytes]) -> Iterable[bytes]:
    return (line.rstrip() for line in file)


def _numbers(fields: list[bytes], width: int, where: str) -> NDArray[np.float64]:
    try:
        values = np.array([float(field) for field in fields])
    except ValueError as error:
        raise ValueError(f"{where}: {error}; expected a word and {width} numbers") from error
    if len(values) != width or not np.isfinite(values).all():
        raise ValueError(
            f"{where}: {len(values)} numbers, {np.isfinite(values).sum()} of them finite; expected {width}"
        )
    return values
