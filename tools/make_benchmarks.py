#!/usr/bin/env python
"""Write docs/benchmarks.md from docs/benchmarks/page.txt and the figures in docs/benchmarks/*.json.

    python tools/benchmark.py infer --bf16 --json docs/benchmarks/infer_r50.json     # measure
    python tools/make_benchmarks.py                                                  # after a change of these files
    python tools/make_benchmarks.py --check                                          # status 1 if the page is outdated

A line `<!-- figures of infer -->` of page.txt is replaced by the tables of that benchmark. Runs with the same settings
on the same hardware, apart from MODEL.COMPILE, are one case: from two on they stand side by side, by date. Needs only
the standard library. The page is reproducible byte for byte.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mask2former.utils.failures import run_program  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
from generated_page import checked_report, table, wrapped, write_page  # noqa: E402

SOURCES = ROOT / "docs" / "benchmarks"
TEMPLATE = SOURCES / "page.txt"
PAGE = ROOT / "docs" / "benchmarks.md"
SCHEMA = 1

HEAD = "<!-- Made by tools/make_benchmarks.py from docs/benchmarks/. Change what is there, not this page. -->\n\n"
_PLACE = re.compile(r"^<!-- figures of (\w+) -->\n", re.MULTILINE)
_KEYS = ("benchmark", "title", "label", "date", "command", "settings", "hardware", "versions", "rows")
_VERSIONS = ("torch", "cuda", "python", "mask2former", "transformers", "deformops", "detectron2", "sal-detectron2")

Run = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Write or check the page; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only compare the page with its sources")
    return run_program(parser, _write, argv)


def _write(args: argparse.Namespace) -> int:
    return write_page(PAGE, page(TEMPLATE.read_text(encoding="utf-8"), runs(SOURCES)), "make_benchmarks.py", args.check)


def runs(directory: Path) -> list[Run]:
    """Read the JSON files of a directory, by date.

    Raises:
        ValueError: a file is no report of a benchmark, or one of another version.
    """
    tool = "tools/benchmark.py --json"
    found = [checked_report(path, _KEYS, SCHEMA, tool) for path in sorted(directory.glob("*.json"))]
    return sorted(found, key=lambda run: run["date"])


def page(template: str, found: Sequence[Run]) -> str:
    """Build the page: the template with the tables of `found`.

    Raises:
        ValueError: the template has no place for a run.
    """
    places = set(_PLACE.findall(template))
    homeless = sorted({run["benchmark"] for run in found} - places)
    if homeless:
        raise ValueError(f"{TEMPLATE} has no line <!-- figures of {homeless[0]} -->")
    return HEAD + _PLACE.sub(lambda match: section(match[1], found), template)


def section(benchmark: str, found: Sequence[Run]) -> str:
    """Return the tables of all cases of a benchmark."""
    cases: dict[str, list[Run]] = {}
    for run in found:
        if run["benchmark"] == benchmark:
            cases.setdefault(case_of(run), []).append(run)
    if not cases:
        return f"No report is stored yet: `python tools/benchmark.py {benchmark} --json FILE`.\n"
    of_cases = sorted(cases.values(), key=lambda case: (case[-1]["title"], case[-1]["hardware"]["device"]))
    return "\n".join(map(_case, of_cases))


def case_of(run: Run) -> str:
    """Return what two runs must share to be compared."""
    settings = {key: value for key, value in run["settings"].items() if key != "compile"}
    hardware = {key: run["hardware"].get(key) for key in ("device", "threads")}
    return json.dumps([run["benchmark"], settings, hardware], sort_keys=True)


def _case(case: Sequence[Run]) -> str:
    parts = [f"### {_title(case[-1])}\n"]
    if len(case) > 1:
        parts += ["Side by side:\n", *(_origin(run, f"* {_label(run)}: ") for run in case), "", _comparison(case)]
        parts.append(f"All figures of the last run ({_label(case[-1])}):\n")
    else:
        parts.append(_origin(case[0]) + "\n")
    parts.append(_figures(case[-1]))
    profile = _profile(case)
    if profile:
        parts += ["", "Time of the GPU by kind of kernel, in ms:\n", profile]
    return "\n".join(parts)


def _title(run: Run) -> str:
    """Return a heading that no other benchmark has: what case_of() tells apart must differ in it."""
    device, threads = run["hardware"]["device"], run["hardware"]["threads"]
    title = re.sub(r", compile \w+", "", run["title"])
    source = run["settings"].get("source")
    shrunk = f" from {source[0]} x {source[1]}" if source else ""
    return f"{run['benchmark']}: {title}{shrunk}, {device}, {_threads(threads)}"


def _label(run: Run) -> str:
    """Name a run among those of its case."""
    mode = run["settings"].get("compile")
    parts = [run["label"], run["date"][:10], "" if mode is None else f"compile {mode}"]
    return ", ".join(part for part in parts if part)


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count != 1)}"


def _origin(run: Run, lead: str = "") -> str:
    """Return where figures come from, in lines of a paragraph."""
    hardware, known = run["hardware"], run["versions"]
    machine = hardware["device"]
    if hardware["processor"] != machine:
        machine += f" ({hardware['processor']}, {hardware['cores']} cores)"
    versions = ", ".join(f"{name} {known[name]}" for name in _VERSIONS if name in known)
    threads = _threads(hardware["threads"])
    text = f"{lead}`{run['command']}`, {run['date'][:10]}, {machine}, {threads}; {versions}."
    peaks = run.get("peaks")
    if peaks:
        flops, moved = peaks["flops"], peaks["bandwidth"]
        values = f"{flops['value']:.3g} {flops['unit']} and {moved['value']:.3g} {moved['unit']}"
        text += f" Floors at {values} ({peaks['source']})."
    if _lacks_graphs(run):
        text += " **Peak memory lacks what CUDA graphs hold.**"
    return wrapped(text, "  " if lead else "")


def _lacks_graphs(run: Run) -> bool:
    """Return whether the peak memory of a run lacks what CUDA graphs hold, as in reports of earlier versions."""
    graphs = run["settings"].get("compile", "off") != "off" and "memory_gib" in run["hardware"]
    return graphs and not run.get("counts_graphs")


def _figures(run: Run) -> str:
    """Return the table of a run: a line for each row, a column for each figure, or one where most would be empty."""
    columns = dict.fromkeys((f["name"], f["unit"]) for row in run["rows"] for f in row["figures"])
    if 3 * sum(len(row["figures"]) for row in run["rows"]) < len(columns) * len(run["rows"]):
        return table(["", "figures"], [[row["name"], "; ".join(map(_text, row["figures"]))] for row in run["rows"]])
    head = ["", *(f"{name}, {unit}" if unit else name for name, unit in columns)]
    lines = []
    for row in run["rows"]:
        cells = {(f["name"], f["unit"]): _cell(f) for f in row["figures"]}
        lines.append([row["name"], *(cells.get(column, "-") for column in columns)])
    return table(head, lines)


def _profile(case: Sequence[Run]) -> str:
    """Return the table of what the GPU spends its time on: a line for each kind, a column for each run and row."""
    names: list[str] = []
    columns: list[dict[str, float]] = []
    for run in case:
        for row in run["rows"]:
            if "gpu" in row:
                names.append(": ".join([_label(run)] * (len(case) > 1) + [row["name"]]))  # two may be equal
                columns.append(row["gpu"]["kinds"])
    totals: dict[str, float] = {}
    for kinds in columns:
        for kind, spent in kinds.items():
            totals[kind] = totals.get(kind, 0.0) + spent
    order = sorted(totals, key=lambda kind: (-totals[kind], kind))
    lines = [[kind, *(_number(kinds.get(kind)) for kinds in columns)] for kind in order]
    return table(["", *names], lines) if columns else ""


def _comparison(case: Sequence[Run]) -> str:
    """Return the table of several runs: a line for each figure, a column for each run, and first over last.

    Peak memory with and without what CUDA graphs hold is not compared.
    """
    values = [{(row["name"], f["name"], f["unit"]): f for row in run["rows"] for f in row["figures"]} for run in case]
    lines = []
    for key in values[-1]:
        if sum(key in each for each in values) < 2:
            continue
        name, figure, unit = key
        start, first = next((run, each[key]["value"]) for run, each in zip(case, values, strict=True) if key in each)
        last = values[-1][key]["value"]
        alike = not figure.startswith("peak memory") or _lacks_graphs(start) == _lacks_graphs(case[-1])
        change = f"{first / last:.2f}" if alike and first is not None and last else "-"
        cells = [_cell(each[key]) if key in each else "-" for each in values]
        lines.append([f"{name}: {figure}{', ' + unit if unit else ''}", *cells, change])
    return table(["", *map(_label, case), "first over last"], lines)


def _text(figure: dict[str, Any]) -> str:
    return f"{figure['name']} {_cell(figure)} {figure['unit']}".rstrip()


def _cell(figure: dict[str, Any]) -> str:
    text = _number(figure["value"])
    if "quartiles" not in figure:
        return text
    return f"{text} ({_number(figure['quartiles'][0])} to {_number(figure['quartiles'][1])})"


def _number(value: float | None) -> str:
    """Return a number with about three digits."""
    if value is None:
        return "-"
    if value == int(value) or abs(value) >= 100:
        return f"{value:.0f}"
    places = next((places for limit, places in ((10, 1), (1, 2), (0.1, 3)) if abs(value) >= limit), 4)
    return f"{value:.{places}f}"


if __name__ == "__main__":
    sys.exit(main())
