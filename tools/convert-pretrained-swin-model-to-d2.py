#!/usr/bin/env python
"""Convert ImageNet weights of a Swin Transformer into a file for MODEL.WEIGHTS, as the Swin configs name it.

    NAME=swin_tiny_patch4_window7_224
    wget https://github.com/SwinTransformer/storage/releases/download/v1.0.0/$NAME.pth
    python tools/convert-pretrained-swin-model-to-d2.py $NAME.pth $NAME.pkl

The classifier and the norm before it are dropped. Training with this project does not need the conversion, because it
reads the .pth directly (MODEL.WEIGHTS swin_tiny_patch4_window7_224.pth) and finds it by the name in the configs; other
detectron2 projects do. Weights with timm's names can be converted, too. MODEL_ZOO.md lists the URLs of all five sizes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import backbone_conversion


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return backbone_conversion.main(argv, __doc__, backbone_conversion.SWIN)


if __name__ == "__main__":
    sys.exit(main())
