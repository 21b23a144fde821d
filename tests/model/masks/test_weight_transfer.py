"""The weight transfer function T against Sec. 3.2, Table 1 and the official sizes."""

from typing import Any

import pytest
import torch

from model.config import TransferConfig
from model.masks.weight_transfer import MaskWeights, WeightTransfer, normalised


def weights(*, num_classes: int = 0, box_width: int = 6, mask_width: int = 4, **options: Any) -> MaskWeights:
    if options.get("input") == "words":
        options["word_vectors"] = "vectors.txt"
    config = TransferConfig(**options)
    return MaskWeights(config, num_classes=num_classes, box_width=box_width, mask_width=mask_width)


@pytest.mark.parametrize(
    ("given", "width", "parameters"), [("cls+box", 5120, 1_376_768), ("cls", 1024, 328_192)]
)
def test_the_two_layer_function_has_the_official_number_of_parameters(
    given: str, width: int, parameters: int
) -> None:
    table = weights(input=given, box_width=1024, mask_width=256)
    assert table.detection_weights(torch.zeros(3, 1024), torch.zeros(12, 1024)).shape == (3, width)
    assert sum(p.numel() for p in table.parameters()) == parameters


def test_detection_weights_are_the_class_row_followed_by_its_four_box_rows() -> None:
    cls, box = torch.randn(3, 6), torch.randn(12, 6)
    w_det = weights().detection_weights(cls, box)
    torch.testing.assert_close(w_det[2], torch.cat([cls[2], box[8], box[9], box[10], box[11]]))
    torch.testing.assert_close(weights(input="box").detection_weights(cls, box), box.reshape(3, 24))


@pytest.mark.parametrize(("layers", "relu"), [(1, False), (2, False), (2, True), (3, False)])
def test_t_is_layers_with_activations_between_them_and_none_at_the_end(layers: int, relu: bool) -> None:
    t = WeightTransfer(input_width=5, output_width=4, layers=layers, relu=relu, zero_init=False)
    linear = [m for m in t.layers if isinstance(m, torch.nn.Linear)]
    assert len(linear) == layers
    x = torch.randn(7, 5)
    expected = x
    for i, layer in enumerate(linear):
        if i:
            expected = expected.clamp(min=0) + (0.0 if relu else 0.1) * expected.clamp(max=0)
        expected = expected @ layer.weight.T + layer.bias
    torch.testing.assert_close(t(x), expected)
    assert bool((t(x) < 0).any())


@pytest.mark.parametrize(
    ("init", "given", "first"),
    [
        # Caffe2's MSRAFill: sqrt(2 / 256) of every layer, whatever it reads.
        ("fan_out", "cls+box", 0.08839),
        ("fan_out", "cls", 0.08839),
        # He et al. (2015): sqrt(2 / 5120) and sqrt(2 / 1024).
        ("fan_in", "cls+box", 0.01976),
        ("fan_in", "cls", 0.04419),
    ],
)
def test_t_starts_by_fan_out_as_the_papers_code_or_by_fan_in(init: str, given: str, first: float) -> None:
    torch.manual_seed(0)
    t = weights(init=init, input=given, box_width=1024, mask_width=256).transfer
    assert t is not None
    one, two = (m for m in t.layers if isinstance(m, torch.nn.Linear))
    assert float(one.weight.detach().std()) == pytest.approx(first, rel=0.01)
    assert float(two.weight.detach().std()) == pytest.approx(0.08839, rel=0.02)
    assert not bool(one.bias.any()) and not bool(two.bias.any())


def test_the_two_starts_draw_the_same_numbers_and_the_residual_form_starts_at_zero_by_either() -> None:
    made = []
    for init in ("fan_in", "fan_out"):
        torch.manual_seed(0)
        made.append(weights(init=init, box_width=1024, mask_width=256).state_dict())
        table, _ = weights(init=init, residual=True)(torch.randn(5, 6), torch.randn(20, 6))
        assert torch.equal(table[0], table[4])
    key = "transfer.layers.0.weight"
    torch.testing.assert_close(made[0][key] * 20**0.5, made[1][key])  # 5 120 inputs, 256 outputs


@pytest.mark.parametrize(("init", "deviation"), [("fan_out", 0.15713), ("fan_in", 0.001)])
def test_class_specific_weights_start_as_the_papers_oracle_or_near_zero(init: str, deviation: float) -> None:
    """MSRAFill of [81, 256, 1, 1]: fan-out 81, sqrt(2 / 81); class-agnostic ones start at 0.001 there too."""
    torch.manual_seed(0)
    form = weights(kind="class_specific", init=init, num_classes=80, mask_width=256)
    assert form.specific is not None and form.bias is not None and not bool(form.bias.any())
    assert float(form.specific.detach().std()) == pytest.approx(deviation, rel=0.02)
    agnostic = weights(kind="class_agnostic", init=init, mask_width=4096).agnostic
    assert agnostic is not None and float(agnostic.detach().std()) == pytest.approx(0.001, rel=0.05)


def test_more_than_three_layers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"transfer\.layers is 4"):
        weights(layers=4)


def test_the_class_agnostic_table_has_the_same_row_for_every_class() -> None:
    table, _ = weights(kind="class_agnostic")(torch.randn(5, 6), torch.randn(20, 6))
    assert table.shape == (5, 4)
    assert torch.equal(table[0], table[4]) and bool(table.any())


def test_the_residual_form_starts_at_the_class_agnostic_weights_and_learns_away() -> None:
    form = weights(residual=True)
    cls, box = torch.randn(5, 6), torch.randn(20, 6)
    table, _ = form(cls, box)
    assert form.agnostic is not None
    torch.testing.assert_close(table, form.agnostic.expand(5, -1))
    (table * torch.randn(5, 4)).sum().backward()
    assert form.transfer is not None
    last = [m for m in form.transfer.layers if isinstance(m, torch.nn.Linear)][-1]
    assert last.weight.grad is not None and bool(last.weight.grad.any())


def test_the_exact_form_has_no_bias_and_no_fallback() -> None:
    form = weights()
    assert form.agnostic is None and form.bias is None
    assert float(form(torch.randn(5, 6), torch.randn(20, 6))[1]) == 0.0


def test_normalised_weights_forget_the_common_part_and_the_scale_of_a_class() -> None:
    w = torch.randn(6, 8)
    scaled = w.clone()
    out = normalised(w)
    torch.testing.assert_close(out.square().mean(dim=1), torch.ones(6))
    torch.testing.assert_close(normalised(scaled + 3.0), out, atol=1e-5, rtol=1e-4)
    assert bool(torch.isfinite(normalised(torch.zeros(2, 8))).all())


def test_dropout_and_noise_act_in_training_only() -> None:
    form = weights(dropout=0.5, noise=0.5)
    cls, box = torch.randn(5, 6), torch.randn(20, 6)
    form.train()
    assert not torch.equal(form(cls, box)[0], form(cls, box)[0])
    form.eval()
    assert torch.equal(form(cls, box)[0], form(cls, box)[0])


# ---- Table 1a: random rows and word vectors ----


@pytest.mark.parametrize("given", ["random", "words"])
def test_the_inputs_of_table_1a_read_fixed_rows_and_nothing_of_the_detector(given: str) -> None:
    form = weights(input=given, num_classes=4, vector_width=7)
    assert form.rows is not None and form.rows.shape == (5, 7)
    if given == "words":
        assert not bool(form.rows[1:].isfinite().any()), "words that were never read must not pass for rows"
        form.set_rows(torch.randn(4, 7))
    assert not bool(form.rows[0].any()) and len({tuple(row) for row in form.rows.tolist()}) == 5
    assert "rows" in form.state_dict() and "rows" not in dict(form.named_parameters())
    table, _ = form(torch.randn(5, 6), torch.randn(20, 6))
    assert torch.equal(table, form(torch.zeros(5, 6), torch.zeros(20, 6))[0])
    assert form.transfer is not None
    torch.testing.assert_close(table, form.transfer(form.rows))


def test_random_rows_follow_the_seed() -> None:
    rows = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        rows.append(weights(input="random", num_classes=4).rows)
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])  # type: ignore[arg-type]
    assert rows[0] is not None and rows[0].shape == (5, 300)


def test_random_rows_of_words_wait_for_the_names() -> None:
    form = weights(input="random", random_rows="word", num_classes=4)
    assert form.rows is not None and form.rows.shape == (5, 300)
    assert not bool(form.rows[1:].isfinite().any()) and not bool(form.rows[0].any())


def test_rows_for_another_number_of_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \[3, 7\]; \[4, 7\] is wanted"):
        weights(input="words", num_classes=4, vector_width=7).set_rows(torch.zeros(3, 7))


def test_the_table_of_detection_weights_has_no_rows_to_keep() -> None:
    assert not {"rows", "mean"} & weights().state_dict().keys()
    assert not {"rows", "mean"} & weights(kind="class_agnostic", input="random").state_dict().keys()


# ---- normalisation that classes added later leave alone ----


@pytest.mark.parametrize("given", ["cls", "box", "cls+box"])
def test_a_kept_mean_gives_the_masks_of_before_whatever_classes_come(given: str) -> None:
    usual, kept = weights(input=given, normalise=True), weights(input=given, normalise=True, kept_mean=True)
    kept.load_state_dict(usual.state_dict(), strict=False)
    cls, box = torch.randn(5, 6), torch.randn(20, 6)
    kept.keep_mean(cls, box)
    before = usual(cls, box)[0]
    assert torch.equal(kept(cls, box)[0], before)
    more = torch.cat([cls, torch.randn(3, 6)]), torch.cat([box, torch.randn(12, 6)])
    torch.testing.assert_close(kept(*more)[0][:5], before)
    assert not torch.allclose(usual(*more)[0][1:5], before[1:])  # else the line above proves nothing


# ---- rows that classes keep ----


def test_classes_with_kept_rows_have_these_and_t_speaks_for_the_others() -> None:
    usual = weights(num_classes=4, residual=True)
    kept = weights(num_classes=4, residual=True, kept_rows=True)
    kept.load_state_dict(usual.state_dict(), strict=False)
    cls, box = torch.randn(5, 6), torch.randn(20, 6)
    assert torch.equal(kept(cls, box)[0], usual(cls, box)[0])
    rows = torch.randn(2, 4)
    kept.keep_rows([1, 3], rows, torch.tensor([0.5, -2.0]))
    table, bias = kept(cls, box)
    assert torch.equal(table[[1, 3]], rows) and torch.equal(table[[0, 2, 4]], usual(cls, box)[0][[0, 2, 4]])
    assert bias.tolist() == [0.0, 0.5, 0.0, -2.0, 0.0]
    table.sum().backward()  # type: ignore[no-untyped-call]
    assert all(bool(p.grad.isfinite().all()) for p in kept.parameters() if p.grad is not None)
    assert kept.state_dict().keys() - usual.state_dict().keys() == {"is_kept", "kept", "kept_bias"}
