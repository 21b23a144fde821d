"""maskx.pt -> maskx.mar, the archive that TorchServe loads, with everything the handler needs.

    python -m export.archive --torchscript build/maskx.pt --out build/maskx.mar
    python -m export.archive --engine compiled --package build/maskx.pt2

With --engine compiled the package of `export.compiled` goes in beside the TorchScript file, which stays what runs where
the package does not fit. torch-model-archiver makes the archive; then all that tells when and where it was made is
taken out, so that the same files give the same bytes. `sha256sum -c maskx.mar.sha256` checks it.
"""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from export.files import METADATA_NAME, records_of
from model.files import command, exit_status, write_whole

ROOT = Path(__file__).resolve().parent.parent
MODEL_NAME = "maskx"
HANDLER = "maskx_handler.py"
MANIFEST = "MAR-INF/MANIFEST.json"
PACKAGE = f"{MODEL_NAME}.pt2"
"""The package's name in the archive: the handler looks for it beside the TorchScript file."""
ENGINES = ("torchscript", "compiled")
COMPILED_RECORD = "compiled.json"
NO_DATE = (1980, 1, 1, 0, 0, 0)
"""The first date a zip file can hold."""


def build_archive(
    torchscript: Path,
    out: Path,
    *,
    version: str = "1.0",
    handler_folder: Path = ROOT / "handler",
    configuration: Path = ROOT / "serve_config" / "model-config.yaml",
    package: Path | None = None,
) -> str:
    """Writes the archive and, beside it, its sha256; returns the latter in hexadecimal.

    Args:
        torchscript: a file written by `export.torchscript`.
        out: the archive; the model is called maskx whatever the file's name.
        version: the model's version as TorchServe shows it.
        handler_folder: its maskx_*.py go into the archive, flat; maskx_handler.py is the handler.
        configuration: TorchServe's settings of the model.
        package: a file written by `export.compiled` from the same checkpoint; None for TorchScript alone.

    Raises:
        ValueError: a file is missing or not what it should be, or torch-model-archiver refuses.
    """
    require_exported(torchscript)
    if package is not None:
        require_package_of(torchscript, package)
    modules = sorted(handler_folder.glob("maskx_*.py"))
    if handler_folder / HANDLER not in modules:
        raise ValueError(f"there is no {HANDLER} in {handler_folder}; it answers TorchServe's requests")
    if not configuration.is_file():
        raise ValueError(f"there is no {configuration}; it holds TorchServe's settings of the model")
    with tempfile.TemporaryDirectory() as folder:
        raw = run_archiver(torchscript, modules, configuration, version, Path(folder), package)
        data = normalised_archive(raw)
    digest = hashlib.sha256(data).hexdigest()
    write_whole(out, data)
    write_whole(out.with_name(out.name + ".sha256"), f"{digest}  {out.name}\n")
    return digest


def require_exported(torchscript: Path) -> None:
    """A `ValueError` unless the file is a TorchScript archive with our metadata."""
    if not torchscript.is_file():
        raise ValueError(f"there is no {torchscript}; write it with python -m export.torchscript")
    missing = {"constants.pkl", f"extra/{METADATA_NAME}"} - records_of(torchscript)
    if missing:
        raise ValueError(
            f"{torchscript} lacks {sorted(missing)}: it is not a file of python -m export.torchscript (a checkpoint, "
            "perhaps?)"
        )


def require_package_of(torchscript: Path, package: Path) -> None:
    """A `ValueError` unless the file is a package of compiled parts that belongs to this very TorchScript file."""
    make = f"make it with python -m export.compiled --torchscript {torchscript} --out {package}"
    if not package.is_file():
        raise ValueError(f"there is no {package}; {make}")
    try:
        with zipfile.ZipFile(package) as archive:
            (name,) = [one for one in archive.namelist() if one.endswith(COMPILED_RECORD)]
            made_from = json.loads(archive.read(name))["torchscript_sha256"]
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{package} is not a whole package of compiled parts ({error}); {make}") from error
    with open(torchscript, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if made_from != digest:
        raise ValueError(
            f"{package} was made from a TorchScript file with sha256 {made_from}, and {torchscript} has {digest}; "
            f"{make}"
        )


def archiver_command() -> str:
    """torch-model-archiver of the running Python's environment, else of the PATH."""
    beside = Path(sys.executable).with_name("torch-model-archiver")
    found = str(beside) if beside.is_file() else shutil.which("torch-model-archiver")
    if found is None:
        raise ValueError(
            "torch-model-archiver is not installed; run make setup, or pip install torch-model-archiver"
        )
    return found


def run_archiver(
    torchscript: Path,
    modules: Sequence[Path],
    configuration: Path,
    version: str,
    folder: Path,
    package: Path | None = None,
) -> bytes:
    """The archive as torch-model-archiver makes it, its files staged under `folder` by their own names.

    The archiver splits lists of files at commas and empties a folder of the model's name in the temporary folder, so
    it gets relative names and a temporary folder of its own.
    """
    staged, temporary = folder / "staged", folder / "temporary"
    staged.mkdir()
    temporary.mkdir()
    (staged / f"{MODEL_NAME}.pt").symlink_to(torchscript.resolve())
    for path in modules:
        shutil.copyfile(path, staged / path.name)
    shutil.copyfile(configuration, staged / configuration.name)
    extra = [path.name for path in modules if path.name != HANDLER]
    if package is not None:
        (staged / PACKAGE).symlink_to(package.resolve())
        extra.append(PACKAGE)
    command = [archiver_command(), "--model-name", MODEL_NAME, "--version", version, "--runtime", "python"]
    command += ["--serialized-file", f"{MODEL_NAME}.pt", "--handler", HANDLER]
    command += [
        "--config-file",
        configuration.name,
        "--export-path",
        str(folder),
        "--archive-format",
        "zip-store",
    ]
    if extra:
        command += ["--extra-files", ",".join(extra)]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    done = subprocess.run(command, cwd=staged, env=environment, capture_output=True, text=True, check=False)
    made = folder / f"{MODEL_NAME}.mar"
    if done.returncode != 0 or not made.is_file():
        raise ValueError(
            f"torch-model-archiver failed ({done.returncode}):\n{(done.stderr or done.stdout).strip()}"
        )
    return made.read_bytes()


def normalised_archive(raw: bytes) -> bytes:
    """The same archive without dates, permissions, the order of a folder listing, or a compressor's version.

    Nothing is compressed: the weights would shrink by a few per cent, and a compressor writes other bytes in another
    version.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as source, zipfile.ZipFile(buffer, "w") as target:
        for name in sorted(source.namelist()):
            if name.endswith("/"):
                continue
            content = source.read(name)
            if name == MANIFEST:
                manifest = json.loads(content)
                manifest["createdOn"] = "01/01/1980 00:00:00"
                content = (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode()
            entry = zipfile.ZipInfo(name, NO_DATE)
            entry.create_system = 3
            entry.external_attr = 0o100644 << 16
            target.writestr(entry, content, zipfile.ZIP_STORED)
    return buffer.getvalue()


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = command("export.archive", __doc__)
    add = parser.add_argument
    add("--torchscript", type=Path, default=Path("build/maskx.pt"))
    add("--out", type=Path, default=Path("build/maskx.mar"))
    told = "compiled: with the package of compiled parts, too (default: %(default)s)"
    add("--engine", choices=ENGINES, default=ENGINES[0], help=told)
    told = "of the compiled parts, for --engine compiled (default: build/maskx.pt2)"
    add("--package", type=Path, help=told)
    add("--version", default="1.0", help="the model's version in TorchServe (default: %(default)s)")
    options = parser.parse_args(arguments)
    with exit_status() as status:
        if options.package is not None and options.engine != "compiled":
            raise ValueError("--package is for --engine compiled, which was not asked for")
        package = (options.package or Path(f"build/{PACKAGE}")) if options.engine == "compiled" else None
        digest = build_archive(options.torchscript, options.out, version=options.version, package=package)
        size = options.out.stat().st_size / 2**20
        of_package = f", {package.stat().st_size / 2**20:.1f} of them compiled" if package is not None else ""
        print(f"wrote {options.out} ({size:.1f} MiB{of_package}), sha256 {digest}")
    return status.code


if __name__ == "__main__":
    sys.exit(main())
