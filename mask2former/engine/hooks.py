"""Training hooks: checkpoints, learning rate, evaluation, EMA weights, and a clean stop on a signal."""

from __future__ import annotations

import logging
import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from detectron2.engine import HookBase
from detectron2.engine.hooks import EvalHook, LRScheduler, PeriodicWriter
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.events import EventWriter

from ..utils.console import progress_bar
from .early_stop import EarlyStopHook
from .loggers import BackgroundLogger
from .metrics_file import MetricsFile
from .resume import check_schedule_state, is_function_of_iteration
from .stop_signals import StopSignal, TrainingInterrupted
from .training_log import ConsoleWriter

logger = logging.getLogger(__name__)

_PERIODIC_NAME = re.compile(r"model_(\d{7})\.pth")


class CheckpointHook(HookBase):
    """Saves every `period` iterations and after the last one, and keeps the newest `keep` periodic checkpoints.

    Must run on all ranks: a checkpoint holds the random state of every rank. Files of another training in the
    directory are not touched, unless this training was resumed from them.

    Args:
        keep: 0 keeps all files. At least 2 otherwise, so that a truncated file has a predecessor.
    """

    def __init__(self, period: int, keep: int) -> None:
        if keep == 1 or keep < 0:
            raise ValueError(f"keep must be 0 (all) or at least 2 checkpoints, got {keep}")
        self._period, self._keep = period, keep
        self._written: list[Path] = []

    def before_train(self) -> None:
        start, directory = self.trainer.start_iter, Path(self.trainer.cfg.OUTPUT_DIR)
        if start > 0 and directory.is_dir():
            checkpoints = [(int(m[1]), p) for p in directory.iterdir() if (m := _PERIODIC_NAME.fullmatch(p.name))]
            self._written = [path for iteration, path in sorted(checkpoints) if iteration < start]
            self._remove_old()

    def after_step(self) -> None:
        iteration = self.trainer.iter + 1
        if iteration == self.trainer.max_iter:
            self.trainer.save_final()
        elif self._period > 0 and iteration % self._period == 0:
            path = self.trainer.save_checkpoint()
            if path not in self._written:
                self._written.append(path)
            self._remove_old()

    def _remove_old(self) -> None:
        if not self._keep or not comm.is_main_process():
            return
        while len(self._written) > self._keep:
            self._written.pop(0).unlink(missing_ok=True)


class ScheduleHook(LRScheduler):
    """detectron2's schedule hook, which logs the base learning rate instead of that of the largest group.

    The largest group may be the backbone, whose learning rate is multiplied by SOLVER.BACKBONE_MULTIPLIER.
    """

    def before_train(self) -> None:
        super().before_train()
        groups = self._optimizer.param_groups
        self._best_param_group_id = max(range(len(groups)), key=lambda i: groups[i]["initial_lr"])

    def check_state_dict(self, state: Any, where: str = "schedule") -> None:
        """Check what `load_state_dict` will load; see `resume.check_schedule_state`."""
        if not is_function_of_iteration(self.scheduler):
            check_schedule_state(self.scheduler, state, where)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the schedule, unless `Trainer.load_state_dict` does so from the number of the iteration."""
        if not is_function_of_iteration(self.scheduler):
            super().load_state_dict(state)


class EvaluationHook(EvalHook):
    """detectron2's evaluation hook, which makes up for an evaluation that a kill or a signal prevented.

    A checkpoint is saved before the evaluation of its iteration. When the training is resumed from it, the evaluation
    comes first, unless it was complete. There is none after a failed training: a rank that fails in the last iteration
    would evaluate alone, and wait for the others.

    Args:
        period: iterations between two evaluations; 0: only one, at the end.
        function: evaluates on all ranks; returns nested results, on rank 0.
        metrics: gets the results as soon as they exist; on rank 0.
        early_stop: if given, its state tells which evaluation is complete, else `metrics` does.
    """

    def __init__(
        self,
        period: int,
        function: Callable[[], Mapping[str, Any]],
        metrics: MetricsFile | None = None,
        early_stop: EarlyStopHook | None = None,
    ) -> None:
        super().__init__(period, function)
        self._metrics, self._early_stop = metrics, early_stop

    def before_train(self) -> None:
        trainer, finished = self.trainer, self.trainer.start_iter
        due = self._period > 0 and 0 < finished < trainer.max_iter and finished % self._period == 0
        if not due or self._is_complete(finished):
            return
        logger.info("Evaluating after %d iterations first, which was not complete.", finished)
        trainer.iter = trainer.storage.iter = finished - 1  # as in the iteration that it belongs to
        try:
            self._do_eval()
        finally:
            trainer.iter = trainer.storage.iter = finished

    def _is_complete(self, finished: int) -> bool:
        """Return whether the evaluation after so many iterations is complete; the same on all ranks."""
        if self._early_stop is not None:
            return self._early_stop.counted(finished)
        recorded = self._metrics is not None and self._metrics.has_results(finished - 1)
        return bool(comm.all_gather(recorded)[0])

    def _do_eval(self) -> None:
        results = self._func()
        if results:
            scalars = _scalars(results)
            self.trainer.storage.put_scalars(**scalars, smoothing_hint=False)
            if self._metrics is not None:
                self._metrics.write_results(self.trainer.finished - 1, scalars)
        comm.synchronize()  # ranks may need different times

    def after_train(self) -> None:
        try:
            if self.trainer.iter >= self.trainer.max_iter:
                super().after_train()
        finally:
            # A bound method of the trainer, whose reference cycle would keep the model on the GPU; detectron2 drops it
            # only where the evaluation succeeds.
            self.__dict__.pop("_func", None)


def _scalars(results: Mapping[str, Any]) -> dict[str, float]:
    """Return nested results as {"segm/AP": 40.0, ...}; ValueError if a value is not a number."""
    scalars = {}
    for name, value in flatten_results_dict(results).items():
        try:
            scalars[name] = float(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"An evaluator must return numbers, but its result {name!r} is {value!r:.80}") from error
    return scalars


class BaselineHook(HookBase):
    """Evaluates the initial model, to compare the trained one with."""

    def before_train(self) -> None:
        if self.trainer.start_iter == 0:
            self.trainer.evaluate_baseline()


class ProgressBarHook(HookBase):
    """Shows a bar with ETA, loss and learning rate where `progress_bar` draws one; for rank 0."""

    def before_train(self) -> None:
        self._bar = progress_bar(self.trainer.max_iter, "training", start=self.trainer.start_iter)

    def after_step(self) -> None:
        latest = self.trainer.storage.latest()
        shown = [(text, latest[key][0]) for key, text in (("total_loss", "loss"), ("lr", "lr")) if key in latest]
        self._bar.set_postfix_str(", ".join(f"{text} {value:.3g}" for text, value in shown), refresh=False)
        self._bar.update()

    def after_train(self) -> None:
        self._bar.close()


class FirstStepHook(HookBase):
    """Logs the first step, so that people see at once that it runs; before an evaluation that follows. For rank 0."""

    def __init__(self, console: ConsoleWriter) -> None:
        self._console = console

    def before_step(self) -> None:
        if self.trainer.iter == self.trainer.start_iter:
            self._start = time.perf_counter()

    def after_step(self) -> None:
        if self.trainer.iter == self.trainer.start_iter:
            losses = self.trainer.train_step.log.newest()
            if losses:  # else the regular line comes now
                self._console.write_first(losses, time.perf_counter() - self._start)


class RecordHook(PeriodicWriter):
    """Writes the console line and the row of metrics.json; for rank 0.

    Comes before checkpoints and evaluations, so that what a checkpoint follows on is on the disk before it, and an
    evaluation that is interrupted takes nothing with it.
    """

    def before_train(self) -> None:
        for writer in self._writers:
            if isinstance(writer, MetricsFile):
                # A subclass may have its own `resume_or_load`, which does not set `resuming`.
                writer.begin(self.trainer.start_iter, self.trainer.resuming or self.trainer.start_iter > 0)

    def after_step(self) -> None:
        for writer in self._writers:
            if isinstance(writer, MetricsFile):
                writer.note_regular()
        super().after_step()

    def after_train(self) -> None:
        pass  # rows are complete, but for those of `WriterHook`; the next one comes after a resume


class WriterHook(PeriodicWriter):
    """detectron2's hook for writers, which tells `BackgroundLogger`s of a resume and of the end. For rank 0.

    Args:
        writers: all but those of `RecordHook`.
        period: iterations between two writings.
        metrics: gets what hooks after `RecordHook` have left at the end, for example a subclass's own evaluation.
    """

    def __init__(self, writers: Sequence[EventWriter], period: int, metrics: MetricsFile | None = None) -> None:
        super().__init__(list(writers), period)
        self._metrics = metrics
        self._loggers = [writer for writer in writers if isinstance(writer, BackgroundLogger)]

    def before_train(self) -> None:
        for service in self._loggers:
            service.begin(resumed=self.trainer.start_iter > 0)

    def after_step(self) -> None:
        super().after_step()
        if (self.trainer.iter + 1) % self._period == 0:
            self.trainer.storage.clear_images()  # without TensorBoard nobody else does

    def after_train(self) -> None:
        for service in self._loggers:
            service.completed = self.trainer.iter >= self.trainer.max_iter or self.trainer.stopped_early
        if self._metrics is not None:
            self._metrics.write_late()
        super().after_train()


class WeightAverageHook(HookBase):
    """Updates the EMA weights of the trainer after each iteration; must come before the checkpoint hook."""

    def after_step(self) -> None:
        self.trainer.weight_average.update()


class StopHook(HookBase):
    """Saves a checkpoint and ends the training after a signal.

    A single rank stops after the current iteration. Several ranks must stop at the same iteration, so they exchange the
    signal every `period` iterations.
    """

    def __init__(self, stop_signal: StopSignal, period: int) -> None:
        self._signal, self._period = stop_signal, period

    def after_step(self) -> None:
        iteration = self.trainer.iter + 1
        if iteration == self.trainer.max_iter:
            return  # the training ends here in any case
        if comm.get_world_size() > 1 and iteration % self._period:
            return
        if number := self._signal.agreed():
            stop_training(self.trainer, number)


def stop_training(trainer: Any, number: int) -> NoReturn:
    """Save a checkpoint of the present state, unless there is one, and end the training; on all ranks.

    Args:
        trainer: a `Trainer`, between two steps.
        number: of the signal that asks for it.

    Raises:
        TrainingInterrupted: always.
    """
    if trainer.unsaved:
        trainer.save_checkpoint("model_final" if trainer.finished == trainer.max_iter else None)
    comm.synchronize()  # launchers kill the other ranks when the first one ends, even while they write
    done, directory = trainer.finished, trainer.cfg.OUTPUT_DIR
    remedy = f"continue with --resume from {directory}" if done else "there is nothing to resume from"
    logger.info("Stopped by %s after %d iterations; %s.", signal.Signals(number).name, done, remedy)
    raise TrainingInterrupted(number)
