"""Training hooks: checkpoints, learning rate, evaluation, EMA weights, and a clean stop on a signal."""

from __future__ import annotations

import logging
import re
import signal
from pathlib import Path

from detectron2.engine import HookBase
from detectron2.engine.hooks import EvalHook, LRScheduler
from detectron2.utils import comm

from .launch import StopSignal, TrainingInterrupted

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
