"""Rows of weights that belong to classes, carried by name from one list of classes to another.

They are the rows of the box branch's last layer (four each of the boxes), class-specific mask weights, those kept
beside T, and the fixed rows of Table 1a. Row 0 is background and stays row 0. With them a network is sliced to fewer
classes and restored to all (Sec. 5, Visual Genome), and gets new classes.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from model.files import first_few

ROWS_OF_A_CLASS: Mapping[str, int] = {
    "box_predictor.cls_score.weight": 1,
    "box_predictor.cls_score.bias": 1,
    "box_predictor.bbox_pred.weight": 4,
    "box_predictor.bbox_pred.bias": 4,
    "mask_weights.specific": 1,
    "mask_weights.bias": 1,
    "mask_weights.rows": 1,
    "mask_weights.is_kept": 1,
    "mask_weights.kept": 1,
    "mask_weights.kept_bias": 1,
}
"""Weights with rows for classes, and how many for each. A bias [] of all classes together is not one."""


def rows_of_a_class(name: str, value: Tensor) -> int:
    """How many rows of a weight belong to one class; 0 where it knows nothing of classes."""
    return ROWS_OF_A_CLASS.get(name, 0) if value.dim() else 0


def with_rows_of(own: Tensor, given: Tensor, theirs: Sequence[str], ours: Sequence[str], rows: int) -> Tensor:
    """`own` ([rows (C + 1), ...], of the classes `ours`), with the rows of `given` for classes of the same name.

    ValueError where a weight has another number of rows than its classes, or rows of another length.
    """
    for value, names in ((own, ours), (given, theirs)):
        if value.shape[0] != rows * (len(names) + 1):
            raise ValueError(
                f"{value.shape[0]} rows for {len(names)} classes and the background; {rows} each are expected"
            )
    if own.shape[1:] != given.shape[1:]:
        raise ValueError(f"rows of shape {list(given.shape[1:])} where {list(own.shape[1:])} is wanted")
    position = {name: label for label, name in enumerate(theirs, start=1)}
    to = [0, *(label for label, name in enumerate(ours, start=1) if name in position)]
    taken = [0, *(position[name] for name in ours if name in position)]
    answer = own.clone().reshape(len(ours) + 1, rows, -1)
    answer[to] = given.to(own).reshape(len(theirs) + 1, rows, -1)[taken]
    return answer.reshape(own.shape)


def sliced(weights: Mapping[str, Tensor], theirs: Sequence[str], ours: Sequence[str]) -> dict[str, Tensor]:
    """Weights of a network of the classes `theirs` as those of one of the classes `ours`, all of which it knows.

    ValueError names those that it does not know.
    """
    if unknown := [name for name in ours if name not in theirs]:
        raise ValueError(
            f"{len(unknown)} of {len(ours)} classes are not among the network's {len(theirs)}: {first_few(unknown)}"
        )
    answer = {}
    for name, value in weights.items():
        rows = rows_of_a_class(name, value)
        if rows:
            empty = value.new_zeros((rows * (len(ours) + 1), *value.shape[1:]))
            value = with_rows_of(empty, value, theirs, ours, rows)
        answer[name] = value
    return answer


def unlike(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Names of `own` that `weights` lacks or has in another shape, rows of classes not counted."""
    return [
        name
        for name, value in own.items()
        if name not in weights
        or (
            weights[name].shape[1:] != value.shape[1:] or not weights[name].dim()
            if rows_of_a_class(name, value)
            else weights[name].shape != value.shape
        )
    ]
