"""Which back end serves: libraries that are missing, broken or for another torch never stop the import."""

from __future__ import annotations

import logging
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mask2former.ops import backend, extension, ms_deform_attn, pytorch_backend, registration
from mask2former.ops.extension import EXTENSIONS, Extension
from tests.ops.cases import Case, make, reference_op

OPS = Path(extension.__file__).parent
ENTRY = sys.modules[ms_deform_attn.__module__]  # the package shows the function under the module's name
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the directory of libraries, empty."""
    monkeypatch.setattr(extension, "_DIRECTORY", tmp_path)
    return tmp_path


@pytest.fixture
def garbage(directory: Path) -> Path:
    """Write files that have names of libraries but are none."""
    for kind in ("cpu", "cuda"):
        (directory / f"_{kind}.abi3.so").write_bytes(b"not a library\n" * 100)
    return directory


# --- loading ---


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_missing_library(kind: str, directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = extension._load(kind)
    assert found == Extension(kind, None, "not built; see INSTALL.md, 'The compiled op'")
    assert "## The compiled op" in (ROOT / "INSTALL.md").read_text("utf-8")
    assert not caplog.records  # that is how most people use it


@pytest.mark.parametrize("version", ["2.9.1+cu128", "1.13", "2.4.0a0+git12", "unknown"])
def test_torch_that_is_too_old(
    version: str, garbage: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    found = extension._load("cpu")
    assert found.path == garbage / "_cpu.abi3.so"
    assert found.problem == f"needs torch 2.10 or newer, this is {version}"
    assert not caplog.records


@pytest.mark.parametrize("version", ["2.10.0", "2.11.0+cu130", "2.100.1", "3.0.0.dev20270101"])
def test_torch_that_is_new_enough(version: str, garbage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    assert extension._load("cpu").problem.startswith("does not load")  # so it was tried


def test_cuda_library_with_a_torch_for_cpu(garbage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert extension._load("cuda").problem == f"this torch ({torch.__version__}) has no CUDA"


def test_broken_library_is_a_warning(garbage: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "mask2former.ops.extension"):
        found = extension._load("cpu")
    path = garbage / "_cpu.abi3.so"
    assert found.path == path and found.problem.startswith("does not load: ")
    assert "ELF" in found.problem or sys.platform != "linux"  # the loader's reason, not only the file's name
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and record.getMessage().startswith(f"{path} does not load (")
    assert record.getMessage().endswith("deformable attention on cpu runs in PyTorch")


def test_libraries_are_loaded_once(garbage: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = dict(EXTENSIONS)
    extension.load_all()
    assert before == EXTENSIONS and set(EXTENSIONS) == {"cpu", "cuda"} and not caplog.records


# --- choosing ---


def test_device_without_library_runs_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXTENSIONS, "cpu", Extension("cpu", None, "not built"))
    assert not extension.loaded("cpu") and not extension.loaded("mps")
    assert backend("cpu") == backend("mps") == "pytorch"
    monkeypatch.setattr(registration, "ms_deform_attn", None)  # not called
    inputs = make(Case(reference="N"))
    assert torch.equal(inputs.call(), inputs.call(reference_op))


def test_pytorch_backend_is_a_context(cpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make(Case(reference="N"))
    compiled = inputs.call()
    assert backend("cpu") == "compiled"
    with pytest.raises(KeyError), pytorch_backend():
        with pytorch_backend():
            assert backend("cpu") == "pytorch"
        assert backend("cpu") == "pytorch"  # the outer one still holds
        monkeypatch.setattr(registration, "ms_deform_attn", None)
        torch.testing.assert_close(inputs.call(), compiled)
        raise KeyError
    assert backend("cpu") == "compiled"
    with pytest.raises(TypeError):
        inputs.call()


@pytest.mark.parametrize(("chosen", "forced"), [("pytorch", True), ("auto", False), (None, False)])
def test_environment_chooses(chosen: str | None, forced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASK2FORMER_OPS_BACKEND", raising=False)
    if chosen is not None:
        monkeypatch.setenv("MASK2FORMER_OPS_BACKEND", chosen)
    assert ENTRY._forced_by_environment() is forced
    monkeypatch.setattr(ENTRY, "_forced_pytorch", forced)  # as at the import
    monkeypatch.setitem(EXTENSIONS, "cpu", Extension("cpu", None, ""))
    assert backend("cpu") == ("pytorch" if forced else "compiled")


def test_environment_must_name_a_back_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASK2FORMER_OPS_BACKEND", "cuda")
    with pytest.raises(ValueError, match="MASK2FORMER_OPS_BACKEND must be auto or pytorch, got 'cuda'"):
        ENTRY._forced_by_environment()


def test_the_back_end_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    ENTRY._announce.cache_clear()
    inputs = make(Case())
    with caplog.at_level(logging.INFO, "mask2former.ops"), pytorch_backend():
        ms_deform_attn(inputs.value, inputs.shapes, inputs.sampling, inputs.attention)
        inputs.call()
    assert [x.getMessage() for x in caplog.records] == ["Deformable attention on cpu runs on the 'pytorch' back end"]


# --- the command ---


def status(capsys: pytest.CaptureFixture[str]) -> list[str]:
    with pytest.raises(SystemExit) as end:
        runpy.run_module("mask2former.ops", run_name="__main__")
    assert end.value.code == 0
    return capsys.readouterr().out.splitlines()


def test_command_names_the_reasons(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(EXTENSIONS, "cpu", Extension("cpu", None, "not built; see INSTALL.md"))
    monkeypatch.setitem(EXTENSIONS, "cuda", Extension("cuda", Path("x/_cuda.so"), "does not load: why"))
    versions, *lines = status(capsys)
    assert versions.startswith(f"torch {torch.__version__}, Python 3.")
    assert [line.split(maxsplit=2) for line in lines] == [
        ["pytorch", "everywhere", "yes"],
        ["compiled", "cpu", "no: not built; see INSTALL.md"],
        ["compiled", "cuda", "no: does not load: why"],
    ]


def test_command_names_the_files(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("cpu", "cuda"):
        monkeypatch.setitem(EXTENSIONS, kind, Extension(kind, Path(f"_{kind}.so"), ""))
    for available, note in ((True, ""), (False, " (loaded, but torch sees no CUDA device)")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda value=available: value)
        cpu, cuda = status(capsys)[2:]
        assert cpu.split(maxsplit=2)[2] == "yes, _cpu.so" and cuda.split(maxsplit=2)[2] == f"yes, _cuda.so{note}"


SCRIPT = """
import runpy, torch
from mask2former import ops
from mask2former.ops import registration
value, sampling = torch.ones(1, 4, 1, 3, requires_grad=True), torch.full((1, 2, 1, 1, 1, 2), 0.5)
attention = torch.full((1, 2, 1, 1, 1), 2.0)
for out in (ops.ms_deform_attn(value, [(2, 2)], sampling, attention),
            registration.ms_deform_attn(value, [2, 2], None, sampling, attention)):
    (grad,) = torch.autograd.grad(out.sum(), value)
    print(ops.backend("cpu"), out.unique().tolist(), grad.unique().tolist())
runpy.run_module("mask2former.ops", run_name="__main__")
"""


@pytest.mark.slow
def test_import_survives_a_broken_library(tmp_path: Path) -> None:
    """In a separate process: the package without its libraries, but with a file that looks like one."""
    package = tmp_path / "mask2former"
    shutil.copytree(OPS, package / "ops", ignore=shutil.ignore_patterns("*.so", "*.pyd", "csrc", "__pycache__"))
    (package / "__init__.py").write_text("")
    (package / "ops/_cpu.abi3.so").write_bytes(b"not a library\n" * 100)
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == ["pytorch [2.0] [1.0]"] * 2
    assert lines[4].split(maxsplit=2)[2].startswith("no: does not load: ") and lines[5].endswith("'The compiled op'")
    (warning,) = (line for line in done.stderr.splitlines() if "_cpu.abi3.so" in line)
    assert warning.endswith("deformable attention on cpu runs in PyTorch")
