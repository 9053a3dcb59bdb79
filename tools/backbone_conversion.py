"""Code shared by convert-pretrained-swin-model-to-d2.py and convert-torchvision-to-d2.py."""

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

# Recreated by every model: masks of one image size, and counters that nothing reads.
_DROPPED = (".attn_mask", ".num_batches_tracked")
_PREFIX = "backbone."


def main(argv: Sequence[str] | None, description: str | None, rename: Renamer, author: str, expected: str) -> int:
    """Run the command line of a converter; return the exit status.

    Args:
        argv: IN OUT, or None for `sys.argv`.
        description: help text.
        rename: renames a state dict to detectron2's names after `backbone.`; None if it does not know the names.
        author: "__author__" of the file.
        expected: description of the weights in IN, for messages.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", metavar="IN", help=f"{expected}, as downloaded (.pth)")
    parser.add_argument("output", metavar="OUT", type=Path, help="file to write (.pkl)")
    args = parser.parse_args(argv)
    try:
        if args.output.suffix != ".pkl":
            raise ValueError(f"OUT must end with .pkl, which detectron2 expects of such files; got {args.output}")
        state = dict(read_checkpoint(args.input)["model"])
        model = convert(state, rename)
        if model is None:
            raise CheckpointError(f"{args.input} does not hold the weights of {expected}, but {_first_names(state)}")
        checkpoint = {"model": model, "__author__": author, "matching_heuristics": True}
        write_bytes(args.output, pickle.dumps(checkpoint))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{args.output}: {len(model)} arrays written, {len(state) - len(model)} dropped as not needed")
    return 0


def convert(state: dict[str, Tensor], rename: Renamer) -> dict[str, np.ndarray] | None:
    """Return arrays under detectron2's names, e.g. `res2.0.conv1.weight`; None if `rename` does not know the names."""
    renamed = rename(state)
    if renamed is None:
        return None
    return {key.removeprefix(_PREFIX): _array(value) for key, value in renamed.items() if not key.endswith(_DROPPED)}


def _array(value: Tensor) -> np.ndarray:
    return (value.float() if value.dtype == torch.bfloat16 else value).detach().numpy()  # NumPy has no bfloat16


def _first_names(state: dict[str, Tensor]) -> str:
    names = list(state)[:3]
    return ", ".join(names) + (" ..." if len(state) > len(names) else "") if names else "no weights"
