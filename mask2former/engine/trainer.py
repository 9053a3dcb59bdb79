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
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, create_ddp_model
from detectron2.engine import hooks as d2_hooks
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, EventWriter
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn

from ..checkpoint import CheckpointError, SafeCheckpointer, load_weights, save_safetensors
from ..checkpoint.directory import remove_unfinished
from ..checkpoint.training_state import check_optimizer_state, mapping
from ..config import leaves, micro_batch_size
from ..data import build_test_loader, build_train_loader
from ..errors import ConfigError
from ..evaluation import build_evaluator
from ..model_source import dataset_classes, store_classes
from ..test_time_augmentation import with_tta
from ..utils.console import FILE_ONLY, file_only
from ..video.windowed import windowed
from .best_model import BestModel, evaluate_datasets, store_baseline, without_single_name, write_results
from .distributed import (
    check_same_start,
    get_random_state,
    preserved_random_state,
    set_random_state,
    share_buffers,
)
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
    stop_training,
)
from .launch import StopRequested, StopSignal, TrainingInterrupted, keep_workers, training_lock
from .loggers import build_loggers
from .metrics_file import MetricsFile
from .optimizer import build_lr_scheduler, build_optimizer, full_model_clip_norm
from .resume import (
    changed_settings,
    check_trainer_state,
    continue_schedule,
    log_changes,
    log_seed,
    saved_rates,
    schedule_is_known,
)
from .train_step import TrainStep, select_precision
from .training_log import ConsoleWriter
from .training_summary import dataset_size, training_summary

logger = logging.getLogger(__name__)


class Trainer(TrainerBase):
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
        data_loader, batches: the loader of `train` and its iterator, which is empty before and after.
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
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        micro_batch_size(cfg, comm.get_world_size())  # raises before anything is built
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
        self.optimizer = self.build_optimizer(cfg, model)
        self.scheduler = self.build_lr_scheduler(cfg, self.optimizer)
        self.model = create_ddp_model(
            model.train(),
            broadcast_buffers=False,
            find_unused_parameters=self.find_unused_parameters,
            device_ids=[comm.get_local_rank()] if next(model.parameters()).is_cuda else None,
        )
        # After DistributedDataParallel has given all ranks the same weights.
        self.weight_average = WeightAverage(model, cfg.SOLVER.EMA_DECAY) if cfg.SOLVER.EMA_DECAY > 0 else None
        self.data_loader: Any = None
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

    # Building blocks, to be overridden one by one. Names and signatures are those of detectron2's DefaultTrainer.

    auto_scale_workers = staticmethod(DefaultTrainer.auto_scale_workers)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
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
    def build_train_loader(cls, cfg: CfgNode, *, start_iteration: int = 0, seed: int | None = None) -> Any:
        """Build a loader of endless micro-batches for this rank, from those of iteration `start_iteration` on."""
        return build_train_loader(cfg, start_iteration=start_iteration, seed=seed)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        return keep_workers(build_test_loader(cfg, dataset_name))

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
        loader = self.build_train_loader(cfg, seed=self.seed)
        return d2_hooks.PreciseBN(cfg.TEST.EVAL_PERIOD, self.model, loader, cfg.TEST.PRECISE_BN.NUM_ITER)

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
        self.iter = -1
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        report = self.checkpointer.last_report
        if report is not None:
            report.require_some()
        self.start_iter = self.iter + 1  # `load_state_dict` sets `iter` to the iteration that was finished
        self.resuming = resume
        check_same_start(self.start_iter, self.cfg.OUTPUT_DIR)
        if self.start_iter > 0:
            self.best.restore()
            logger.info("Resuming after %d of %d iterations.", self.start_iter, self.max_iter)
        if self.start_iter == self.max_iter:
            logger.info("This training is finished, nothing is left to do; a larger SOLVER.MAX_ITER continues it.")
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
            self.data_loader = keep_workers(
                self.build_train_loader(self.cfg, start_iteration=self.start_iter, seed=self.seed)
            )
            self.batches = iter(self.data_loader)
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

    def run_step(self) -> None:
        """Take one optimizer step; the hooks run before and after it."""
        self.train_step.run(self.model, self.optimizer, self.batches, self.iter, self.after_backward)

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

    def _expected_results(self) -> OrderedDict[str, Any] | None:
        """Compare the last evaluation with TEST.EXPECTED_RESULTS; detectron2 ends the program where they differ."""
        if not self.cfg.TEST.EXPECTED_RESULTS or not comm.is_main_process():
            return None
        if self._results is None:
            raise ValueError("TEST.EXPECTED_RESULTS is set, but this training has evaluated nothing.")
        verify_results(self.cfg, self._results)
        return self._results

    def _store_classes(self) -> None:
        """Keep the names of the classes beside the weights, for machines without the dataset."""
        table = dataset_classes(self.cfg) if comm.is_main_process() else None
        if table is not None:
            store_classes(table, Path(self.cfg.OUTPUT_DIR))

    def _check_evaluation(self) -> dict[str, int]:
        """Read the ground truth of DATASETS.TEST once: a mistake in it must not end the run half way.

        Returns the number of images of each dataset.
        """
        images: dict[str, int] = {}
        if type(self).test.__func__ is not Trainer.test.__func__:  # type: ignore[attr-defined]
            return images  # a subclass evaluates in its own way
        for name in self.cfg.DATASETS.TEST if self.start_iter < self.max_iter else ():
            images[name] = dataset_size(self.build_test_loader(self.cfg, name))
            with contextlib.suppress(NotImplementedError):  # detectron2: no evaluation of this dataset
                self.build_evaluator(self.cfg, name)
        return images

    def _tell_skipped_records(self) -> None:
        count = getattr(getattr(self.data_loader, "dataset", None), "skipped", 0)
        if count:
            logger.warning("%d bad records were skipped (DATALOADER.SKIP_BAD_RECORDS); see above.", count)

    def evaluate(self) -> OrderedDict[str, Any]:
        """Evaluate on DATASETS.TEST with the EMA weights if there are some, and keep the best model.

        Does not change the course of the training: random states are put back.
        """
        with self._ready_for_evaluation():
            results = self._results = self.test(self.cfg, self.checkpointer.model)
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
        """Evaluate `model` on each dataset of DATASETS.TEST.

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
        evaluators = [
            cls.build_evaluator(cfg, name, str(directory / name if len(names) > 1 else directory)) for name in names
        ]
        results = evaluate_datasets(cls, cfg, with_tta(cfg, model), evaluators, suffix="_TTA")
        write_results(cfg, results, directory.name)
        return without_single_name(results)

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

    # Checkpoints.

    def save_checkpoint(self, name: str | None = None) -> Path:
        """Save the whole state after the present step; all ranks call this together.

        Returns:
            The path of the file, `model_<step>.pth` if `name` is not given.
        """
        name = name or f"model_{self._last_iteration:07d}"
        self._rank_states = comm.all_gather(self._rank_state())
        self.checkpointer.save(name, iteration=self._last_iteration)
        self._rank_states = None
        self.unsaved = False
        return Path(self.cfg.OUTPUT_DIR) / f"{name}.pth"

    def save_final(self) -> None:
        """Save model_final.pth with the whole state and model_final.safetensors with the weights to use."""
        self.save_checkpoint("model_final")
        if comm.is_main_process():
            with self._averaged_weights():
                save_safetensors(self.checkpointer.model, Path(self.cfg.OUTPUT_DIR) / "model_final.safetensors")

    def _complete_final(self) -> None:
        """Write the final files of a finished training that was killed before it had written them all."""
        resumed = self.checkpointer.resumed_from
        if resumed is None or resumed.name != "model_final.pth":
            self.iter = self.start_iter - 1
            self.save_final()
            self.iter = self.start_iter
            return
        file = Path(self.cfg.OUTPUT_DIR) / "model_final.safetensors"
        # With EMA weights switched on or off since, the file is right as it is.
        if not comm.is_main_process() or (file.is_file() and "SOLVER.EMA_DECAY" in self._changes):
            return
        with self._averaged_weights():
            if not _has_weights(file, self.checkpointer.model):
                logger.info("Writing %s, which is missing or of an earlier iteration.", file)
                save_safetensors(self.checkpointer.model, file)

    def state_dict(self) -> dict[str, Any]:
        """Return the "trainer" entry of a checkpoint; its "_trainer" is the form of detectron2's DefaultTrainer."""
        state: dict[str, Any] = super().state_dict()
        last = {"iteration": self._last_iteration}
        step = {**last, "optimizer": self.optimizer.state_dict(), **self.train_step.state_dict()}
        rank_states = self._rank_states or [self._rank_state()]
        saved = {"seed": self.seed, "random_states": rank_states, "settings": dict(leaves(self.cfg))}
        return {**state, **last, "_trainer": step, **saved}

    @property
    def _last_iteration(self) -> int:
        """Return the number of the present iteration; after the end of the training that of the last one."""
        return min(self.iter, self.max_iter - 1)

    def _rank_state(self) -> dict[str, Any]:
        """Return what differs between the ranks: random states, and losses that are not logged yet."""
        losses = self.train_step.log.pending()
        return {**get_random_state(), **({"pending_losses": losses} if losses else {})}

    def check_state_dict(self, state: Any, where: str = "trainer") -> None:
        """Check what `load_state_dict` will load.

        Raises:
            ConfigError: more than SOLVER.MAX_ITER iterations are finished.
            CheckpointError: the state belongs to other parameters or another optimizer, or is damaged.
        """
        check_trainer_state(self, mapping(state, where), where)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; settings such as the learning rate are those of the config.

        Raises:
            ConfigError, CheckpointError: see `check_state_dict`; nothing is changed then.
        """
        self.check_state_dict(state)
        super().load_state_dict(state)
        step = state["_trainer"]
        self.optimizer.load_state_dict(check_optimizer_state(self.optimizer, step["optimizer"], "optimizer"))
        known = schedule_is_known(self.scheduler, self._hooks)
        if known:
            continue_schedule(self.scheduler, self.iter + 1)
        else:
            rates = saved_rates(self.optimizer, step["optimizer"]["param_groups"], "optimizer")
            for group, saved in zip(self.optimizer.param_groups, rates, strict=True):
                group.update(saved)
            if hasattr(self.scheduler, "max_iters"):  # poly schedules save their length; a resumed run may be longer
                self.scheduler.max_iters = self.max_iter
        self.train_step.load_state_dict(step)
        self._changes = changed_settings(state.get("settings"), self.cfg, "settings")
        if "settings" not in state:
            logger.warning("The checkpoint does not tell the settings of its training; those of the config count.")
        log_changes(self._changes, own_schedule=not known)
        log_seed(state.get("seed"), self.cfg.SEED)
        self.seed = state.get("seed", self.seed)
        self._rank_states = state.get("random_states")

    def _restore_rank_state(self) -> None:
        """Restore what `_rank_state` returned on this rank."""
        states, self._rank_states = self._rank_states, None
        if self.start_iter == 0:
            return
        if not states:
            logger.warning("The checkpoint has no random states: augmentation will differ from an uninterrupted run.")
            return
        if len(states) != comm.get_world_size():
            text = "The checkpoint is of %d ranks, this run has %d: augmentation will differ from an uninterrupted run."
            logger.warning(text, len(states), comm.get_world_size())
            return
        state = states[comm.get_rank()]
        set_random_state(state)
        if "pending_losses" in state:
            self.train_step.log.restore(state["pending_losses"])


def _has_weights(file: Path, model: nn.Module) -> bool:
    """Return whether a file has exactly the present weights of a model."""
    try:
        saved = load_weights(file)
    except (CheckpointError, OSError):
        return False
    current = model.state_dict()
    return saved.keys() == current.keys() and all(torch.equal(saved[key], current[key].cpu()) for key in current)
