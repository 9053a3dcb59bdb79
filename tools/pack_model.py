#!/usr/bin/env python
"""Pack a training output directory into a small one for `Segmenter.load(directory)` and the demo.

    python tools/pack_model.py output/nuclei models/nuclei --classes nucleus

Writes model.safetensors (half precision, the weights that were evaluated), config.yaml without paths and device
of this machine, and classes.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from mask2former.cli import convert
from mask2former.utils.failures import run_program


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    convert.add_pack(parser)
    return run_program(parser, lambda args: print(convert.run_pack(args)), argv, mistake=1)


if __name__ == "__main__":
    sys.exit(main())
