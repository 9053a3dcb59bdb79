"""`tools/benchmark.py scale`: the training step on 1, 2, ... ranks, each with its own batch; how well it scales.

Every count of ranks starts new processes, as `train_net.py --num-gpus N` does (on a CPU the ranks share it, so that
only the mechanism is measured). As in a training, a rank takes 10 steps in a row without a wait between them; the
all-reduce of gradients keeps the ranks in step with each other. Times are those of a step, of the slowest rank.
Efficiency is the speed of a rank compared to that of one rank alone.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from mask2former.benchmark import training
from mask2former.benchmark.measure import StepsInARow, peak_memory, timed
from mask2former.benchmark.report import GIB, Figure, Report, Row
from mask2former.benchmark.synthetic import batch_of, config_of, settings, title
from mask2former.engine.data_parallel import distribute
from mask2former.engine.launch import launch
from mask2former.utils.file_io import read_json, write_json
from mask2former.utils.parallel import use_one_thread

STEPS = 10  # in a row


def run(args: argparse.Namespace, describe: str, config: str) -> Report:
    """Measure all counts of ranks.

    Args:
        args: those of `training.run`, and `ranks`, the largest count.
        describe: a line about this machine.
        config: config file.

    Raises:
        ValueError: fewer GPUs than ranks, or a config that cannot be measured.
    """
    cfg = config_of(args, config)
    device = torch.device(args.device)
    counts = [n for n in (1, 2, 4, 8, 16) if n < args.ranks] + [args.ranks]
    if device.type == "cuda" and torch.cuda.device_count() < args.ranks:
        raise ValueError(f"--ranks {args.ranks}, but this machine has {torch.cuda.device_count()} GPUs")
    name = f"{title(args, config, cfg)} on each of 1 to {args.ranks} ranks, {STEPS} steps in a row"
    # Reports of steps with a wait after each, which older versions wrote, are another case.
    given = settings(args, config, cfg, "objects", "ranks") | {"steps in a row": STEPS}
    report = Report("scale", name, given, device)
    alone = 0.0
    for ranks in counts:
        found = measure(args, config, ranks)
        row = Row(f"{ranks} rank{'s' if ranks > 1 else ''}")
        row.figures.append(Figure.of("time", [s * 1e3 for s in found["seconds"]], "ms"))
        row.figures.append(Figure.of("images", [ranks * args.batch / s for s in found["seconds"]], "images/s"))
        row.add("peak memory of a rank", found["memory"] / GIB, "GiB")
        alone = alone or row.value("images")
        row.add("efficiency", row.value("images") / ranks / alone * 100, "%")
        report.rows.append(row)
    print(report)
    return report


def measure(args: argparse.Namespace, config: str, ranks: int) -> dict[str, Any]:
    """Start `ranks` processes; return what the first one found: `seconds` of a step, by repeat, and `memory` in bytes.

    Raises:
        RuntimeError: a rank failed; it has said why.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark_scale_") as directory:
        output = Path(directory) / "found.json"
        job = argparse.Namespace(**vars(args))
        job.config, job.output, job.num_gpus = config, str(output), ranks
        job.num_machines, job.machine_rank, job.dist_url = 1, 0, "auto"
        # A process also for one rank: this one must not hold memory of a GPU.
        process = multiprocessing.get_context("spawn").Process(target=_launch, args=(job,))
        process.start()
        process.join()
        if process.exitcode or not output.is_file():
            raise RuntimeError(f"{ranks} ranks ended with status {process.exitcode}")
        found: dict[str, Any] = read_json(output, "times of the ranks")
    return found


def _launch(args: argparse.Namespace) -> None:
    sys.exit(launch(steps_of_a_rank, args))


def steps_of_a_rank(args: argparse.Namespace) -> None:
    """Take the steps of this rank; the first rank writes the times of the slowest and the largest memory of all."""
    cfg: CfgNode = config_of(args, args.config)
    device = torch.device(args.device)
    if device.type == "cuda":
        use_one_thread()  # as trainings do
        device = torch.device("cuda", comm.get_local_rank())
        cfg.MODEL.DEVICE = str(device)
    model = distribute(training.build_for_training(cfg), reduction=cfg.SOLVER.GRADIENT_REDUCTION)
    work = training.training_step(args, cfg, model, batch_of(args, cfg, comm.get_rank()))
    seconds = timed(StepsInARow(work, STEPS), args.repeats, device, warmup=1)
    memory = peak_memory(work, device)
    everyone = comm.gather({"seconds": seconds, "memory": memory})
    if comm.is_main_process():
        slowest = [max(each) for each in zip(*(one["seconds"] for one in everyone), strict=True)]
        write_json(args.output, {"seconds": slowest, "memory": max(one["memory"] for one in everyone)})
