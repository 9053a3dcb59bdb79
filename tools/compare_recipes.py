#!/usr/bin/env python
"""Compare recipes: train the variants of a matrix with several seeds and the same budget, and report their curves.

    python tools/compare_recipes.py docs/training/shapes_panoptic.yaml --store       # and keep the report beside it
    python tools/compare_recipes.py docs/training/shapes_panoptic.yaml --dry-run     # the runs, and what they take
    python tools/compare_recipes.py docs/training/shapes_panoptic.yaml --check       # status 1 if it learns worse
    python tools/make_training_page.py                                               # then docs/training.md

Each run is a process of train_net.py; with several GPUs one runs on each, with --per-gpu N up to N. With a budget in
minutes a short training of each variant, alone on its GPU, measures its iterations first, and the budget then sets
SOLVER.MAX_ITER, to which warm-up and steps of the learning rate are fitted. Evaluations are not part of the budget.
Runs that share a GPU are reported with the minutes that their iterations take alone. The same command continues what
was interrupted: finished runs are kept, also those of earlier code (--restart), others go on from their last
checkpoint. Status 3: stopped before all runs were finished.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from training_figure import draw  # noqa: E402
from training_matrix import Matrix, Variant, read_matrix, settings_of  # noqa: E402
from training_reports import (  # noqa: E402
    SCHEMA,
    Report,
    curve,
    plus_minus,
    read_metrics,
    read_report,
    steady_seconds,
    summaries,
)
from training_runs import (  # noqa: E402
    Stopped,
    Training,
    any_shared,
    cores_of_each,
    make_dataset,
    measuring_training,
    remove_runs,
    run_all,
    training_of,
)

from mask2former.benchmark.hardware import hardware, versions  # noqa: E402
from mask2former.benchmark.report import command_line  # noqa: E402
from mask2former.utils.failures import run_program  # noqa: E402
from mask2former.utils.file_io import short_path, write_json  # noqa: E402

_UNFINISHED = 3  # exit status
_FEWEST = 20  # iterations: fewer have no time in metrics.json
_EVERY = 5.0  # seconds between two looks at the curves of running trainings


def main(argv: Sequence[str] | None = None) -> int:
    """Run a comparison; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("matrix", metavar="MATRIX", type=Path, help="YAML file, as docs/training/shapes_panoptic.yaml")
    parser.add_argument("--store", action="store_true", help="write the report beside the matrix, for docs/training.md")
    parser.add_argument("--output", metavar="DIR", type=Path, help="default: output/training/ and the matrix's name")
    parser.add_argument("--variants", metavar="NAMES", help="run only these, as recipe,reference")
    parser.add_argument("--seeds", metavar="NUMBERS", help="run only these, as 0,1")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", metavar="N", type=float, help="of training for each run, instead of the matrix's")
    budget.add_argument("--iterations", metavar="N", type=int, help="of each run, instead of the matrix's budget")
    parser.add_argument("--gpus", metavar="IDS", help="GPUs to use, as 0,1 (default: all)")
    parser.add_argument(
        "--per-gpu", metavar="N", type=int, default=1, help="runs on a GPU at once, beside the measuring"
    )
    parser.add_argument("--stop-after", metavar="N", type=float, help="save and stop after so many minutes")
    parser.add_argument("--restart", action="store_true", help="remove earlier runs of the matrix, and begin again")
    parser.add_argument("--check", action="store_true", help="status 1 if a metric is below the bound of the matrix")
    parser.add_argument("--dry-run", action="store_true", help="print the runs and stop")
    return run_program(parser, _run, argv)


def _run(args: argparse.Namespace) -> int:
    matrix = _selected(args, read_matrix(args.matrix))
    if args.store and (args.variants, args.seeds, args.minutes, args.iterations) != (None,) * 4:
        raise ValueError(
            "--store keeps the report of the complete matrix: leave out --variants, --seeds and the budget"
        )
    if args.check and matrix.bound is None:
        raise ValueError(f"--check: {matrix.path} has no 'bound'")
    stored = stored_report(matrix) if args.check else None
    if args.per_gpu < 1:
        raise ValueError(f"--per-gpu is {args.per_gpu}, but must be at least 1")
    output = (args.output or ROOT / "output" / "training" / matrix.name).absolute()
    if args.check and matrix.bound is not None and matrix.bound.at_least is None and stored is None:
        file = short_path(matrix.path.with_suffix(".json"))
        print(f"There is no measured {file} yet: the runs are made, but not checked; --store writes it.", flush=True)
    if args.dry_run:
        print(outline(matrix, output))
        return 0
    gpus = _devices(matrix, args.gpus)
    if args.restart:
        remove_runs(matrix, output)
    end = None if args.stop_after is None else time.monotonic() + 60 * args.stop_after
    datasets = output / "datasets" if matrix.make else Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    make_dataset(matrix, datasets)
    progress = _Progress(matrix)
    start = {"end": end, "on_start": progress.start, "on_end": progress.end, "on_wait": progress.look}
    runs = len(matrix.variants) * len(matrix.seeds)
    # Fewer workers do not change what a run learns.
    workers = None if args.per_gpu == 1 else cores_of_each(min(len(gpus) * args.per_gpu, runs))
    trainings: list[Training] = []
    seconds: dict[str, float] = {}
    try:
        known = _stored_iterations(matrix, stored)
        if not known and matrix.iterations is not None:
            known = {variant.name: matrix.iterations for variant in matrix.variants}
        speeds = []
        if not known or args.per_gpu > 1 or any_shared(matrix, output):
            speeds = [measuring_training(matrix, variant, output) for variant in matrix.variants]
        failures = run_all(speeds, gpus, datasets, **start)
        if not failures:
            seconds = _measured_seconds(matrix, speeds)
            trainings = _trainings(matrix, known or _iterations(matrix, seconds), output, workers)
            failures = run_all(trainings, gpus, datasets, per_device=args.per_gpu, **start)
    except Stopped:
        failures = ["Stopped before all runs were finished; the same command continues them."]
        _publish(matrix, trainings, seconds, output, store=False)
        print(failures[0], file=sys.stderr)
        return _UNFINISHED
    report = _publish(matrix, trainings, seconds, output, store=args.store and not failures)
    for failure in failures:
        print(failure, file=sys.stderr)
    if failures or report is None:
        return 1
    if not args.check:
        return 0
    passed, text = verdict(matrix, report, stored)
    print(text)
    return 0 if passed else 1


def _selected(args: argparse.Namespace, matrix: Matrix) -> Matrix:
    """Return the matrix with what the command asks for."""
    if args.variants is not None:
        names = [name.strip() for name in args.variants.split(",")]
        known = [variant.name for variant in matrix.variants]
        unknown = next((name for name in names if name not in known), None)
        if unknown is not None:
            raise ValueError(f"--variants: {matrix.path} has no '{unknown}', but {', '.join(known)}")
        matrix = replace(matrix, variants=tuple(v for v in matrix.variants if v.name in names))
    if args.seeds is not None:
        if not all(seed.strip().isdecimal() for seed in args.seeds.split(",")):
            raise ValueError(f"--seeds is '{args.seeds}', but must be whole numbers, as 0,1")
        matrix = replace(matrix, seeds=tuple(dict.fromkeys(int(seed) for seed in args.seeds.split(","))))
    for option, value in (("--minutes", args.minutes), ("--iterations", args.iterations)):
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"{option} is {value}, but must be above 0")
    if args.minutes is not None or args.iterations is not None:
        matrix = replace(matrix, minutes=args.minutes, iterations=args.iterations)
    return matrix


def _devices(matrix: Matrix, given: str | None) -> list[str | None]:
    if matrix.device == "cpu":
        return [None]
    count = torch.cuda.device_count()
    if not count:
        raise ValueError(f"{matrix.path} is for a GPU, and there is none; docs/training/learn_cpu.yaml is for CPUs")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",")[:count] if visible else [str(number) for number in range(count)]
    if given is None:
        return list(names)
    chosen = [name.strip() for name in given.split(",")]
    unknown = next((name for name in chosen if name not in names), None)
    if unknown is not None:
        raise ValueError(f"--gpus names '{unknown}', but there are {', '.join(names)}")
    return list(dict.fromkeys(chosen))


def outline(matrix: Matrix, output: Path) -> str:
    """Return what a comparison will run."""
    count = len(matrix.variants) * len(matrix.seeds)
    budget = f"{matrix.minutes:g} minutes" if matrix.minutes is not None else f"{matrix.iterations} iterations"
    total = f", {count * matrix.minutes:g} minutes of training in all" if matrix.minutes is not None else ""
    lines = [f"{matrix.title}: {count} run{'s' * (count != 1)} of {budget} each{total}; output in {short_path(output)}"]
    seeds = ", ".join(map(str, matrix.seeds))
    for variant in matrix.variants:
        # Reading the settings finds mistakes in them.
        training = training_of(matrix, variant, matrix.seeds[0], matrix.iterations or 1000, output)
        lines.append(f"  {variant.name}, seeds {seeds}: {variant.config}, batch {training.cfg.SOLVER.IMS_PER_BATCH}")
        lines += [f"    {key} {value or repr(value)}" for key, value in variant.overrides.items()]
    return "\n".join(lines)


def _measured_seconds(matrix: Matrix, speeds: Sequence[Training]) -> dict[str, float]:
    """Return the seconds of an iteration of each variant that has its device for itself; {} if nothing was measured."""
    if not speeds:
        return {}
    return {
        variant.name: steady_seconds(read_metrics(training.directory / "metrics.json"))
        for variant, training in zip(matrix.variants, speeds, strict=True)
    }


def _iterations(matrix: Matrix, seconds: Mapping[str, float]) -> dict[str, int]:
    """Return the length of each variant's runs, which the budget in minutes allows."""
    assert matrix.minutes is not None
    found = {}
    for name, each in seconds.items():
        found[name] = max(_FEWEST, int(60 * matrix.minutes / each))
        print(f"{name}: {each:.3f} s for an iteration, {found[name]} iterations.")
    return found


def _trainings(
    matrix: Matrix, iterations: Mapping[str, int], output: Path, workers: int | None = None
) -> list[Training]:
    """Return the runs; all variants with the first seed come first, so that a part of the runs compares them."""
    return [
        training_of(matrix, variant, seed, iterations[variant.name], output, workers)
        for seed in matrix.seeds
        for variant in matrix.variants
    ]


class _Progress:
    """Tells what runs, and each evaluation once."""

    def __init__(self, matrix: Matrix) -> None:
        self._metric = matrix.metric
        self._told: set[tuple[Path, int]] = set()
        self._next = 0.0

    def start(self, training: Training, gpu: str | None) -> None:
        where = "the CPU" if gpu is None else f"GPU {gpu}"
        print(f"{training.title}: {training.iterations} iterations on {where}.", flush=True)

    def end(self, training: Training) -> None:
        self._tell(training)
        print(f"{training.title}: finished.", flush=True)

    def look(self, running: Sequence[Training]) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _EVERY
        for training in running:
            self._tell(training)

    def _tell(self, training: Training) -> None:
        file = training.directory / "metrics.json"
        try:
            rows = read_metrics(file)
        except (OSError, ValueError):  # not there yet, or a line of it is being written
            return
        for row in rows:
            at = training.directory, row["iteration"] + 1
            if self._metric in row and at not in self._told:
                self._told.add(at)
                place = f"after {at[1]} of {training.iterations} iterations"
                print(f"{training.title}: {self._metric} {row[self._metric]:.2f} {place}.", flush=True)


def _publish(
    matrix: Matrix, trainings: Sequence[Training], seconds: Mapping[str, float], output: Path, *, store: bool
) -> Report | None:
    """Write report and figure of the finished runs and print the table; None if no run is finished."""
    if not any(training.finished for training in trainings):
        return None
    report = make_report(matrix, trainings, seconds)
    written = [write_json(output / "report.json", report, indent=1)]
    draw(report, output / "curves.png")
    written.append(output / "curves.png")
    if store:
        written.append(write_json(matrix.path.with_suffix(".json"), report, indent=1))
    for summary in summaries(report):
        final, best = (
            plus_minus(summary.final, summary.final_deviation),
            plus_minus(summary.best, summary.best_deviation),
        )
        runs = f"{summary.runs} run{'s' * (summary.runs != 1)}"
        print(
            f"{summary.name:24s} {report['metric']} {final}, best {best} ({runs}, {summary.minutes:.1f} minutes each)"
        )
    print(f"written: {', '.join(short_path(path) for path in written)}")
    return report


def make_report(matrix: Matrix, trainings: Sequence[Training], seconds: Mapping[str, float]) -> Report:
    """Return the report of those trainings that are finished.

    Args:
        seconds: of an iteration of each variant alone on its device; needed for runs that shared theirs.
    """
    device = torch.device(matrix.device)
    return {
        "schema": SCHEMA,
        "name": matrix.name,
        "title": matrix.title,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": command_line(),
        **settings_of(matrix),
        "hardware": hardware(device),
        "versions": versions(),
        "per_gpu": max(training.most_on_device for training in trainings if training.finished),
        "variants": [_variant_report(matrix, variant, trainings, seconds) for variant in matrix.variants],
    }


def _variant_report(
    matrix: Matrix, variant: Variant, trainings: Sequence[Training], seconds: Mapping[str, float]
) -> dict[str, Any]:
    own = {training.cfg.SEED: training for training in trainings if training.directory.parent.name == variant.name}
    first = next(iter(own.values()))
    runs = []
    for seed, training in own.items():
        if training.finished:
            alone = None if training.most_on_device == 1 else seconds[variant.name]
            points = curve(read_metrics(training.directory / "metrics.json"), matrix.metric, alone)
            runs.append({"seed": seed, "evaluations": [vars(point) for point in points]})
    return {
        "name": variant.name,
        "config": variant.config,
        "overrides": dict(variant.overrides),
        "batch": first.cfg.SOLVER.IMS_PER_BATCH,
        "iterations": first.iterations,
        "runs": runs,
    }


def stored_report(matrix: Matrix) -> Report | None:
    """Return the report beside the matrix, which the bound is relative to; None if it is not, or none is there."""
    file = matrix.path.with_suffix(".json")
    needed = matrix.bound is not None and matrix.bound.at_least is None
    return read_report(file) if needed and file.is_file() else None


def _stored_iterations(matrix: Matrix, stored: Report | None) -> dict[str, int]:
    """Return the lengths of the stored report's runs, so that a check says the same on any card; {} without it."""
    if stored is None:
        return {}
    known = {variant["name"]: variant["iterations"] for variant in stored["variants"]}
    return known if all(variant.name in known for variant in matrix.variants) else {}


def verdict(matrix: Matrix, report: Report, stored: Report | None) -> tuple[bool, str]:
    """Return whether the metric of the bound's variant reaches it, and a sentence that says so.

    Args:
        stored: the report that a bound with a margin is compared with; None: there is none, which passes.
    """
    bound = matrix.bound
    assert bound is not None
    final = _final(report, bound.variant)
    if final is None:
        raise ValueError(f"--check: no run of the variant '{bound.variant}' was made; leave --variants out")
    measured = f"{bound.variant}: {report['metric']} {final:.2f}"
    if bound.at_least is not None:
        least, source = bound.at_least, f"{matrix.path.name}"
    else:
        before = None if stored is None else _final(stored, bound.variant)
        file = short_path(matrix.path.with_suffix(".json"))
        if before is None:
            return (
                True,
                f"{measured}. Not checked: there is no measured {file} yet; --store writes it.",
            )
        least, source = before - bound.margin, f"{before:.2f} of {file} less {bound.margin:g}"
    if final >= least:
        return True, f"{measured}, at least {least:.2f} ({source}): it learns."
    return False, f"{measured}, but must be at least {least:.2f} ({source}): it learns worse."


def _final(report: Report, name: str) -> float | None:
    return next((summary.final for summary in summaries(report) if summary.name == name), None)


if __name__ == "__main__":
    sys.exit(main())
