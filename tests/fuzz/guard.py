"""What a child process may do while it runs cases: limited memory and time, no programs, no files elsewhere."""

from __future__ import annotations

import faulthandler
import logging
import os
import resource
import signal
import sys
import warnings
from pathlib import Path
from typing import IO, Any

import cv2
import torch

MEMORY = 3 << 29  # bytes beyond what the process has at its start; threads reserve some of it
CPU_SECONDS = 10.0  # of a case; most take milliseconds
_PROGRAMS = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "pty.spawn",
)
_NETWORK = ("socket.connect", "socket.getaddrinfo", "urllib.Request")
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "shutil.rmtree")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Forbidden(BaseException):
    """The program did something that no file may make it do; not an Exception, so that nothing handles it."""


class Watch:
    """Audit hook that raises `Forbidden`; `seen` keeps what was raised, in case something swallowed it."""

    def __init__(self, directory: Path) -> None:
        self.directory = str(directory.resolve())
        self.seen: list[str] = []

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = args
            writes = bool(set("wax+") & set(mode)) if isinstance(mode, str) else bool((flags or 0) & _WRITING)
            if writes and self._is_elsewhere(path):
                self._refuse(f"writes {path!r}")
        elif event in _CHANGES and (args[-1] == -1 or event == "shutil.rmtree"):  # not relative to an open directory
            if any(self._is_elsewhere(path) for path in args[: 2 if event == "os.rename" else 1]):
                self._refuse(f"{event} {args[0]!r}")
        elif event in _PROGRAMS:
            self._refuse(f"starts a program: {event} {str(args)[:200]}")
        elif event in _NETWORK:
            self._refuse(f"uses the network: {event} {str(args)[:200]}")

    def _is_elsewhere(self, path: Any) -> bool:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return False
        text = os.path.abspath(os.fsdecode(path))
        return not text.startswith((self.directory, "/dev/"))

    def _refuse(self, text: str) -> None:
        self.seen.append(text)
        raise Forbidden(text)


def restrict(directory: Path, crash_log: IO[str]) -> Watch:
    """Restrict this process for the rest of its life.

    Args:
        directory: the only place where files may be written.
        crash_log: gets the frames when the process dies by a signal, also by that of the CPU time.
    """
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    sys.dont_write_bytecode = True
    null = open(os.devnull, "w")  # noqa: SIM115  (until the process ends)
    for descriptor in (1, 2):
        os.dup2(null.fileno(), descriptor)
    sys.stdout = sys.stderr = null
    # After a fork the threads of OpenMP and OpenCV are gone, and waiting for them would take for ever.
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    faulthandler.enable(crash_log, all_threads=False)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    faulthandler.register(
        signal.SIGPROF, crash_log, all_threads=False, chain=True
    )  # the default action ends the process
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    watch = Watch(directory)
    sys.addaudithook(watch)
    return watch


def start_clock() -> None:
    """Give the next case its CPU time, which does not depend on what else the machine does."""
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)


def stop_clock() -> None:
    """Stop the time of a case."""
    signal.setitimer(signal.ITIMER_PROF, 0)
