"""client/inference.proto -> client/generated/, the Python code that speaks it; and for the light server, which speaks
the Open Inference Protocol too, the descriptions of both.

python -m client.compile_proto
"""

import sys
from importlib import import_module, resources
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIGHT = Path("light")
"""The light server's folder, below that of the server's package."""


def compile_proto(root: Path = HERE.parent, package: str = HERE.name) -> None:
    """Writes inference_pb2.py and inference_pb2_grpc.py into generated/ of the package, which lies below `root`.

    Raises ValueError: grpcio-tools is not installed, or refuses the file.
    """
    inside = f"{package}/generated"
    folder = root / inside
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "__init__.py").write_text('"""Made by client/compile_proto.py; do not edit."""\n')
    # Seen as if it lay in there, so that the two generated modules import each other from there.
    outputs = [f"--{kind}_out={root}" for kind in ("python", "pyi", "grpc_python")]
    _protoc(f"-I{inside}={HERE}", *outputs, f"{inside}/inference.proto")


def describe_protos(root: Path = HERE.parent, package: str = "server") -> None:
    """Writes light/generated/messages.bin of the server's package: descriptions of all that the light server speaks.

    It keeps them to itself, so that no other package that speaks the Open Inference Protocol is in its way.

    Raises ValueError: as `compile_proto`.
    """
    folder = root / package / LIGHT / "generated"
    folder.mkdir(parents=True, exist_ok=True)
    protocol = HERE.parent / "server" / LIGHT
    out = f"--descriptor_set_out={folder / 'messages.bin'}"
    _protoc(f"-I{HERE}", f"-I{protocol}", "--include_imports", out, "inference.proto", "open_inference.proto")


def _protoc(*arguments: str) -> None:
    """Runs the compiler. Raises ValueError: it is not installed, or refuses a file."""
    try:
        protoc = import_module("grpc_tools.protoc")
    except ImportError as error:
        cure = "run make setup, or pip install grpcio-tools"
        raise ValueError(f"grpcio-tools is not installed ({error}); {cure}") from error
    status = protoc.main(["protoc", f"-I{resources.files('grpc_tools') / '_proto'}", *arguments])
    if status != 0:
        raise ValueError(f"protoc refused {arguments[-1]} (status {status}); the reason stands above")


def main() -> int:
    """Command line; returns the exit status."""
    try:
        compile_proto()
        describe_protos()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
