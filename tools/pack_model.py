#!/usr/bin/env python
"""Pack a training output directory into a small one for `Segmenter.load(directory)` and the demo.

    python tools/pack_model.py output/nuclei models/nuclei --classes nucleus

Writes model.safetensors (half precision, the weights that were evaluated), config.yaml without machine-specific paths,
and classes.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from mask2former.cli import convert


def main() -> None:
    """Run the command line; errors that the user can fix are printed without a traceback."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    convert.add_pack(parser)
    try:
        print(convert.run_pack(parser.parse_args()))
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"pack_model: {error}")


if __name__ == "__main__":
    main()
