"""An answer as a table for people."""

from __future__ import annotations

from client.prediction import Prediction


def table(prediction: Prediction) -> str:
    """The detections as aligned columns, a line each, and what they are about."""
    about = (
        f"{len(prediction.detections)} detections in {prediction.width} x {prediction.height} pixels, by "
        f"{prediction.model_name} {prediction.model_version}"
    )
    head = ("category", "score", "x", "y", "width", "height", "area", "mask")
    rows: list[tuple[str, ...]] = [head]
    for one in prediction.detections:
        box = [f"{value:.1f}" for value in one.bbox]
        learned = "supervised" if one.mask_supervised else "transferred*"
        area = str(one.area) if isinstance(one.area, int) else f"{one.area:.1f}"
        rows.append((one.category, f"{one.score:.3f}", *box, area, learned))
    if len(rows) == 1:
        return about
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    left = (0, len(head) - 1)
    lines = [
        "  ".join(
            text.ljust(width) if column in left else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    if any(not one.mask_supervised for one in prediction.detections):
        lines.append("* the class never had a mask in training")
    return "\n".join([*lines, about])
