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

import torch
from detectron2.config import CfgNode

from mask2former.checkpoint import load_weights
from mask2former.checkpoint.writing import save_safetensors
from mask2former.config import load_config
from mask2former.data import register_from_config
from mask2former.model_source import dataset_classes, store_classes, stored_classes
from mask2former.structures.classes import ClassTable
from mask2former.utils.file_io import write_bytes

CANDIDATES = ("model_best.safetensors", "model_final.safetensors", "model_final.pth")


def find_weights(directory: Path) -> Path:
    """Return the best weights of a training output directory.

    Raises:
        FileNotFoundError: the directory has no weights.
    """
    for name in CANDIDATES:
        if (directory / name).is_file():
            return directory / name
    raise FileNotFoundError(f"{directory} contains none of {', '.join(CANDIDATES)}; give a file with --weights")


def classes(cfg: CfgNode, source: Path) -> ClassTable:
    """Return the classes that the training stored, or else those of its datasets.

    Raises:
        ValueError: the classes are unknown.
    """
    table = stored_classes(source / "config.yaml", source / "model_best.safetensors")
    if table is None:
        register_from_config(cfg)
        table = dataset_classes(cfg)
    if table is None:
        raise ValueError(f"dataset {cfg.DATASETS.TEST[0]} has no class names; give them with --classes")
    return table


def portable(cfg: CfgNode) -> CfgNode:
    """Return the config without machine-specific settings."""
    cfg = cfg.clone()
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.TIMM.WEIGHTS = ""
    cfg.MODEL.DEVICE = "cpu"
    cfg.OUTPUT_DIR = "./output"
    return cfg


def main() -> None:
    """Run the command line; errors that the user can fix are printed without a traceback."""
    try:
        pack(argument_parser().parse_args())
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"pack_model: {error}")


def argument_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="output directory of train_net.py (config.yaml and weights)")
    parser.add_argument("target", type=Path, help="directory to write")
    parser.add_argument("--weights", type=Path, help="default: the best, else the final weights in SOURCE")
    parser.add_argument("--classes", nargs="+", help="class names; default: those of the training")
    parser.add_argument("--fp32", action="store_true", help="keep single precision")
    return parser


def pack(args: argparse.Namespace) -> None:
    """Read a training output directory and write the packed one."""
    cfg = load_config(args.source / "config.yaml")
    state = load_weights(str(args.weights or find_weights(args.source)))
    # Buffers that every model recreates are not stored.
    state = {k: v for k, v in state.items() if not k.endswith(("num_batches_tracked", "criterion.empty_weight"))}
    table = ClassTable(tuple(args.classes)) if args.classes else classes(cfg, args.source)
    file = save_safetensors(state, args.target / "model.safetensors", None if args.fp32 else torch.float16)
    write_bytes(args.target / "config.yaml", portable(cfg).dump().encode())
    store_classes(table, args.target)
    print(f"{file}: {file.stat().st_size / 2**20:.1f} MiB, {len(state)} tensors; classes: {', '.join(table.names)}")


if __name__ == "__main__":
    main()
