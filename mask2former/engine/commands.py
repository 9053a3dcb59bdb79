"""What every rank of a training or evaluation runs."""

from __future__ import annotations

import argparse
import logging

from detectron2.utils import comm

from ..utils.file_io import write_bytes
from .trainer import Trainer
from .training_setup import setup

logger = logging.getLogger(__name__)


def train_or_evaluate(args: argparse.Namespace) -> object:
    """Train or evaluate on one rank; return the evaluation results, if any.

    Args:
        args: of `launch.argument_parser`; "notes" and "warnings", if present, are sentences for the log; "recipe", if
            present, a file and its new content, which is written when the checkpoint of a resumed training fits.
    """
    cfg = setup(args)
    for note in getattr(args, "notes", ()):
        logger.info("%s", note)
    for warning in getattr(args, "warnings", ()):
        logger.warning("%s", warning)
    if args.eval_only:
        model = Trainer.load_for_test(cfg, resume=args.resume)
        results = Trainer.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            Trainer.test_with_TTA(cfg, model)
        return results
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    recipe = getattr(args, "recipe", None)
    if recipe is not None and comm.is_main_process():
        write_bytes(*recipe)
    return trainer.train()
