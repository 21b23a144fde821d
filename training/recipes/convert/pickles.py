"""Files of weights as Detectron, detectron2 and torch write them, read without running anything that lies in them.

Detectron's are pickles of Python 2, {"blobs": arrays by name, "cfg": the configuration as YAML}; detectron2's model zoo
has pickles of Python 3, {"model": arrays by name, "__author__": ...}; a training of detectron2 writes what `torch.load`
reads.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np
import torch

from model.backbones.torchvision_state import State, read_state

_RECONSTRUCT: Any = np.zeros(0).__reduce__()[0]  # type: ignore[index]
_SCALAR: Any = np.float32(0).__reduce__()[0]  # type: ignore[index]


@dataclass(frozen=True, kw_only=True)
class File:
    """What a file of weights holds."""

    state: State
    """Tensors by the names they have there."""
    configuration: str | None
    """Detectron's, in YAML, where the file brings it."""


def read_file(path: str | Path) -> File:
    """The tensors of a .pkl or of anything that `torch.load` reads with `weights_only=True`.

    Raises:
        ValueError: no such file, a broken one, or one that holds anything but arrays, text, numbers and containers of
            them; nothing of it has been run.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"{path}: no such file; give one of torchvision, detectron2 or Detectron (.pth or .pkl)"
        )
    if path.suffix != ".pkl" or is_zipfile(path):
        return File(state=read_state(path), configuration=None)
    contents = read_pickle(path)
    if not isinstance(contents, Mapping):
        raise ValueError(f"{path}: expected arrays by name, found {type(contents).__name__}")
    configuration = contents.get("cfg")
    arrays = contents.get("blobs", contents.get("model", contents))
    if not isinstance(arrays, Mapping):
        raise ValueError(f"{path}: expected arrays by name, found {type(arrays).__name__}")
    state: State = {}
    for name, array in arrays.items():
        if isinstance(array, np.ndarray) and array.dtype.kind in "fiu":
            # Pickles of Python 2 may hold arrays of the other byte order; torch takes its own alone.
            state[str(name)] = torch.from_numpy(
                np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
            )
    if not state:
        raise ValueError(f"{path}: holds no arrays by name, but {sorted(map(str, arrays))[:4]}")
    return File(state=state, configuration=configuration if isinstance(configuration, str) else None)


def read_pickle(path: Path) -> Any:
    """The contents of a pickle of arrays and plain values, of Python 2 too; ValueError where there is anything else."""
    try:
        with path.open("rb") as file:
            return _Arrays(file, encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, MemoryError) as error:
        raise ValueError(f"{path}: {str(error) or type(error).__name__}") from error
    except Exception as error:  # a broken pickle may raise anything while nothing but arrays is built
        raise ValueError(
            f"{path}: not a pickle that can be read ({type(error).__name__}: {error})"
        ) from error


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    """What `_codecs.encode` is in pickles of arrays: bytes of old protocols."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"text in the encoding {encoding!r}; arrays have latin1 alone")
    return text.encode("latin1")


class _Arrays(pickle.Unpickler):
    """An unpickler of arrays, numbers, text and containers; it refuses every other name before anything is called."""

    known: Mapping[tuple[str, str], Callable[..., Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy.core.multiarray", "scalar"): _SCALAR,
        ("numpy._core.multiarray", "scalar"): _SCALAR,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("collections", "OrderedDict"): OrderedDict,
        ("_codecs", "encode"): _encoded,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.known:
            raise pickle.UnpicklingError(
                f"holds {module}.{name}; expected arrays, text, numbers and containers of them alone, and nothing else "
                "is read. Nothing of it was run"
            )
        return self.known[module, name]
