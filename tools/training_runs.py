"""The trainings of a comparison: what each one is set to, and running them as processes, one or more on a device."""

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
from mask2former.utils.parallel import usable_cores

ROOT = Path(__file__).resolve().parents[1]
_POLL = 0.2  # seconds
_GRACE = 300.0  # seconds in which a training that is stopped saves
_SHORT = 10.0  # minutes of training: compiling takes minutes of its own
_PLAN, _DONE, _SHARED = "plan.json", "done.json", "shared.json"
_NOT_PLANNED = ("OUTPUT_DIR", "DATALOADER.NUM_WORKERS")  # what a run learns does not depend on them
_DATASETS = "{datasets}"  # in the value of an override: the directory of the datasets
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

    @property
    def most_on_device(self) -> int:
        """Return how many runs its device had at once at most, this one included."""
        file = self.directory / _SHARED
        return int(read_json_object(str(file))["runs"]) if file.is_file() else 1

    def share(self, runs: int) -> None:
        """Note that its device has so many runs: the times of iterations in metrics.json are no longer its own."""
        if runs > self.most_on_device:
            write_json(self.directory / _SHARED, {"runs": runs})

    def command(self) -> list[str]:
        """Return the command; it continues what a former one has left."""
        words = [sys.executable, str(ROOT / "train_net.py"), "--config-file", self.config, "--resume"]
        return [*words, "--num-gpus", "0" if self.cfg.MODEL.DEVICE == "cpu" else "1", *self.overrides]

    def prepare(self) -> None:
        """Write what the training is set to into its directory, or compare it with what is there.

        Raises:
            ValueError: the directory is of a training with other settings.
        """
        plan = {key: repr(value) for key, value in leaves(self.cfg) if key not in _NOT_PLANNED}
        file = self.directory / _PLAN
        if not file.is_file():
            write_json(file, plan, indent=1)
            return
        before = {key: value for key, value in read_json_object(str(file)).items() if key not in _NOT_PLANNED}
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


def training_of(
    matrix: Matrix, variant: Variant, seed: int, iterations: int, output: Path, workers: int | None = None
) -> Training:
    """Return the training of a variant with a seed, whose schedule has the shape of the config at another length.

    Args:
        workers: it reads data with so many at most; None: as many as the config says.

    Raises:
        ConfigError: a setting of the variant is wrong.
    """
    cfg = load_config(variant.config, variant.pairs())
    period = -(-iterations // matrix.evaluations)
    length: dict[str, Any] = {
        "SOLVER.MAX_ITER": iterations,
        "SOLVER.STEPS": scaled_steps(cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER, iterations),
        "SOLVER.WARMUP_ITERS": min(cfg.SOLVER.WARMUP_ITERS, iterations // 10),
        "SOLVER.CHECKPOINT_PERIOD": period,
        "TEST.EVAL_PERIOD": period,
    }
    if workers is not None:
        length["DATALOADER.NUM_WORKERS"] = min(cfg.DATALOADER.NUM_WORKERS, workers)
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
        # By what is known before the speed is measured: the budget, and the config's own length.
        short = matrix.minutes is not None and matrix.minutes < _SHORT
        more["MODEL.COMPILE"] = "compile" if pays(cfg) and not short else "graph"
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


def any_shared(matrix: Matrix, output: Path) -> bool:
    """Return whether a run of a matrix has shared its device, now or before it was stopped."""
    return any(next((output / variant.name).glob(f"*/{_SHARED}"), None) is not None for variant in matrix.variants)


def cores_of_each(runs: int) -> int:
    """Return the processor cores of each of so many runs at once, at least 1."""
    return max(1, usable_cores() // runs)


def environment(datasets: Path, gpu: str | None = None, threads: int | None = None) -> dict[str, str]:
    """Return the environment of a process: this checkout, these datasets, one GPU.

    Args:
        threads: of an operation on the CPU, where OMP_NUM_THREADS does not say it; None: all cores.
    """
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    found = {**os.environ, "PYTHONPATH": path, "DETECTRON2_DATASETS": str(datasets.absolute())}
    if threads is not None:
        found.setdefault("OMP_NUM_THREADS", str(threads))
    return found if gpu is None else {**found, "CUDA_VISIBLE_DEVICES": gpu}


class Stopped(Exception):
    """The trainings were stopped before all were finished; the same command continues them."""


def run_all(
    trainings: Sequence[Training],
    gpus: Sequence[str | None],
    datasets: Path,
    *,
    per_device: int = 1,
    end: float | None = None,
    on_start: Callable[[Training, str | None], None] = lambda training, gpu: None,
    on_end: Callable[[Training], None] = lambda training: None,
    on_wait: Callable[[Sequence[Training]], None] = lambda running: None,
) -> list[str]:
    """Run those trainings that are not finished, each on one device, until all have ended.

    The device with the fewest runs gets the next one. With several on a device each gets its part of the cores.

    Args:
        gpus: devices, as CUDA_VISIBLE_DEVICES names them; None: the CPU.
        datasets: DETECTRON2_DATASETS.
        per_device: so many run on a device at the same time.
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
    threads = cores_of_each(min(len(gpus) * per_device, len(waiting))) if per_device > 1 and waiting else None
    running: list[_Run] = []
    failures: list[str] = []
    with _stop_signals() as signals:
        try:
            while waiting or running:
                if signals or (end is not None and time.monotonic() >= end):
                    raise Stopped
                while waiting and len(running) < len(gpus) * per_device:
                    gpu = min(gpus, key=lambda gpu: sum(run.gpu == gpu for run in running))
                    training = waiting.pop(0)
                    on_start(training, gpu)
                    running.append(_Run(training, gpu, _start(training, datasets, gpu, threads)))
                    _note_sharing(running, gpu)
                time.sleep(_POLL)
                on_wait([run.training for run in running])
                ended = [run for run in running if run.process.poll() is not None]
                running = [run for run in running if run not in ended]
                for run in ended:
                    if run.process.returncode:
                        failures.append(_failure(run.training, run.process.returncode))
                    else:
                        run.training.finish()
                        on_end(run.training)
        finally:
            _stop([run.process for run in running])
    return failures


@dataclass(frozen=True, eq=False)
class _Run:
    """A training, its device and its process."""

    training: Training
    gpu: str | None
    process: subprocess.Popen[bytes]


def _note_sharing(running: Sequence[_Run], gpu: str | None) -> None:
    """Note in the runs of a device how many they are."""
    together = [run.training for run in running if run.gpu == gpu]
    for training in together:
        training.share(len(together))


def _start(training: Training, datasets: Path, gpu: str | None, threads: int | None) -> subprocess.Popen[bytes]:
    command = [word.replace(_DATASETS, str(datasets.absolute())) for word in training.command()]
    # A session of its own: Ctrl-C reaches this program, which asks the training to save.
    with (training.directory / _LOG).open("ab") as log:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(datasets, gpu, threads),
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
