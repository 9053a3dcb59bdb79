#!/usr/bin/env python3
"""Compile the kernels of ``mask2former/ops``: one library for CPU, one for CUDA.

    python tools/build_ops.py        into this checkout, for the torch of the Python that runs the script

``MASK2FORMER_BUILD_OPS`` selects what is compiled (INSTALL.md, 'The compiled op'). The work is done by
mask2former/installation/build_ops.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from installation_package import load

if __name__ == "__main__":
    sys.exit(load("build_ops").main(sys.argv[1:]))
