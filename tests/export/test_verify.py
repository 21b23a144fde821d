"""Each thing that verification promises, broken once."""

import copy
import io
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from export import verify as verification
from export.verify import (
    ExportError,
    answers_of_fresh_process,
    devices_in,
    differing_pixels,
    require_close,
    require_equal,
    runs_of,
    verification_cases,
    verify,
    verify_mask_table,
    verify_no_device,
)
from model.config import TransferConfig
from model.inference import Inference
from tests.export.tiny import CLASSES, answers_here, tiny_network

LABELS = CLASSES.num_classes + 1


def saved(module: nn.Module) -> tuple[torch.jit.ScriptModule, bytes]:
    """A module scripted, and as a file."""
    scripted = torch.jit.script(module)
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    return scripted, buffer.getvalue()


@pytest.fixture(scope="module")
def served() -> Inference:
    return tiny_network().inference()


@pytest.fixture(scope="module")
def scripted(served: Inference) -> tuple[torch.jit.ScriptModule, bytes]:
    return saved(served)


@pytest.fixture(scope="module")
def answers(served: Inference) -> list[list[dict[str, Tensor]]]:
    with torch.inference_mode():
        return [served(*case) for case in verification_cases(64, LABELS)]


def test_verification_sees_masks_partial_wishes_and_nothing_at_all(
    answers: list[list[dict[str, Tensor]]],
) -> None:
    """Were the cases all empty, every comparison would pass."""
    (landscape, portrait, black), (with_masks, without_masks), (nothing,) = answers
    assert set(landscape["labels"].tolist()) == set(range(1, LABELS))
    assert landscape["rle_counts"].numel() > 1000
    assert portrait["labels"].numel() == 5
    assert 1 not in portrait["labels"]
    assert with_masks["rle_counts"].numel() > 200
    assert without_masks["labels"].numel() == 60
    assert without_masks["rle_counts"].numel() == 0
    assert black["labels"].numel() == nothing["labels"].numel() == 0
    assert nothing["rle_offsets"].tolist() == [0]


def test_a_good_file_passes(served: Inference, scripted: tuple[torch.jit.ScriptModule, bytes]) -> None:
    verify(tiny_network(), served, *scripted)


def test_a_file_with_other_weights_is_refused(
    served: Inference, scripted: tuple[torch.jit.ScriptModule, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "answers_of_fresh_process", answers_here)
    other = copy.deepcopy(served)
    with torch.no_grad():
        other.box_head.fc7.bias.add_(1e-6)
    _, data = saved(other)
    with pytest.raises(ExportError, match="reloaded in a fresh process, case 0.* is not exactly"):
        verify(tiny_network(), served, scripted[0], data)


def test_scripted_code_that_computes_something_else_is_refused(served: Inference) -> None:
    class Lower(nn.Module):
        """Scores a hair lower when scripted."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner
            self.mask_table = inner.mask_table
            self.batched = False

        def forward(
            self,
            images: list[Tensor],
            sizes: Tensor,
            score: Tensor,
            most: Tensor,
            classes: Tensor,
            masks: Tensor,
        ) -> list[dict[str, Tensor]]:
            answers: list[dict[str, Tensor]] = self.inner(images, sizes, score, most, classes, masks)
            if torch.jit.is_scripting():
                for answer in answers:
                    answer["scores"] = answer["scores"] * 0.9999999
            return answers

    with pytest.raises(ExportError, match="scripted, first run, case 0, image 0: scores"):
        verify(tiny_network(), Lower(served), *saved(Lower(served)))


def test_a_file_that_needs_the_project_is_refused(
    scripted: tuple[torch.jit.ScriptModule, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fresh process sees neither PYTHONPATH nor the folder it was started from."""
    probe = tmp_path / "fresh_process.py"
    probe.write_text(
        "import os, sys, importlib.util as u\n"
        "assert os.listdir() == [], os.listdir()\n"
        "sys.exit(str([m for m in ('model', 'export', 'handler') if u.find_spec(m)]))\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(verification, "__file__", str(tmp_path / "verify.py"))
    with pytest.raises(ExportError, match=r"does not run in a process without the project's source:\n\[\]$"):
        answers_of_fresh_process(scripted[1], [])


def test_a_torn_file_is_refused(scripted: tuple[torch.jit.ScriptModule, bytes]) -> None:
    with pytest.raises(ExportError, match="does not run in a process without"):
        answers_of_fresh_process(scripted[1][:-1000], [])


def test_a_network_that_finds_nothing_proves_nothing(
    scripted: tuple[torch.jit.ScriptModule, bytes], served: Inference
) -> None:
    blind = copy.deepcopy(served)
    with torch.no_grad():
        blind.box_predictor.cls_score.bias.fill_(float("nan"))
    with pytest.raises(ExportError, match="found nothing"):
        verify(tiny_network(), blind, *scripted)


@pytest.mark.parametrize(
    "transfer",
    [
        TransferConfig(),
        TransferConfig(kind="class_agnostic"),
        TransferConfig(input="cls", layers=3, residual=True),
        TransferConfig(input="box", normalise=True),
    ],
    ids=["paper", "class_agnostic", "cls", "box"],
)
def test_row_c_of_the_table_must_be_the_transfer_at_label_c(transfer: TransferConfig) -> None:
    network = tiny_network(transfer)
    served = network.inference()
    verify_mask_table(network, served)
    if transfer.kind == "transfer":
        served.mask_table.copy_(served.mask_table.roll(1, 0))
        with pytest.raises(ExportError, match="row 0 of the baked mask table"):
            verify_mask_table(network, served)
        served = network.inference()
    served.mask_table[4] += 0.01 * served.mask_table[4].abs().max()
    with pytest.raises(ExportError, match="row 4 of the baked mask table"):
        verify_mask_table(network, served)


def test_a_table_of_too_few_rows_is_refused() -> None:
    network = tiny_network()
    served = network.inference()
    served.mask_table = served.mask_table[:-1]
    with pytest.raises(ExportError, match=r"\[5, 8\] is not T at label 0 of 6"):
        verify_mask_table(network, served)


def helper(x: Tensor) -> Tensor:
    if x.numel() > 3:
        for _ in range(2):
            x = x.to(torch.device("cuda"))
    return x


class InAFunction(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return helper(x)


def coded(code: str) -> torch.jit.ScriptModule:
    """A scripted module whose answer to `x` is the code's."""
    module: torch.jit.ScriptModule = type("Coded", (torch.jit.ScriptModule,), {})()
    module.define(f"def forward(self, x: Tensor) -> Tensor:\n    return {code}\n")
    return module


class Shift(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift


@pytest.mark.parametrize(
    ("module", "named"),
    [
        (coded("x + torch.zeros(1, device=torch.device('cpu'))"), "cpu"),
        (coded("x if x.sum() > 0 else x.to('cuda:0')"), "cuda:0"),
        (coded("x.cpu()"), "aten::cpu"),
        (torch.jit.script(InAFunction()), "cuda"),
    ],
    ids=["always", "sometimes", "fetched", "in a function"],
)
def test_a_device_in_the_code_is_found(module: torch.jit.ScriptModule, named: str) -> None:
    with pytest.raises(ExportError, match=named):
        verify_no_device(module)


def test_a_traced_device_is_found() -> None:
    class Grid(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.arange(3, device=x.device)

    assert any("device cpu" in named for named in devices_in(torch.jit.trace(Grid(), torch.zeros(3))))


def test_a_tensor_written_into_the_code_is_found() -> None:
    """It would stay on its device wherever the module moves."""
    graph = torch.jit.freeze(torch.jit.script(Shift().eval()))
    assert any("a constant tensor on cpu" in named for named in devices_in(graph))
    assert devices_in(torch.jit.script(Shift())) == []


def test_comparing_a_devices_type_names_no_device() -> None:
    same = "x.to(x.device) if x.device.type == 'cuda' else x + torch.zeros_like(x, device=x.device)"
    assert devices_in(coded(same)) == []


def test_two_masks_differ_in_the_pixels_of_one_alone() -> None:
    a, b = torch.tensor([2, 3, 1, 4]), torch.tensor([0, 4, 6])
    # a: 0011101111, b: 1111000000
    assert differing_pixels(a, b) == differing_pixels(b, a) == 2 + 1 + 4
    assert differing_pixels(a, a) == 0
    with pytest.raises(ExportError, match=r"\[10\] and \[9\]"):
        differing_pixels(a, torch.tensor([9]))


def detection(
    score: float, x: float = 10.0, label: int = 1, counts: tuple[int, ...] = (100, 400, 3500)
) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor([[x, 10.0, x + 20, 30.0]]),
        "scores": torch.tensor([score]),
        "labels": torch.tensor([label]),
        "rle_counts": torch.tensor(counts),
        "rle_offsets": torch.tensor([0, len(counts)]),
    }


def together(*parts: dict[str, Tensor]) -> dict[str, Tensor]:
    joined = {
        key: torch.cat([part[key] for part in parts]) for key in ("boxes", "scores", "labels", "rle_counts")
    }
    ends = torch.tensor([part["rle_counts"].numel() for part in parts]).cumsum(0)
    return joined | {"rle_offsets": torch.cat([torch.zeros(1, dtype=torch.int64), ends])}


def of_one_image(most: int) -> verification.Case:
    one = torch.ones(1)
    return [], torch.tensor([[50, 80]]), one, torch.tensor([most]), one, one


@pytest.mark.parametrize("what", ["score", "box", "label", "mask", "one more", "one less"])
def test_a_frozen_answer_may_differ_by_rounding_only(what: str) -> None:
    expected = together(detection(0.9), detection(0.8, x=40.0))
    close = together(detection(0.80001, x=40.001), detection(0.90001, counts=(101, 399, 3500)))
    require_close([[expected]], [[close]], [of_one_image(9)], "frozen")
    wrong = {
        "score": together(detection(0.9002), detection(0.8, x=40.0)),
        "box": together(detection(0.9, x=10.1), detection(0.8, x=40.0)),
        "label": together(detection(0.9, label=2), detection(0.8, x=40.0)),
        "mask": together(detection(0.9, counts=(100, 420, 3480)), detection(0.8, x=40.0)),
        "one more": together(detection(0.9), detection(0.8, x=40.0), detection(0.7, x=40.0, label=3)),
        "one less": detection(0.9),
    }[what]
    with pytest.raises(ExportError, match="frozen"):
        require_close([[expected]], [[wrong]], [of_one_image(9)], "frozen")


def test_rounding_may_choose_a_rival_or_the_last_place_of_a_full_list_but_seldom() -> None:
    others = [detection(0.9 - 0.01 * k, label=k) for k in range(2, 9)]
    expected = together(*others, detection(0.1))
    rival = together(*others, detection(0.10001, x=14.0))
    elsewhere = together(*others, detection(0.10001, x=50.0))
    require_close([[expected]], [[rival]], [of_one_image(9)], "frozen")
    require_close([[expected]], [[elsewhere]], [of_one_image(8)], "frozen")
    with pytest.raises(ExportError, match="the eager network alone finds label 1 with score 0.100000"):
        require_close([[expected]], [[elsewhere]], [of_one_image(9)], "frozen")
    moved = together(*(detection(0.9 - 0.01 * k, x=11.0, label=k) for k in range(2, 9)), detection(0.1))
    with pytest.raises(ExportError, match="7 of 8 detections differ by more than 0.0001"):
        require_close([[expected]], [[moved]], [of_one_image(9)], "frozen")


def test_a_layer_frozen_wrongly_is_refused(
    served: Inference, scripted: tuple[torch.jit.ScriptModule, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features a hundredth off, as a badly folded batch norm would make them."""
    other = copy.deepcopy(served)
    with torch.no_grad():
        other.box_head.fc7.weight.mul_(1.01)
        other.box_head.fc7.bias.add_(0.01)
    wrong = torch.jit.freeze(torch.jit.script(other))
    monkeypatch.setattr(verification, "answers_of_fresh_process", answers_here)
    monkeypatch.setattr(torch.jit, "freeze", lambda *_, **__: wrong)
    with pytest.raises(ExportError, match="frozen"):
        verify(tiny_network(), served, *scripted)


def test_equal_means_every_field_type_shape_and_value() -> None:
    answer = together(detection(0.9), detection(0.8))
    require_equal([answer], [copy.deepcopy(answer)], "x")
    wrong = [
        {**answer, "scores": answer["scores"] + 1e-7},
        {**answer, "labels": answer["labels"].int()},
        {**answer, "more": answer["labels"]},
        together(detection(0.9)),
    ]
    for other in wrong:
        with pytest.raises(ExportError, match="x, image 0"):
            require_equal([answer], [other], "x")
    with pytest.raises(ExportError, match="2 answers for 1 images"):
        require_equal([answer], [answer, answer], "x")
    assert runs_of(answer, 1).tolist() == [100, 400, 3500]
