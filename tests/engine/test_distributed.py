"""Two CPU processes (gloo) must train as one does with the same whole batch."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from tiny_training import start, tiny_config

HERE = Path(__file__).parent
WORKER = """
import sys
sys.path.insert(0, {here!r})
import two_processes
from mask2former.engine import argument_parser, launch

sys.modules["mask2former.engine.launch"]._GRACE = 1e6  # the ranks must end by themselves

if __name__ == "__main__":
    sys.exit(launch(two_processes.{main}, argument_parser().parse_args()))
"""


def prepare_two(
    tmp_path: Path, launcher: str, output: Path, *options: str, main: str = "main"
) -> tuple[list[str], dict[str, str]]:
    """Command and environment that run a function of `two_processes` on two ranks, by default to train."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(here=str(HERE), main=main))
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(HERE.parents[1])}
    if launcher == "torchrun":
        start_command = [
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            "2",
            "--standalone",  # takes a free port itself, and keeps it
            str(script),
        ]
    else:
        start_command = [str(script), "--num-gpus", "2"]  # the port is any free one
    return [sys.executable, *start_command, *options, "OUTPUT_DIR", str(output)], environment


def run_two(
    tmp_path: Path, launcher: str, output: Path, *options: str, main: str = "main"
) -> subprocess.CompletedProcess[str]:
    """Run to the end. What never ends is for pytest's timeout, which is far above what a loaded machine needs."""
    command, environment = prepare_two(tmp_path, launcher, output, *options, main=main)
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "num-gpus"])
def test_two_processes_equal_one(tmp_path: Path, launcher: str) -> None:
    import two_processes

    alone = start(tiny_config(tmp_path / "one", *two_processes.KEYS), trainer_class=two_processes.HalfTrainer)
    alone.train()
    done = run_two(tmp_path, launcher, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / name / "model_final.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-6, msg=name)
    states = torch.load(tmp_path / "two" / "model_final.pth", weights_only=True)["trainer"]["random_states"]
    assert len(states) == 2
    assert (tmp_path / "two" / "exit_0").exists() and (tmp_path / "two" / "exit_1").exists()  # atexit ran
    # Data workers start as in one process: a spawned one would import everything again.
    methods = [(tmp_path / "two" / f"workers_{rank}").read_text() for rank in (0, 1)]
    assert methods == [multiprocessing.get_start_method()] * 2
    resumed = run_two(tmp_path, launcher, tmp_path / "two", "--resume")
    assert resumed.returncode == 0, resumed.stderr


@pytest.mark.slow
def test_two_machines_of_one_process_train_as_one(tmp_path: Path) -> None:
    """Two agents of torchrun, as GETTING_STARTED.md starts them on two machines; they meet in a free port."""
    import two_processes

    alone = start(tiny_config(tmp_path / "one", *two_processes.KEYS), trainer_class=two_processes.HalfTrainer)
    alone.train()
    command, environment = prepare_two(tmp_path, "torchrun", tmp_path / "two")
    # Kept open while the agents run, so that the port cannot go to somebody else: they are clients of this store.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "test"]
    place += ["--rdzv-endpoint", f"127.0.0.1:{store.port}", "--rdzv-conf", "is_host=0", "--local-addr", "127.0.0.1"]
    index = command.index("--nproc-per-node")
    command[index : index + 3] = place
    agents = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    try:
        texts = [agent.communicate()[0] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert [agent.returncode for agent in agents] == [0, 0], texts
    one, two = (load_file(tmp_path / name / "model_final.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "num-gpus"])
def test_a_bad_loss_on_one_process_skips_the_step_on_both(tmp_path: Path, launcher: str) -> None:
    done = run_two(tmp_path, launcher, tmp_path / "two", "SOLVER.MAX_NONFINITE_STEPS", "9", "SEED", "99")
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "two" / "log.txt").read_text()
    assert "1 step(s) were skipped" in log
    assert "image_bad.png" in log
    final = load_file(tmp_path / "two" / "model_final.safetensors")
    assert all(value.isfinite().all() for value in final.values())


def check_status(done: subprocess.CompletedProcess[str], launcher: str, status: int) -> None:
    """torchrun has a status of its own, and names that of the rank which failed first in a table."""
    if launcher == "num-gpus":
        assert done.returncode == status, done.stderr
    else:
        assert done.returncode == 1, done.stderr
        assert re.search(rf"exitcode +: {status} ", done.stderr), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "num-gpus"])
@pytest.mark.parametrize("main", ["user_error_on_all", "user_error_on_rank_0", "user_error_on_rank_1"])
def test_a_user_error_is_told_once_and_ends_all_ranks(tmp_path: Path, launcher: str, main: str) -> None:
    """The other rank waits in a collective operation, or goes its own way, or has the same error."""
    done = run_two(tmp_path, launcher, tmp_path / "two", main=main)
    check_status(done, launcher, 2)
    assert len(re.findall(r"^Error \(rank [01]\): no file x\.json$", done.stderr, re.M)) == 1, done.stderr
    if main != "user_error_on_all":
        assert f"Error (rank {main[-1]}): " in done.stderr
    assert "ended by itself" not in done.stdout
    if launcher == "num-gpus":
        said = [line for line in done.stderr.splitlines() if line]
        assert said[1:] == ["(--debug shows where it arose)"], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "num-gpus"])
def test_an_unexpected_error_is_told_by_its_rank_only(
    tmp_path: Path, launcher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # for the file with the traceback
    done = run_two(tmp_path, launcher, tmp_path / "two", main="unexpected_error_on_rank_1")
    check_status(done, launcher, 1)
    told = re.findall(
        r"^Error \(rank 1\): .* KeyError: our own mistake\. The traceback is in (\S+)\. ", done.stderr, re.M
    )
    assert len(told) == 1, done.stderr
    assert "KeyError: 'our own mistake'" in Path(told[0]).read_text()
    assert "Error (rank 0)" not in done.stderr
    if launcher == "num-gpus":
        assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "num-gpus"])
def test_an_error_in_the_middle_of_the_training_is_told_once(tmp_path: Path, launcher: str) -> None:
    done = run_two(tmp_path, launcher, tmp_path / "two", "SEED", "98")
    check_status(done, launcher, 2)
    assert done.stderr.count("image_bad.png cannot be read") == 1, done.stderr
    if launcher == "num-gpus":
        assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_rank_that_is_killed_takes_the_others_with_it(tmp_path: Path) -> None:
    done = run_two(tmp_path, "num-gpus", tmp_path / "two", main="rank_1_is_killed")
    assert done.returncode == 128 + signal.SIGKILL, done.stderr


@contextlib.contextmanager
def started(tmp_path: Path, launcher: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A job that trains without end and has saved a checkpoint; its output goes to `tmp_path`/text."""
    out = tmp_path / "out"
    endless = ("SOLVER.MAX_ITER", "1000000", "SOLVER.CHECKPOINT_PERIOD", "50", "TEST.EVAL_PERIOD", "0")
    command, environment = prepare_two(tmp_path, launcher, out, *endless, *options)
    with (tmp_path / "text").open("w") as output:
        job = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        while not (out / "last_checkpoint").is_file() and job.poll() is None:
            time.sleep(0.05)
        assert job.poll() is None, (tmp_path / "text").read_text()
        yield job
    finally:
        job.terminate()  # the ranks of torchrun are in sessions of their own, and only torchrun can end them
        try:
            job.wait(timeout=600)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)


def check_stop(tmp_path: Path, number: signal.Signals) -> str:
    """The job said why it stopped, and its last checkpoint is whole; returns what it wrote."""
    text, out = (tmp_path / "text").read_text(), tmp_path / "out"
    assert f"Stopped by {number.name}" in text, text
    assert "terminate called" not in text and "destroy_process_group" not in text
    last = (out / "last_checkpoint").read_text()
    assert torch.load(out / last, weights_only=True)["iteration"] == int(last[6:13])
    assert f"continue with --resume from {out}." in text
    return text


@pytest.mark.slow
@pytest.mark.parametrize("receivers", ["all", "launcher"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_to_a_job_of_two_processes_saves_a_checkpoint(
    tmp_path: Path, number: signal.Signals, receivers: str
) -> None:
    """A batch system signals each process, `kill` only the one that was started; a terminal sends Ctrl-C to all."""
    with started(tmp_path, "num-gpus") as job:
        (os.killpg if receivers == "all" else os.kill)(job.pid, number)
        job.wait()
    text = check_stop(tmp_path, number)
    assert job.returncode == 128 + number, text
    assert "Traceback" not in text


@pytest.mark.slow
def test_signal_to_torchrun_saves_a_checkpoint(tmp_path: Path) -> None:
    with started(tmp_path, "torchrun") as job:
        job.terminate()
        job.wait()
    check_stop(tmp_path, signal.SIGTERM)
