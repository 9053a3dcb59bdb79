"""The trainings of a comparison: what each one is set to, and running them as processes, one on each device."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from detectron2.config import CfgNode
from training_matrix import Matrix, Variant

from mask2former.config import leaves, load_config
from mask2former.engine.compilation import pays
from mask2former.utils.file_io import read_json_object, write_json

ROOT = Path(__file__).resolve().parents[1]
_POLL = 0.2  # seconds
_GRACE = 300.0  # seconds in which a training that is stopped saves
_PLAN, _DONE = "plan.json", "done.json"
_LOG = "console.txt"


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training as a process will run it.

    Attributes:
        title: for messages.
        directory: OUTPUT_DIR.
        config: config file.
        overrides: KEY VALUE KEY VALUE ...
        cfg: the config with them.
    """

    title: str
    directory: Path
    config: str
    overrides: tuple[str, ...]
    cfg: CfgNode

    @property
    def iterations(self) -> int:
        """Return its length."""
        return int(self.cfg.SOLVER.MAX_ITER)

    @property
    def finished(self) -> bool:
        """Return whether it ran to its end before."""
        return (self.directory / _DONE).is_file()

    def command(self) -> list[str]:
        """Return the command; it continues what a former one has left."""
        words = [sys.executable, str(ROOT / "train_net.py"), "--config-file", self.config, "--resume"]
        return [*words, "--num-gpus", "0" if self.cfg.MODEL.DEVICE == "cpu" else "1", *self.overrides]

    def prepare(self) -> None:
        """Write what the training is set to into its directory, or compare it with what is there.

        Raises:
            ValueError: the directory is of a training with other settings.
        """
        plan = {key: repr(value) for key, value in leaves(self.cfg) if key != "OUTPUT_DIR"}
        file = self.directory / _PLAN
        if not file.is_file():
            write_json(file, plan, indent=1)
            return
        before = read_json_object(str(file))
        changed = [key for key in {**before, **plan} if before.get(key) != plan.get(key)]
        if changed:
            key = changed[0]
            raise ValueError(
                f"{self.directory} holds a training with other settings ({key} {before.get(key)}, now {plan.get(key)}; "
                f"{len(changed)} keys differ): remove the directory, or choose another one with --output"
            )

    def finish(self) -> None:
        """Note that it ran to its end, and remove what only a resume needs; the weights stay."""
        write_json(self.directory / _DONE, {"iterations": self.iterations})
        for file in self.directory.glob("model_*.pth"):
            file.unlink()


def training_of(matrix: Matrix, variant: Variant, seed: int, iterations: int, output: Path) -> Training:
    """Return the training of a variant with a seed, whose schedule has the shape of the config at another length.

    Raises:
        ConfigError: a setting of the variant is wrong.
    """
    cfg = load_config(variant.config, variant.pairs())
    period = -(-iterations // matrix.evaluations)
    length = {
        "SOLVER.MAX_ITER": iterations,
        "SOLVER.STEPS": scaled_steps(cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER, iterations),
        "SOLVER.WARMUP_ITERS": min(cfg.SOLVER.WARMUP_ITERS, iterations // 10),
        "SOLVER.CHECKPOINT_PERIOD": period,
        "TEST.EVAL_PERIOD": period,
    }
    directory = output / variant.name / f"seed{seed}"
    return _training(f"{variant.name}, seed {seed}", matrix, variant, directory, {**length, "SEED": seed})


def measuring_training(matrix: Matrix, variant: Variant, output: Path) -> Training:
    """Return a short training of a variant, whose only purpose is the time of an iteration."""
    none: tuple[str, ...] = ()
    length = {
        "SOLVER.MAX_ITER": matrix.measured,
        "SOLVER.STEPS": none,
        "SOLVER.WARMUP_ITERS": 0,
        "SOLVER.CHECKPOINT_PERIOD": 0,
        "SOLVER.EARLY_STOP_PATIENCE": 0,
        "DATASETS.TEST": none,
        "TEST.EVAL_PERIOD": 0,
        "SEED": 0,
    }
    return _training(f"{variant.name}, its speed", matrix, variant, output / variant.name / "speed", length)


def _training(title: str, matrix: Matrix, variant: Variant, directory: Path, settings: Mapping[str, Any]) -> Training:
    cfg = load_config(variant.config, variant.pairs())
    more: dict[str, Any] = {"MODEL.DEVICE": matrix.device, "LOGGERS": (), "OUTPUT_DIR": str(directory)}
    if matrix.device == "cuda" and cfg.MODEL.COMPILE == "auto":
        # What a training of the config's own length does, not one of this length, which is not known before.
        more["MODEL.COMPILE"] = "compile" if pays(cfg) else "graph"
    words = [str(word) for pair in {**more, **settings}.items() for word in pair]
    overrides = (*variant.pairs(), *words)
    return Training(
        title=title,
        directory=directory,
        config=variant.config,
        overrides=overrides,
        cfg=load_config(variant.config, overrides),
    )


def scaled_steps(steps: Sequence[int], before: int, after: int) -> tuple[int, ...]:
    """Return the iterations in which a learning rate falls, for a training of another length."""
    return tuple(sorted({max(1, round(step * after / before)) for step in steps if step < before} - {after}))


def make_dataset(matrix: Matrix, datasets: Path) -> None:
    """Make the dataset of a matrix below `datasets`, and check that what it needs is there.

    Raises:
        ValueError: the command failed.
        FileNotFoundError: a file is missing.
    """
    if matrix.make:
        datasets.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "mask2former", *matrix.make]
        status = subprocess.run(command, cwd=datasets, env=environment(datasets), check=False).returncode
        if status:
            raise ValueError(f"the dataset cannot be made: {shlex.join(command)} in {datasets} gave status {status}")
    for name in matrix.needs:
        if not (datasets / name).is_file():
            raise FileNotFoundError(
                f"{datasets / name} does not exist, which {matrix.path} needs; DETECTRON2_DATASETS names the directory "
                "of the datasets, and datasets/README.md says what is where"
            )


def remove_runs(matrix: Matrix, output: Path) -> None:
    """Remove all runs of a matrix; other files stay."""
    for variant in matrix.variants:
        for plan in sorted((output / variant.name).glob(f"*/{_PLAN}")):
            shutil.rmtree(plan.parent)


def environment(datasets: Path, gpu: str | None = None) -> dict[str, str]:
    """Return the environment of a process: this checkout, these datasets, one GPU."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    found = {**os.environ, "PYTHONPATH": path, "DETECTRON2_DATASETS": str(datasets.absolute())}
    return found if gpu is None else {**found, "CUDA_VISIBLE_DEVICES": gpu}


class Stopped(Exception):
    """The trainings were stopped before all were finished; the same command continues them."""


def run_all(
    trainings: Sequence[Training],
    gpus: Sequence[str | None],
    datasets: Path,
    *,
    end: float | None = None,
    on_start: Callable[[Training, str | None], None] = lambda training, gpu: None,
    on_end: Callable[[Training], None] = lambda training: None,
    on_wait: Callable[[Sequence[Training]], None] = lambda running: None,
) -> list[str]:
    """Run those trainings that are not finished, each on one device, until all have ended.

    Args:
        gpus: devices, as CUDA_VISIBLE_DEVICES names them; None: the CPU.
        datasets: DETECTRON2_DATASETS.
        end: value of `time.monotonic` at which they are asked to save and stop; None: never.
        on_start: called with each training that begins, and its device.
        on_end: called with each training that is finished.
        on_wait: called several times a second with those that run.

    Returns:
        A message for each training that failed; the others are finished.

    Raises:
        ValueError: see `Training.prepare`; nothing has begun then.
        Stopped: `end` came, or a signal; the trainings have saved.
    """
    waiting = [training for training in trainings if not training.finished]
    for training in trainings:
        training.prepare()
    running: dict[str | None, tuple[Training, subprocess.Popen[bytes]]] = {}
    failures: list[str] = []
    with _stop_signals() as signals:
        try:
            while waiting or running:
                if signals or (end is not None and time.monotonic() >= end):
                    raise Stopped
                for gpu in [gpu for gpu in gpus if gpu not in running][: len(waiting)]:
                    training = waiting.pop(0)
                    on_start(training, gpu)
                    running[gpu] = training, _start(training, datasets, gpu)
                time.sleep(_POLL)
                on_wait([training for training, _ in running.values()])
                for gpu in [gpu for gpu, (_, process) in running.items() if process.poll() is not None]:
                    training, process = running.pop(gpu)
                    if process.returncode:
                        failures.append(_failure(training, process.returncode))
                    else:
                        training.finish()
                        on_end(training)
        finally:
            _stop([process for _, process in running.values()])
    return failures


def _start(training: Training, datasets: Path, gpu: str | None) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C reaches this program, which asks the training to save.
    with (training.directory / _LOG).open("ab") as log:
        return subprocess.Popen(
            training.command(),
            cwd=ROOT,
            env=environment(datasets, gpu),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _failure(training: Training, status: int) -> str:
    log = training.directory / _LOG
    tail = log.read_text(errors="replace").strip().splitlines()[-3:]
    return "\n  ".join([f"{training.title} failed with status {status}, see {log}:", *tail])


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask trainings to save and end, and wait for them; one that does not is killed with its data workers."""
    for process in processes:
        process.terminate()
    end = time.monotonic() + _GRACE
    for process in processes:
        try:
            process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of ending by them."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
