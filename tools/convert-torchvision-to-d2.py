#!/usr/bin/env python
"""Convert ImageNet weights of a torchvision ResNet into a file for MODEL.WEIGHTS, such as the R-101.pkl of the configs.

    wget https://download.pytorch.org/models/resnet101-63fe2227.pth
    python tools/convert-torchvision-to-d2.py resnet101-63fe2227.pth R-101.pkl

Layers get detectron2's names: conv1 and bn1 become stem.conv1 and stem.conv1.norm, layer1 to layer4 res2 to res5,
downsample shortcut. The classifier is dropped. Training with this project does not need it, because it reads
the .pth directly; other detectron2 projects do. The weights need the following settings, which all ResNet configs have:

    MODEL.RESNETS.STRIDE_IN_1X1 False
    INPUT.FORMAT RGB
    MODEL.PIXEL_MEAN [123.675, 116.280, 103.530]
    MODEL.PIXEL_STD [58.395, 57.120, 57.375]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import backbone_conversion


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return backbone_conversion.main(argv, __doc__, backbone_conversion.RESNET)


if __name__ == "__main__":
    sys.exit(main())
