"""Training data as people have it: every reader gives COCO instances."""

from .coco_data import CocoData
from .loading import FORMATS, FormatError, detect_format, load_data
from .splitting import split
from .writing import write_coco

__all__ = ["FORMATS", "CocoData", "FormatError", "detect_format", "load_data", "split", "write_coco"]
