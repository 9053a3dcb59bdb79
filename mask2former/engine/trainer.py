"""The trainer: detectron2's loop and hooks with exact resume, accumulation and EMA weights."""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.engine import hooks as d2_hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, EventWriter
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..checkpoint import SafeCheckpointer
from ..checkpoint.directory import remove_unfinished
from ..config import micro_batch_size
from ..config_values import BUILDERS, check_builders
from ..data.batch_transport import BitBatches
from ..data.build import with_mask_bits
from ..evaluation import build_evaluator
from ..model_source import dataset_classes, store_classes
from ..modeling.checkpointing import checkpoint_parts
from ..utils.console import FILE_ONLY, file_only
from ..utils.overrides import as_written, extensible, unchanged
from .best_model import BestModel
from .compilation import compile_if_worthwhile
from .data_parallel import distribute
from .distributed import check_same_start
from .early_stop import EarlyStopHook
from .ema import WeightAverage
from .hooks import (
    BaselineHook,
    CheckpointHook,
    EvaluationHook,
    FirstStepHook,
    ProgressBarHook,
    RecordHook,
    ScheduleHook,
    StopHook,
    WeightAverageHook,
    WriterHook,
)
from .loggers import build_loggers
from .metrics_file import MetricsFile
from .optimizer import build_lr_scheduler, build_optimizer, full_model_clip_norm
from .stop_signals import StopSignal, TrainingInterrupted
from .train_step import TrainStep, select_precision
from .trainer_data import TrainerData
from .trainer_evaluation import TrainerEvaluation
from .trainer_state import TrainerState
from .training_log import ConsoleWriter
from .training_setup import accept_config, ensure_log, prepare_device, training_lock
from .training_summary import training_summary

logger = logging.getLogger(__name__)

extensible(DistributedDataParallel)


class Trainer(TrainerState, TrainerEvaluation, TrainerData):
    """Builds everything from a config and trains.

    ```python
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    ```

    A run that is stopped and resumed does the same as one that never stopped: model, optimizer, schedule,
    loss scaler, EMA weights, place in the data and random states of every rank are restored. (Bit for bit
    as far as the operations of the device are deterministic.)

    Class attributes, to be set in a subclass:
        keep_checkpoints: periodic checkpoints to keep, 0 for all.
        log_period: iterations between two lines of progress.
        find_unused_parameters: True for a model that does not use each parameter in each iteration.

    Attributes:
        model, optimizer, scheduler, checkpointer: the model is in DistributedDataParallel if there are several ranks.
        data_loader, batches: the loader of `train`, built when it is first read, and its iterator, which is empty
            before and after. Who reads it gets bool masks, also where the model gets bits.
        train_step: runs one optimizer step on `model`, `optimizer` and `batches`.
        finished: number of iterations that are finished.
        unsaved: whether there is something that no checkpoint has.
        weight_average: EMA weights, None without SOLVER.EMA_DECAY.
    """

    keep_checkpoints = 3
    log_period = 20
    find_unused_parameters = False

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        ensure_log(cfg.OUTPUT_DIR)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        micro_batch_size(cfg, comm.get_world_size())  # raises before anything is built
        self._check_mapper(cfg)
        self._check_builders(cfg)
        self.cfg = cfg
        self.seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.finished, self.unsaved, self.resuming = 0, False, False
        self._rank_states: list[dict[str, Any]] | None = None
        self._changes: dict[str, tuple[Any, Any]] = {}  # settings that differ from those of the resumed checkpoint
        self._results: OrderedDict[str, Any] | None = None
        patience = cfg.SOLVER.EARLY_STOP_PATIENCE
        self._early_stop = EarlyStopHook(patience) if patience > 0 else None
        self.stopped_early = False
        self._stop_signal = StopSignal()

        model = self.build_model(cfg)
        compile_if_worthwhile(cfg, model)
        checkpoint_parts(model, cfg.MODEL.CHECKPOINTING)
        self.optimizer = self.build_optimizer(cfg, model)
        self.scheduler = self.build_lr_scheduler(cfg, self.optimizer)
        self.model = distribute(
            model.train(),
            find_unused_parameters=self.find_unused_parameters,
            # An override may call the model in other ways.
            static_graph=cfg.SOLVER.ACCUMULATION_STEPS == 1 and type(self).run_step is Trainer.run_step,
            reduction=cfg.SOLVER.GRADIENT_REDUCTION,
        )
        # After DistributedDataParallel has given all ranks the same weights.
        self.weight_average = WeightAverage(model, cfg.SOLVER.EMA_DECAY) if cfg.SOLVER.EMA_DECAY > 0 else None
        self.batches: Iterator[list[dict[str, Any]]] = iter(())
        self.train_step = TrainStep(
            precision=select_precision(cfg),
            max_iter=self.max_iter,
            accumulation_steps=cfg.SOLVER.ACCUMULATION_STEPS,
            clip_norm=full_model_clip_norm(cfg),
            norm_type=cfg.SOLVER.CLIP_GRADIENTS.NORM_TYPE,
            max_bad_steps=cfg.SOLVER.MAX_NONFINITE_STEPS,
            log_period=self.log_period,
        )
        states: dict[str, Any] = {"trainer": weakref.proxy(self)}
        if self.weight_average is not None:
            states["ema"] = self.weight_average
        self.checkpointer = SafeCheckpointer(model, cfg.OUTPUT_DIR, required=("trainer",), **states)
        self.best = BestModel(Path(cfg.OUTPUT_DIR))
        self.register_hooks(self.build_hooks())

    @classmethod
    def _check_builders(cls, cfg: CfgNode) -> None:
        """Check what names an optimizer, a schedule and a sampler where our own methods build them.

        Raises:
            ConfigError: unknown name.
        """
        ours = (m for m in BUILDERS if _function(getattr(cls, m)) is _function(getattr(Trainer, m)))
        check_builders(cfg, tuple(ours))

    # Building blocks, to be overridden one by one. Names and signatures are those of detectron2's DefaultTrainer.

    auto_scale_workers = staticmethod(DefaultTrainer.auto_scale_workers)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        prepare_device(cfg)
        model: nn.Module = build_model(cfg)
        logger.info("Model:\n%s", model, extra=FILE_ONLY)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name, output_folder)

    def build_hooks(self) -> list[HookBase]:
        """Build timing, schedule, averaging, records, checkpoints, evaluation, loggers; in the order in which they run.

        Records come before the checkpoint of their iteration, and the checkpoint before the evaluation, so that a kill
        at any time takes nothing that a resume does not make again.
        """
        cfg = self.cfg
        writers = self.build_writers() if comm.is_main_process() else []
        console = next((writer for writer in writers if isinstance(writer, ConsoleWriter)), None)
        metrics = next((writer for writer in writers if isinstance(writer, MetricsFile)), None)
        records = [writer for writer in (console, metrics) if writer is not None]
        others = [writer for writer in writers if writer not in records]
        hooks: list[HookBase | None] = [
            d2_hooks.IterationTimer(),
            ProgressBarHook() if comm.is_main_process() else None,
            ScheduleHook(),
            WeightAverageHook() if self.weight_average is not None else None,
            FirstStepHook(console) if console is not None else None,
            self._precise_bn(),
            RecordHook(records, self.log_period) if records else None,
            CheckpointHook(cfg.SOLVER.CHECKPOINT_PERIOD, self.keep_checkpoints),
            BaselineHook() if cfg.TEST.EVAL_AT_START else None,
            EvaluationHook(cfg.TEST.EVAL_PERIOD, self.evaluate, metrics, self._early_stop),
            self._early_stop,
            EvaluationHook(0, self.evaluate_with_TTA, metrics) if cfg.TEST.AUG.ENABLED else None,
            WriterHook(others, self.log_period, metrics) if comm.is_main_process() else None,
            StopHook(self._stop_signal, self.log_period),
        ]
        return [hook for hook in hooks if hook is not None]

    def _precise_bn(self) -> HookBase | None:
        cfg = self.cfg
        if not cfg.TEST.PRECISE_BN.ENABLED or not get_bn_modules(self.model):
            return None
        return d2_hooks.PreciseBN(cfg.TEST.EVAL_PERIOD, self.model, self._own_loader(), cfg.TEST.PRECISE_BN.NUM_ITER)

    def build_writers(self) -> list[EventWriter]:
        """Build console line, OUTPUT_DIR/metrics.json (one JSON object a line) and the loggers of LOGGERS."""
        directory = Path(self.cfg.OUTPUT_DIR)
        directory.mkdir(parents=True, exist_ok=True)
        return [
            ConsoleWriter(self.max_iter, self.cfg.SOLVER.IMS_PER_BATCH),
            MetricsFile(directory / "metrics.json", self.log_period),
            *build_loggers(self.cfg),
        ]

    # Training.

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from the newest complete checkpoint in OUTPUT_DIR, or start from MODEL.WEIGHTS.

        Removes the temporary files that a killed training left in OUTPUT_DIR.

        Raises:
            FileNotFoundError: MODEL.WEIGHTS does not exist.
            ConfigError: the checkpoint has finished more than SOLVER.MAX_ITER iterations.
            CheckpointError: no checkpoint is complete, it belongs to another model or optimizer, or nothing in
                MODEL.WEIGHTS fits the model.
            ValueError: not all ranks see the same checkpoint.
        """
        if comm.is_main_process():
            for name in ("", "data", "inference", "inference_TTA"):
                for file in remove_unfinished(Path(self.cfg.OUTPUT_DIR, name)):
                    logger.info("Removed %s, which a killed run has not completed.", file)
        if resume:
            self.best.restore()  # before anything is loaded: it may be damaged
        self.iter = -1
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        report = self.checkpointer.last_report
        if report is not None:
            report.require_some()
        self.start_iter = self.iter + 1  # `load_state_dict` sets `iter` to the iteration that was finished
        self.resuming = resume
        check_same_start(self.start_iter, self.cfg.OUTPUT_DIR)
        if comm.is_main_process():
            accept_config(self.cfg.OUTPUT_DIR)
        if self.start_iter == 0:
            self.best.reset()
        if self.start_iter > 0:
            logger.info("Resuming after %d of %d iterations.", self.start_iter, self.max_iter)
        elif not resume and self.checkpointer.has_checkpoint():
            logger.warning(
                "%s holds an earlier training; files of the same names are replaced. --resume continues it, another "
                "OUTPUT_DIR keeps it.",
                self.cfg.OUTPUT_DIR,
            )
        if self.start_iter == self.max_iter:
            text = "This training is finished: only its last evaluation follows. A larger SOLVER.MAX_ITER continues it."
            logger.info(text)
        if self.weight_average is not None and not (self.start_iter > 0 and self.weight_average.restored):
            if self.start_iter > 0:
                logger.warning("The checkpoint has no EMA weights: they start from its weights.")
            self.weight_average.reset()  # it was made from the weights before loading

    def train(self) -> OrderedDict[str, Any] | None:
        """Train to MAX_ITER.

        Returns:
            Results of the last evaluation where TEST.EXPECTED_RESULTS asks for it, else None.

        Raises:
            FloatingPointError: too many steps were not finite (SOLVER.MAX_NONFINITE_STEPS).
            ValueError, FileNotFoundError: a dataset cannot be used; before the first iteration as far as that can
                be told without reading the images.
            InUseError: another process trains in OUTPUT_DIR.
            TrainingInterrupted: SIGTERM or SIGINT came; the state was saved.
        """
        with training_lock(self.cfg.OUTPUT_DIR) if comm.is_main_process() else contextlib.nullcontext():
            return self._train()

    def _train(self) -> OrderedDict[str, Any] | None:
        with file_only():
            test_images = self._check_evaluation()
        logger.info("Data order and augmentation use seed %d.", self.seed)
        with self._stop_signal.listening(), EventStorage(self.start_iter) as self.storage:
            self.batches = self._batches()
            self._store_classes()
            logger.info("%s", training_summary(self, test_images))
            # Last, because making the iterator draws random numbers.
            self._restore_rank_state()
            logger.info("Starting training from iteration %d.", self.start_iter)
            self.iter = self.finished = self.start_iter
            try:
                self.before_train()
                if self.start_iter == self.max_iter or self.stopped_early:
                    self._complete_final()
                for iteration in range(self.start_iter, self.max_iter):
                    if self.stopped_early:
                        break
                    self.iter = iteration
                    self.before_step()
                    self.run_step()
                    self.finished, self.unsaved = iteration + 1, True
                    self.after_step()
                else:
                    self.iter = self.max_iter  # tells hooks that the training came to its end
            finally:
                try:
                    self.after_train()
                finally:
                    self._tell_skipped_records()
                    # Without an error, whose traceback holds the iterator, this ends the data workers.
                    self.batches = iter(())
        return self._expected_results()

    def _batches(self) -> Iterator[Any]:
        loader = self.data_loader
        packing = with_mask_bits(loader) if self._only_the_model_reads_batches else loader
        return iter(loader) if packing is loader else BitBatches(iter(packing))

    @property
    def _only_the_model_reads_batches(self) -> bool:
        """Return whether batches of a step reach no other code than that of the model, which takes `MaskBits`."""
        model: Any = self.model
        if as_written(model, DistributedDataParallel, "forward"):
            model = model.module
        steps = type(self).run_step is Trainer.run_step and unchanged(
            self.train_step, TrainStep, "run", "_forward_backward"
        )
        return steps and getattr(model, "reads_mask_bits", False)

    @property
    def _trainer(self) -> Any:
        """Refuse what detectron2's `DefaultTrainer` has inside it.

        Raises:
            AttributeError: always.
        """
        raise AttributeError(
            "there is no trainer inside this one: override run_step, or use train_step and data_loader"
        )

    def run_step(self) -> None:
        """Take one optimizer step; the hooks run before and after it."""
        batches = self.batches
        if isinstance(batches, BitBatches) and self._only_the_model_reads_batches:
            batches = batches.packed
        self.train_step.run(self.model, self.optimizer, batches, self.iter, self.after_backward)

    def after_train(self) -> None:
        """Run the hooks; those after an evaluation that a signal ended, too."""
        self.storage.iter = self.iter
        interrupted: TrainingInterrupted | None = None
        for hook in self._hooks:
            try:
                hook.after_train()
            except TrainingInterrupted as stop:  # on all ranks
                interrupted = stop
        if interrupted is not None:
            raise interrupted

    def _store_classes(self) -> None:
        """Keep the names of the classes beside the weights, for machines without the dataset."""
        table = dataset_classes(self.cfg) if comm.is_main_process() else None
        if table is not None:
            store_classes(table, Path(self.cfg.OUTPUT_DIR))


def _function(method: Any) -> object:
    """Return the function under a class method, by which overrides are told apart."""
    return getattr(method, "__func__", method)
