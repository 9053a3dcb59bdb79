"""The check of a registered dataset, from its name to a printed report and a contact sheet."""

from __future__ import annotations

import sys
from pathlib import Path

from detectron2.data import DatasetCatalog

from ..config import load_config
from ..utils.hints import did_you_mean
from ..utils.text_files import expand_home
from . import register_all, register_from_config
from .image_io import WRITABLE_SUFFIXES
from .inspect import check_dataset
from .inspect_report import contact_sheet, format_report


class UnknownDatasetError(FileNotFoundError):
    """There is no registered dataset of this name."""


def check_sheet_name(output: str | None) -> None:
    """Raise ValueError if no contact sheet can be written to `output`, before the data is read."""
    if output is None:
        return
    path = Path(output)
    if path.suffix.lower() not in WRITABLE_SUFFIXES:
        raise ValueError(f"--output {output}: give an image file, {', '.join(sorted(WRITABLE_SUFFIXES))}")
    if path.is_dir():
        raise ValueError(f"--output {output} is a directory; give an image file, such as {path / 'sheet.jpg'}")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"--output {output}: the directory {path.absolute().parent} does not exist; make it")


def check_registered(
    name: str,
    *,
    root: str | None = None,
    config_file: str | None = None,
    output: str | None = None,
    samples: int = 12,
    limit: int | None = None,
    workers: int | None = None,
) -> int:
    """Check a registered dataset and print the report.

    Args:
        name: registered name.
        root: directory that holds the datasets; None: DETECTRON2_DATASETS, else ./datasets.
        config_file: config whose DATASETS keys describe custom datasets.
        output: file of a contact sheet with `samples` images; None: none.
        limit, workers: see `check_dataset`.

    Returns:
        0, or 1 if there are problems, nothing can be learned, or the dataset cannot be read.

    Raises:
        UnknownDatasetError: no such dataset.
    """
    check_sheet_name(output)
    register_all(root)
    if config_file:
        register_from_config(load_config(config_file), [name])
    if name not in DatasetCatalog:
        hint = did_you_mean(name, DatasetCatalog.keys(), 3)
        raise UnknownDatasetError(f"no dataset {name!r} is registered.{hint} Custom datasets need --config-file.")
    try:
        report = check_dataset(name, limit, workers)
        sys.stdout.write(format_report(report) + "\n")
        if output:
            contact_sheet(report, samples).save(expand_home(output))
            sys.stdout.write(f"Contact sheet: {output}\n")
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{name}: {error}\n")
        return 1
    return 1 if report.problems or report.finding.error else 0
