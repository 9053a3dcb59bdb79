"""Training: trainer, optimizer, checkpoints and the launcher that `train_net.py` uses."""

from ..checkpoint import SafeCheckpointer
from .launch import argument_parser, launch
from .optimizer import build_lr_scheduler, build_optimizer
from .stop_signals import TrainingInterrupted
from .trainer import Trainer
from .training_setup import setup

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
