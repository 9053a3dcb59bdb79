"""Code shared by convert-pretrained-swin-model-to-d2.py and convert-torchvision-to-d2.py."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if (ROOT / "mask2former").is_dir():  # a checkout works without being installed
    sys.path.insert(0, str(ROOT))

from mask2former.cli.parser import path  # noqa: E402
from mask2former.conversion.backbone import RESNET as RESNET  # noqa: E402
from mask2former.conversion.backbone import SWIN as SWIN  # noqa: E402
from mask2former.conversion.backbone import Family, convert_backbone  # noqa: E402
from mask2former.utils.failures import run_program  # noqa: E402


def main(argv: Sequence[str] | None, description: str | None, family: Family) -> int:
    """Run the command line of a converter; return the exit status.

    Args:
        argv: IN OUT, or None for `sys.argv`.
        description: help text.
        family: the backbones that IN may hold.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", metavar="IN", help=f"{family.expected}, as downloaded (.pth)")
    parser.add_argument("output", metavar="OUT", type=path, help="file to write (.pkl)")
    return run_program(parser, lambda args: _convert(args, family), argv, mistake=1)


def _convert(args: argparse.Namespace, family: Family) -> None:
    done = convert_backbone(args.input, args.output, (family,))
    print(f"{args.output}: {done.written} arrays written, {done.dropped} dropped as not needed")
