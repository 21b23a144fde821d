"""Run lengths -> COCO's compressed strings, of all masks of an image at once.

The string of a mask is that of pycocotools (`rleToString`). Of each run length from the fourth on it has the difference
to the one two before, of the first three themselves; each number in groups of 5 bits, the lowest first; each group as
one ASCII character of 48 + group + 32 if another follows. Bit 16 of the last group is the sign.
"""

from __future__ import annotations

import itertools

import numpy as np


def run_length_strings(counts: np.ndarray, offsets: np.ndarray) -> list[str]:
    """COCO's compressed string of each of D masks; no run lengths, no characters.

    Args:
        counts: int64 [total], from 0, the run lengths of all masks one after the other.
        offsets: int64 [D + 1], from 0 to total; those of mask d are counts[offsets[d]:offsets[d + 1]].
    """
    if len(counts) == 0:
        return [""] * (len(offsets) - 1)
    if int(counts.max()) < 1 << 31:
        counts = counts.astype(np.int32)
    numbers = counts.copy()
    numbers[3:] -= counts[1:-2]
    for place in range(3):
        at = offsets[:-1] + place
        at = at[at < offsets[1:]]
        numbers[at] = counts[at]

    # Sign and n bits need n // 5 + 1 groups. One byte a group, and none that is written is 0.
    bits = max(int(numbers.max()).bit_length(), int(~numbers.min()).bit_length())
    groups = np.zeros((len(numbers), bits // 5 + 1), dtype=np.uint8)
    magnitude = numbers ^ (numbers >> (numbers.itemsize * 8 - 1))
    lengths = np.ones(len(numbers), dtype=np.uint8)
    written = lengths
    for g in range(groups.shape[1]):
        more = (magnitude >= (16 << (5 * g))).view(np.uint8)
        groups[:, g] = ((numbers.astype(np.uint8) & 31) + 48 + (more << 5)) * written
        lengths = lengths + more
        numbers >>= 5
        written = more

    text = groups.tobytes().translate(None, b"\0").decode("ascii")
    ends = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=ends[1:])
    cuts = ends[offsets].tolist()
    return [text[begin:end] for begin, end in itertools.pairwise(cuts)]
