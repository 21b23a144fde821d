"""Speed, memory and accuracy, each a table from one run, side by side with torchvision's Mask R-CNN.

The handler's modules import each other flat, as they lie in the archive; what is measured here are those very modules,
so their folder goes onto the path, in this one place.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

if str(ROOT / "handler") not in sys.path:
    sys.path.insert(0, str(ROOT / "handler"))

# Before torch is imported: on a machine without a GPU the profiler would print an error about it.
os.environ.setdefault("KINETO_LOG_LEVEL", "5")
