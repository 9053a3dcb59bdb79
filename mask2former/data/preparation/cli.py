"""Command line of a preparation script: common arguments, lookup of its source files, errors and summary."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from ...utils.failures import run_program
from ...utils.parallel import default_workers
from ..datasets import dataset_root
from .work import Report

AGAIN = "Run the same command again: complete files are kept."
SHOWN_FAILURES = 20


def argument_parser(description: str, splits: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Build a parser with --root, --workers, --overwrite and, where there are several, --splits.

    Args:
        description: docstring of the script, shown by --help without reformatting.
        splits: splits of the dataset; all are prepared unless --splits names some.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--root",
        type=_directory,
        default=_directory(dataset_root()),
        help="directory that holds the datasets; default: DETECTRON2_DATASETS, else ./datasets (now %(default)s)",
    )
    if splits:
        parser.add_argument("--splits", nargs="+", default=list(splits), choices=splits, help="default: all")
    parser.add_argument(
        "--workers",
        type=_positive,
        default=default_workers(),
        help="worker processes (default: %(default)s, one per core and at most 16); fewer need less memory",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="write all files again, also those that exist and are complete"
    )
    return parser


def run(
    parser: argparse.ArgumentParser,
    prepare: Callable[[argparse.Namespace], Iterable[Report]],
    argv: Sequence[str] | None = None,
) -> int:
    """Run a script: parse its arguments, prepare the files, print a summary.

    Args:
        parser: parser of `argument_parser`, possibly with more arguments.
        prepare: yields one report after the other.
        argv: arguments; None takes those of the process.

    Returns:
        The exit status: 0, or 1 if a file could not be written, or 130 after Ctrl-C.
    """
    return run_program(parser, lambda args: _prepare(prepare(args)), argv, mistake=1)


def _prepare(reports: Iterable[Report]) -> int:
    failed = 0
    try:
        for report in reports:
            print(report.summary(), flush=True)
            failed += len(report.failures)
            _show_failures(report)
    except BrokenProcessPool:
        raise ValueError(f"a worker process died, perhaps out of memory. Try fewer --workers. {AGAIN}") from None
    except KeyboardInterrupt:
        print(f"interrupted. {AGAIN}", file=sys.stderr)
        return 130
    return 1 if failed else 0


def _show_failures(report: Report) -> None:
    for failure in report.failures[:SHOWN_FAILURES]:
        print(f"  {failure}", file=sys.stderr)
    if len(report.failures) > SHOWN_FAILURES:
        print(f"  ... and {len(report.failures) - SHOWN_FAILURES} more", file=sys.stderr)
    if report.failures:
        print(
            f"{report.title}: {len(report.failures)} failed; repair these files or unpack them again. {AGAIN}",
            file=sys.stderr,
        )


def find_directory(candidates: Iterable[Path], layout: str) -> Path:
    """Return the first directory that exists.

    Raises:
        FileNotFoundError: none exists; names the first and shows the expected layout.
    """
    directories = list(candidates)
    for directory in directories:
        if directory.is_dir():
            return directory
    raise FileNotFoundError(_missing(f"{directories[0]} does not exist", layout))


def source_files(directory: Path, pattern: str, layout: str) -> list[Path]:
    """Return the files of a directory, sorted by path.

    Args:
        directory: directory to search.
        pattern: pattern for `Path.glob`.
        layout: the expected directories, shown in the message.

    Raises:
        FileNotFoundError: the directory does not exist, or has no such file.
    """
    if not directory.is_dir():
        raise FileNotFoundError(_missing(f"{directory} does not exist", layout))
    files = sorted(path for path in directory.glob(pattern) if not path.name.startswith("."))
    if not files:
        raise FileNotFoundError(_missing(f"{directory} has no files {pattern}", layout))
    return files


def _missing(problem: str, layout: str) -> str:
    return (
        f"{problem}. Expected:\n\n{layout}\n\n<root> is the variable DETECTRON2_DATASETS (default ./datasets), or the "
        "argument --root. datasets/README.md has the download links."
    )


def _directory(text: str) -> Path:
    return Path(text).expanduser()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not a number of worker processes, use 1 or more")
    return number
