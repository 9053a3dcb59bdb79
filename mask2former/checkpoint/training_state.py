"""Checks of the state of a training in a checkpoint, before any of it is loaded.

torch compares little of it: the fused optimizers read and write behind the end of a moment that is too small.
A message names the entry, as `model_final.pth: trainer['_trainer']['optimizer']['state'][3]['exp_avg']`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, CorruptCheckpointError, first_few

logger = logging.getLogger(__name__)

REMEDY = "Resume with the config of the first training, or start a new one without --resume in another OUTPUT_DIR."
_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")  # of the shape of their parameter
_MOST_STEPS = 2**24  # float32 counts no further


def mapping(value: Any, where: str) -> Mapping[Any, Any]:
    """Return `value`, or raise CorruptCheckpointError if it is not a dictionary."""
    if not isinstance(value, Mapping):
        raise CorruptCheckpointError(f"{where} is {_kind(value)}, not a dictionary")
    return value


def entry(state: Mapping[Any, Any], key: str, where: str) -> Any:
    """Return `state[key]`, or raise CorruptCheckpointError if there is none."""
    if key not in state:
        raise CorruptCheckpointError(f"{where} has no entry {key!r}")
    return state[key]


def whole_number(value: Any, where: str, lowest: int = 0, highest: int = 2**62) -> int:
    """Return `value`, or raise CorruptCheckpointError if it is not an int of the range."""
    if type(value) is not int or not lowest <= value <= highest:
        shown = str(value)[:40] if isinstance(value, (int, float)) else _kind(value)
        raise CorruptCheckpointError(f"{where} is {shown}, not a whole number of at least {lowest}")
    return value


def finite_number(value: Any, where: str) -> float:
    """Return `value`, or raise CorruptCheckpointError if it is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise CorruptCheckpointError(f"{where} is {value if isinstance(value, float) else _kind(value)}, not a number")
    return float(value)


def check_tensor(value: Any, like: Tensor, where: str) -> Tensor:
    """Return `value`, or raise CorruptCheckpointError if it is not a plain tensor of shape and dtype of `like`."""
    if not isinstance(value, Tensor):
        raise CorruptCheckpointError(f"{where} is {_kind(value)}, not a tensor")
    if value.layout is not torch.strided or value.is_quantized or value.is_meta:
        raise CorruptCheckpointError(f"{where} is a sparse, quantized or empty tensor, not a plain one")
    if value.shape != like.shape or value.dtype != like.dtype:
        found, expected = (f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in (value, like))
        raise CorruptCheckpointError(f"{where} is {found}; the model needs {expected}")
    return value


def check_no_nan(value: Tensor, where: str) -> None:
    """Raise CorruptCheckpointError if a tensor contains NaN."""
    if value.is_floating_point() and bool(torch.isnan(value).any()):
        raise CorruptCheckpointError(f"{where} contains NaN")


def check_scaler_state(state: Any, where: str) -> None:
    """Check the state of a `GradScaler`.

    Raises:
        CorruptCheckpointError: an entry is missing, or not a number in its range.
    """
    values = mapping(state, where)
    scale, growth, backoff = (
        finite_number(entry(values, key, where), f"{where}[{key!r}]")
        for key in ("scale", "growth_factor", "backoff_factor")
    )
    whole_number(entry(values, "growth_interval", where), f"{where}['growth_interval']", 1)
    whole_number(entry(values, "_growth_tracker", where), f"{where}['_growth_tracker']")
    # The scale is a float32 on the device.
    if not 0.0 < scale < torch.finfo(torch.float32).max or growth <= 1.0 or not 0.0 < backoff < 1.0:
        raise CorruptCheckpointError(
            f"{where}: scale {scale:g}, growth_factor {growth:g} or backoff_factor {backoff:g} is out of its range"
        )


def check_optimizer_state(optimizer: torch.optim.Optimizer, state: Any, where: str) -> dict[str, Any]:
    """Check a saved state of an optimizer, and return it in the form that `optimizer.load_state_dict` takes.

    Where parameters have names (`param_names`) they are matched by them, so that other groups do no harm; else by
    their order. The groups are those of `optimizer`, with its hyperparameters. Moments are copies in the memory layout
    of the parameters. What the saved state lacks keeps the state that it has in `optimizer`.

    Raises:
        CheckpointError: the state is of other parameters or of another kind of optimizer.
        CorruptCheckpointError: a tensor has another shape or dtype than its parameter, or an entry is damaged.
    """
    saved = mapping(state, where)
    entries = mapping(entry(saved, "state", where), f"{where}['state']")
    groups = _groups(entry(saved, "param_groups", where), f"{where}['param_groups']")
    indices = _saved_indices(optimizer, groups, where)
    unknown = set(entries) - set(indices)
    if unknown:
        raise CorruptCheckpointError(f"{where}['state'] has an entry of a parameter that no group has")
    result = optimizer.state_dict()
    names = _names(optimizer.param_groups)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    owners = [group for group in optimizer.param_groups for _ in group["params"]]
    absent: list[str] = []
    current = {}
    for index, (saved_index, parameter, group) in enumerate(zip(indices, parameters, owners, strict=True)):
        name = names[index] if names else f"parameter {index}"
        values: dict[Any, Any] = {}
        place = f"{where}['state'][{saved_index!r}]"
        if saved_index in entries:
            raw = mapping(entries[saved_index], place)
            if not raw and group.get("momentum") and any(entries.values()):
                raise CorruptCheckpointError(f"{place} ({name}) has no entry 'momentum_buffer', unlike others")
            values = _without_none(raw)
            step = values.get("step")
            if isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)) and type(step) is int:
                whole_number(step, f"{place}['step'] ({name})", highest=_MOST_STEPS)
                values["step"] = torch.tensor(float(step))  # PyTorch before 1.12 counted in plain numbers
            _check_kind(optimizer, group, values, f"{place} ({name})")
        else:
            absent.append(name)
        checked = {key: _checked(key, value, parameter, place, name) for key, value in values.items()}
        if checked or index in result["state"]:
            current[index] = checked or result["state"][index]
    if 0 < len(absent) < len(parameters):
        text = "%s has no state for %d of %d parameters (%s): their moments start from zero."
        logger.warning(text, where, len(absent), len(parameters), first_few(absent, 3))
    return {**result, "state": current}


def with_names(state: Any, weights: Mapping[str, Any], model: nn.Module) -> Any:
    """Name the parameters of a saved optimizer that has one group for each of them, in the order of the model.

    The reference implementation and other trainers of detectron2 save such states, without names. The order of the
    trainable parameters is that of the saved weights, which may differ from that of `model`.

    Args:
        state: state of an optimizer; not changed.
        weights: state dict that was saved with it.
        model: tells which of the weights are trainable parameters.

    Returns:
        The state with "param_names" in its groups; `state` itself if it has names, other groups, or other parameters.
    """
    groups = state.get("param_groups") if isinstance(state, Mapping) else None
    if not isinstance(groups, (list, tuple)) or not all(isinstance(group, Mapping) for group in groups):
        return state
    single = all(isinstance(group.get("params"), (list, tuple)) and len(group["params"]) == 1 for group in groups)
    if not single or any("param_names" in group for group in groups):
        return state
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    names = [name for name in weights if name in trainable]
    if len(names) != len(groups):
        return state
    logger.info("The optimizer state has a group for each of %d parameters: taken in their order.", len(names))
    return {**state, "param_groups": [{**g, "param_names": [name]} for g, name in zip(groups, names, strict=True)]}


def saved_settings(current: Sequence[dict[str, Any]], saved: Any, where: str) -> list[dict[str, Any]]:
    """Return parameter groups with the saved hyperparameters; those of `current` where the groups are others.

    Args:
        current, saved: the "param_groups" of a state, the latter checked by `check_optimizer_state`.

    Raises:
        CorruptCheckpointError: a value has another type than the present one.
    """
    if [group.get("param_names", len(group["params"])) for group in current] != [
        group.get("param_names", len(group["params"])) for group in saved
    ]:
        return list(current)
    result = []
    for number, (ours, theirs) in enumerate(zip(current, saved, strict=True)):
        names = [key for key in (*ours, "initial_lr") if key in theirs and key not in ("params", "param_names")]
        for key in names:
            like = ours.get(key, 0.0)
            if _shape_of(theirs[key]) != _shape_of(like):
                place = f"{where}['param_groups'][{number}][{key!r}]"
                raise CorruptCheckpointError(f"{place} is {_kind(theirs[key])}, not {_kind(like)}")
        result.append({**ours, **{key: theirs[key] for key in names}})
    return result


def _shape_of(value: Any) -> Any:
    """Return what two values of one setting have in common: the kind, and the length of a sequence."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_shape_of, value)) if len(value) < 10 else len(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "number" if math.isfinite(value) else "not finite"
    return type(value)


def _groups(value: Any, where: str) -> list[Mapping[Any, Any]]:
    """Return the parameter groups, whose "params" and "param_names" are checked."""
    if not isinstance(value, (list, tuple)):
        raise CorruptCheckpointError(f"{where} is {_kind(value)}, not a list of groups")
    for number, group in enumerate(value):
        params = entry(mapping(group, f"{where}[{number}]"), "params", f"{where}[{number}]")
        if not isinstance(params, (list, tuple)) or not all(type(index) is int for index in params):
            raise CorruptCheckpointError(f"{where}[{number}]['params'] is not a list of whole numbers")
        names = group.get("param_names", [""] * len(params))
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise CorruptCheckpointError(f"{where}[{number}]['param_names'] is not a list of names")
        if len(names) != len(params):
            raise CorruptCheckpointError(f"{where}[{number}] has {len(params)} parameters and {len(names)} names")
    indices = [index for group in value for index in group["params"]]
    if len(set(indices)) != len(indices):
        raise CorruptCheckpointError(f"{where} has a parameter twice")
    return list(value)


def _names(groups: Sequence[Mapping[Any, Any]]) -> list[str]:
    """Return the names of all parameters in their order; empty unless every group has them."""
    if not all("param_names" in group for group in groups):
        return []
    return [name for group in groups for name in group["param_names"]]


def _saved_indices(optimizer: torch.optim.Optimizer, groups: Sequence[Mapping[Any, Any]], where: str) -> list[int]:
    """Return for each parameter of `optimizer` its index in the saved state."""
    current, saved = _names(optimizer.param_groups), _names(groups)
    indices = [index for group in groups for index in group["params"]]
    if current and saved:
        missing, extra = sorted(set(saved) - set(current)), sorted(set(current) - set(saved))
        if missing or extra:
            raise CheckpointError(
                f"Cannot resume: the optimizer state was saved for other parameters (only in the checkpoint: "
                f"{missing[:3]}; only in the model: {extra[:3]}). {where}. {REMEDY}"
            )
        by_name = dict(zip(saved, indices, strict=True))
        if len(by_name) != len(saved):
            raise CorruptCheckpointError(f"{where}['param_groups'] has a name twice")
        return [by_name[name] for name in current]
    theirs, ours = ([len(group["params"]) for group in listed] for listed in (groups, optimizer.param_groups))
    if theirs != ours:
        raise CheckpointError(
            f"Cannot resume: {where} has {len(theirs)} groups of {sum(theirs)} parameters, this training has "
            f"{len(ours)} of {sum(ours)}. {REMEDY} MODEL.WEIGHTS names the weights to begin with."
        )
    return indices


def _without_none(values: Mapping[Any, Any]) -> dict[Any, Any]:
    """Leave out what is None, as SGD's momentum before its first step."""
    return {key: value for key, value in values.items() if value is not None}


def _check_kind(optimizer: torch.optim.Optimizer, group: Mapping[str, Any], values: Mapping[Any, Any], at: str) -> None:
    """Check that a state has the entries of the optimizers that we build; of others little is known."""
    if isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)):
        expected = {"step", "exp_avg", "exp_avg_sq"} | ({"max_exp_avg_sq"} if group.get("amsgrad") else set())
    elif isinstance(optimizer, torch.optim.SGD):
        expected = {"momentum_buffer"} & set(values)
    else:
        return
    if set(values) == expected:
        if "step" in expected and not isinstance(values["step"], Tensor):
            raise CorruptCheckpointError(f"{at} has {_kind(values['step'])} for a step, not a tensor")
        return
    saved = "SGD" if set(values) == {"momentum_buffer"} else "ADAMW" if {"exp_avg", "exp_avg_sq"} <= set(values) else ""
    kind = "SGD" if isinstance(optimizer, torch.optim.SGD) else "ADAMW"
    if saved and saved != kind:
        raise CheckpointError(
            f"Cannot resume: SOLVER.OPTIMIZER is {kind}, but the checkpoint has the state of {saved} ({at}). "
            f"Set SOLVER.OPTIMIZER {saved}, or start a new training without --resume from its weights."
        )
    raise CorruptCheckpointError(f"{at} has the entries {sorted(map(str, values))[:6]}; needed are {sorted(expected)}")


def _checked(key: Any, value: Any, parameter: Tensor, place: str, name: str) -> Any:
    """Return a copy of one entry of a parameter's state, ready for use."""
    where = f"{place}[{key!r}] ({name})"
    if key == "step":
        return _checked_step(value, where)
    if key not in _MOMENTS:
        return value
    moment = check_tensor(value, parameter, where)
    check_no_nan(moment, where)
    if key.endswith("_sq") and bool((moment < 0).any()):
        raise CorruptCheckpointError(f"{where} has negative values, but is a mean of squares")
    return torch.empty_like(parameter, requires_grad=False).copy_(moment)


def _checked_step(value: Any, where: str) -> Any:
    if isinstance(value, Tensor):
        plain = value.layout is torch.strided and not value.is_quantized and not value.is_meta
        if not plain or value.shape != () or not value.is_floating_point():
            raise CorruptCheckpointError(f"{where} is not a single float number")
    number = finite_number(value.item() if isinstance(value, Tensor) else value, where)
    if number < 0 or number > _MOST_STEPS or number != int(number):
        raise CorruptCheckpointError(f"{where} is {number:g}, not a count of steps")
    return value.clone() if isinstance(value, Tensor) else value


def _kind(value: Any) -> str:
    name = type(value).__name__
    return f"an {name}" if name[0] in "aeio" else f"a {name}"
