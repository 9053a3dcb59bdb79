"""Training: trainer, optimizer, checkpoints and the launcher that `train_net.py` uses."""

from .checkpoint import SafeCheckpointer
from .command_line import argument_parser, setup
from .hooks import TrainingInterrupted
from .launcher import launch
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
