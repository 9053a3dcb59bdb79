"""Two CPU processes (gloo) must train as one does with the same whole batch."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import start, tiny_config

HERE = Path(__file__).parent
WORKER = """
import sys
sys.path.insert(0, {here!r})
from two_processes import main
from mask2former.engine import argument_parser, launch

if __name__ == "__main__":
    sys.exit(launch(main, argument_parser().parse_args()))
"""


PORTS = itertools.count(12_000 + 1_000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) + os.getpid() % 900)


def free_port() -> int:
    """One that stays free until it is used: no system hands these out by itself, and no other test process has them."""
    for port in PORTS:
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port
    raise AssertionError


def prepare_two(tmp_path: Path, launcher: str, output: Path, *options: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment that train `two_processes.HalfTrainer` on two processes."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(here=str(HERE)))
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
        start_command = [str(script), "--num-gpus", "2", "--dist-url", f"tcp://127.0.0.1:{free_port()}"]
    return [sys.executable, *start_command, *options, "OUTPUT_DIR", str(output)], environment


def run_two(tmp_path: Path, launcher: str, output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Train to the end."""
    command, environment = prepare_two(tmp_path, launcher, output, *options)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


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
    resumed = run_two(tmp_path, launcher, tmp_path / "two", "--resume")
    assert resumed.returncode == 0, resumed.stderr


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


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "num-gpus"])
def test_user_error_in_child_processes(tmp_path: Path, launcher: str) -> None:
    done = run_two(tmp_path, launcher, tmp_path / "two", "SOLVER.BASE_LRR", "1")
    assert done.returncode == (1 if launcher == "torchrun" else 2)  # torchrun reports its own status
    assert "Unknown config key 'SOLVER.BASE_LRR'" in done.stderr
    if launcher == "num-gpus":
        assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("receivers", ["all", "launcher"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_to_a_job_of_two_processes_saves_a_checkpoint(
    tmp_path: Path, number: signal.Signals, receivers: str
) -> None:
    """A batch system signals each process, `kill` only the one that was started; a terminal sends Ctrl-C to all."""
    out = tmp_path / "out"
    endless = ("SOLVER.MAX_ITER", "1000000", "SOLVER.CHECKPOINT_PERIOD", "50", "TEST.EVAL_PERIOD", "0")
    command, environment = prepare_two(tmp_path, "num-gpus", out, *endless)
    with (tmp_path / "text").open("w") as output:
        job = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        for _ in range(900):
            if (out / "last_checkpoint").is_file() or job.poll() is not None:
                break
            time.sleep(0.1)
        (os.killpg if receivers == "all" else os.kill)(job.pid, number)
        job.wait(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
    text = (tmp_path / "text").read_text()
    assert f"Stopped by {number.name}" in text, text
    assert "Traceback" not in text
    assert job.returncode == 128 + number
    last = (out / "last_checkpoint").read_text()
    assert torch.load(out / last, weights_only=True)["iteration"] == int(last[6:13])
    assert f"continue with --resume from {out / last}" in text
