"""Run cases of a kind in forked children, so that even a crash is a finding with its seed.

A kind is a module of this directory with

    prepare(root) -> state        once, before the fork: constant files below `root`, models, configs
    run(state, case) -> None      one case: mutate, and do what a user would do; raises what is a finding

A case depends on its kind and seed alone.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
import select
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from .guard import CPU_SECONDS, Forbidden, restrict, start_clock, stop_clock
from .judgment import Case, Finding, describe

KINDS = (
    "coco",
    "panoptic",
    "label_maps",
    "ytvis",
    "weights",
    "resume",
    "configs",
    "images",
    "results",
    "journals",
    "names",
    "formats",
)
_SHOWN = 10  # further seeds of a sort of finding
_SILENCE = 300.0  # seconds without a case that ends: the child waits for something


@dataclass(frozen=True)
class Result:
    """How a case ended.

    Attributes:
        kind, seed: of the case.
        accepted: whether something in it was accepted; False if everything was refused with an explained error.
        finding: what went wrong, "" if nothing did.
        signature: equal for findings that are probably one fault.
        seconds: CPU time.
    """

    kind: str
    seed: int
    accepted: bool = False
    finding: str = ""
    signature: str = ""
    seconds: float = 0.0

    def report(self) -> str:
        """Return the finding with the command that repeats it."""
        return f"{self.kind} {self.seed}: {self.finding}\n    repeat: python -m tests.fuzz {self.kind} {self.seed}"


def run_cases(kind: str, seeds: Sequence[int]) -> Iterator[Result]:
    """Run cases and yield their results, in the order of the seeds."""
    with tempfile.TemporaryDirectory(prefix="fuzz_") as temporary:
        root = Path(temporary).resolve()
        (root / "constant").mkdir()
        module: Any = importlib.import_module(f"{__package__}.{kind}")
        state = module.prepare(root / "constant")
        yield from in_children(kind, lambda case: module.run(state, case), seeds, root)


def run_case(kind: str, seed: int, directory: Path) -> bool:
    """Run one case in this process, without limits; raises what is a finding, returns whether anything was accepted."""
    (directory / "constant").mkdir()
    module: Any = importlib.import_module(f"{__package__}.{kind}")
    state = module.prepare(directory / "constant")
    return _run_one(kind, lambda case: module.run(state, case), seed, directory)


def in_children(kind: str, run: Callable[[Case], object], seeds: Sequence[int], root: Path) -> Iterator[Result]:
    """Run `run` for each seed in a forked child; after a crash the rest runs in another one."""
    remaining = list(seeds)
    gc.collect()
    gc.freeze()  # the children copy fewer pages
    try:
        while remaining:
            crash_log = root / "crash.log"
            with crash_log.open("w+") as log:
                reader, child = _fork(kind, run, remaining, root, log)
                lines = _lines(reader, child)
                for line in lines:
                    yield Result(**json.loads(line))
                    remaining.pop(0)
                _, status = os.waitpid(child, 0)
                if remaining:  # the child did not come to its end
                    log.seek(0)
                    yield _crash(kind, remaining.pop(0), status, log.read())
    finally:
        gc.unfreeze()


def _fork(kind: str, run: Callable[[Case], object], seeds: Sequence[int], root: Path, log: IO[str]) -> tuple[int, int]:
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: see guard.restrict
        child = os.fork()
    if child:
        os.close(writer)
        return reader, child
    status = 1
    try:
        os.close(reader)
        watch = restrict(root, log)
        for seed in seeds:
            watch.seen.clear()
            result = _judged(kind, run, seed, root, watch.seen)
            os.write(writer, (json.dumps(asdict(result)) + "\n").encode())
        status = 0
    except BaseException:
        log.write(traceback.format_exc())
        log.flush()
    finally:
        os._exit(status)


def _judged(kind: str, run: Callable[[Case], object], seed: int, root: Path, forbidden: Sequence[str]) -> Result:
    start = time.process_time()
    accepted, text, signature = False, "", ""
    start_clock()
    try:
        accepted = _run_one(kind, run, seed, root)
        if forbidden:
            raise Forbidden(forbidden[0])
    except (Exception, Forbidden, KeyboardInterrupt, SystemExit) as error:
        text, signature = describe(error)
    finally:
        stop_clock()
    return Result(kind, seed, accepted, text, signature, round(time.process_time() - start, 4))


def _run_one(kind: str, run: Callable[[Case], object], seed: int, root: Path) -> bool:
    directory = root / "case"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    number = random.Random(f"{kind} {seed}").getrandbits(32)
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)
    case = Case(seed, random.Random(number), directory)
    run(case)
    return case.accepted


def _lines(reader: int, child: int) -> Iterator[str]:
    """Yield the complete lines that a child writes; end a child that is silent for too long."""
    pending = b""
    try:
        while True:
            if not select.select([reader], [], [], _SILENCE)[0]:
                os.kill(child, signal.SIGKILL)
            part = os.read(reader, 1 << 16)
            if not part:
                return
            *lines, pending = (pending + part).split(b"\n")
            yield from (line.decode() for line in lines)
    finally:
        os.close(reader)


def _crash(kind: str, seed: int, status: int, log: str) -> Result:
    frames = [line.strip() for line in log.splitlines() if "File" in line or "Error" in line]
    own = [line for line in frames if "mask2former/" in line]
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        reason = {
            "SIGPROF": f"more than {CPU_SECONDS:g} s of CPU time",
            "SIGKILL": f"killed: too much memory, or no end within {_SILENCE:g} s",
        }.get(name, f"the process died of {name}")
    else:
        reason = f"the process ended with status {os.WEXITSTATUS(status)}"
    text = "\n".join([reason, *(f"    {frame}" for frame in frames[:8])])
    return Result(kind, seed, False, text, f"{reason} in {(own or frames or ['?'])[0]}")


def summarize(results: Sequence[Result]) -> list[str]:
    """Return a report of one finding of each signature, the most frequent first, with the seeds of others."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        if result.finding:
            groups.setdefault(result.signature, []).append(result)
    reports = []
    for group in sorted(groups.values(), key=len, reverse=True):
        others = " ".join(str(result.seed) for result in group[1 : 1 + _SHOWN])
        reports.append(f"[{len(group)} times] {group[0].report()}" + (f"\n    also: {others}" if others else ""))
    return reports


def check(results: Sequence[Result]) -> None:
    """Raise an AssertionError if there are findings."""
    count, reports = sum(bool(result.finding) for result in results), summarize(results)
    text = "\n".join(reports)
    assert not reports, f"{count} findings of {len(reports)} sorts in {len(results)} cases\n{text}"


__all__ = ["KINDS", "Case", "Finding", "Result", "check", "in_children", "run_case", "run_cases", "summarize"]
