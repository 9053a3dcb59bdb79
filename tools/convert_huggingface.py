#!/usr/bin/env python
"""Convert Mask2Former weights from and to Hugging Face transformers (Swin backbones).

    python tools/convert_huggingface.py from-hf IN OUT [--task panoptic] [--dtype float16]
    python tools/convert_huggingface.py to-hf IN OUT --config-file configs/coco/....yaml [--dataset NAME]

from-hf reads a directory with config.json and model.safetensors (or pytorch_model.bin, or shards) and writes a
directory with model.safetensors, config.yaml and classes.json:

    python demo/demo.py --config-file OUT/config.yaml --input image.jpg --opts MODEL.WEIGHTS OUT

to-hf reads any weights of this project or of the reference implementation (.pkl, .pth, .safetensors, a
model-zoo name such as coco-panoptic-swin-t) and writes a directory for
`Mask2FormerForUniversalSegmentation.from_pretrained(OUT)`.

Weights are only renamed and regrouped, never changed. Each conversion is verified: it is reversed, and the result must
equal the input bit for bit, with no weight left over on either side.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if (ROOT / "mask2former").is_dir():  # a checkout works without being installed
    sys.path.insert(0, str(ROOT))

from mask2former.cli import convert  # noqa: E402
from mask2former.utils.failures import run_program  # noqa: E402


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_program(_parser(), lambda args: print(args.work(args)), argv, mistake=1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{from-hf,to-hf}")
    to_ours = commands.add_parser("from-hf", help="Hugging Face directory -> this project")
    convert.add_from_hf(to_ours)
    to_ours.set_defaults(work=convert.run_from_hf)
    to_theirs = commands.add_parser("to-hf", help="this project or the reference -> Hugging Face directory")
    convert.add_to_hf(to_theirs)
    to_theirs.set_defaults(work=convert.run_to_hf)
    return parser


if __name__ == "__main__":
    sys.exit(main())
