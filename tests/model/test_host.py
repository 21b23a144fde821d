"""Between host and device: a packed buffer gives back what was put in, and reading is all that may wait."""

import pytest
import torch

from model.host import ALIGNMENT, moved, no_other_waits, packed, read, unpacked, waiting


def test_what_is_packed_comes_back_with_its_type_and_shape() -> None:
    tensors = [
        torch.arange(5, dtype=torch.uint8),
        torch.randn(3, 4).T,
        torch.tensor([True, False, True]),
        torch.zeros((0, 7, 4)),
        torch.tensor(2**62),
        torch.arange(6, dtype=torch.int64).view(2, 3),
    ]
    buffer, layouts = packed(tensors)
    assert buffer.dtype == torch.uint8 and buffer.numel() % ALIGNMENT == 0
    back = unpacked(buffer, layouts)
    for tensor, again in zip(tensors, back, strict=True):
        assert tensor.dtype == again.dtype and torch.equal(tensor, again)
    assert back[1].data_ptr() - buffer.data_ptr() == ALIGNMENT


def test_on_a_cpu_nothing_is_copied() -> None:
    tensor = torch.zeros(3)
    assert moved([tensor], torch.device("cpu"))[0] is tensor


def test_on_another_device_there_is_one_buffer_of_all() -> None:
    """The meta device has no values, but every type and shape."""
    one, other = moved([torch.zeros(3), torch.ones((2, 2), dtype=torch.int64)], torch.device("meta"))
    assert (one.shape, one.dtype, one.device.type) == ((3,), torch.float32, "meta")
    assert (other.shape, other.dtype) == ((2, 2), torch.int64)
    assert other.storage_offset() * 8 == ALIGNMENT


@pytest.mark.skipif(torch.cuda.is_initialized(), reason="a GPU is in use")
def test_without_a_gpu_watching_changes_nothing() -> None:
    with no_other_waits(), waiting():
        assert read(torch.tensor([[1, 2]])) == [[1, 2]]
        assert torch.tensor([3.0]).item() == 3.0
