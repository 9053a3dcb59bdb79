"""What the scripts in datasets/ share: arguments and errors, parallel work that can be taken up again, records."""

from __future__ import annotations

from .command import argument_parser, find_folder, run, source_files
from .documents import build_document
from .pictures import ensure_picture, is_whole, place_picture, relabel
from .segments import (
    SegmentIds,
    image_record,
    instance_document,
    instance_records,
    panoptic_document,
    panoptic_picture,
    segment_record,
)
from .work import Outcome, Report, Stage, convert_all

__all__ = [
    "Outcome",
    "Report",
    "SegmentIds",
    "Stage",
    "argument_parser",
    "build_document",
    "convert_all",
    "ensure_picture",
    "find_folder",
    "image_record",
    "instance_document",
    "instance_records",
    "is_whole",
    "panoptic_document",
    "panoptic_picture",
    "place_picture",
    "relabel",
    "run",
    "segment_record",
    "source_files",
]
