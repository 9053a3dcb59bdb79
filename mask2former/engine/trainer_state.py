"""The state of a trainer in its checkpoints: how it is saved, checked and restored."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import TrainerBase
from detectron2.utils import comm
from torch import nn

from ..checkpoint import CheckpointError, SafeCheckpointer, load_weights, save_safetensors
from ..checkpoint.training_state import check_optimizer_state, mapping
from .distributed import get_random_state, set_random_state
from .ema import WeightAverage
from .resume import (
    changed_settings,
    check_trainer_state,
    continue_schedule,
    log_changes,
    log_seed,
    saved_rates,
    schedule_is_known,
    settings_of,
)
from .train_step import TrainStep

logger = logging.getLogger(__name__)


class TrainerState(TrainerBase):
    """The part of `Trainer` that checkpoints hold; see there for the attributes."""

    cfg: CfgNode
    seed: int
    iter: int
    start_iter: int
    max_iter: int
    unsaved: bool
    optimizer: torch.optim.Optimizer
    scheduler: Any
    checkpointer: SafeCheckpointer
    train_step: TrainStep
    weight_average: WeightAverage | None
    _rank_states: list[dict[str, Any]] | None  # of all ranks, while they are saved, or until they are restored
    _changes: dict[str, tuple[Any, Any]]  # settings that differ from those of the resumed checkpoint

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
        saved = {"seed": self.seed, "random_states": rank_states, "settings": settings_of(self.cfg)}
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
