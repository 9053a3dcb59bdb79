"""A detectron2 checkpointer that loads and writes data only, writes atomically and reports every key.

SafeCheckpointer(model, output_dir, optimizer=optimizer).resume_or_load(cfg.MODEL.WEIGHTS, resume=True)
load_into(model, "model_final.pkl")  # weights only
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..errors import CorruptCheckpointError
from ..utils.file_io import atomic_write
from .key_mapping import LoadReport, load_state_dict
from .reading import read_checkpoint
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

    Args:
        strict: reject weights that do not match the model exactly.
        checkpointables: objects with `state_dict()` and `load_state_dict()`, saved with the model.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        strict: bool = False,
        **checkpointables: Any,
    ) -> None:
        super().__init__(_unwrapped(model), save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.logger = logger
        self.strict = strict
        self.last_report: LoadReport | None = None

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
                self.checkpointables[key].load_state_dict(data.pop(key))
        return data

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Resume from the newest complete checkpoint in the directory, or else load the weights at `path`.

        Raises:
            CorruptCheckpointError: every checkpoint in the directory is corrupt.
        """
        candidates = self._resume_candidates() if resume and self.has_checkpoint() else []
        failures: list[str] = []
        for file in candidates:
            try:
                data = self._load_file(file)
            except (CorruptCheckpointError, FileNotFoundError) as error:
                logger.error("Cannot resume from the newest checkpoint. %s", error)
                failures.append(str(error))
                continue
            if failures and self.checkpointables and data.keys().isdisjoint(self.checkpointables):
                continue  # only weights, not the state of a training
            if failures:
                logger.error("RESUMING FROM AN OLDER CHECKPOINT: %s", file)
            return self._apply(data, file, None)
        if failures:
            raise CorruptCheckpointError("no checkpoint can be resumed:\n  " + "\n  ".join(failures))
        return self.load(path, checkpointables=[])

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
        with atomic_write(Path(self.save_dir) / "last_checkpoint") as stream:
            stream.write(last_filename_basename.encode())

    def _load_file(self, f: str) -> dict[str, Any]:
        return read_checkpoint(f)

    def _resume_candidates(self) -> list[str]:
        """Return the tagged checkpoint, then the others in the directory, newest first."""
        tagged = self.get_checkpoint_file()
        others = [file for file in Path(self.save_dir).glob("*.pth") if str(file) != tagged]
        others.sort(key=lambda file: (file.stat().st_mtime_ns, file.name), reverse=True)
        return [tagged, *map(str, others)]


def _load_data(model: nn.Module, data: Mapping[str, Any], source: str, strict: bool) -> LoadReport:
    return load_state_dict(
        model,
        data["model"],
        source=source,
        match_names=bool(data.get("matching_heuristics", False)),
        caffe2_names=data.get("__author__") == "Caffe2",
        strict=strict,
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
