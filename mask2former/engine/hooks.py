"""Training hooks: checkpoints, learning rate, evaluation, EMA weights, and a clean stop on a signal."""

from __future__ import annotations

import logging
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase
from detectron2.engine.hooks import EvalHook, LRScheduler, PeriodicWriter
from detectron2.utils import comm
from detectron2.utils.events import EventWriter

from ..utils.console import progress_bar
from .launch import StopSignal, TrainingInterrupted
from .loggers import BackgroundLogger
from .resume import check_schedule_state, is_function_of_iteration
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
    """detectron2's evaluation hook, without the evaluation after a failed training.

    A rank that fails in the last iteration would otherwise evaluate alone, and wait for the others.
    """

    def after_train(self) -> None:
        try:
            if self.trainer.iter >= self.trainer.max_iter:
                super().after_train()
        finally:
            # A bound method of the trainer, whose reference cycle would keep the model on the GPU; detectron2 drops it
            # only where the evaluation succeeds.
            self.__dict__.pop("_func", None)


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


class WriterHook(PeriodicWriter):
    """detectron2's hook for writers, which tells `BackgroundLogger`s of a resume and of the end. For rank 0."""

    def __init__(self, writers: Sequence[EventWriter], period: int) -> None:
        super().__init__(list(writers), period)
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
        number = self._signal.number
        if comm.get_world_size() > 1:
            if iteration % self._period:
                return
            number = max(comm.all_gather(number))
        if not number:
            return
        path = self.trainer.save_checkpoint()
        comm.synchronize()  # launchers kill the other ranks when the first one ends, even while they write
        logger.info(
            "Stopped by %s after %d iterations; continue with --resume from %s.",
            signal.Signals(number).name,
            iteration,
            path,
        )
        raise TrainingInterrupted(number)
