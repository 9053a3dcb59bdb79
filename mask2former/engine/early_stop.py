"""Early stopping: the training ends when evaluations do not get better any more."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm

from ..checkpoint.training_state import entry, finite_number, mapping, whole_number
from .best_model import compared_metric

logger = logging.getLogger(__name__)


class EarlyStopHook(HookBase):
    """Ends the training after `patience` evaluations in a row without a better main metric on the first dataset.

    Its state is part of the checkpoints. Must come after the evaluation hook, and run on all ranks: rank 0 has the
    results, and all ranks stop at the same iteration. The final model is saved as at a normal end. A stopped training
    that is resumed with more iterations goes on, with new patience.

    Args:
        patience: evaluations without improvement, at least 1.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._best, self._without = -math.inf, 0
        self._evaluated = -1  # iterations that were finished at the last evaluation
        self._length = 0  # iterations of the training that the state comes from
        self._pending: list[float | None] = []  # metrics that were not counted yet

    def counted(self, finished: int) -> bool:
        """Return whether the evaluation after so many iterations is part of the state."""
        return self._evaluated >= finished

    def add(self, results: Mapping[str, Any], datasets: Sequence[str]) -> None:
        """Take the results of an evaluation, which are empty on all ranks but the first."""
        named = compared_metric(results, datasets) if results else None
        self._pending.append(None if named is None else named[1])

    def before_train(self) -> None:
        trainer = self.trainer
        finished = trainer.start_iter
        if self._exhausted() and trainer.max_iter > self._length:
            self._without = 0  # more iterations were asked for since
        self._length = trainer.max_iter
        if self._exhausted():
            logger.info("This training was stopped early after %d iterations; it is complete.", self._evaluated)
            trainer.stopped_early = True
            return
        self._count(finished)
        if finished > 0:  # after an evaluation that was made up for
            self._stop_if_exhausted(finished)  # the trainer saves then

    def after_step(self) -> None:
        finished = self.trainer.iter + 1
        if not self._pending or finished >= self.trainer.max_iter:
            return
        self._count(finished)
        if self._stop_if_exhausted(finished):
            self.trainer.save_final()

    def _stop_if_exhausted(self, finished: int) -> bool:
        if self._exhausted():
            logger.info(
                "Stopping early after %d iterations: %d evaluations without improvement on %.3f "
                "(SOLVER.EARLY_STOP_PATIENCE).",
                finished,
                self._without,
                self._best,
            )
            self.trainer.stopped_early = True
        return self._exhausted()

    def _exhausted(self) -> bool:
        return self._without >= self._patience

    def _count(self, finished: int) -> None:
        """Count the pending evaluations; all ranks get the metrics of rank 0."""
        pending = self._pending
        self._pending = []
        for value in comm.all_gather(pending)[0]:
            better = value is not None and value > self._best
            self._best = value if better else self._best
            self._without = 0 if better else self._without + 1
            self._evaluated = finished

    def state_dict(self) -> dict[str, Any]:
        """Return the best metric so far and the number of evaluations since."""
        best = self._best if math.isfinite(self._best) else None
        return {"best": best, "without": self._without, "evaluated": self._evaluated, "length": self._length}

    def check_state_dict(self, state: Any, where: str = "early stop") -> None:
        """Check what `load_state_dict` will load.

        Raises:
            CorruptCheckpointError: an entry is missing or not a number.
        """
        values = mapping(state, where)
        if entry(values, "best", where) is not None:
            finite_number(values["best"], f"{where}['best']")
        whole_number(entry(values, "without", where), f"{where}['without']")
        whole_number(entry(values, "evaluated", where), f"{where}['evaluated']", -1)
        whole_number(values.get("length", 0), f"{where}['length']")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            CorruptCheckpointError: see `check_state_dict`.
        """
        self.check_state_dict(state)
        self._best = -math.inf if state["best"] is None else float(state["best"])
        self._without, self._evaluated = int(state["without"]), int(state["evaluated"])
        self._length = int(state.get("length", 0))
