"""What convert-pretrained-swin-model-to-d2.py and convert-torchvision-to-d2.py share."""

from __future__ import annotations

import argparse
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if (ROOT / "mask2former").is_dir():  # a checkout works without being installed
    sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from mask2former.checkpoint.key_mapping import Renamer  # noqa: E402
from mask2former.checkpoint.reading import read_checkpoint  # noqa: E402
from mask2former.errors import CheckpointError  # noqa: E402
from mask2former.utils.file_io import write_bytes  # noqa: E402

# Made anew by every model: masks of one image size, and counters that nothing reads.
_NOT_KEPT = (".attn_mask", ".num_batches_tracked")
_PREFIX = "backbone."


def main(argv: Sequence[str] | None, description: str | None, rename: Renamer, author: str, expected: str) -> int:
    """Run a converter's command line; returns the exit status.

    Args:
        argv: IN OUT, or None for those of the process.
        description: help text.
        rename: state dict to one under detectron2's names behind `backbone.`, or None for what it does not know.
        author: "__author__" of the file.
        expected: what IN must hold, in words.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", metavar="IN", help=f"{expected}, as downloaded (.pth)")
    parser.add_argument("output", metavar="OUT", type=Path, help="file to write (.pkl)")
    args = parser.parse_args(argv)
    try:
        if args.output.suffix != ".pkl":
            raise ValueError(f"OUT must end with .pkl, by which detectron2 knows such files; got {args.output}")
        state = dict(read_checkpoint(args.input)["model"])
        model = convert(state, rename)
        if model is None:
            raise CheckpointError(f"{args.input}: these are not the weights of {expected}; it has {_some(state)}")
        document = {"model": model, "__author__": author, "matching_heuristics": True}
        write_bytes(args.output, pickle.dumps(document))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{args.output}: {len(model)} arrays written; not needed and left out: {len(state) - len(model)}")
    return 0


def convert(state: dict[str, Tensor], rename: Renamer) -> dict[str, np.ndarray] | None:
    """Arrays under detectron2's short names, e.g. `res2.0.conv1.weight`; None if `rename` does not know the names."""
    renamed = rename(state)
    if renamed is None:
        return None
    return {key.removeprefix(_PREFIX): _array(value) for key, value in renamed.items() if not key.endswith(_NOT_KEPT)}


def _array(value: Tensor) -> np.ndarray:
    return (value.float() if value.dtype == torch.bfloat16 else value).detach().numpy()  # NumPy knows no bfloat16


def _some(state: dict[str, Tensor]) -> str:
    names = list(state)[:3]
    return ", ".join(names) + (" ..." if len(state) > len(names) else "") if names else "no weights"
