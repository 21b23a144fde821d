"""Counts what a GPU would have to do one after the other, on CPU tensors: operations, and waits of the host.

A wait is an operation whose answer's size or value the device must tell the host. Tensors that were made of numbers of
the host alone (thresholds, sizes) may be read at no cost; what was computed from a network's weights or an image is
taken to lie on the device.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

SIZED_BY_VALUES = {
    "nonzero",
    "masked_select",
    "unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "nms",
    "bincount",
}
"""Operators whose answer has a size that only the device knows."""

READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "__contains__")


class Operations(TorchDispatchMode):
    """Within, `total` operations are dispatched, and `waits` counts by name those that make the host wait.

    Args:
        on_device: tensors of the device to begin with; whatever is computed from one is one.
    """

    def __init__(self, on_device: Iterable[Tensor]) -> None:
        super().__init__()
        self.total = 0
        self.waits: Counter[str] = Counter()
        self._known: Any = WeakIdKeyDictionary()
        self._storages = {tensor.untyped_storage().data_ptr() for tensor in on_device}
        self._reads = _Reads(self)

    def __enter__(self) -> Self:
        super().__enter__()
        self._reads.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._reads.__exit__(*error)
        super().__exit__(*error)

    def take(self, tensors: Iterable[Tensor]) -> None:
        """These lie on the device from now on."""
        self._known.update(dict.fromkeys(tensors, True))

    def of_device(self, value: Any) -> bool:
        """Whether a value is a tensor that lies on the device."""
        if not isinstance(value, Tensor):
            return False
        return value in self._known or value.untyped_storage().data_ptr() in self._storages

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        leaves = tree_leaves((args, kwargs))
        touched = any(self.of_device(leaf) for leaf in leaves)
        self.total += 1
        if touched and (name in SIZED_BY_VALUES or self._sized_by_mask(name, args, kwargs)):
            self.waits[name] += 1
        answer = func(*args, **kwargs)
        if touched:
            self.take(leaf for leaf in tree_leaves(answer) if isinstance(leaf, Tensor))
        return answer

    def _sized_by_mask(self, name: str, args: Any, kwargs: Any) -> bool:
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            masks = [one for one in args[1] if one is not None and one.dtype in (torch.bool, torch.uint8)]
            return any(self.of_device(mask) for mask in masks)
        if name == "repeat_interleave":
            size = kwargs.get("output_size", args[-1] if isinstance(args[-1], int) else None)
            return size is None
        return name == "_local_scalar_dense" and self.of_device(args[0]) and not self._reads.inside


class _Reads(TorchFunctionMode):
    """Reads of a tensor by the host, which dispatch nothing where all lies on a CPU."""

    def __init__(self, operations: Operations) -> None:
        super().__init__()
        self._operations = operations
        self.inside = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        reads = name in READS and args and self._operations.of_device(args[0])
        if reads:
            self._operations.waits[name] += 1
        before, self.inside = self.inside, self.inside or bool(reads)
        try:
            if reads and name == "tolist":  # else it would be seen once more for every number
                return args[0].detach().numpy().tolist()
            return func(*args, **(kwargs or {}))
        finally:
            self.inside = before


class LargestTensor(TorchDispatchMode):
    """Counts the numbers of the largest tensor that any operator makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, Tensor):
                self.numel = max(self.numel, value.numel())
        return out
