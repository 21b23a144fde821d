"""The answers of a batch as the network packs them -> `Detections`: one tensor to copy from a GPU, and where what lies.

`words` are 32 bits each. `table` has a row for each image, in order: [detections D, and the places in `words` where its
boxes, scores, labels, offsets, counts and keypoints begin]. Boxes are 4 D floats, scores D floats, labels D integers,
offsets D + 1 integers (where the runs of each mask begin, counted from the place of counts, and where the last ends),
counts integers, keypoints 3 K D floats. The places of offsets and counts are -1 for an image whose masks were not asked
for, that of keypoints where the network has none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maskx_answer import Detections


def unpack(words: np.ndarray, table: Sequence[Sequence[int]], keypoints: int) -> list[Detections]:
    """The detections of each image, in order; an image without masks has no counts, and offsets of 0.

    Args:
        words: int32 [n]; boxes, scores and keypoints are views of it, so it must not be written to any more.
        table: seven integers for each image, as above.
        keypoints: K of a detection; 0 for a network without any.
    """
    floats = words.view(np.float32)
    found = []
    for detections, boxes, scores, labels, at_offsets, at_counts, places in table:
        if at_offsets < 0:
            offsets, counts = np.zeros(detections + 1, np.int64), np.zeros(0, np.int64)
        else:
            offsets = words[at_offsets : at_offsets + detections + 1].astype(np.int64)
            counts = words[at_counts + offsets[0] : at_counts + offsets[-1]].astype(np.int64)
            offsets -= offsets[0]
        points = None
        if places >= 0:
            points = floats[places : places + 3 * keypoints * detections].reshape(detections, keypoints, 3)
        found.append(
            Detections(
                boxes=floats[boxes : boxes + 4 * detections].reshape(detections, 4),
                scores=floats[scores : scores + detections],
                labels=words[labels : labels + detections].astype(np.int64),
                rle_counts=counts,
                rle_offsets=offsets,
                keypoints=points,
            )
        )
    return found
