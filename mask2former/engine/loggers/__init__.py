"""Loggers of a training beside console and files: TensorBoard, and W&B, MLflow and ClearML where they are installed."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, TensorboardXWriter

from ...errors import ConfigError
from ..distributed import preserved_random_state
from .background import Backend, BackgroundLogger

__all__ = ["BackgroundLogger", "Backend", "build_loggers"]

logger = logging.getLogger(__name__)

_BACKENDS = {
    "wandb": ("wandb_backend", "WandbBackend"),
    "mlflow": ("mlflow_backend", "MlflowBackend"),
    "clearml": ("clearml_backend", "ClearmlBackend"),
}
"""Name in LOGGERS, which is also that of the package on PyPI -> module and class here."""


def build_loggers(cfg: CfgNode) -> list[EventWriter]:
    """Build the loggers that LOGGERS names, for rank 0. TensorBoard comes last: it empties the list of images.

    Nothing is started and no connection made before the training begins.

    Raises:
        ConfigError: one of them is not installed (of TensorBoard only a warning is logged), or unknown.
    """
    loggers: list[EventWriter] = []
    for name in dict.fromkeys(cfg.LOGGERS):
        if name in _BACKENDS:
            loggers.append(_background_logger(name, cfg))
        elif name != "tensorboard":
            raise ConfigError(f"LOGGERS names '{name}'. Known: tensorboard, {', '.join(_BACKENDS)}")
    if "tensorboard" in cfg.LOGGERS:
        if importlib.util.find_spec("tensorboard"):
            loggers.append(TensorboardXWriter(str(cfg.OUTPUT_DIR)))
        else:
            logger.warning("TensorBoard is not installed, its files are not written (pip install tensorboard).")
    return loggers


def _background_logger(name: str, cfg: CfgNode) -> BackgroundLogger:
    module, class_name = _BACKENDS[name]
    try:
        with preserved_random_state():
            importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"LOGGERS names '{name}', which cannot be imported ({error}): pip install {name}, or name others."
        ) from error
    backend: type[Backend] = getattr(importlib.import_module(f".{module}", __package__), class_name)
    return BackgroundLogger(name, backend, cfg, Path(cfg.OUTPUT_DIR))
