"""Kill a tiny training at random moments, resume it to its end, and compare all it leaves with an uninterrupted one.

    python tests/fuzz/chaos.py --kills 100 --seed 3

The moments are counted points of the program (between two hooks, around each write to the disk, at each batch of an
evaluation), so that a seed gives the same kills on every machine. Each kill is a SIGKILL of a forked process; many
resumed trainings are killed again. Weights, optimizer, EMA weights, random states, metrics.json without its times, the
best model and the final files must agree bit by bit. Exit status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from safetensors.torch import load_file

_TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_TESTS.parent))
sys.path.insert(0, str(_TESTS / "engine"))

from tiny_training import EvaluatedTrainer, start, tiny_config  # noqa: E402

from mask2former.engine.metrics_file import MetricsFile  # noqa: E402

TIMES = frozenset({"time", "data_time", "eta_seconds", "images_per_second"})
PHASES = ("step", "save", "evaluation", "record", "final")
_COMMON = ("SOLVER.MAX_ITER", "12", "TEST.EVAL_AT_START", "True", "LOGGERS", "()")
VARIANTS = {
    "plain": ("TEST.EVAL_PERIOD", "3"),
    "ema": ("TEST.EVAL_PERIOD", "2", "SOLVER.EMA_DECAY", "0.9", "SOLVER.CHECKPOINT_PERIOD", "5"),
    "early stop": ("TEST.EVAL_PERIOD", "3", "SOLVER.EARLY_STOP_PATIENCE", "2", "SOLVER.BASE_LR", "0.3"),
    "bf16": ("TEST.EVAL_PERIOD", "4", "SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16"),
}


class Points:
    """Counts the points that the process passes; kills it at number `last`."""

    def __init__(self, last: int | None) -> None:
        self.last, self.phases = last, list[str]()

    def pass_by(self, phase: str, before_death: Callable[[], None] = lambda: None) -> None:
        """Pass a point, or die there."""
        if len(self.phases) == self.last:
            before_death()
            os.kill(os.getpid(), signal.SIGKILL)
        self.phases.append(phase)


POINTS = Points(None)


class Between(HookBase):
    """A point between two hooks."""

    def before_train(self) -> None:
        POINTS.pass_by("save")

    def after_step(self) -> None:
        POINTS.pass_by("final" if self.trainer.iter + 1 == self.trainer.max_iter else "step")

    def after_train(self) -> None:
        POINTS.pass_by("final")


class Batches:
    """Four batches with points between them."""

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for number in range(4):
            POINTS.pass_by("evaluation")
            x = torch.randn(3, 4, generator=torch.Generator().manual_seed(number))
            yield [{"x": row, "y": row.sum()} for row in x]
        POINTS.pass_by("evaluation")


class ChaosTrainer(EvaluatedTrainer):
    """Passes points in steps, evaluations and between hooks."""

    log_period = 4

    def build_hooks(self) -> list[HookBase]:
        return [Between(), *(hook for built in super().build_hooks() for hook in (built, Between()))]

    def run_step(self) -> None:
        POINTS.pass_by("step")
        super().run_step()
        POINTS.pass_by("step")

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        return Batches()


def _phase_of(path: Any) -> str:
    name = str(path)
    if "model_final" in name:
        return "final"
    return "evaluation" if "model_best" in name or "baseline" in name else "record" if "metrics" in name else "save"


def add_points_to_writing() -> None:
    """Add points before and after each renaming, and one that leaves half a line of metrics.json."""
    replace, append = os.replace, MetricsFile._append

    def replace_between_points(source: Any, target: Any, **options: Any) -> None:
        POINTS.pass_by(_phase_of(target))
        replace(source, target, **options)
        POINTS.pass_by(_phase_of(target))

    def append_or_die(self: MetricsFile, rows: list[dict[str, Any]]) -> None:
        def half_a_line() -> None:
            with self._path.open("a") as file:
                file.write(json.dumps(rows[0])[: random.Random(len(rows[0])).randrange(40)])

        if rows:
            POINTS.pass_by("record", half_a_line)
        append(self, rows)
        POINTS.pass_by("record")

    os.replace = replace_between_points  # type: ignore[assignment]
    MetricsFile._append = append_or_die  # type: ignore[method-assign]


def run_once(directory: Path, variant: str, resume: bool, last: int | None) -> list[str] | None:
    """Train in a forked process; return the phases of its points, None if it was killed at point number `last`."""
    notes = directory.with_suffix(".points")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            log = os.open(directory.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1), os.dup2(log, 2)
            POINTS.last = last
            start(tiny_config(directory, *_COMMON, *VARIANTS[variant]), resume, ChaosTrainer).train()
            notes.write_text(json.dumps(POINTS.phases))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return None
    if status:
        raise RuntimeError(f"training failed:\n{directory.with_suffix('.log').read_text()[-3000:]}")
    return list(json.loads(notes.read_text()))


def content(directory: Path) -> dict[str, Any]:
    """Return what a training left, by file and entry, without times."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in directory.rglob("*") if p.is_file() and not p.name.startswith((".", "log.txt"))):
        name = str(path.relative_to(directory))
        if path.suffix == ".pth":
            found.update(_flat(torch.load(path, weights_only=True), name))
        elif path.suffix == ".safetensors":
            found.update(_flat(load_file(path), name))
        elif name == "metrics.json":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{key: value for key, value in row.items() if key not in TIMES} for row in rows]
        else:
            found[name] = path.read_text()
    return found


def _flat(value: Any, name: str) -> dict[str, Any]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else None
    if items is None:
        same = value.numpy().tobytes() if isinstance(value, torch.Tensor) and value.dtype != torch.bfloat16 else value
        return {} if name.endswith("pending_losses.seconds") else {name: same}
    return {name: len(value)} | {k: v for key, part in items for k, v in _flat(part, f"{name}.{key}").items()}


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Return the names of entries that differ."""
    return [name for name in sorted({*first, *second}) if first.get(name) != second.get(name)]


def chaos(work: Path, kills: int, seed: int, late: bool = False) -> tuple[Counter[str], list[str]]:
    """Kill `kills` times; return how often in which phase, and a line for each training that ended differently.

    Args:
        work: empty directory.
        kills: number of kills, over all trainings.
        seed: of the moments.
        late: kill in the last third of the training's points only.
    """
    add_points_to_writing()
    draw = random.Random(seed)
    straight: dict[str, tuple[list[str], dict[str, Any]]] = {}
    done: Counter[str] = Counter()
    wrong: list[str] = []
    while done.total() < kills:
        variant = draw.choice(list(VARIANTS))
        if variant not in straight:
            directory = work / variant.replace(" ", "_")
            straight[variant] = run_once(directory, variant, False, None) or [], content(directory)
        phases, expected = straight[variant]
        directory, moments, resume = work / "killed", list[int](), False
        while True:
            phase = draw.choice([kind for kind in PHASES if kind in phases])
            first = len(phases) * 2 // 3 if late and not resume else 0
            choices = [i for i, kind in enumerate(phases) if kind == phase and i >= first] or [len(phases) - 1]
            last = draw.choice(choices) if done.total() < kills and (not resume or draw.random() < 0.4) else None
            if run_once(directory, variant, resume, last) is not None:
                break
            done[phase] += 1
            moments.append(last or 0)
            resume = True
        different = differences(expected, content(directory))
        if different:
            wrong.append(f"{variant}, killed at points {moments} of {len(phases)}: {', '.join(different[:6])}")
        shutil.rmtree(directory)
    return done, wrong


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--late", action="store_true", help="first kills in the last third of the training only")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos_") as work:
        done, wrong = chaos(Path(work), args.kills, args.seed, args.late)
    phases = ", ".join(f"{count} in {phase}" for phase, count in sorted(done.items()))
    print(f"{done.total()} kills ({phases}): {len(wrong)} trainings ended differently")
    print("".join(f"  {line}\n" for line in wrong), end="")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
