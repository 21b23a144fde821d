"""Finds the handler's modules by the names that they have in the archive; in a clone they lie beside this folder."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("maskx_image") is None:
    sys.path.append(str(Path(__file__).resolve().parent.parent / "handler"))
