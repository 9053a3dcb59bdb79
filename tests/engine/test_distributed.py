"""Two CPU processes (gloo) must train as one does with the same whole batch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
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


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def run_two(tmp_path: Path, launcher: str, output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Train `two_processes.HalfTrainer` on two processes."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(here=str(HERE)))
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(HERE.parents[1])}
    port = free_port()
    if launcher == "torchrun":
        start_command = [
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            "2",
            f"--master-port={port}",
            str(script),
        ]
    else:
        start_command = [str(script), "--num-gpus", "2", "--dist-url", f"tcp://127.0.0.1:{port}"]
    return subprocess.run(
        [sys.executable, *start_command, *options, "OUTPUT_DIR", str(output)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


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
