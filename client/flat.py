"""Finds the handler's modules by the names that they have in the archive.

In a clone they lie beside this folder, and are taken before any that are installed; in the wheel they are installed.
"""

import sys
from pathlib import Path

HANDLER = Path(__file__).resolve().parent.parent / "handler"
if (HANDLER / "maskx_image.py").is_file() and str(HANDLER) not in sys.path:
    sys.path.insert(0, str(HANDLER))
