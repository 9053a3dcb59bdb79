"""Reports of comparisons: validation curves of each run, and what is computed from them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from generated_page import checked_report

SCHEMA = 1
Report = dict[str, Any]
_KEYS = ("name", "title", "date", "command", "metric", "reference", "hardware", "versions", "variants")


@dataclass(frozen=True)
class Point:
    """An evaluation.

    Attributes:
        iteration: iterations that were finished.
        minutes: of training until then, without evaluations.
        value: of the metric.
    """

    iteration: int
    minutes: float
    value: float


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """Read the rows of metrics.json.

    Raises:
        ValueError: a line is no row.
    """
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            if not isinstance(row["iteration"], int):
                raise TypeError
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{file}: line {number} is not a row of a training") from error
        rows.append(row)
    return rows


def iteration_seconds(rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """Return (iterations that were finished, seconds of an iteration before them), each a median of the row.

    Raises:
        ValueError: there is none; they are written every 20 iterations.
    """
    found = sorted((row["iteration"] + 1, float(row["time"])) for row in rows if "time" in row)
    if not found:
        raise ValueError("metrics.json has no times: a training of fewer than 20 iterations cannot be timed")
    return found


def steady_seconds(rows: Sequence[Mapping[str, Any]]) -> float:
    """Return the seconds of an iteration after the first row, which includes the start."""
    times = [seconds for _, seconds in iteration_seconds(rows)]
    return statistics.median(times[1:] or times)


def minutes_at(times: Sequence[tuple[int, float]], iteration: int) -> float:
    """Return the minutes of training until an iteration.

    Args:
        times: of `iteration_seconds`.
    """
    seconds, before = 0.0, 0
    for finished, each in times:
        seconds += each * (min(finished, iteration) - before)
        before = min(finished, iteration)
    return (seconds + times[-1][1] * (iteration - before)) / 60


def curve(rows: Sequence[Mapping[str, Any]], metric: str, seconds: float | None = None) -> list[Point]:
    """Return the evaluations of a run, in order.

    Args:
        seconds: that an iteration takes when the run has its device for itself; None: it had, and its own times count.

    Raises:
        ValueError: none has the metric; the message names those there are.
    """
    times = iteration_seconds(rows) if seconds is None else [(0, seconds)]
    values = {row["iteration"] + 1: float(row[metric]) for row in rows if row.get(metric) is not None}
    if not values:
        known = sorted({key for row in rows for key in row if "/" in key and "-" not in key})
        raise ValueError(f"no evaluation has the metric {metric}; there are: {', '.join(known) or 'none'}")
    return [Point(at, minutes_at(times, at), value) for at, value in sorted(values.items())]


@dataclass(frozen=True)
class Summary:
    """What the runs of a variant achieved.

    Attributes:
        name: of the variant.
        iterations, batch: of each run.
        runs: number of seeds.
        minutes: of training, mean of the runs.
        final, best: mean of the last and of the best evaluation of each run.
        final_deviation, best_deviation: their standard deviation over the runs; None of a single one.
        mean: the mean curve.
        reached: minutes after which the mean curve reaches the final value of the reference; None: never.
    """

    name: str
    iterations: int
    batch: int
    runs: int
    minutes: float
    final: float
    final_deviation: float | None
    best: float
    best_deviation: float | None
    mean: tuple[Point, ...]
    reached: float | None


def summaries(report: Report) -> list[Summary]:
    """Summarize the variants of a report that have runs, in their order."""
    curves = {v["name"]: mean_curve(_curves(v)) for v in report["variants"] if v["runs"]}
    reference = curves.get(report["reference"])
    found = []
    for variant in report["variants"]:
        runs = _curves(variant)
        if not runs:
            continue
        last, best = [run[-1].value for run in runs], [max(p.value for p in run) for run in runs]
        mean = curves[variant["name"]]
        found.append(
            Summary(
                variant["name"],
                variant["iterations"],
                variant["batch"],
                len(runs),
                mean[-1].minutes,
                statistics.mean(last),
                statistics.stdev(last) if len(runs) > 1 else None,
                statistics.mean(best),
                statistics.stdev(best) if len(runs) > 1 else None,
                tuple(mean),
                None if reference is None else reaches(mean, reference[-1].value),
            )
        )
    return found


def _curves(variant: Mapping[str, Any]) -> list[list[Point]]:
    return [[Point(**point) for point in run["evaluations"]] for run in variant["runs"]]


def mean_curve(runs: Sequence[Sequence[Point]]) -> list[Point]:
    """Return the mean over runs of each evaluation that all of them have."""
    shared = zip(*runs, strict=False)
    return [
        Point(points[0].iteration, statistics.mean(p.minutes for p in points), statistics.mean(p.value for p in points))
        for points in shared
    ]


def deviations(variant: Mapping[str, Any]) -> list[float]:
    """Return the standard deviation over runs of each evaluation of `mean_curve`, 0 of a single run."""
    values = [[point.value for point in points] for points in zip(*_curves(variant), strict=False)]
    return [statistics.stdev(each) if len(each) > 1 else 0.0 for each in values]


def reaches(points: Sequence[Point], value: float) -> float | None:
    """Return the minutes at which a curve first reaches a value, between evaluations by a straight line."""
    before: Point | None = None
    for point in points:
        if point.value >= value:
            if before is None:
                return point.minutes
            share = (value - before.value) / (point.value - before.value)
            return before.minutes + share * (point.minutes - before.minutes)
        before = point
    return None


def read_report(file: Path) -> Report:
    """Read a report.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no report, or one of another version.
    """
    return checked_report(file, _KEYS, SCHEMA, "tools/compare_recipes.py --store")


def plus_minus(value: float, deviation: float | None) -> str:
    """Return "71.2 ± 0.4", or the value alone."""
    return f"{value:.1f}" if deviation is None else f"{value:.1f} ± {deviation:.1f}"
