"""What the op is compiled with: torch is read, compilers and GPUs are found, or one line says why not."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mask2former.installation import toolchain
from tests.installation.imitation import NVCC_12_4, NVCC_13, make_nvcc, make_torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("requested", "known", "code", "ptx"),
    [
        ("", NVCC_13, ["80", "90", "100", "120"], ["120"]),
        ("", NVCC_12_4, ["80", "90"], ["90"]),  # an older nvcc gets what it supports
        ("9.0", NVCC_13, ["90"], []),
        ("8.6+PTX;9.0a", NVCC_13, ["86", "90a"], ["86"]),
        ("5.0 7.5 8.0 12.0+PTX", NVCC_13, ["80", "120"], ["120"]),  # a container's list, older ones left out
        ("8.0,10.0", NVCC_12_4, ["80"], []),
    ],
)
def test_cuda_code_is_what_was_requested_and_nvcc_supports(
    requested: str, known: tuple[int, ...], code: list[str], ptx: list[str]
) -> None:
    flags = toolchain.cuda_flags(requested, known)
    assert [flag.rpartition("=sm_")[2] for flag in flags if "code=sm_" in flag] == code
    assert [flag.rpartition("=compute_")[2] for flag in flags if "code=compute_" in flag] == ptx


def test_unusable_list_of_architectures_is_explained() -> None:
    with pytest.raises(toolchain.Unavailable, match="contains 'Hopper'.*9.0 or 8.6"):
        toolchain.cuda_flags("8.0;Hopper", NVCC_13)
    with pytest.raises(toolchain.Unavailable, match=r"is '7\.5'.* 8\.0, 8\.6, "):
        toolchain.cuda_flags("7.5", NVCC_13)


@pytest.mark.parametrize(("version", "cuda"), [("2.10.0", "12.8"), ("2.11.0+cpu", None), ("3.0.0a0+git1", "13.0")])
def test_torch_is_read_without_importing_it(version: str, cuda: str | None, tmp_path: Path) -> None:
    expected = make_torch(tmp_path, version, cuda)
    assert toolchain.find_torch([tmp_path / "empty", tmp_path]) == expected


def test_unusable_torch_is_explained(tmp_path: Path) -> None:
    with pytest.raises(toolchain.Unavailable, match="no torch is installed.*--no-build-isolation"):
        toolchain.find_torch([tmp_path])
    make_torch(tmp_path / "old", "2.9.1")
    with pytest.raises(toolchain.Unavailable, match=r"torch 2\.9\.1 is older than 2\.10"):
        toolchain.find_torch([tmp_path / "old"])
    headless = make_torch(tmp_path / "headless")
    shutil.rmtree(headless.directory / "include")
    with pytest.raises(toolchain.Unavailable, match="has no C.. headers"):
        toolchain.find_torch([tmp_path / "headless"])


def test_torch_of_the_surrounding_environment_is_found() -> None:
    """Find torch as in a build that pip isolates: it is not on sys.path, but installed where pip runs."""
    script = "import sys; sys.path[:] = [path for path in sys.path if 'site-packages' not in path]\n"
    script += f"sys.path.insert(0, {str(ROOT / 'tools')!r})\n"
    script += "toolchain = __import__('installation_package').load('toolchain')\n"
    script += "print(toolchain.find_torch(toolchain.package_directories()).directory)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    assert Path(done.stdout.strip()).samefile(Path(spec.origin).parent)


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script replaces nvcc")
def test_nvcc_of_pip_is_found_beside_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = make_torch(tmp_path)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(toolchain.os, "access", lambda path, mode: tmp_path in path.parents and path.is_file())
    with pytest.raises(toolchain.NoCuda, match="nvcc not found .*CUDA toolkit 13"):
        toolchain.find_nvcc(torch)
    nvcc = make_nvcc(tmp_path / "nvidia/cu13/bin/nvcc")
    assert toolchain.find_nvcc(torch) == str(nvcc)


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script replaces nvidia-smi")
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("echo 'GPU 0: NVIDIA H100 (UUID: GPU-1)'", True),
        ("echo 'No devices found.'", False),
        ("echo 'GPU access blocked'; exit 9", False),
        ("exit 9", False),
        (None, False),
    ],
)
def test_gpu_is_found_without_importing_torch(
    answer: str | None, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toolchain, "DEVICE_FILES", ())
    monkeypatch.setattr(toolchain, "WSL_TOOLS", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    if answer is not None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\n{answer}\n")
        tool.chmod(0o755)
    assert toolchain.has_nvidia_gpu() is expected


def test_device_file_of_a_gpu_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "DEVICE_FILES", ((str(tmp_path), "nvidia[0-9]*"),))
    monkeypatch.setenv("PATH", "")
    (tmp_path / "nvidiactl").write_text("")  # of a driver without a GPU
    assert not toolchain.has_nvidia_gpu()
    (tmp_path / "nvidia0").write_text("")
    assert toolchain.has_nvidia_gpu()
