"""`python -m training.evaluate`: box and mask AP of a checkpoint, and a sheet of predictions."""

import sys

from training.evaluate.measure import main

if __name__ == "__main__":
    sys.exit(main())
