"""Evaluation on the datasets of a config: table of results, metrics file, and the best model so far."""

from __future__ import annotations

import logging
import math
import textwrap
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format
from detectron2.utils import comm
from torch import nn

from ..checkpoint.writing import save_safetensors
from ..utils.console import bars_enabled, file_only, progress_bar
from ..utils.file_io import write_json
from .evaluation_precision import describe_run, in_precision
from .output_directory import read_note
from .previews import open_previews
from .stop_signals import current_stop_signal

logger = logging.getLogger(__name__)

MAIN_METRICS = (("panoptic_seg", "PQ"), ("segm", "AP"), ("sem_seg", "mIoU"))
"""(task, metric) that models are compared by: the first of these that an evaluation returns."""


def by_dataset(results: Mapping[str, Any], names: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Return {dataset: results} of results in detectron2's short form, which omits the name of a single dataset."""
    return {names[0]: results} if len(names) == 1 else {name: results.get(name, {}) for name in names}


def with_all_tasks(first: Mapping[str, Any], second: Mapping[str, Any], names: Sequence[str]) -> OrderedDict[str, Any]:
    """Return the tasks of two evaluations of the same datasets together; all in the form of `by_dataset`'s results."""
    if len(names) == 1:
        return OrderedDict({**first, **second})
    return OrderedDict((name, {**first.get(name, {}), **second.get(name, {})}) for name in names)


class Builders(Protocol):
    """Interface that builds the loader and the evaluator of a dataset: a class such as `Trainer`."""

    def build_test_loader(self, cfg: CfgNode, dataset_name: str) -> Any: ...
    def build_evaluator(self, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator: ...


class _QuietEvaluator(DatasetEvaluator):
    """Measures as another evaluator does, whose tables go to log.txt only: `evaluate_datasets` shows the results.

    Args:
        on_batch: called with the inputs and outputs of each batch.
    """

    def __init__(self, evaluator: DatasetEvaluator, on_batch: Callable[[Any, Any], None] | None) -> None:
        self._evaluator, self._on_batch = evaluator, on_batch

    def reset(self) -> None:
        self._evaluator.reset()

    def process(self, inputs: Any, outputs: Any) -> None:
        self._evaluator.process(inputs, outputs)
        if self._on_batch is not None:
            self._on_batch(inputs, outputs)

    def evaluate(self) -> Any:
        with file_only():
            return self._evaluator.evaluate()


def evaluate_datasets(
    builders: Builders,
    cfg: CfgNode,
    model: nn.Module,
    evaluators: DatasetEvaluator | Sequence[DatasetEvaluator] | None = None,
    *,
    suffix: str = "",
    previews: bool = False,
) -> OrderedDict[str, Any]:
    """Evaluate `model` on each dataset of DATASETS.TEST, and log the results of each in one short table.

    The model runs in the precision of TEST.AMP; evaluators compute in that of their numbers.

    Args:
        evaluators: one for each dataset, by default those that `builders` builds.
        suffix: appended to the name of each task.
        previews: draw the first TEST.PREVIEW_IMAGES images of each dataset for the loggers, within a training.

    Returns:
        {dataset: {task: {metric: value}}}, with {} for a dataset that has no evaluator, and on all ranks but the first.

    Raises:
        ValueError: the number of evaluators differs from that of the datasets.
    """
    names: Sequence[str] = cfg.DATASETS.TEST
    if isinstance(evaluators, DatasetEvaluator):
        evaluators = [evaluators]
    if evaluators is not None and len(evaluators) != len(names):
        raise ValueError(f"{len(evaluators)} evaluators were given for the {len(names)} datasets of DATASETS.TEST")
    results: OrderedDict[str, Any] = OrderedDict()
    model = in_precision(cfg, model)
    for i, name in enumerate(names):
        with file_only():
            loader = builders.build_test_loader(cfg, name)
            try:
                evaluator = evaluators[i] if evaluators is not None else builders.build_evaluator(cfg, name)
            except NotImplementedError as error:
                logger.warning("No evaluation of %s: %s", name, error)
                results[name] = {}
                continue
        drawing = open_previews(cfg, name, loader) if previews else None
        measured = _run(model, loader, _QuietEvaluator(evaluator, drawing.add if drawing else None), name)
        results[name] = {f"{task}{suffix}": values for task, values in measured.items()} if suffix else measured
        if comm.is_main_process():
            with file_only():  # for the scripts of people that read it
                print_csv_format(results[name])
            logger.info("Results (%s):\n%s", describe_run(cfg), format_results({name: results[name]}))
    return results


def _run(model: nn.Module, loader: Any, evaluator: DatasetEvaluator, name: str) -> Any:
    """Run detectron2's evaluation with a progress bar, or where there is none with its lines of progress.

    Raises:
        StopRequested: within a training a signal came to any rank; this rank then stops between two batches, and all
            agree after their last one, before anything is measured.
    """
    stop = current_stop_signal()

    def before_batch() -> None:
        if stop is not None and stop.number:
            raise _Abandoned

    def after_batches() -> None:
        if stop is not None:
            stop.raise_if_agreed()

    with progress_bar(len(loader), f"evaluating {name}") as bar, file_only(bars_enabled()):
        callbacks = {"before_inference": before_batch, "after_inference": bar.update, "on_end": after_batches}
        try:
            return inference_on_dataset(model, loader, evaluator, callbacks=callbacks)
        except _Abandoned:
            after_batches()  # raises
            raise


class _Abandoned(Exception):
    """This rank got a signal; the others may not know."""


def without_single_name(named: Mapping[str, Any]) -> OrderedDict[str, Any]:
    """Return {dataset: results} in detectron2's short form: the results themselves where there is one dataset."""
    return OrderedDict(next(iter(named.values())) if len(named) == 1 else named)


def write_results(cfg: CfgNode, named: Mapping[str, Mapping[str, Any]], directory: str) -> None:
    """Write {dataset: {task: {metric: value}}} to OUTPUT_DIR/`directory`/metrics.json; on rank 0 only."""
    if comm.is_main_process() and named:
        write_json(Path(cfg.OUTPUT_DIR) / directory / "metrics.json", named, nan="null", indent=1)


def main_metric(results: Mapping[str, Mapping[str, Any]]) -> tuple[str, float] | None:
    """Return name and value of the first of `MAIN_METRICS` in {task: {metric: value}}, None if there is none."""
    for task, metric in MAIN_METRICS:
        value = results.get(task, {}).get(metric)
        if value is not None:
            return f"{task}/{metric}", float(value)
    return None


def format_results(named: Mapping[str, Mapping[str, Mapping[str, float]]], columns: int = 8) -> str:
    """Return a table of the first `columns` metrics of each task and dataset.

    Below it the first kind of per-class values (AP, IoU) where there are at most `MAX_CLASSES`.
    """
    lines = []
    for dataset, tasks in named.items():
        for task, metrics in tasks.items():
            shown = [(k, v) for k, v in metrics.items() if "-" not in k][:columns]
            widths = [max(len(k), 7) for k, _ in shown]
            head = "  ".join(k.rjust(w) for (k, _), w in zip(shown, widths, strict=True))
            body = "  ".join(f"{v:{w}.3f}" for (_, v), w in zip(shown, widths, strict=True))
            left = max(len(dataset), len(task))
            lines += [f"  {dataset:<{left}}  {head}", f"  {task:<{left}}  {body}", *_per_class(metrics)]
            if any(math.isnan(value) for _, value in shown):
                lines.append("  nan: no ground truth of that size or class")
    return "\n".join(lines) or "  (no results)"


def compared_metric(results: Mapping[str, Any], datasets: Sequence[str]) -> tuple[str, float] | None:
    """Return name and value of the main metric on the first dataset; None if there is no finite one."""
    named = main_metric(by_dataset(results, datasets)[datasets[0]]) if len(datasets) else None
    return named if named is not None and math.isfinite(named[1]) else None


def store_baseline(results: Mapping[str, Any], cfg: CfgNode) -> None:
    """Log the main metric of the initial model and write it to OUTPUT_DIR/baseline.json."""
    named = compared_metric(results, cfg.DATASETS.TEST)
    if named is None:
        return
    note = {"metric": named[0], "value": named[1], "dataset": cfg.DATASETS.TEST[0]}
    write_json(Path(cfg.OUTPUT_DIR) / "baseline.json", note, indent=1)
    logger.info("Before training: %s %.3f.", *named)


MAX_CLASSES = 20
"""More classes than these are in log.txt only."""


def _per_class(metrics: Mapping[str, float]) -> list[str]:
    split = [(*key.split("-", 1), value) for key, value in metrics.items() if "-" in key]
    first = [(name, value) for kind, name, value in split if kind == split[0][0]]
    if not 0 < len(first) <= MAX_CLASSES:
        return []
    text = f"{split[0][0]} of " + ", ".join(f"{name} {value:.1f}" for name, value in first)
    return textwrap.wrap(text, 110, initial_indent="    ", subsequent_indent="      ", break_on_hyphens=False)


class BestModel:
    """Keeps `model_best.safetensors` and, next to it, `model_best.json` with its metric."""

    def __init__(self, directory: Path) -> None:
        self._weights, self._note = directory / "model_best.safetensors", directory / "model_best.json"
        self.value = -math.inf

    def restore(self) -> None:
        """Read the best value of the training that is being resumed.

        Raises:
            CorruptCheckpointError: see `output_directory.read_note`.
        """
        if self._note.is_file() and self._weights.is_file():
            self.value = read_note(self._note)["value"]

    def reset(self) -> None:
        """Forget the best value: the training starts from the beginning."""
        self.value = -math.inf

    def offer(self, model: nn.Module, results: Mapping[str, Any], iteration: int, cfg: CfgNode) -> bool:
        """Save `model` if its main metric on the first dataset is better than before; return whether it was saved."""
        named = compared_metric(results, cfg.DATASETS.TEST)
        if named is None or named[1] <= self.value:
            return False
        metric, self.value = named
        dataset = cfg.DATASETS.TEST[0]
        save_safetensors(model, self._weights)
        note = {"metric": metric, "value": self.value, "dataset": dataset, "iteration": iteration}
        write_json(self._note, note, indent=1)
        logger.info("The best %s so far: saved %s.", metric, self._weights)
        return True
