#!/usr/bin/env python3
"""Install Mask2Former and all it needs. With a compiler, its op is compiled; none is needed.

    python3 tools/install.py --venv .venv            into an environment of its own, made if it is not there
    python3 tools/install.py                         into the Python that runs this script
    python3 tools/install.py --venv .venv --extras dev,video

A detectron2 that can be imported is kept, and so is a torch >= 2.6 with its torchvision; other packages that are
installed keep their version unless it is too old. What is missing is installed in the versions of
mask2former/installation/constraints.txt. A second run finds nothing to do and ends within a second, also without a
connection. The work is done by mask2former/installation; for a package that pip installed, mask2former setup does the
same. MASK2FORMER_BUILD_OPS selects what is compiled (INSTALL.md, 'The compiled op').
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 10):  # noqa: UP036  a clear message instead of a SyntaxError further on
    raise SystemExit("tools/install.py needs Python 3.10 to 3.13; this is Python " + sys.version.split()[0])

from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from installation_package import load

if __name__ == "__main__":
    sys.exit(load("command").main(description=__doc__))
