"""Mask2Former: semantic, instance and panoptic segmentation with one architecture, as a detectron2 extension.

Importing it registers the components and the dataset names with detectron2, as detectron2 itself does; it reads no
file and needs no GPU. The public names are those of `mask2former.api`.
"""

from typing import Any

from .utils.startup import is_command_line

__version__ = "0.1.0"

if is_command_line(__name__):
    # `mask2former --help` and `mask2former setup` need neither PyTorch nor detectron2; other commands import the rest.
    def __getattr__(name: str) -> Any:
        import importlib.util

        if importlib.util.find_spec(f"{__name__}.{name}") is not None:  # the import system asks first, then imports
            raise AttributeError(f"module {__name__!r} has not imported {name!r} yet")
        return getattr(importlib.import_module(".api", __name__), name)

else:
    from . import api
    from .api import *  # noqa: F403

    __all__ = [*api.__all__, "__version__"]
