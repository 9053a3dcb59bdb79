"""What every rank of a training or evaluation runs."""

from __future__ import annotations

import argparse
import logging

from detectron2.utils import comm

from ..utils.file_io import write_bytes
from .best_model import with_all_tasks
from .trainer import Trainer
from .trainer_evaluation import check_expected_results
from .training_setup import setup

logger = logging.getLogger(__name__)


def train_or_evaluate(args: argparse.Namespace, trainer_class: type[Trainer] = Trainer) -> object:
    """Train or evaluate on one rank; return the evaluation results, if any.

    An evaluation is compared with TEST.EXPECTED_RESULTS, and the program ends with status 1 where they differ.

    Args:
        args: of `launch.argument_parser`; "notes" and "warnings", if present, are sentences for the log; "recipe", if
            present, a file and its new content, which is written when the checkpoint of a resumed training fits.
        trainer_class: builds and runs everything.

    Raises:
        ValueError: TEST.EXPECTED_RESULTS names a task that the evaluation has not.
    """
    cfg = setup(args)
    for note in getattr(args, "notes", ()):
        logger.info("%s", note)
    for warning in getattr(args, "warnings", ()):
        logger.warning("%s", warning)
    if args.eval_only:
        model = trainer_class.load_for_test(cfg, resume=args.resume)
        results = trainer_class.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            results = with_all_tasks(results, trainer_class.test_with_TTA(cfg, model), cfg.DATASETS.TEST)
        if comm.is_main_process():
            check_expected_results(cfg, results)
        return results
    trainer = trainer_class(cfg)
    trainer.resume_or_load(resume=args.resume)
    recipe = getattr(args, "recipe", None)
    if recipe is not None and comm.is_main_process():
        write_bytes(*recipe)
    return trainer.train()
