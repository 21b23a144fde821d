"""Offline prediction over a folder or bucket of images, by the handler's own way and on as many machines as there are.

The handler's modules import each other flat, as they lie in the archive, so their folder goes on the path here.
"""

import sys
from pathlib import Path

HANDLER = Path(__file__).resolve().parent.parent / "handler"
if (HANDLER / "maskx_image.py").is_file() and str(HANDLER) not in sys.path:
    sys.path.insert(0, str(HANDLER))
