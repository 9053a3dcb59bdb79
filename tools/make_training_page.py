#!/usr/bin/env python
"""Write docs/training.md and its figures from docs/training/: page.txt, matrices (*.yaml) and their reports (*.json).

    python tools/compare_recipes.py docs/training/shapes_panoptic.yaml --store     # measure
    python tools/make_training_page.py                                             # then the page
    python tools/make_training_page.py --check                                     # status 1 if outdated

A line `<!-- comparison of NAME -->` of page.txt is replaced by the variants of NAME.yaml and, where there is
NAME.json, by its table and figure. The page is reproducible byte for byte.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from generated_page import table, wrapped, write_page  # noqa: E402
from training_figure import draw, is_of  # noqa: E402
from training_matrix import Matrix, read_matrix, settings_of  # noqa: E402
from training_reports import Report, Summary, plus_minus, read_report, summaries  # noqa: E402

from mask2former.utils.failures import run_program  # noqa: E402

DIRECTORY = ROOT / "docs" / "training"
PAGE = ROOT / "docs" / "training.md"
FIGURES = ROOT / "docs" / "images"

HEAD = "<!-- Made by tools/make_training_page.py from docs/training/. Change what is there, not this page. -->\n\n"
_PLACE = re.compile(r"^<!-- comparison of (\w+) -->\n", re.MULTILINE)
_VERSIONS = ("mask2former", "torch", "cuda", "python", "detectron2", "sal-detectron2")


def main(argv: Sequence[str] | None = None) -> int:
    """Write or check page and figures; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only compare the page and the figures with their sources")
    return run_program(parser, lambda args: write(DIRECTORY, PAGE, FIGURES, args.check), argv)


def write(directory: Path, page: Path, figures: Path, check: bool) -> int:
    """Write or check; return the exit status.

    Raises:
        ValueError, FileNotFoundError: a source cannot be used.
    """
    matrices = {file.stem: read_matrix(file) for file in sorted(directory.glob("*.yaml"))}
    reports = {file.stem: read_report(file) for file in sorted(directory.glob("*.json"))}
    text = page_text((directory / "page.txt").read_text(encoding="utf-8"), matrices, reports)
    outdated = {name: figures / f"training_{name}.png" for name in reports}
    outdated = {name: file for name, file in outdated.items() if not is_of(reports[name], file)}
    for name, file in outdated.items():
        if check:
            print(f"{file.name} is out of date; run python tools/make_training_page.py", file=sys.stderr)
        else:
            draw(reports[name], file)
            print(f"{file.name} written")
    status = write_page(page, text, "make_training_page.py", check)
    return 1 if check and outdated else status


def page_text(template: str, matrices: Mapping[str, Matrix], reports: Mapping[str, Report]) -> str:
    """Build the page: the template with each comparison in its place.

    Raises:
        ValueError: the template has no place for a matrix or report, or one for what is not there.
    """
    places = _PLACE.findall(template)
    for name in (*matrices, *reports):
        if name not in places:
            raise ValueError(f"page.txt has no line <!-- comparison of {name} -->")
    for name in places:
        if name not in matrices:
            raise ValueError(f"page.txt has a place for {name}, but there is no {name}.yaml")
    for name, report in reports.items():
        check_settings(matrices[name], report)
    return HEAD + _PLACE.sub(lambda match: section(matrices[match[1]], reports.get(match[1])), template)


def check_settings(matrix: Matrix, report: Report) -> None:
    """Check that a report is one of the matrix as it is now.

    Raises:
        ValueError: it was made with other settings.
    """
    ours, theirs = settings_of(matrix), {key: report.get(key) for key in settings_of(matrix)}
    variants = {variant["name"]: (variant["config"], variant["overrides"]) for variant in report["variants"]}
    changed = [key for key in ours if ours[key] != theirs[key]]
    changed += [v.name for v in matrix.variants if variants.get(v.name) != (v.config, dict(v.overrides))]
    if changed:
        raise ValueError(
            f"the report of {matrix.path} was made with other settings ({', '.join(changed)}): run "
            f"tools/compare_recipes.py {matrix.path} again, or remove the report"
        )


def section(matrix: Matrix, report: Report | None) -> str:
    """Return the variants of a comparison and, where it was run, its results."""
    parts = [wrapped(_plan(matrix)) + "\n", _variants(matrix)]
    if report is None:
        # A bound without a report is complete.
        if matrix.bound is None or matrix.bound.at_least is None:
            parts.append(_not_measured(matrix))
    else:
        file = f"images/training_{matrix.name}.png"
        parts += [wrapped(_origin(report)) + "\n", _results(report)]
        parts.append(f"![{report['metric']} of each variant over the minutes of training]({file})\n")
    bound = _bound(matrix, report)
    if bound is not None:
        parts.append(wrapped(bound) + "\n")
    return "\n".join(parts)


def _plan(matrix: Matrix) -> str:
    budget = f"{matrix.minutes:g} minutes" if matrix.minutes is not None else f"{matrix.iterations} iterations"
    seeds = f"seeds {', '.join(map(str, matrix.seeds))}" if len(matrix.seeds) > 1 else f"seed {matrix.seeds[0]}"
    device = "one GPU" if matrix.device == "cuda" else "the CPU"
    data = f" The dataset is made by `mask2former {' '.join(matrix.make)}`." if matrix.make else ""
    text = (
        f"**{matrix.title}**: {budget} of training for each run on {device}, {seeds}, {matrix.evaluations} evaluations."
    )
    return text + data


def _variants(matrix: Matrix) -> str:
    rows = []
    for variant in matrix.variants:
        changes = "<br>".join(f"`{key} {value or repr(value)}`" for key, value in variant.overrides.items())
        rows.append(f"| {variant.name} | `{variant.config}` | {changes or 'none'} |\n")
    return "".join(["| variant | config | changes |\n| --- | --- | --- |\n", *rows])


def _not_measured(matrix: Matrix) -> str:
    command = f"`python tools/compare_recipes.py docs/training/{matrix.path.name} --store`"
    return wrapped(f"Not measured yet: {command}, then `python tools/make_training_page.py`.") + "\n"


def _bound(matrix: Matrix, report: Report | None) -> str | None:
    """Return the sentence on what `make learn` checks; None if that is nothing yet."""
    bound = matrix.bound
    if bound is None:
        return None
    if bound.at_least is not None:
        least, source = f"{bound.at_least:g}", ""
    else:
        found = summaries(report) if report is not None else []
        final = next((summary.final for summary in found if summary.name == bound.variant), None)
        if final is None:
            return None
        least, source = f"{final - bound.margin:.1f}", f", {bound.margin:g} less than above"
    text = f"The bound of {matrix.metric} is {least} for {bound.variant}{source}."
    return f"{text} `make learn MATRIX=docs/training/{matrix.path.name}` checks it."


def _origin(report: Report) -> str:
    hardware, known = report["hardware"], report["versions"]
    versions = ", ".join(f"{name} {known[name]}" for name in _VERSIONS if name in known)
    machine = hardware["device"]
    if hardware["processor"] != machine:
        machine += f" ({hardware['processor']}, {hardware['cores']} cores)"
    most = report.get("per_gpu", 1)
    shared = f" Up to {most} runs were on a device at once; their minutes are those of a run alone." if most > 1 else ""
    return f"`{report['command']}`, {report['date'][:10]}, {machine}; {versions}.{shared}"


def _results(report: Report) -> str:
    found = summaries(report)
    head = ["", "runs", "batch", "iterations", "minutes", f"{report['metric']} at the end", "best"]
    compared = report["reference"] if any(s.name == report["reference"] for s in found) else None
    if compared is not None:
        head.append(f"minutes to the end of {compared}")
    return table(head, [_row(summary, compared is not None) for summary in found])


def _row(summary: Summary, compared: bool) -> list[str]:
    row = [
        summary.name,
        str(summary.runs),
        str(summary.batch),
        str(summary.iterations),
        f"{summary.minutes:.1f}",
        plus_minus(summary.final, summary.final_deviation),
        plus_minus(summary.best, summary.best_deviation),
    ]
    if compared:
        row.append("-" if summary.reached is None else f"{summary.reached:.1f}")
    return row


if __name__ == "__main__":
    sys.exit(main())
