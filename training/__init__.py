"""On what the network is trained, and how well: data sets, loop, evaluation.

Images are read and drawn by the handler's own modules, under the names that they have in the archive.
"""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("maskx_image") is None:
    sys.path.append(str(Path(__file__).resolve().parent.parent / "handler"))
