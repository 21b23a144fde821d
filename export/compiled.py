"""maskx.pt and its checkpoint -> maskx.pt2: the network's dense parts as machine code, by AOTInductor.

    python -m export.compiled --torchscript build/maskx.pt --checkpoint build/train/checkpoint.pt --out build/maskx.pt2

It needs a C++ compiler, PyTorch 2.15 or later, and the kind of machine that it is to run on. The package belongs to
that one maskx.pt, which stays beside it: what is not dense runs from there, and all of it where the package does not
fit. Parts that are no faster here than in TorchScript are left out. The same checkpoint does not give the same bytes.
"""

import hashlib
import io
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from export.compiler import (
    CompileError,
    code_of,
    instructions,
    loaded,
    package,
    require_compiler,
    require_torch,
)
from export.parts_check import Figures, require_same_answers, served_parts, times_of
from export.torchscript import require_checkpoint
from model.checkpoint import load_network
from model.files import command, exit_status, write_whole
from model.inference import Inference
from model.inference.dense import MOST_IMAGES, MOST_ROWS, PARTS, dense_parts, unused_weights
from model.processor import cpu_multiplies_bfloat16
from model.serving import REDUCIBLE, prepared_for_serving

FORMAT_VERSION = 1
"""Raised when a reader of older packages could misread the new ones."""

RECORD = "compiled.json"
PRECISIONS = ("auto", "float32", "bfloat16", "float16")

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked of a package.

    Args:
        precision: that the network computes in; "auto": what the handler takes on this machine.
        device: "cpu" or "cuda".
        march: the family of processors it is for, as the compiler calls it ("x86-64-v4"); "" for this very one.
        parts: of `PARTS`; those that are to be in it.
        measure: whether a part that is no faster here than in TorchScript is left out.
    """

    precision: str = "auto"
    device: str = "cpu"
    march: str = ""
    parts: tuple[str, ...] = PARTS
    measure: bool = True


@dataclass(kw_only=True)
class Compiled:
    """What became of the parts: their code, figures, and why those that are not there are not."""

    code: dict[str, list[Any]] = field(default_factory=dict)
    figures: dict[str, Figures] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def compile_package(
    torchscript: Path, checkpoint: Path, out: Path, wanted: Wanted = Wanted(), say: Say = print
) -> dict[str, Any]:
    """Compiles, verifies against the TorchScript file, and only then writes `out`, whole or not at all.

    Returns:
        the record that lies in the package as compiled.json.

    Raises:
        ValueError: a file is missing or not what it should be, they do not belong together, there is no compiler, or
            PyTorch is too old.
        CompileError: no part can be compiled, answers as the TorchScript file does, and is faster.
    """
    require_torch()
    require_compiler()
    if not torchscript.is_file():
        raise ValueError(f"there is no {torchscript}; write it with python -m export.torchscript")
    data = torchscript.read_bytes()
    precision = precision_of(wanted)
    served = network_of(checkpoint, torchscript, data, wanted.device)
    for name in REDUCIBLE:
        served.get_submodule(name).to(getattr(torch, precision))
    for parameter in served.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    with tempfile.TemporaryDirectory() as folder:
        made = compiled_parts(served, data, wanted, Path(folder), say)
        if not made.code:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in made.left_out.items())
            raise CompileError(f"no part is worth compiling here ({reasons}); serve {torchscript} as it is")
        record = record_of(served, made, wanted, precision, hashlib.sha256(data).hexdigest())
        write_whole(out, package(made.code, RECORD, json.dumps(record, indent=1, sort_keys=True) + "\n"))
    return record


def network_of(checkpoint: Path, torchscript: Path, data: bytes, device: str) -> Inference:
    """The checkpoint's network, float32, with the weights of the TorchScript file. ValueError: it is another one's."""
    require_checkpoint(checkpoint)
    network, _, _ = load_network(checkpoint)
    served = prepared_for_serving(network.eval().inference())
    try:
        given = torch.jit.load(io.BytesIO(data), map_location="cpu").state_dict()
    except RuntimeError as error:
        raise ValueError(f"{torchscript} cannot be loaded as TorchScript: {error}") from error
    own = served.state_dict()
    other = [name for name, value in own.items() if not _alike(value, given.get(name))]
    if other:
        raise ValueError(
            f"{torchscript} was not made from {checkpoint}: {len(other)} of {len(own)} tensors differ ({other[0]} is "
            "the first); name the checkpoint that it was exported from, or export this one again"
        )
    served.load_state_dict({name: given[name] for name in own})
    return served.to(device)


def _alike(own: Tensor, given: Tensor | None) -> bool:
    """Equal but for the rounding of another machine, on which normalisations were folded."""
    if given is None or given.shape != own.shape:
        return False
    return torch.allclose(own.float(), given.float(), rtol=1e-4, atol=1e-6)


def precision_of(wanted: Wanted) -> str:
    """The precision to compile in, where it is "auto" by the handler's rule (`maskx_engine.choose_precision`)."""
    if wanted.precision != "auto":
        return wanted.precision
    if wanted.device == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability() >= (8, 0) else "float16"
    return "bfloat16" if cpu_multiplies_bfloat16() else "float32"


def compiled_parts(served: Inference, data: bytes, wanted: Wanted, folder: Path, say: Say) -> Compiled:
    """Each part compiled, compared, and timed beside the TorchScript file's; one that fails is left to TorchScript."""
    made = Compiled()
    script = served_parts(data, served)
    for name, part in dense_parts(served).items():
        if name not in wanted.parts:
            made.left_out[name] = "not asked for"
            continue
        begin = time.monotonic()
        say(f"{name}: compiling ...")
        try:
            code = code_of(part, march=wanted.march, device=wanted.device)
            run = loaded(package({name: code}), name, folder)
            require_same_answers(name, run, script, served)
        except CompileError as error:
            made.left_out[name] = str(error)
            say(f"{name}: left to TorchScript: {error}")
            continue
        figures = times_of(name, run, script, served) if wanted.measure else Figures()
        seconds = time.monotonic() - begin
        if figures.slower:
            made.left_out[name] = f"{figures} here"
            say(f"{name}: left to TorchScript, compiled it takes {figures}")
            continue
        made.code[name], made.figures[name] = code, figures
        say(f"{name}: compiled and compared in {seconds:.0f} s{f', {figures}' if wanted.measure else ''}")
    return made


def record_of(
    served: Inference, made: Compiled, wanted: Wanted, precision: str, digest: str
) -> dict[str, Any]:
    """compiled.json: what the package needs, and what it was made of and for.

    `unused_weights` are beginnings of names of the TorchScript file's parameters that nobody reads where all of the
    parts are used: whoever loads both may empty them, keeping their type and number of dimensions, before freezing with
    `optimize_numerics=False`. Tensors of four dimensions go in as channels_last. A part takes up to `most_images`
    images, or `most_rows` RoIs, at least one.
    """
    parts = sorted(made.code)
    gpu = wanted.device == "cuda"
    capability = torch.backends.cpu.get_cpu_capability()
    if gpu:
        capability = ".".join(map(str, torch.cuda.get_device_capability()))
    return {
        "format_version": FORMAT_VERSION,
        "torch": torch.__version__.partition("+")[0],
        "device": wanted.device,
        "capability": capability,
        "instructions": [] if gpu else instructions(wanted.march),
        "march": wanted.march,
        "architecture": platform.machine(),
        "precision": precision,
        "torchscript_sha256": digest,
        "parts": parts,
        "left_out": made.left_out,
        "measured": {name: made.figures[name].milliseconds() for name in parts},
        "step": served.canvas.step,
        "longest_side": served.canvas.max_size,
        "most_images": MOST_IMAGES,
        "most_rows": MOST_ROWS,
        "unused_weights": unused_weights(served, parts),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = command("export.compiled", __doc__)
    add = parser.add_argument
    add("--torchscript", type=Path, default=Path("build/maskx.pt"))
    add(
        "--checkpoint", type=Path, default=Path("build/train/checkpoint.pt"), help="that it was exported from"
    )
    add("--out", type=Path, default=Path("build/maskx.pt2"))
    add("--precision", choices=PRECISIONS, default="auto")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--march", default="", help="a family of processors in place of this one, as g++ calls it: x86-64-v4")
    add("--parts", nargs="+", choices=PARTS, default=PARTS)
    add("--keep-slower", action="store_true", help="do not leave out what is no faster on this machine")
    options = parser.parse_args(arguments)
    begin = time.monotonic()
    wanted = Wanted(
        precision=options.precision,
        device=options.device,
        march=options.march,
        parts=tuple(options.parts),
        measure=not options.keep_slower,
    )
    with exit_status() as status:
        try:
            record = compile_package(options.torchscript, options.checkpoint, options.out, wanted)
        except CompileError as error:
            print(f"error: not compiled, {options.out} is untouched: {error}", file=sys.stderr)
            return 1
        size = options.out.stat().st_size / 2**20
        print(
            f"wrote {options.out} ({size:.1f} MiB): {', '.join(record['parts'])} in {record['precision']}, compared "
            f"with {options.torchscript}, in {time.monotonic() - begin:.0f} s"
        )
    return status.code


if __name__ == "__main__":
    sys.exit(main())
