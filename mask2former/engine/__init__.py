"""Training: trainer, optimizer, checkpoints and the launcher that `train_net.py` uses."""

from ..checkpoint import SafeCheckpointer
from .launch import TrainingInterrupted, argument_parser, launch, setup
from .optimizer import build_lr_scheduler, build_optimizer
from .trainer import Trainer

__all__ = [
    "SafeCheckpointer",
    "Trainer",
    "TrainingInterrupted",
    "argument_parser",
    "build_lr_scheduler",
    "build_optimizer",
    "launch",
    "setup",
]
