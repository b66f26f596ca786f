"""``python -m aimass_lab`` is ``aimass``."""

import sys

from .frontends.cli import main

if __name__ == "__main__":
    sys.exit(main())
