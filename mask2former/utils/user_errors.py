"""What a user reads about an error: file, reason, remedy; or nothing, if the error is a fault of the program."""

from __future__ import annotations

import builtins
import errno
import io
import os
import re
import traceback
import zipfile
import zlib
from collections.abc import Iterator

_CAUSED_BY_USERS: tuple[type[BaseException], ...] = (
    OSError,
    ValueError,
    ImportError,
    EOFError,
    FloatingPointError,
    MemoryError,
    RecursionError,
    zipfile.BadZipFile,
    zlib.error,
)
# Classes of packages that are not imported for this.
_CAUSED_BY_USERS_TOO = frozenset(
    {
        *("YAMLError", "DecompressionBombError", "SafetensorError", "UnpicklingError", "BrokenProcessPool"),
        *("OutOfMemoryError", "DistBackendError", "DistNetworkError", "DistStoreError"),
    }
)
_DAMAGED = frozenset({"EOFError", "BadZipFile", "SafetensorError", "UnpicklingError"})

_REMEDIES = {
    errno.ENOSPC: "free some space, or choose another output directory",
    errno.EDQUOT: "free some space, or choose another output directory",
    errno.EACCES: "choose a file or directory for which you have the permission",
    errno.EPERM: "choose a file or directory for which you have the permission",
    errno.EROFS: "choose an output directory that can be written",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a part of this path is a file; choose another one",
    errno.EISDIR: "give a file",
    errno.EEXIST: "choose another path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "its links lead in a circle",
    errno.EMFILE: "raise the limit with ulimit -n",
    errno.EIO: "the disk or the network has a fault; try again, or use a copy of the file",
    errno.ESTALE: "the network drive has gone; try again",
    errno.ENOMEM: "use smaller images, or fewer worker processes",
}

_OUT_OF_MEMORY = "use smaller images, a smaller batch, or fewer worker processes"
_OUT_OF_GPU_MEMORY = "use smaller images, a smaller batch, or the CPU (--device cpu, MODEL.DEVICE cpu)"
_NO_GPU = "use the CPU (--device cpu, MODEL.DEVICE cpu), or install a PyTorch that fits GPU and driver"

# Errors that PyTorch and OpenCV raise under a general class: what their text contains, and what to say.
_BY_TEXT = (
    (r"CUDA.*out of memory|CU(BLAS|DNN)_STATUS_ALLOC_FAILED|MPS backend out of memory", _OUT_OF_GPU_MEMORY),
    (r"can't allocate memory|[Ii]nsufficient memory|Cannot allocate memory", _OUT_OF_MEMORY),
    (
        r"DataLoader worker .*(killed by signal|exited unexpectedly)",
        "memory or shared memory (/dev/shm) has probably run out: use fewer workers (DATALOADER.NUM_WORKERS)",
    ),
    (r"received \d+ items of ancdata|[Tt]oo many open files", _REMEDIES[errno.EMFILE]),
    (r"No space left on device|unable to (write to|mmap)|unable to open shared memory", _REMEDIES[errno.ENOSPC]),
    (r"PytorchStreamWriter failed|unexpected pos \d+ vs", f"is the disk full? Then {_REMEDIES[errno.ENOSPC]}"),
    (r"No CUDA GPUs|no NVIDIA driver|invalid device ordinal|not compiled with CUDA|no kernel image", _NO_GPU),
    (r"driver version is insufficient|CUDA-capable device|driver .* is too old", _NO_GPU),
    (r"not currently implemented for the MPS", "use another device (--device cpu, MODEL.DEVICE cpu)"),
)

# What PyTorch makes of an error in a worker of a data loader: its class, and its traceback as text.
_OF_A_WORKER = re.compile(r"\ACaught (\w+) in .*\.\nOriginal Traceback")
_OF_THE_SYSTEM = re.compile(r"\A\[(?:Errno|WinError) (\d+)\] ([^:]*)(?:: b?['\"](.*)['\"])?\Z", re.DOTALL)
_FILE_VARIABLES = ("path", "file", "json_file", "file_name", "filename", "source", "config_file")


def user_message(error: BaseException) -> str | None:
    """Return what to tell about an error that users can cause; None: the error is a fault of the program.

    The message has one line, unless the error's own has more, and no traceback, not even that of a loader worker.
    """
    kind, text = _original(error)
    remedy = _remedy_by_text(text)
    if not _is_caused_by_users(kind):
        return None if remedy is None else f"{_first_line(text)}: {remedy}"
    names = {base.__name__ for base in kind.__mro__}
    if "OutOfMemoryError" in names:
        return f"out of GPU memory: {_first_line(text)}: {_OUT_OF_GPU_MEMORY}"
    if issubclass(kind, MemoryError):
        return _with_file(error, f"out of memory{_in_brackets(text)}: {_OUT_OF_MEMORY}")
    if issubclass(kind, RecursionError):
        return _with_file(error, "the data is nested too deeply, or refers to itself")
    if issubclass(kind, UnicodeDecodeError):
        return _with_file(error, f"is not text in UTF-8{_in_brackets(text)}; save it as UTF-8")
    if issubclass(kind, UnicodeEncodeError):
        return f"{text}: a name has characters that cannot be written here; set PYTHONUTF8=1, or rename the file"
    if "BrokenProcessPool" in names:
        return "a worker process died, perhaps out of memory: use --workers 1"
    if names & _DAMAGED or issubclass(kind, zlib.error):
        return _with_file(error, f"is damaged or truncated{_in_brackets(text)}: copy or download it again")
    if "YAMLError" in names:
        return _with_file(error, f"is not valid YAML: {' '.join(text.split())}")
    if issubclass(kind, OSError) and (system := _OF_THE_SYSTEM.match(text)):
        return _of_the_system(int(system[1]), system[2].strip(), system[3] or "")
    if names & {"DistBackendError", "DistNetworkError", "DistStoreError"}:
        return f"the ranks cannot reach each other: {_first_line(text)}"
    return text or _with_file(error, kind.__name__)


def original_text(error: BaseException) -> str:
    """Return class and message of an error in one line, without the traceback of a loader worker."""
    kind, text = _original(error)
    return f"{kind.__name__}: {_first_line(text)}" if text else kind.__name__


def _original(error: BaseException) -> tuple[type[BaseException], str]:
    """Return class and message of an error; of one that came from a loader worker, those that it had there."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    wrapped = _OF_A_WORKER.match(text)
    if wrapped is None:
        return type(error), text
    name = wrapped[1]
    lines = list(re.finditer(rf"^(?:[\w.]+\.)?{name}(?:: |$)", text, re.MULTILINE))
    kind = type(error) if type(error).__name__ == name else _class_of(name)
    return kind or type(error), text[lines[-1].end() :].strip() if lines else _first_line(text)


def _class_of(name: str) -> type[BaseException] | None:
    """Return an exception class by its name, if a module that defines one is loaded."""
    found = getattr(builtins, name, None)
    if isinstance(found, type) and issubclass(found, BaseException):
        return found
    return next((kind for kind in _subclasses(Exception) if kind.__name__ == name), None)


def _subclasses(kind: type[BaseException]) -> Iterator[type[BaseException]]:
    for child in kind.__subclasses__():
        yield child
        yield from _subclasses(child)


def _is_caused_by_users(kind: type[BaseException]) -> bool:
    return issubclass(kind, _CAUSED_BY_USERS) or any(base.__name__ in _CAUSED_BY_USERS_TOO for base in kind.__mro__)


def _remedy_by_text(text: str) -> str | None:
    return next((remedy for pattern, remedy in _BY_TEXT if re.search(pattern, text)), None)


def _of_the_system(number: int, reason: str, path: str) -> str:
    # A reason with a semicolon has a remedy already, of `atomic_file.check_writable`.
    remedy = f": {_REMEDIES[number]}" if number in _REMEDIES and ";" not in reason else ""
    place = f"{path}: " if path else ""
    return f"{place}{reason[:1].lower()}{reason[1:]} (errno {number}){remedy}"


def _with_file(error: BaseException, text: str) -> str:
    path = _file_of(error)
    return f"{path}: {text}" if path is not None else text


def _file_of(error: BaseException) -> str | None:
    """Return the file that the failed function worked on, for errors that do not name it."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        for name in _FILE_VARIABLES:
            value = frame.f_locals.get(name)
            value = getattr(value, "name", None) if isinstance(value, io.IOBase) else value
            if isinstance(value, str | os.PathLike) and not str(value).endswith(".py") and os.path.isfile(value):
                return os.fspath(value)
    return None


def _in_brackets(text: str) -> str:
    return f" ({_first_line(text)})" if text else ""


def _first_line(text: str) -> str:
    return next((line.strip().rstrip(".") for line in text.splitlines() if line.strip()), "")
