"""A dense part -> machine code by AOTInductor, and several of them -> one package; all that is private to PyTorch.

Inductor fuses what follows a convolution into it (ReLU, sums) where it treats the weights as constants (`freezing`),
and brings them once, at compile time, into the form that oneDNN computes with. The latter it does for fixed sizes
alone: with free ones oneDNN reorders all weights at each call. `weights_packed` gives it the sizes of the example
instead, for convolutions whose form does not depend on them; the others are reordered as before.
"""

import io
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from model.files import one_line
from model.inference.dense import DensePart, exported, free_from_one

LEAST_TORCH = (2, 15)
"""torch.export of 2.11 was seen to fix the parity of a side, so that its package would refuse every other size."""

FAMILIES = {
    "x86-64-v3": ("abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"),
    "x86-64-v4": ("avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"),
}
"""What each family adds to the one before it (System V ABI, x86-64), by the names of /proc/cpuinfo."""

SIMD_BITS = {"x86-64-v3": 256, "x86-64-v4": 512}

CPU_INFO = Path("/proc/cpuinfo")

SHARES = (0.25, 0.5, 1.0, 2.0)
"""Of the example's height and width, at which a packed weight must be right as well."""

_INSTRUCTIONS = re.compile(
    r"abm|adx|amx.*|avx.*|bmi\d|f16c|fma|gfni|lzcnt|movbe|popcnt|sha_ni|sse.*|ssse3|v(aes|pclmul).*"
)
"""Those flags of a processor that a compiler for "this very one" may make use of."""


class CompileError(ValueError):
    """A part cannot be compiled, or its code does not answer as it should."""


def require_torch(version: str = torch.__version__) -> None:
    """ValueError where PyTorch is too old."""
    if tuple(int(part) for part in version.split(".")[:2]) < LEAST_TORCH:
        least = ".".join(map(str, LEAST_TORCH))
        raise ValueError(
            f"PyTorch {version} fixes the parity of a canvas' sides when it exports a network, so that the package "
            f"would refuse other sizes; compile with PyTorch {least} or later, or serve the TorchScript file as it is"
        )


def require_compiler() -> None:
    """ValueError where there is no C++ compiler."""
    from torch._inductor import config
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        found = shutil.which(get_cpp_compiler())
    except InvalidCxxCompiler:
        found = None
    if found is None:
        raise ValueError(
            f"there is no C++ compiler (looked for {_names(config.cpp.cxx)}); install one (Debian: apt-get install "
            "g++) or name it in the variable CXX, or serve the TorchScript file, which needs none"
        )


def _names(compilers: Any) -> str:
    listed = compilers if isinstance(compilers, Sequence) and not isinstance(compilers, str) else [compilers]
    return ", ".join(str(one) for one in listed if one)


def code_of(part: DensePart, *, march: str = "", device: str = "cpu") -> list[Any]:
    """The files that AOTInductor makes of a part, weights inside.

    Args:
        part: on `device`.
        march: the family of processors, as g++ calls it; "" for this very one.

    Raises:
        CompileError: the part cannot be exported or compiled.
    """
    from torch._inductor import aot_compile

    options: dict[str, Any] = {"freezing": True, "aot_inductor.package": True}
    options["cpp.dynamic_threads"] = (
        True  # those of the process that runs it, not of the one that compiles it
    )
    if march:
        options |= {"cpp.march": march, "cpp.simdlen": SIMD_BITS.get(march)}
    try:
        program = exported(part)
        with torch.no_grad(), free_from_one(), weights_packed():
            try:
                files = aot_compile(program.module(check_guards=False), *given(program), options=options)
            except (
                ValueError
            ):  # it refuses a view (of the slim MLP) in the order of memory that it chose itself
                options["layout_optimization"] = False
                files = aot_compile(program.module(check_guards=False), *given(program), options=options)
    except Exception as error:  # of whatever class a compiler, or a form of the network, makes PyTorch raise
        raise CompileError(f"{type(error).__name__}: {one_line(error)[:400]}") from error
    assert isinstance(files, list)
    return files


def given(program: torch.export.ExportedProgram) -> Any:
    """Arguments and keywords that a program was exported by."""
    return program.example_inputs or ((), {})


@contextmanager
def weights_packed() -> Iterator[None]:
    """Within, Inductor packs the weights of convolutions with free sizes by the sizes of the example.

    It reaches into Inductor's own pass; where that has another form, nothing is changed, and the code is as right and
    slower.
    """
    from torch._inductor.fx_passes import mkldnn_fusion
    from torch.fx.experimental.symbolic_shapes import has_free_symbols, optimization_hint

    on_cpu = getattr(mkldnn_fusion, "CpuMkldnnDeviceOp", None)
    told = hasattr(torch.ops.mkldnn, "_get_mkldnn_serialized_md")
    if on_cpu is None or not hasattr(mkldnn_fusion, "has_free_symbols") or not told:
        yield
        return
    pack: Callable[..., Any] = on_cpu.pack_conv_weight

    def by_example(self: Any, graph: Any, transposed: bool, weight: Any, constants: Any, size: Any) -> Any:
        common = [optimization_hint(side) for side in size]
        if not _has_one_form(weight.meta["val"], transposed, constants, common):
            return weight
        return pack(self, graph, transposed, weight, constants, common)

    def of_rows(value: Any) -> bool:
        return not isinstance(value, torch.Size) and has_free_symbols(value)

    with (
        mock.patch.object(on_cpu, "pack_conv_weight", by_example),
        mock.patch.object(mkldnn_fusion, "has_free_symbols", of_rows),
    ):
        yield


def _has_one_form(
    weight: torch.Tensor, transposed: bool, constants: Sequence[Any], size: Sequence[int]
) -> bool:
    """Whether oneDNN wants a convolution's weight in the same form about `size` ([N, C, H, W]), smaller and larger.

    Where it does not, it brings a packed one into the other form at each call, by code that is as slow as it is
    general: a convolution of 1 x 1, 192 to 1 152 channels on 8 x 10 pixels took 4 959 us packed by the example's size,
    59 us by its own and 99 us unpacked (an AMD EPYC, bfloat16).
    """
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    ops = torch.ops.mkldnn
    reorder = ops._reorder_convolution_transpose_weight if transposed else ops._reorder_convolution_weight
    images, channels, height, width = size
    with unset_fake_temporarily():
        stand_in = torch.empty(weight.shape, dtype=weight.dtype).contiguous(memory_format=torch.channels_last)
        forms = {
            ops._get_mkldnn_serialized_md(reorder(stand_in, *constants, [count, channels, *sides]))
            .numpy()
            .tobytes()
            for count in (1, images, 4 * images)
            for sides in ([max(round(share * side), 1) for side in (height, width)] for share in SHARES)
        }
    return len(forms) == 1


def package(code: dict[str, list[Any]], record_name: str = "", record: str = "") -> bytes:
    """One zip, as PyTorch writes and reads it, of the code of several parts by their names, and a record."""
    from torch.export.pt2_archive._package import package_pt2

    buffer = io.BytesIO()
    package_pt2(buffer, aoti_files=code, extra_files={record_name: record} if record_name else None)
    return buffer.getvalue()


def loaded(data: bytes, name: str, folder: Path) -> Callable[..., Any]:
    """The part `name` of a package, to be called like its module. `folder` must stay as long as it is used."""
    from torch._inductor.package import load_package

    path = folder / f"{name}.pt2"
    path.write_bytes(data)
    part: Callable[..., Any] = load_package(str(path), name)
    return part


def instructions(march: str = "") -> list[str]:
    """Names, as in /proc/cpuinfo, of the instructions that code may make use of; none where the system does not tell.

    Args:
        march: the family of processors that it was compiled for; "" for this very one.
    """
    if not march:
        flags = re.findall(
            r"(?m)^(?:flags|Features)\s*:\s*(.*)$", CPU_INFO.read_text() if CPU_INFO.is_file() else ""
        )
        return sorted({flag for line in flags[:1] for flag in line.split() if _INSTRUCTIONS.fullmatch(flag)})
    if march not in FAMILIES:
        raise ValueError(f"a family of processors {march!r}: expected one of {', '.join(FAMILIES)}, or none")
    wanted: list[str] = []
    for family, added in FAMILIES.items():
        wanted += added
        if family == march:
            break
    return sorted(wanted)
