"""What pyproject.toml cannot say of the wheel: which modules the handler has, and how the gRPC code is made.

All that setuptools writes on the way lies in a temporary folder, so that nothing old gets into a wheel or the tree.
"""

import runpy
import tempfile
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class BuildWithGrpc(build_py):
    """Also makes maskx_client/generated and maskx_server/light/generated; in the tree they are not committed, and the
    first imports by another name."""

    def run(self) -> None:
        """Copies the modules, then compiles the .proto files beside them."""
        super().run()
        compiler = runpy.run_path(str(ROOT / "client" / "compile_proto.py"))
        compiler["compile_proto"](Path(self.build_lib), "maskx_client")
        compiler["describe_protos"](Path(self.build_lib), "maskx_server")


with tempfile.TemporaryDirectory() as scratch:
    setup(
        py_modules=sorted(path.stem for path in (ROOT / "handler").glob("maskx_*.py")),
        cmdclass={"build_py": BuildWithGrpc},
        options={"build": {"build_base": scratch}, "egg_info": {"egg_base": scratch}},
    )
