"""Images through a model to files and a table of counts: the work of `predict`, and of the demo."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..data.image_sources import count_pages
from ..errors import first_few
from ..export.onnx_segmenter import OnnxSegmenter
from ..results import Result
from ..segmenter import Segmenter
from ..structures.task import Task
from .arguments import TRACKING, rules_of
from .inputs import unique_names, unique_stems
from .outputs import Writer
from .parser import refuse_given
from .text import describe_counts, describe_scores, format_counts, plural, print_error, print_files, table

_HEAD = ("image", "objects", "top scores", "seconds", "remark")
Hints = Mapping[str, tuple[int, str]]  # file name -> shortest edge in the network, and a remark


def segment_images(
    segment: Segmenter | OnnxSegmenter,
    args: argparse.Namespace,
    files: Sequence[Path],
    problems: list[str],
    hints: Hints | None = None,
) -> int:
    """Segment images, write the files and print the counts; return the exit status.

    Args:
        segment: the model.
        args: of `arguments.add_rules`, `add_drawing`, and the outputs of `outputs.Writer.create`.
        files: the images.
        problems: messages about inputs that gave no image; they are printed, and those of unreadable images added.
        hints: settings and remarks for some images.

    Returns:
        0, or 1 if any input gave no result.

    Raises:
        ValueError: --output, --save or another argument does not fit.
    """
    refuse_given(args, (*TRACKING, "save_frames"), "on images, only on videos")
    for problem in problems:
        print_error(problem)
    hints = hints or {}
    writer = Writer.create(args, files)
    rows: list[list[str]] = []
    total: Counter[str] = Counter()
    semantic = False
    for result, name, stem in _results(segment, args, files, hints, problems):
        remark = hints[name][1] if name in hints else ""
        objects = describe_counts(result)
        try:
            writer.add(result, name, stem, f"{name}: {objects}; {remark}" if remark else "")
        except ValueError as error:
            problems.append(str(error))
            print_error(str(error))
            continue
        rows.append([name, objects, describe_scores(result), f"{result.seconds:.2f}", remark])
        total.update(result.counts())
        semantic = result.tasks == (Task.SEMANTIC,)
    writer.finish()
    writer.notes += [*_renamed(files), *_unused_pages(args, files)]
    if rows:
        _print_summary(writer, rows, total, semantic)
    if problems:
        print_error(f"{len(problems)} of the inputs gave no result, see above")
    return 1 if problems else 0


def _print_summary(writer: Writer, rows: list[list[str]], total: Counter[str], semantic: bool) -> None:
    if len(rows) > 1 and not semantic:
        rows = [*rows, ["total", format_counts(dict(total.most_common())), "", "", ""]]
        count = len(rows) - 1
    else:
        count = len(rows)
    print(table(_HEAD, rows))
    for note in writer.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"\n{plural(count, 'image')}, {plural(len(writer.written), 'file')} written:")
    print_files(writer.written, writer.target)


def _results(
    segment: Segmenter | OnnxSegmenter,
    args: argparse.Namespace,
    files: Sequence[Path],
    hints: Hints,
    problems: list[str],
) -> Iterator[tuple[Result, str, str]]:
    """Yield result, name and stem of each readable image, or of its pages; append a message for each other one."""
    options = {"progress": True} | rules_of(segment, args) | image_options(args)
    with tqdm(files, unit="image", mininterval=0.5, disable=len(files) < 4) as progress:
        for path, name, stem in zip(progress, unique_names(files), unique_stems(files), strict=True):
            size = args.min_size or hints.get(path.name, (None, ""))[0]
            pages = _pages(segment, path, name, stem, {"min_size": size, **options})
            while True:
                try:
                    item = next(pages, None)
                except (ValueError, OSError) as error:
                    message = str(error) if str(path) in str(error) else f"{path}: {error}"
                    problems.append(message)
                    with tqdm.external_write_mode():
                        print_error(message)
                    break
                if item is None:
                    break
                yield item


def _pages(
    segment: Segmenter | OnnxSegmenter, path: Path, name: str, stem: str, options: Mapping[str, Any]
) -> Iterator[tuple[Result, str, str]]:
    """Yield result, name and stem of an image, or of each page of a stack, one in memory at a time."""
    if options.get("page") != "all":
        yield segment(path, **options), name, stem
        return
    for number, result in enumerate(segment.stream([path], **options)):
        yield result, f"{name}#{number}", f"{stem}_page{number:04d}"


def _renamed(files: Sequence[Path]) -> list[str]:
    """Note files whose output has another name, because an earlier one has the same."""
    rows = zip(files, unique_names(files), unique_stems(files), strict=True)
    renamed = [f"{name}: {stem}" for file, name, stem in rows if stem != file.stem]
    return [f"images of the same name; their files begin with another one: {first_few(renamed)}"] if renamed else []


def _unused_pages(args: argparse.Namespace, files: Sequence[Path]) -> list[str]:
    """Note stacks of which only one page was selected without saying so."""
    if getattr(args, "page", None) is not None or getattr(args, "channels", None) is not None:
        return []
    unused = {}
    for file, name in zip(files, unique_names(files), strict=True):
        with contextlib.suppress(ValueError, OSError):  # of an image that was not read either
            unused[name] = count_pages(file) - 1
    stacks = [f"{name} ({count} of {count + 1})" for name, count in unused.items() if count > 0]
    command = "--page all" if hasattr(args, "page") else "mask2former predict --page all"
    return [f"pages that are not used, of {first_few(stacks)}; {command} segments all of them"] if stacks else []


def image_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `Segmenter.__call__` that were given: tiles, and how files are read."""
    names = {"tile": "tile", "tile_overlap": "overlap", "page": "page", "channels": "channels", "stretch": "stretch"}
    given = {keyword: getattr(args, name, None) for name, keyword in names.items()}
    return {keyword: value for keyword, value in given.items() if value is not None}
