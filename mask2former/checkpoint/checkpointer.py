"""A detectron2 checkpointer that loads and writes data only, writes atomically and reports every key.

SafeCheckpointer(model, output_dir, optimizer=optimizer).resume_or_load(cfg.MODEL.WEIGHTS, resume=True)
load_into(model, "model_final.pkl")  # weights only
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..errors import CheckpointError, CorruptCheckpointError, UnsafeCheckpointError, first_few
from ..utils.atomic_file import atomic_write
from .directory import TAG, checkpoint_files, has_checkpoint, iteration_in_name, iteration_of, read_tag
from .key_mapping import LoadReport, load_state_dict
from .reading import read_checkpoint
from .training_state import REMEDY, check_optimizer_state, check_scaler_state, saved_settings, with_names
from .writing import plain_data

logger = logging.getLogger(__name__)


def load_into(
    model: nn.Module, source: str | os.PathLike[str] | Mapping[str, Tensor], *, strict: bool = False
) -> LoadReport:
    """Load weights from a file, directory, URL or state dict into a model, and log the report.

    Args:
        source: anything that `load_weights` accepts, or a state dict in any layout.
        strict: raise unless the file has every weight of the model and no others.

    Raises:
        FileNotFoundError, UnsafeCheckpointError, CorruptCheckpointError: as `load_weights`.
        CheckpointError: with `strict`, listing every key that does not fit.
    """
    model = _unwrapped(model)
    if isinstance(source, Mapping):
        report = load_state_dict(model, source, strict=strict)
    else:
        report = _load_data(model, read_checkpoint(source), str(source), strict)
    _log(report)
    return report


class SafeCheckpointer(DetectionCheckpointer):
    """detectron2's `DetectionCheckpointer` that never runs code from a file and never writes a truncated one.

    Loads the formats of `load_weights`. Writes `<name>.pth` files that `torch.load(weights_only=True)` can load.
    After a crash during a save the previous checkpoint is still complete; a corrupt one is skipped on resume.

    On resume everything is checked before anything is loaded: that the file has every weight of the model in its shape
    and dtype, and the states of optimizers, gradient scalers and of objects with a method
    `check_state_dict(state, where)`, which raises `CorruptCheckpointError` for a damaged state.

    Args:
        strict: reject weights that do not match the model exactly.
        required: the checkpointables that a checkpoint must have to be resumed; None: at least one of them.
        checkpointables: objects with `state_dict()` and `load_state_dict()`, saved with the model.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        strict: bool = False,
        required: Sequence[str] | None = None,
        **checkpointables: Any,
    ) -> None:
        super().__init__(_unwrapped(model), save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.logger = logger
        self.strict = strict
        self.required = required
        self.last_report: LoadReport | None = None
        self.resumed_from: Path | None = None  # of `resume_or_load`

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load the model and the named checkpointables (all, if None); return the remaining content of the file.

        Raises:
            FileNotFoundError, UnsafeCheckpointError, CorruptCheckpointError: as `load_weights`; the model is
                then unchanged.
        """
        if not path:
            logger.info("No checkpoint given: the model keeps its initial weights")
            return {}
        logger.info("Loading %s", path)
        return self._apply(self._load_file(str(path)), str(path), checkpointables)

    def _apply(self, data: dict[str, Any], path: str, checkpointables: list[str] | None) -> dict[str, Any]:
        self.last_report = _load_data(self.model, data, path, self.strict)
        _log(self.last_report)
        data.pop("model")
        for key in self.checkpointables if checkpointables is None else checkpointables:
            if key in data:
                logger.info("Restoring %s", key)
                _restore(self.checkpointables[key], data.pop(key), f"{path}: {key}")
        return data

    def has_checkpoint(self) -> bool:
        """Return whether a training has left a checkpoint, or at least `last_checkpoint`, in the directory."""
        return bool(self.save_dir) and has_checkpoint(self.save_dir)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Resume from the newest complete checkpoint in the directory, or else load the weights at `path`.

        The newest is the one that `last_checkpoint` names, and where that is of no use the one written last.

        Raises:
            CorruptCheckpointError: no checkpoint in the directory is complete.
            CheckpointError: the newest is of another model, or it is ambiguous which one is the newest.
        """
        if resume and self.has_checkpoint():
            found = self._find_resumable(path)
            if found is not None:
                self.resumed_from = Path(found[0])
                return self._apply(found[1], found[0], None)
        if resume and self.save_dir:
            self._check_unfinished()
            logger.info("No checkpoint in %s to resume from, starting from the beginning.", self.save_dir)
        return self.load(path, checkpointables=[])

    def _check_unfinished(self) -> None:
        """Do not start over where a training came to its end, whose files would be replaced."""
        final = Path(self.save_dir) / "model_final.safetensors"
        if final.is_file():
            raise CheckpointError(
                f"{self.save_dir} has the weights of a finished training ({final.name}), but no checkpoint (*.pth) to "
                "resume from. Put the checkpoint back; or start a new training in another OUTPUT_DIR, with "
                f"MODEL.WEIGHTS {final} to begin with these weights."
            )

    def _find_resumable(self, weights: str) -> tuple[str, dict[str, Any]] | None:
        """Return the newest complete checkpoint and its content; None if there are only the `weights` to start from."""
        tagged, problem = read_tag(Path(self.save_dir))
        if problem:
            logger.error("%s; looking for the newest complete checkpoint in %s.", problem, self.save_dir)
        failures = [problem] if problem and os.path.lexists(Path(self.save_dir) / TAG) else []
        for file in self._resume_candidates():
            try:
                data = self._load_file(file)
                self._check(data, file)
            except (CorruptCheckpointError, OSError) as error:
                if not (_same_file(file, weights) and isinstance(error, _WeightsOnlyError)):
                    failures.append(str(error))
                    logger.error("This checkpoint cannot be resumed. %s", error)
                continue
            except UnsafeCheckpointError as error:
                if tagged is not None and file == str(tagged):
                    raise
                failures.append(str(error))
                continue
            if tagged is None:
                self._check_newest(Path(file), data)
            if failures:
                logger.error("RESUMING FROM AN OLDER CHECKPOINT: %s", file)
            return file, data
        if not failures:
            return None
        raise CorruptCheckpointError(
            f"No checkpoint in {self.save_dir} can be resumed:\n  "
            + "\n  ".join(failures)
            + "\nPut a complete one back, or start a new training without --resume in another OUTPUT_DIR; "
            "MODEL.WEIGHTS names the weights to begin with."
        )

    def _check(self, data: Mapping[str, Any], file: str) -> None:
        """Check all that will be loaded; see the class for the errors."""
        names = list(self.checkpointables) if self.required is None else self.required
        absent = [name for name in names if name not in data]
        if absent and (self.required is not None or len(absent) == len(names)):
            raise _WeightsOnlyError(f"{file} has weights only, not the state of a training ({first_few(absent)})")
        _check_weights(self.model, data, file)
        for key, target in self.checkpointables.items():
            if key in data:
                _check_state(target, data[key], f"{Path(file).name}: {key}")

    def _check_newest(self, file: Path, data: Mapping[str, Any]) -> None:
        """Check that no other checkpoint is further: without the tag it is then unknown which run is meant.

        Copies have the time of the copying, and a directory may hold checkpoints of a run before.

        Raises:
            CheckpointError: one is.
        """
        iteration = data.get("iteration")
        if type(iteration) is not int:
            return
        for other in checkpoint_files(file.parent):
            number = iteration_in_name(other)
            if other == file or (number is not None and number <= iteration):
                continue
            found = iteration_of(other)
            if found is not None and found > iteration:
                raise CheckpointError(
                    f"Which checkpoint of {file.parent} is the newest? {file.name} was written last and has finished "
                    f"{iteration + 1} iterations, {other.name} has {found + 1}. Write the name of one into "
                    f"{file.parent / TAG}, or move the other away."
                )

    def save(self, name: str, **kwargs: Any) -> None:
        """Write model, checkpointables and `kwargs` to `<save_dir>/<name>.pth`, atomically.

        Raises:
            CheckpointError: an entry is not plain data; the message names it.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        if os.path.basename(name) != name:
            raise ValueError(f"checkpoint name {name!r} must be a plain file name")
        data = {"model": self.model.state_dict()}
        data.update({key: obj.state_dict() for key, obj in self.checkpointables.items()})
        data.update(kwargs)
        plain = {key: plain_data(value, key) for key, value in data.items()}
        file = Path(self.save_dir) / f"{name}.pth"
        logger.info("Saving checkpoint to %s", file)
        with atomic_write(file) as stream:
            torch.save(plain, stream)
        self.tag_last_checkpoint(file.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Write the name of the newest checkpoint to the file `last_checkpoint`."""
        with atomic_write(Path(self.save_dir) / TAG) as stream:
            stream.write(last_filename_basename.encode())

    def _load_file(self, f: str) -> dict[str, Any]:
        data = read_checkpoint(f)
        weights, trainer = data.get("model"), data.get("trainer")
        if not isinstance(weights, Mapping):
            return data
        for key, target in self.checkpointables.items():
            if isinstance(target, torch.optim.Optimizer) and key in data:
                data[key] = with_names(data[key], weights, self.model)
        if isinstance(trainer, Mapping):  # of detectron2, or ours
            step = trainer.get("_trainer")
            if isinstance(step, Mapping) and "optimizer" in step:
                named = {**step, "optimizer": with_names(step["optimizer"], weights, self.model)}
                data["trainer"] = {**trainer, "_trainer": named}
        return data

    def _resume_candidates(self) -> list[str]:
        """Return the tagged checkpoint, then the others in the directory, last written first."""
        tagged, _ = read_tag(Path(self.save_dir))
        files = [file for file in checkpoint_files(Path(self.save_dir)) if file != tagged]
        return [str(file) for file in ([tagged, *files] if tagged is not None else files)]


class _WeightsOnlyError(CorruptCheckpointError):
    """The file has weights, but not the state of a training."""


def _same_file(first: str, second: str) -> bool:
    return bool(second) and os.path.exists(second) and os.path.samefile(first, second)


def _check_weights(model: nn.Module, data: Mapping[str, Any], file: str) -> None:
    """Check that a checkpoint has each weight of the model, in its shape and dtype, and finite parameters.

    Raises:
        CheckpointError: another shape, so another config.
        CorruptCheckpointError: a weight is missing or damaged.
    """
    report = _load_data(model, data, file, strict=False, dry_run=True)
    if report.reinitialized:
        lines = [f"  {key}: {old} in the checkpoint, {new} now" for key, old, new in report.reinitialized[:5]]
        more = len(report.reinitialized) - len(lines)
        text = "\n".join([*lines, f"  and {more} more"] if more else lines)
        raise CheckpointError(f"Cannot resume from {file}: weights of another model.\n{text}\n{REMEDY}")
    if report.missing:
        count, names = len(report.missing), first_few(report.missing, 3)
        raise CorruptCheckpointError(f"{file} lacks {count} weights of the model ({names})")
    parameters = dict(model.named_parameters())
    for name, current in model.state_dict().items():
        value = data["model"].get(name)
        if value is None:
            continue
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            raise CorruptCheckpointError(f"{file}: {name} is a sparse, quantized or empty tensor, not a plain one")
        if value.dtype != current.dtype:
            raise CorruptCheckpointError(f"{file}: {name} is {value.dtype}; the model needs {current.dtype}")
        if name in parameters and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CorruptCheckpointError(f"{file}: {name} contains NaN or infinity")


def _check_state(target: Any, state: Any, where: str) -> None:
    if isinstance(target, torch.optim.Optimizer):
        check_optimizer_state(target, state, where)
    elif isinstance(target, torch.amp.GradScaler) and target.is_enabled():
        check_scaler_state(state, where)
    elif hasattr(target, "check_state_dict"):
        target.check_state_dict(state, where)


def _restore(target: Any, state: Any, where: str) -> None:
    """Load a state, with errors that name it."""
    try:
        if isinstance(target, torch.optim.Optimizer):
            checked = check_optimizer_state(target, state, where)
            state = {**checked, "param_groups": saved_settings(checked["param_groups"], state["param_groups"], where)}
        target.load_state_dict(state)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, ValueError) and str(error):
            raise  # tells what is wrong
        raise CorruptCheckpointError(f"{where} cannot be restored ({type(error).__name__}: {error})") from error


def _load_data(
    model: nn.Module, data: Mapping[str, Any], source: str, strict: bool, dry_run: bool = False
) -> LoadReport:
    return load_state_dict(
        model,
        data["model"],
        source=source,
        match_names=bool(data.get("matching_heuristics", False)),
        caffe2_names=data.get("__author__") == "Caffe2",
        strict=strict,
        dry_run=dry_run,
    )


def _unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside DistributedDataParallel and torch.compile."""
    while True:
        if isinstance(model, (DistributedDataParallel, DataParallel)):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def _log(report: LoadReport) -> None:
    logger.log(logging.INFO if report.complete else logging.WARNING, "%s", report)
