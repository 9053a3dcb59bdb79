"""Resuming a training: checks of its saved state, and which settings of a changed config count from here on.

The state of a training is what it computed: weights, moments, position in the data, random states. Its settings are
those of the config, so that a resumed run can have another length, learning rate or weight decay.
"""

from __future__ import annotations

import logging
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from detectron2.config import CfgNode
from detectron2.projects.deeplab.lr_scheduler import WarmupPolyLR
from detectron2.solver.lr_scheduler import LRMultiplier
from torch import Tensor

from ..checkpoint.directory import finished_iterations
from ..checkpoint.training_state import check_optimizer_state, entry, finite_number, mapping, whole_number
from ..config import leaves
from ..errors import CheckpointError, ConfigError, CorruptCheckpointError
from .distributed import check_random_state
from .training_log import checked_pending

logger = logging.getLogger(__name__)

Schedule = torch.optim.lr_scheduler.LRScheduler
_NO_SETTINGS = frozenset({"OUTPUT_DIR", "VERSION", "SEED"})  # the seed has a place of its own in a checkpoint
_FIXED = {"SOLVER.OPTIMIZER": "the moments of one optimizer are of no use to another"}
_WITHOUT_EFFECT = {"MODEL.WEIGHTS": "the weights of the checkpoint go on"}
_OF_THE_SCHEDULE = frozenset(
    f"SOLVER.{key}"
    for key in (
        *("BASE_LR", "BASE_LR_END", "REFERENCE_BATCH", "BACKBONE_MULTIPLIER", "BIAS_LR_FACTOR", "LR_SCHEDULER_NAME"),
        *("STEPS", "GAMMA"),
        *("NUM_DECAYS", "RESCALE_INTERVAL", "WARMUP_FACTOR", "WARMUP_ITERS", "WARMUP_METHOD"),
        *("POLY_LR_POWER", "POLY_LR_CONSTANT_ENDING"),
    )
)
_text = reprlib.Repr()
_text.maxstring = _text.maxother = 120
_text.maxtuple = _text.maxlist = 12


def check_length(max_iter: int, finished: int | None, where: str) -> None:
    """Check that a training is not resumed to a length that it is beyond.

    Args:
        max_iter: SOLVER.MAX_ITER.
        finished: iterations of the checkpoint, None if unknown.
        where: file or directory, for the message.

    Raises:
        ConfigError: it is.
    """
    if finished is not None and finished > max_iter:
        raise ConfigError(
            f"SOLVER.MAX_ITER is {max_iter}, but {finished} iterations are finished in {where}: set SOLVER.MAX_ITER "
            f"to at least {finished}, or start a new training without --resume in another OUTPUT_DIR."
        )


def check_length_of(cfg: CfgNode) -> None:
    """Check SOLVER.MAX_ITER against the newest checkpoint of OUTPUT_DIR, before anything is written there.

    Raises:
        ConfigError: more iterations are finished.
    """
    check_length(cfg.SOLVER.MAX_ITER, finished_iterations(cfg.OUTPUT_DIR), cfg.OUTPUT_DIR)


def check_progress(state: Mapping[str, Any], where: str) -> int:
    """Return the number of the last finished iteration of a saved trainer.

    Raises:
        CorruptCheckpointError: an entry is missing or not a number, or the two numbers differ.
    """
    step = mapping(entry(state, "_trainer", where), f"{where}['_trainer']")
    last = whole_number(entry(state, "iteration", where), f"{where}['iteration']")
    if whole_number(step.get("iteration", last), f"{where}['_trainer']['iteration']") != last:
        raise CorruptCheckpointError(f"{where} has finished both {last + 1} and {step['iteration'] + 1} iterations")
    whole_number(step.get("nonfinite_steps", 0), f"{where}['_trainer']['nonfinite_steps']")
    whole_number(state.get("seed", 0), f"{where}['seed']")
    return last


def settings_of(cfg: CfgNode) -> dict[str, Any]:
    """Return what a checkpoint keeps of the config: {key: value}, without the place and the seed of the training."""
    return {key: value for key, value in leaves(cfg) if key not in _NO_SETTINGS}


def changed_settings(saved: Any, cfg: CfgNode, where: str) -> dict[str, tuple[Any, Any]]:
    """Return {key: (old value, new value)} of the settings that a resumed training changes.

    Args:
        saved: `settings_of` the checkpoint's training; None in checkpoints of earlier versions.

    Raises:
        CheckpointError: a setting cannot change.
    """
    if saved is None:
        return {}
    old, new = mapping(saved, where), dict(leaves(cfg))
    keys = [key for key in new if key not in _NO_SETTINGS and key in old and not _same(old[key], new[key])]
    for key in keys:
        if key in _FIXED and str(old[key]).upper() != str(new[key]).upper():
            raise CheckpointError(
                f"Cannot resume with {key} {new[key]}: the checkpoint was trained with {_text.repr(old[key])}, and "
                f"{_FIXED[key]}. Set {key} back, or start a new training without --resume from its weights."
            )
    return {key: (old[key], new[key]) for key in keys}


def _same(old: Any, new: Any) -> bool:
    """Compare two settings; a list is equal to a tuple of the same values."""
    if isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)):
        return len(old) == len(new) and all(map(_same, old, new))
    if isinstance(old, (str, int, float, type(None))) and isinstance(new, (str, int, float, type(None))):
        return isinstance(old, bool) == isinstance(new, bool) and bool(old == new)
    return isinstance(old, (list, tuple)) is isinstance(new, (list, tuple)) and type(old) is type(new)


def log_changes(changes: Mapping[str, tuple[Any, Any]], *, own_schedule: bool) -> None:
    """Log each changed setting in a line: the new value counts, or why it has no effect.

    Args:
        own_schedule: the schedule is one of a subclass, which goes on from its own saved state.
    """
    for key, (old, new) in changes.items():
        change = f"{key}: {_text.repr(old)} -> {_text.repr(new)}"
        reason = _WITHOUT_EFFECT.get(key, "")
        if own_schedule and key in _OF_THE_SCHEDULE:
            reason = "this kind of schedule goes on as it was saved"
        if reason:
            logger.warning("Changed since the checkpoint, without effect: %s; %s.", change, reason)
        else:
            logger.info("Changed since the checkpoint: %s; the new value counts from here.", change)


def log_seed(saved: int | None, configured: int) -> None:
    """Say which seed a resumed training has, where that is not the configured one."""
    if saved is None:
        logger.warning("The checkpoint has no seed: the order of the data may differ from an uninterrupted run.")
    elif configured not in (saved, -1):
        text = (
            "Changed since the checkpoint, without effect: SEED: %d -> %d; the order of the data goes on with seed %d."
        )
        logger.warning(text, saved, configured, saved)


def is_function_of_iteration(schedule: Any) -> bool:
    """Return whether a schedule is one of ours, whose learning rate depends on the config and the iteration only."""
    return type(schedule) in (WarmupPolyLR, LRMultiplier)


def continue_schedule(schedule: Any, finished: int) -> None:
    """Put a schedule of `is_function_of_iteration` after `finished` iterations, and set the learning rates."""
    schedule.last_epoch, schedule._step_count = finished, finished + 1
    rates = schedule.get_lr()
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
    schedule._last_lr = list(rates)


def check_schedule_state(schedule: Any, state: Any, where: str) -> None:
    """Check the state of a schedule that goes on as it was saved: its entries have the types of the present ones.

    Raises:
        CorruptCheckpointError: they have not.
    """
    saved, current = mapping(state, where), schedule.state_dict()
    for key, value in saved.items():
        if key not in current:
            raise CorruptCheckpointError(f"{where} has the entry {key!r}, which {type(schedule).__name__} has not")
        numbers = isinstance(value, (int, float)) and isinstance(current[key], (int, float))
        if type(current[key]) is not type(value) and not numbers:
            raise CorruptCheckpointError(f"{where}[{key!r}] is a {type(value).__name__}, not {current[key]!r:.40}")
        if isinstance(value, float):
            finite_number(value, f"{where}[{key!r}]")


def saved_rates(
    optimizer: torch.optim.Optimizer, groups: Sequence[Mapping[str, Any]], where: str
) -> list[dict[str, Any]]:
    """Return for each group the learning rates that the group of its first parameter had in a checkpoint.

    Raises:
        CorruptCheckpointError: a rate is not a number.
    """
    rates: list[dict[str, Any]] = []
    for number, group in enumerate(optimizer.param_groups):
        names = group.get("param_names") or [None]
        theirs = next((g for g in groups if names[0] in g.get("param_names", ())), groups[min(number, len(groups) - 1)])
        given = {key: theirs[key] for key in ("lr", "initial_lr") if key in theirs}
        for key, value in given.items():
            single = isinstance(value, Tensor) and value.numel() == 1
            finite_number(value.item() if single else value, f"{where}['param_groups'][{number}][{key!r}]")
        rates.append(given)
    return rates


def schedule_is_known(schedule: Any, hooks: Sequence[Any]) -> bool:
    """Return whether the learning rates of a trainer follow from config and iteration alone.

    Args:
        hooks: of the trainer; one of them is the `ScheduleHook` of this schedule unless a subclass has its own.
    """
    own = any(hasattr(hook, "check_state_dict") and getattr(hook, "scheduler", None) is schedule for hook in hooks)
    return own and is_function_of_iteration(schedule)


class Resumable(Protocol):
    """What `check_trainer_state` reads of a `Trainer`."""

    cfg: CfgNode
    max_iter: int
    optimizer: torch.optim.Optimizer
    scheduler: Any
    train_step: Any
    _hooks: list[Any]


def check_trainer_state(trainer: Resumable, state: Mapping[str, Any], where: str) -> None:
    """Check the saved state of a trainer, before any of it is loaded; see `Trainer.check_state_dict` for the errors."""
    check_length(trainer.max_iter, check_progress(state, where) + 1, where)
    changed_settings(state.get("settings"), trainer.cfg, f"{where}['settings']")
    step, place = state["_trainer"], f"{where}['_trainer']"
    optimizer = entry(step, "optimizer", place)
    check_optimizer_state(trainer.optimizer, optimizer, f"{place}['optimizer']")
    if not schedule_is_known(trainer.scheduler, trainer._hooks):
        saved_rates(trainer.optimizer, optimizer["param_groups"], f"{place}['optimizer']")
    trainer.train_step.check_state_dict(step, place)
    hooks = mapping(state.get("hooks", {}), f"{where}['hooks']")
    for hook in trainer._hooks:
        name = type(hook).__qualname__
        if name in hooks and hasattr(hook, "check_state_dict"):
            hook.check_state_dict(hooks[name], f"{where}['hooks'][{name!r}]")
    states = state.get("random_states", [])
    if not isinstance(states, (list, tuple)):
        raise CorruptCheckpointError(f"{where}['random_states'] is a {type(states).__name__}, not a list")
    for rank, random_state in enumerate(states):
        check_random_state(random_state, f"{where}['random_states'][{rank}]")
        if "pending_losses" in random_state:
            checked_pending(random_state["pending_losses"], f"{where}['random_states'][{rank}]['pending_losses']")
