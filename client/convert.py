"""`python -m client.convert`, short for `python -m client.annotation.convert`."""

import sys

from .annotation.convert import main

if __name__ == "__main__":
    sys.exit(main(prog="python -m client.convert"))
