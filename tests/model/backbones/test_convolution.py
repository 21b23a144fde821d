"""Winograd's form of a convolution against the plain one."""

import pytest
import torch
from torch import nn

from model.backbones.convolution import WinogradConv2d, with_winograd

needs_nnpack = pytest.mark.skipif(
    not torch._nnpack_available(), reason="this PyTorch has no NNPACK for this processor"
)


def convolution(*, many: bool, winograd: bool) -> WinogradConv2d:
    torch.manual_seed(0)
    module = WinogradConv2d(16, 24, bias=True, many=many).eval()
    module.winograd = winograd
    return module


@needs_nnpack
@pytest.mark.parametrize(
    ("many", "shape"), [(False, (1, 16, 40, 67)), (False, (2, 16, 12, 12)), (True, (20, 16, 14, 14))]
)
def test_winograds_form_gives_the_numbers_of_the_plain_convolution(
    many: bool, shape: tuple[int, ...]
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    plain, quick = (convolution(many=many, winograd=winograd) for winograd in (False, True))
    with torch.no_grad():
        expected, got = plain(x), quick(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(got, expected, atol=2e-4, rtol=0)
    assert not torch.equal(got, expected), "the plain form was run"


@needs_nnpack
def test_an_image_does_not_depend_on_its_company() -> None:
    quick = convolution(many=False, winograd=True)
    x = torch.randn(5, 16, 30, 31, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.equal(quick(x)[3:4], quick(x[3:4]))


def test_gradients_and_other_types_are_left_to_the_plain_form() -> None:
    plain, quick = (convolution(many=False, winograd=winograd) for winograd in (False, True))
    x = torch.randn(1, 16, 20, 20, requires_grad=True)
    assert torch.equal(quick(x), plain(x))
    with torch.no_grad():
        low = x.detach().bfloat16()
        assert torch.equal(quick.bfloat16()(low), plain.bfloat16()(low))


def test_only_3x3_convolutions_are_exchanged_and_nothing_is_drawn() -> None:
    torch.manual_seed(3)
    module = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1))
    weights, state = list(module.parameters()), torch.random.get_rng_state()
    with_winograd(module, many=False)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [type(m) for m in module] == [WinogradConv2d, nn.ReLU, nn.Conv2d]
    assert all(a is b for a, b in zip(module.parameters(), weights, strict=True))


def test_the_file_does_not_hold_what_the_exporting_machine_can_do() -> None:
    scripted = torch.jit.script(convolution(many=False, winograd=False))
    assert scripted.winograd is False
    assert "_nnpack_available" not in str(scripted.inlined_graph)
    scripted.winograd = True
    if torch._nnpack_available():
        x = torch.randn(1, 16, 20, 20)
        with torch.no_grad():
            assert torch.equal(scripted(x), convolution(many=False, winograd=True)(x))
