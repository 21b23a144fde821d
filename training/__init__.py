"""On what the network is trained, and how well: data sets, loop, evaluation.

Images are read and drawn by the handler's own modules, under the names that they have in the archive.
"""

import sys
from pathlib import Path

HANDLER = Path(__file__).resolve().parent.parent / "handler"
if (HANDLER / "maskx_image.py").is_file() and str(HANDLER) not in sys.path:
    sys.path.insert(0, str(HANDLER))
