"""The closed form of T: what it recovers, and what it says of a class that is left out without fitting anew."""

import math

import pytest
import torch
from torch import Tensor

from training.recipes.fit_transfer.ridge import STRENGTHS, best_ridge, mean_of_others, ridge

CLASSES, READ, WIDTH = 12, 40, 5


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear_pairs() -> tuple[Tensor, Tensor]:
    """Detection weights of rank 3, far from zero, and mask weights that are a linear function of them."""
    w_det = drawn(CLASSES, 3) @ drawn(3, READ, seed=1) + 7.0
    return w_det, w_det @ drawn(READ, WIDTH, seed=2) / 6 - 2.0


def test_a_linear_function_is_recovered_for_classes_that_were_never_fitted() -> None:
    w_det, w_seg = linear_pairs()
    few = slice(0, 8)
    fit = best_ridge(w_det[few], w_seg[few], strengths=(1e-8, 1.0, math.inf))
    assert fit.strength == 1e-8 and fit.r2 > 0.9999
    torch.testing.assert_close(fit.offset + w_det[8:] @ fit.weight.t(), w_seg[8:], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(
        w_seg[8:], w_seg[few].mean(dim=0).expand(4, -1), atol=0.1
    )  # else a mean would do


@pytest.mark.parametrize("strength", [1e-3, 0.3, 10.0, math.inf])
def test_left_out_rows_are_those_of_a_fit_without_the_class(strength: float) -> None:
    w_det, w_seg = drawn(CLASSES, READ).double(), drawn(CLASSES, WIDTH, seed=3).double()
    fit = ridge(w_det, w_seg, strength)
    centred = w_det - w_det.mean(dim=0)
    penalty = strength * float(centred.square().sum()) / (CLASSES - 1)
    for c in range(CLASSES):
        kept = [other for other in range(CLASSES) if other != c]
        x, y = w_det[kept], w_seg[kept]
        x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
        expected = y_mean
        if penalty < math.inf:
            of_inputs = (x - x_mean).t() @ (x - x_mean) + penalty * torch.eye(READ, dtype=torch.float64)
            expected = (w_det[c] - x_mean) @ torch.linalg.solve(
                of_inputs, (x - x_mean).t() @ (y - y_mean)
            ) + y_mean
        torch.testing.assert_close(fit.left_out[c].double(), expected, rtol=1e-5, atol=1e-6)


def test_the_fit_has_the_least_penalised_error() -> None:
    w_det, w_seg = drawn(CLASSES, READ).double(), drawn(CLASSES, WIDTH, seed=3).double()
    fit = ridge(w_det, w_seg, 0.3)
    penalty = 0.3 * float((w_det - w_det.mean(dim=0)).square().sum()) / (CLASSES - 1)
    offset, weight = fit.offset.double().requires_grad_(), fit.weight.double().requires_grad_()
    cost = (offset + w_det @ weight.t() - w_seg).square().sum() + penalty * weight.square().sum()
    cost.backward()  # type: ignore[no-untyped-call]
    for of in (offset, weight):
        assert of.grad is not None and float(of.grad.abs().max()) < 1e-3
    assert float(weight.detach().abs().max()) > 1e-2


@pytest.mark.parametrize("strength", [1e7, math.inf])
def test_a_strength_without_bound_gives_the_mean_row(strength: float) -> None:
    w_det, w_seg = linear_pairs()
    fit = ridge(w_det, w_seg, strength)
    torch.testing.assert_close(fit.left_out, mean_of_others(w_seg), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        fit.offset + w_det @ fit.weight.t(), w_seg.mean(dim=0).expand(CLASSES, -1), rtol=1e-4, atol=1e-4
    )
    assert abs(fit.r2) < 1e-4
    assert (fit.strength, fit.r2) == (math.inf, 0.0) or strength < math.inf


def test_where_detection_weights_say_nothing_the_mean_row_is_chosen_by_itself() -> None:
    """Twins in w_det with opposite mask weights: whoever goes by likeness is wrong."""
    w_det, w_seg = drawn(6, READ), drawn(6, WIDTH, seed=3)
    fit = best_ridge(w_det.repeat(2, 1), torch.cat([w_seg, -w_seg]))
    assert (fit.strength, fit.r2) == (math.inf, 0.0) and not bool(fit.weight.any())
    same = best_ridge(torch.ones(4, READ), drawn(4, WIDTH))
    assert same.strength == math.inf and bool(same.left_out.isfinite().all())
    alike = best_ridge(drawn(4, READ), torch.ones(4, WIDTH))
    assert alike.strength == math.inf and alike.r2 == 0.0


def test_of_the_strengths_the_one_whose_left_out_classes_are_best_is_taken() -> None:
    w_det, w_seg = linear_pairs()
    w_seg = w_seg + drawn(CLASSES, WIDTH, seed=5)
    best = best_ridge(w_det, w_seg)
    every = [ridge(w_det, w_seg, strength) for strength in STRENGTHS]
    assert best.r2 == max(fit.r2 for fit in every) > min(fit.r2 for fit in every)
    error = (best.left_out - w_seg).square().sum() / (mean_of_others(w_seg) - w_seg).square().sum()
    assert best.r2 == pytest.approx(1 - float(error), abs=1e-5)


@pytest.mark.parametrize("classes", [0, 1, 2])
def test_fewer_than_three_classes_are_refused(classes: int) -> None:
    with pytest.raises(
        ValueError, match=f"{classes} classes have mask weights of their own; .* wants 3 or more"
    ):
        best_ridge(drawn(classes, READ), drawn(classes, WIDTH))


def test_weights_that_are_no_numbers_are_refused() -> None:
    w_det, w_seg = linear_pairs()
    w_seg[3, 1] = math.nan
    with pytest.raises(ValueError, match="not finite numbers"):
        best_ridge(w_det, w_seg)
