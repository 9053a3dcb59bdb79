from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader

from mask2former.errors import BadRecordError
from mask2former.utils.atomic_file import check_writable
from mask2former.utils.user_errors import original_text, user_message


def caught(work: Callable[[], object]) -> BaseException:
    with pytest.raises(BaseException) as info:
        work()
    return info.value


def read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_what_the_system_says_has_path_reason_number_and_remedy(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    told = user_message(caught(lambda: (path / "out").mkdir()))
    assert told == f"{path}/out: not a directory (errno 20): a part of this path is a file; choose another one"
    for number, remedy in ((28, "free some space"), (13, "permission"), (30, "can be written"), (24, "ulimit -n")):
        told = user_message(OSError(number, os.strerror(number), "/data/x"))
        assert told is not None and told.startswith("/data/x: ") and f"(errno {number})" in told and remedy in told
    told = user_message(caught(lambda: check_writable(path / "out", "--output", directory=True)))
    assert told == f"{path}/out: not a directory; choose another --output (errno 20)"
    assert user_message(FileNotFoundError("x is missing, give y")) == "x is missing, give y"


def test_files_that_the_error_does_not_name(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes("a: 1".encode("utf-16"))
    assert str(user_message(caught(lambda: read_text(path)))).startswith(f"{path}: is not text in UTF-8 (")

    def unpickle(path: Path) -> object:
        with path.open("rb") as file:
            return pickle.load(file)

    def parse(path: Path) -> object:
        return json.loads(path.read_text())

    path.write_bytes(b"")
    assert "is damaged or truncated" in str(user_message(caught(lambda: unpickle(path))))
    path.write_text("[" * 100_000)
    nested = str(user_message(caught(lambda: parse(path))))
    assert nested == f"{path}: the data is nested too deeply, or refers to itself"
    assert str(path) in str(user_message(caught(lambda: zipfile.ZipFile(path).testzip())))
    bad_yaml = str(user_message(caught(lambda: yaml.safe_load("a: [1"))))
    assert "not valid YAML" in bad_yaml and "\n" not in bad_yaml


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (MemoryError("Unable to allocate 9.31 GiB for an array"), "out of memory (Unable to allocate 9.31 GiB"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nlong"), "out of GPU memory: CUDA"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might"), "--device cpu"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "smaller images"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "DATALOADER.NUM_WORKERS"),
        (RuntimeError("DataLoader worker (pid(s) 1, 2) exited unexpectedly"), "DATALOADER.NUM_WORKERS"),
        (RuntimeError("Found no NVIDIA driver on your system."), "--device cpu"),
        (AssertionError("Torch not compiled with CUDA enabled"), "--device cpu"),
        (BrokenProcessPool("A process in the process pool was terminated"), "--workers 1"),
        (Image.DecompressionBombError("Image size (1 pixels) exceeds limit"), "exceeds limit"),
        (ModuleNotFoundError("No module named 'av'"), "'av'"),
        (FloatingPointError("the loss is not finite"), "not finite"),
        (ValueError(), "ValueError"),
    ],
)
def test_causes_outside_the_program(error: BaseException, part: str) -> None:
    told = user_message(error)
    assert told is not None and part in told and "\n" not in told


@pytest.mark.parametrize(
    "error", [AssertionError(), TypeError("x"), KeyError("a"), AttributeError("n"), RuntimeError("shape"), IndexError()]
)
def test_faults_of_the_program(error: BaseException) -> None:
    assert user_message(error) is None
    assert original_text(error).startswith(type(error).__name__)


def from_worker(error: Exception) -> BaseException:
    """Return what PyTorch makes of an error in a worker of a data loader."""
    try:
        raise error
    except type(error):
        wrapper = ExceptionWrapper(where="in DataLoader worker process 0")
    return caught(wrapper.reraise)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (BadRecordError("a.json", "no polygon", "annotation 3"), "a.json: annotation 3: no polygon"),
        (ValueError("a.png: 2 channels\ngive 3"), "a.png: 2 channels\ngive 3"),
        (PermissionError(13, "Permission denied", "a.png"), "a.png: permission denied (errno 13)"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "is not text in UTF-8"),
        (MemoryError("Unable to allocate"), "out of memory (Unable to allocate)"),
        (KeyError("area"), None),
    ],
)
def test_the_traceback_of_a_loader_worker_is_left_out(error: Exception, told: str | None) -> None:
    raised = from_worker(error)
    message = user_message(raised)
    if told is None:
        assert message is None and original_text(raised) == "KeyError: 'area'"
    else:
        assert message is not None and told in message and "Traceback" not in message


def refuse(batch: object) -> object:
    raise BadRecordError("a.json", "no polygon")


def test_a_real_loader_worker() -> None:
    raised = caught(lambda: next(iter(DataLoader([0], collate_fn=refuse, num_workers=1))))
    assert user_message(raised) == "a.json: no polygon"
