"""Loading and saving of weights and checkpoints, and conversion of weight names from other layouts."""

from ..errors import CheckpointError, CorruptCheckpointError, UnsafeCheckpointError
from .checkpointer import SafeCheckpointer, load_into
from .key_mapping import LoadReport
from .reading import load_weights
from .writing import save_safetensors

__all__ = [
    "CheckpointError",
    "CorruptCheckpointError",
    "LoadReport",
    "SafeCheckpointer",
    "UnsafeCheckpointError",
    "load_into",
    "load_weights",
    "save_safetensors",
]
