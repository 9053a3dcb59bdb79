"""Importing this package registers its config keys, components and datasets."""

from . import dataset, decoder, model
from .config import RECIPE, add_keys

__all__ = ["RECIPE", "add_keys", "dataset", "decoder", "model"]
