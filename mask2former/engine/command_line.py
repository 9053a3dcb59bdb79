"""From the command line to a checked, frozen config with logging in place."""

from __future__ import annotations

import argparse
import logging
import os

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..config import find_config, load_config, validate_config

logger = logging.getLogger(__name__)


def argument_parser() -> argparse.ArgumentParser:
    """detectron2's training arguments, and `--debug` (or the environment variable MASK2FORMER_DEBUG=1)."""
    parser = default_argument_parser()
    parser.add_argument(
        "--debug",
        action="store_true",
        default=os.environ.get("MASK2FORMER_DEBUG", "") not in ("", "0"),
        help="show the traceback of mistakes in configuration and data, too",
    )
    return parser


def setup(args: argparse.Namespace) -> CfgNode:
    """Load, check and freeze the config; start logging to the console and OUTPUT_DIR; seed this process.

    OUTPUT_DIR gets config.yaml and log.txt (log.txt.rankN for the other processes).

    Raises:
        FileNotFoundError, ValueError: a mistake in the config, naming file, key and remedy.
    """
    from ..data import register_from_config

    if args.config_file:
        args.config_file = str(find_config(args.config_file))
    cfg = load_config(args.config_file or None, args.opts)
    note = _choose_device(cfg, getattr(args, "num_gpus", 1))
    # An evaluation takes no look at the training data, which may be on another machine.
    register_from_config(cfg, [*cfg.DATASETS.TEST, *(() if args.eval_only else cfg.DATASETS.TRAIN)])
    validate_config(cfg, training=not args.eval_only)
    cfg.freeze()
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="mask2former", abbrev_name="m2f")
    default_setup(cfg, args)
    if note:
        logger.info("%s", note)
    return cfg


def _choose_device(cfg: CfgNode, num_gpus: int) -> str:
    """Fall back to the CPU where there is no GPU or none is wanted; returns a line for the log, or ''."""
    if not cfg.MODEL.DEVICE.startswith("cuda"):
        return ""
    if num_gpus == 0:
        reason = "--num-gpus 0"
    elif not torch.cuda.is_available():
        reason = "no GPU is available"
    else:
        return ""
    wanted, cfg.MODEL.DEVICE = cfg.MODEL.DEVICE, "cpu"
    return f"MODEL.DEVICE is set from {wanted} to cpu: {reason}."
