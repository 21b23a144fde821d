"""client/inference.proto -> client/generated/, the Python code that speaks it.

python -m client.compile_proto
"""

import sys
from importlib import import_module, resources
from pathlib import Path

HERE = Path(__file__).resolve().parent


def compile_proto(root: Path = HERE.parent, package: str = HERE.name) -> None:
    """Writes inference_pb2.py and inference_pb2_grpc.py into generated/ of the package, which lies below `root`.

    Raises ValueError: grpcio-tools is not installed, or refuses the file.
    """
    try:
        protoc = import_module("grpc_tools.protoc")
    except ImportError as error:
        cure = "run make setup, or pip install grpcio-tools"
        raise ValueError(f"grpcio-tools is not installed ({error}); {cure}") from error
    inside = f"{package}/generated"
    folder = root / inside
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "__init__.py").write_text('"""Made by client/compile_proto.py; do not edit."""\n')
    # Seen as if it lay in there, so that the two generated modules import each other from there.
    command = ["protoc", f"-I{inside}={HERE}", f"-I{resources.files('grpc_tools') / '_proto'}"]
    command += [f"--{kind}_out={root}" for kind in ("python", "pyi", "grpc_python")]
    status = protoc.main([*command, f"{inside}/inference.proto"])
    if status != 0:
        raise ValueError(f"protoc refused client/inference.proto (status {status}); the reason stands above")


def main() -> int:
    """Command line; returns the exit status."""
    try:
        compile_proto()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
