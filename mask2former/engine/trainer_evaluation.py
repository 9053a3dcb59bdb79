"""How a trainer evaluates: between its iterations, at its end, and without a training."""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import TrainerBase
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.utils import comm
from torch import nn

from ..checkpoint import SafeCheckpointer
from ..errors import ConfigError
from ..test_time_augmentation import with_tta
from ..utils.signatures import accepted
from ..video.windowed import windowed
from .best_model import BestModel, by_dataset, evaluate_datasets, store_baseline, without_single_name, write_results
from .distributed import preserved_random_state, share_buffers
from .early_stop import EarlyStopHook
from .ema import WeightAverage
from .hooks import stop_training
from .stop_signals import StopRequested, StopSignal
from .training_summary import dataset_size

logger = logging.getLogger(__name__)


class TrainerEvaluation(TrainerBase):
    """The part of `Trainer` that evaluates; see there for the attributes."""

    cfg: CfgNode
    start_iter: int
    max_iter: int
    unsaved: bool
    checkpointer: SafeCheckpointer
    best: BestModel
    weight_average: WeightAverage | None
    _results: OrderedDict[str, Any] | None
    _early_stop: EarlyStopHook | None
    _stop_signal: StopSignal

    def evaluate(self) -> OrderedDict[str, Any]:
        """Evaluate on DATASETS.TEST with the EMA weights if there are some, and keep the best model.

        Does not change the course of the training: random states are put back.
        """
        with self._ready_for_evaluation():
            # A subclass may return nothing, as its ranks but the first do.
            results = self._results = self.test(self.cfg, self.checkpointer.model) or OrderedDict()
            if comm.is_main_process():
                self.best.offer(self.checkpointer.model, results, self.iter, self.cfg)
        if self._early_stop is not None:
            self._early_stop.add(results, self.cfg.DATASETS.TEST)
        self.unsaved = True
        return results

    def evaluate_baseline(self) -> None:
        """Evaluate before the first iteration; writes OUTPUT_DIR/baseline.json and may be the best model."""
        results = self.evaluate()
        if comm.is_main_process():
            store_baseline(results, self.cfg)

    def evaluate_with_TTA(self) -> OrderedDict[str, Any]:
        """Evaluate as `evaluate` does, with test-time augmentation; the best model is not chosen by it."""
        with self._ready_for_evaluation():
            return self.test_with_TTA(self.cfg, self.checkpointer.model)

    @contextlib.contextmanager
    def _ready_for_evaluation(self) -> Iterator[None]:
        """Prepare the model and put everything back; a signal ends the evaluation between batches, and the training."""
        try:
            self._stop_signal.raise_if_agreed()
            with preserved_random_state(), self._averaged_weights():
                share_buffers(self.checkpointer.model)
                yield
        except StopRequested as stop:
            stop_training(self, stop.number)

    def _averaged_weights(self) -> contextlib.AbstractContextManager[None]:
        return self.weight_average.applied() if self.weight_average is not None else contextlib.nullcontext()

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: DatasetEvaluator | list[DatasetEvaluator] | None = None,
    ) -> OrderedDict[str, Any]:
        """Evaluate `model` on each dataset of DATASETS.TEST, in the precision of TEST.AMP.

        Logs a table and writes OUTPUT_DIR/inference/metrics.json.

        Args:
            evaluators: one for each dataset, by default those of `build_evaluator`.

        Returns:
            {task: {metric: value}} for one dataset, {dataset: {task: {metric: value}}} for several; empty
            on all ranks but the first.
        """
        results = evaluate_datasets(cls, cfg, windowed(cfg, model), evaluators, previews=True)
        write_results(cfg, results, "inference")
        return without_single_name(results)

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> OrderedDict[str, Any]:
        """Evaluate as `test` does, with the test-time augmentation of TEST.AUG; files go to OUTPUT_DIR/inference_TTA.

        Returns:
            As `test`, but "_TTA" is added to each task.

        Raises:
            ValueError: there is none for this kind of model.
        """
        names, directory = cfg.DATASETS.TEST, Path(cfg.OUTPUT_DIR) / "inference_TTA"
        if not accepted(cls.build_evaluator, {"output_folder": ""}):
            logger.warning(
                "%s.build_evaluator takes no output_folder: files of the test-time augmentation replace those of the "
                "evaluation without it.",
                cls.__name__,
            )
        evaluators = [
            cls.build_evaluator(
                cfg,
                name,
                **accepted(
                    cls.build_evaluator,
                    {"output_folder": str(directory / name if len(names) > 1 else directory)},
                ),
            )
            for name in names
        ]
        if cls._has_own_test():
            named = by_dataset(cls.test(cfg, with_tta(cfg, model), evaluators) or {}, names)
            results = OrderedDict((name, {f"{task}_TTA": v for task, v in named[name].items()}) for name in names)
        else:
            results = evaluate_datasets(cls, cfg, with_tta(cfg, model), evaluators, suffix="_TTA")
        write_results(cfg, results, directory.name)
        return without_single_name(results)

    @classmethod
    def _has_own_test(cls) -> bool:
        """Return whether a subclass evaluates in its own way."""
        return cls.test.__func__ is not TrainerEvaluation.test.__func__  # type: ignore[attr-defined]

    @classmethod
    def load_for_test(cls, cfg: CfgNode, resume: bool = False) -> nn.Module:
        """Load the model with MODEL.WEIGHTS, or the last checkpoint of OUTPUT_DIR if `resume`.

        With SOLVER.EMA_DECAY > 0 and a checkpoint that holds EMA weights, those.

        Raises:
            CheckpointError: weights of the model are missing or have another shape, unless
                MODEL.ALLOW_PARTIAL_WEIGHTS.
            ConfigError: MODEL.WEIGHTS is empty, unless MODEL.ALLOW_PARTIAL_WEIGHTS.
        """
        model = cls.build_model(cfg)
        checkpointer = SafeCheckpointer(model, cfg.OUTPUT_DIR, required=())
        resuming = resume and checkpointer.has_checkpoint()
        if resume and not resuming:
            logger.warning("No checkpoint in %s to resume: evaluating MODEL.WEIGHTS.", cfg.OUTPUT_DIR)
        if not resuming and not cfg.MODEL.WEIGHTS:
            if not cfg.MODEL.ALLOW_PARTIAL_WEIGHTS:
                raise ConfigError(
                    "MODEL.WEIGHTS is empty, so the results would be those of random weights: give a file. "
                    "(MODEL.ALLOW_PARTIAL_WEIGHTS True evaluates nevertheless.)"
                )
            logger.warning("MODEL.WEIGHTS is empty: evaluating a model with random weights.")
        average = WeightAverage(model, cfg.SOLVER.EMA_DECAY) if cfg.SOLVER.EMA_DECAY > 0 else None
        if average is not None:
            checkpointer.add_checkpointable("ema", average)
        if resuming:
            checkpointer.resume_or_load("", resume=True)
        else:
            checkpointer.load(cfg.MODEL.WEIGHTS, checkpointables=list(checkpointer.checkpointables))
        if checkpointer.last_report is not None:
            checkpointer.last_report.require_all(cfg.MODEL.ALLOW_PARTIAL_WEIGHTS)
        if average is not None and average.restored:
            average.apply()
            logger.info("Evaluating the EMA weights (SOLVER.EMA_DECAY).")
        return model

    def _check_evaluation(self) -> dict[str, int]:
        """Read the ground truth of DATASETS.TEST once: a mistake in it must not end the run half way.

        Returns the number of images of each dataset.
        """
        images: dict[str, int] = {}
        if self._has_own_test():
            return images
        for name in self.cfg.DATASETS.TEST if self.start_iter < self.max_iter else ():
            images[name] = dataset_size(self.build_test_loader(self.cfg, name))
            with contextlib.suppress(NotImplementedError):  # detectron2: no evaluation of this dataset
                self.build_evaluator(self.cfg, name)
        return images

    def _expected_results(self) -> OrderedDict[str, Any] | None:
        """Compare the last evaluation with TEST.EXPECTED_RESULTS; detectron2 ends the program where they differ."""
        if not self.cfg.TEST.EXPECTED_RESULTS or not comm.is_main_process():
            return None
        if self._results is None:
            raise ValueError("TEST.EXPECTED_RESULTS is set, but this training has evaluated nothing.")
        check_expected_results(self.cfg, self._results)
        return self._results


def check_expected_results(cfg: CfgNode, results: Mapping[str, Any]) -> None:
    """Compare results with TEST.EXPECTED_RESULTS; detectron2 ends the program with status 1 where they differ.

    Raises:
        ValueError: a task that the results do not have.
    """
    for task, *_ in cfg.TEST.EXPECTED_RESULTS:
        if task not in results:
            known = ", ".join(results) or "none"
            raise ValueError(f"TEST.EXPECTED_RESULTS names {task!r}, but the evaluation gives: {known}")
    verify_results(cfg, results)
