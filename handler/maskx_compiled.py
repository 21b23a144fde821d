"""maskx.pt2: the network's dense parts as code compiled ahead of time (AOTInductor); whether it fits this machine, and
loading it.

Nothing here compiles, and nothing here is an error: what does not fit, or cannot be loaded, is answered with the
reason, and the TorchScript file does the work.

The package is a zip with a shared library for each part, weights inside, and one record, `compiled.json`, of what the
libraries were made from and for.
"""

import atexit
import contextlib
import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

ENGINES = ("auto", "torchscript", "compiled")
"""auto takes a package that is there and fits; compiled also warns where none is there; torchscript takes none."""

RECORD = "compiled.json"
FORMAT_VERSION = 1
PARTS = ("box_head", "mask_head", "trunk")
SUFFIX = ".pt2"
"""The package lies beside its maskx.pt, under the same name with this ending."""

CAPABILITIES = ("DEFAULT", "AVX2", "AVX512")
"""What PyTorch calls the instructions of an x86 processor, each with those before it."""

CPU_INFO = Path("/proc/cpuinfo")

CURE = (
    "make the package again on such a machine (python -m export.compiled), or set maskx.engine: torchscript"
)

_UNPACKED = "maskx-compiled-"
"""How folders of unpacked libraries begin; the number of the process that made it comes next."""


class Library(Protocol):
    """A compiled part."""

    def run(self, inputs: list[Tensor]) -> list[Tensor]:
        """Its answers, in order."""


class Unfit(Exception):
    """The package cannot be used here; the message says why."""


class CompiledParts:
    """The loaded parts of one package: `parts` are their names, `record` is what the package says of itself.

    Not for two threads at a time.
    """

    def __init__(self, record: Mapping[str, Any], libraries: Mapping[str, Library]) -> None:
        self.record = record
        self.parts = tuple(sorted(libraries))
        self._libraries = libraries

    def run(self, part: str, *inputs: Tensor) -> list[Tensor]:
        """The answers of a part, in order. Raises RuntimeError, as PyTorch does: no memory, for one."""
        return self._libraries[part].run(list(inputs))

    def description(self) -> dict[str, Any]:
        """What whoever operates it wants to know of the package."""
        wanted = ("torch", "device", "capability", "instructions", "architecture", "precision")
        return {name: self.record[name] for name in wanted if name in self.record} | {
            "parts": list(self.parts)
        }


def package_for(
    path: Path, *, torchscript: Path, device: torch.device, precision: str, wanted: str
) -> CompiledParts | str:
    """The package's parts, loaded; or why there are none: one sentence, "" where none was asked for.

    Args:
        path: of the package, or of the folder that it lies in beside `torchscript`.
        torchscript: the maskx.pt that is served.
        device: to run on.
        precision: that the network computes in.
        wanted: one of `ENGINES`.
    """
    if path.is_dir():
        path = path / f"{torchscript.stem}{SUFFIX}"
    if wanted == "torchscript" or (wanted == "auto" and not path.is_file()):
        return ""
    try:
        if not path.is_file():
            raise Unfit(
                f"there is no {path.name}; make the archive with python -m export.archive --engine compiled"
            )
        record = read_record(path)
        require_fit(record, torchscript=torchscript, device=device, precision=precision)
        return CompiledParts(record, load_libraries(path, record["parts"], device))
    except Unfit as reason:
        return str(reason)
    except (
        Exception
    ) as error:  # whatever a foreign or damaged library makes PyTorch say; TorchScript is there
        first = (str(error).strip().splitlines() or [""])[0]
        return f"{path.name} cannot be loaded: {type(error).__name__}: {first}"


def read_record(path: Path) -> dict[str, Any]:
    """What a package says of itself. Raises Unfit: it is no package, is damaged, or of another format."""
    again = "copy it again, or make it again with python -m export.compiled"
    try:
        with zipfile.ZipFile(path) as package:
            names = [name for name in package.namelist() if name.endswith(RECORD)]
            if len(names) != 1:
                raise Unfit(f"{path.name} has {len(names)} records {RECORD}, and one is expected; {again}")
            record = json.loads(package.read(names[0]))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise Unfit(f"{path.name} cannot be read as a package: {error}; {again}") from error
    if not isinstance(record, dict) or record.get("format_version") != FORMAT_VERSION:
        version = record.get("format_version") if isinstance(record, dict) else None
        raise Unfit(
            f"{path.name} has format_version {version!r}, this handler reads {FORMAT_VERSION}; {again}"
        )
    parts = record.get("parts")
    if not isinstance(parts, list) or not parts or not set(parts) <= set(PARTS):
        raise Unfit(f"{path.name} has the parts {parts!r}; some of {', '.join(PARTS)} are expected; {again}")
    return record


def require_fit(
    record: Mapping[str, Any], *, torchscript: Path, device: torch.device, precision: str
) -> None:
    """Raises Unfit where the package was made for something else: another PyTorch, device, processor, precision or
    model."""
    here = torch.__version__.partition("+")[0]
    _same("PyTorch", record.get("torch"), here)
    _same("a device of type", record.get("device"), device.type)
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        _same("a GPU of compute capability", record.get("capability"), f"{major}.{minor}")
    else:
        _same("the architecture", record.get("architecture"), platform.machine())
        if not record.get("march"):  # else for a family, whose instructions say all
            _require_capability(record.get("capability"), torch.backends.cpu.get_cpu_capability())
        lacking = lacking_here(record.get("instructions", ()))
        if lacking:
            raise Unfit(
                f"it was compiled for a processor with {', '.join(lacking)}, and this one lacks it; {CURE}"
            )
    if record.get("precision") != precision:
        raise Unfit(
            f"it computes in {record.get('precision')}, and {precision} is served here; {CURE}, or set "
            f"maskx.precision: {record.get('precision')}"
        )
    with open(torchscript, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if record.get("torchscript_sha256") != digest:
        raise Unfit(
            f"it belongs to a maskx.pt with sha256 {str(record.get('torchscript_sha256'))[:12]}..., and this one has "
            f"{digest[:12]}...; make it again from the same checkpoint"
        )


def _same(what: str, made: Any, here: str) -> None:
    if made != here:
        raise Unfit(f"it was compiled for {what} {made}, and here is {here}; {CURE}")


def _require_capability(made: Any, here: str) -> None:
    """The processor's instructions as PyTorch knows them: as many as the package was compiled with, or more."""
    if made == here or (here in CAPABILITIES and made in CAPABILITIES[: CAPABILITIES.index(here)]):
        return
    raise Unfit(f"it was compiled for a processor with {made}, and this one has {here}; {CURE}")


def lacking_here(instructions: Iterable[str]) -> list[str]:
    """Those of the instructions that this processor is not known to have, sorted."""
    known = instructions_here()
    return sorted(name for name in instructions if _plain(name) not in known)


def instructions_here() -> set[str]:
    """Names of the instructions that this processor has, by PyTorch and by the system, without underscores."""
    tell = getattr(torch.cpu, "get_capabilities", dict)
    names = {_plain(name) for name, has in tell().items() if has is True}
    with contextlib.suppress(OSError):
        for line in CPU_INFO.read_text().splitlines():
            kind, _, values = line.partition(":")
            if kind.strip() in ("flags", "Features"):
                return names | {_plain(name) for name in values.split()}
    return names


def _plain(name: str) -> str:
    return str(name).lower().replace("_", "").replace(".", "")


def load_libraries(path: Path, parts: Sequence[str], device: torch.device) -> dict[str, Library]:
    """The libraries of the parts, loaded. Raises whatever PyTorch and the system raise.

    On Linux a library for CPUs goes from the zip into memory that belongs to this process alone, and is loaded from
    there: nothing lies in a folder, so nothing is left by a process that is killed, and a folder that forbids programs
    (a container's tmpfs) does not matter. Elsewhere, and where a library needs files beside it (CUDA kernels), they are
    unpacked into a temporary folder.
    """
    remove_left()
    libraries = {}
    with zipfile.ZipFile(path) as package:
        for part in parts:
            names = [
                name for name in package.namelist() if f"/{part}/" in f"/{name}" and not name.endswith("/")
            ]
            shared = [name for name in names if name.endswith(".so")]
            beside = [name for name in names if _is_needed(name)]
            if not shared:
                raise Unfit(f"{path.name} has no library of the part {part}; make it again")
            if device.type == "cpu" and len(shared) == 1 and not beside and hasattr(os, "memfd_create"):
                libraries[part] = _from_memory(part, package.read(shared[0]))
            else:
                libraries[part] = _from_folder(path, part, device)
    return libraries


def _is_needed(name: str) -> bool:
    """Whether a file of a part is read when its library is loaded or run."""
    return not name.endswith((".so", ".cpp", ".h", ".o", "_metadata.json", "_flags.json"))


def _from_memory(part: str, library: bytes) -> Library:
    """Loads a library from anonymous memory, which stays open: the library reads its weights from its own file."""
    descriptor = os.memfd_create(f"maskx-{part}")
    with open(descriptor, "wb", closefd=False) as file:
        file.write(library)
    runner: Library = torch._C._aoti.AOTIModelContainerRunnerCpu(f"/proc/self/fd/{descriptor}", 1)
    return runner


class _FromFolder:
    """A part that PyTorch loads out of an unpacked package."""

    def __init__(self, folder: str, part: str, device: torch.device) -> None:
        index = -1 if device.index is None else device.index
        self._loader = torch._C._aoti.AOTIModelPackageLoader(folder, part, False, 1, index, False)  # type: ignore[attr-defined]

    def run(self, inputs: list[Tensor]) -> list[Tensor]:
        answers: list[Tensor] = self._loader.boxed_run(inputs)
        return answers


def _from_folder(path: Path, part: str, device: torch.device) -> Library:
    folder = tempfile.mkdtemp(prefix=f"{_UNPACKED}{os.getpid()}-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with zipfile.ZipFile(path) as package:
        package.extractall(folder)
    # torch writes all records into one folder of the package's name
    (inner,) = [one for one in Path(folder).iterdir() if one.is_dir()]
    return _FromFolder(str(inner), part, device)


def remove_left() -> None:
    """Removes what processes that were killed have left in the temporary folder."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_UNPACKED}*"):
        number = folder.name.removeprefix(_UNPACKED).partition("-")[0]
        if number.isdigit() and not _runs(int(number)):
            shutil.rmtree(folder, ignore_errors=True)


def _runs(process: int) -> bool:
    if sys.platform == "win32":  # where asking by signal 0 ends the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True
