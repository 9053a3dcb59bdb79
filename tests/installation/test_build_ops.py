"""The build of the op: what is compiled, what is left out and why; and the wheel built from it."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mask2former.installation import build_ops, toolchain
from mask2former.installation.project import Project
from tests.installation.imitation import make_nvcc, make_torch

ROOT = Path(__file__).resolve().parents[2]
CSRC = Project(ROOT).csrc
SOURCE = 'extern "C" __attribute__((visibility("default"))) int answer() { return ANSWER; }\n'

needs_compiler = pytest.mark.skipif(
    sys.platform == "win32" or not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler"
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a checkout with one small source file per part; no variables of the environment select a compiler."""
    root = tmp_path / "project"
    (root / CSRC / "cpu").mkdir(parents=True)
    (root / CSRC / "cuda").mkdir()
    (root / CSRC / "answer.h").write_text("#define ANSWER 42\n")
    (root / CSRC / "cpu/op.cpp").write_text('#include "answer.h"\n' + SOURCE)
    (root / CSRC / "cuda/op.cu").write_text("")
    (root / "setup.py").write_text("")
    (root / "pyproject.toml").write_text('[project]\nname = "mask2former"\n')
    monkeypatch.setattr(build_ops, "has_nvidia_gpu", lambda: True)
    for name in ("CXX", "CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST", "MAX_JOBS", build_ops.VARIABLE):
        monkeypatch.delenv(name, raising=False)
    return root


@pytest.fixture
def site(tmp_path: Path) -> Path:
    make_torch(tmp_path / "site")
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is not None:
        library = tmp_path / "site/torch/lib/libtorch_cpu.so"
        subprocess.run([compiler, "-shared", "-x", "c++", os.devnull, "-o", str(library)], check=True)
    return tmp_path / "site"


def build(
    root: Path, directory: Path, site: Path, request: str | None = None, parts: tuple[str, ...] = ("cpu",)
) -> list[str]:
    """Build in the small project; return the printed lines."""
    lines: list[str] = []
    build_ops.build(Project(root), directory, [site], parts, request, lines.append)
    return lines


# --- rules ---


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script replaces nvcc")
def test_nvcc_is_found_and_must_fit_torch(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = make_torch(tmp_path / "site")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    make_nvcc(tmp_path / "cuda/bin/nvcc")

    def plan(torch: toolchain.Torch) -> build_ops.Library:
        return build_ops.plan_cuda(build_ops.Workshop(Project(project), Path("build/ops"), torch))

    library = plan(torch)
    _, command = library.commands[Path("build/ops/cuda/op.cu.o")]
    assert command[0] == str(tmp_path / "cuda/bin/nvcc") and "-gencode=arch=compute_120,code=compute_120" in command
    assert "--cudart=static" in library.link and not any("rpath" in word for word in library.link)
    with pytest.raises(toolchain.Unavailable, match=r"nvcc is CUDA 13\.0, torch 2\.10\.0 is built for CUDA 12\.8"):
        plan(toolchain.Torch(torch.directory, "2.10.0", "12.8"))
    with pytest.raises(toolchain.NoCuda, match=r"torch 2\.11\.0\+cpu has no CUDA"):
        plan(toolchain.Torch(torch.directory, "2.11.0+cpu", None))


def test_other_processors_get_the_baseline_only(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "ccache g++")
    (project / CSRC / "cpu/kernel_avx2.cpp").write_text("")
    shop = build_ops.Workshop(Project(project), Path("build/ops"), make_torch(tmp_path / "site"))

    def flags(machine: str) -> dict[str, tuple[str, ...]]:
        monkeypatch.setattr(platform, "machine", lambda: machine)
        return {source.name: command for source, command in build_ops.plan_cpu(shop).commands.values()}

    intel, arm = flags("x86_64"), flags("aarch64")
    assert set(intel) == {"op.cpp", "kernel_avx2.cpp"} and set(arm) == {"op.cpp"}
    assert "-mavx2" in intel["kernel_avx2.cpp"] and "-mavx2" not in intel["op.cpp"]
    assert "-DMASK2FORMER_BASELINE_ONLY" in arm["op.cpp"] and "-DMASK2FORMER_BASELINE_ONLY" not in intel["op.cpp"]
    assert intel["op.cpp"][:2] == ("ccache", "g++")


# --- what is left out, and what is required ---


@pytest.fixture
def bare(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the project on a machine without compilers."""
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None)
    monkeypatch.setattr(toolchain.os, "access", lambda path, mode: False)
    return project


def test_each_part_that_is_left_out_gets_one_line(bare: Path, tmp_path: Path) -> None:
    make_torch(tmp_path / "site")
    lines = build(bare, bare, tmp_path / "site", parts=build_ops.PARTS)
    assert len(lines) == 2
    assert lines[0].startswith("compiled op, cpu: left out, no C++ compiler found") and "apt install g++" in lines[0]
    assert lines[1].startswith("compiled op, cuda: left out, nvcc not found")


def test_one_reason_for_both_parts_is_one_line(bare: Path, tmp_path: Path) -> None:
    (line,) = build(bare, bare, tmp_path / "nowhere", parts=build_ops.PARTS)
    assert line.startswith("compiled op, cpu and cuda: left out, no torch is installed")


def test_cuda_code_needs_a_gpu_or_a_demand(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_torch(tmp_path / "site")
    monkeypatch.setattr(build_ops, "has_nvidia_gpu", lambda: False)
    (line,) = build(bare, bare, tmp_path / "site", None, ("cuda",))
    assert line.startswith("compiled op, cuda: left out, this machine has no NVIDIA GPU. ")
    assert "tools/install.py --ops all" in line and "MASK2FORMER_BUILD_OPS=all" in line
    for request in ("all", "1"):  # demanded: what stops it is the missing nvcc
        (line,) = build(bare, bare, tmp_path / "site", request, ("cuda",))
        assert line.startswith("compiled op, cuda: left out, nvcc not found")


def test_zero_compiles_nothing(bare: Path, tmp_path: Path) -> None:
    assert build(bare, bare, tmp_path, "0", build_ops.PARTS) == []


def test_required_parts(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_torch(tmp_path / "site")
    for request in ("1", "cpu", "cpu,cuda"):
        with pytest.raises(build_ops.BuildError, match=f"cpu: MASK2FORMER_BUILD_OPS={request} requires it. no C"):
            build(bare, bare, tmp_path / "site", request, build_ops.PARTS)
    with pytest.raises(build_ops.BuildError, match="cuda: .*requires it. nvcc not found"):
        build(bare, bare, tmp_path / "site", "cuda", build_ops.PARTS)
    (line,) = build(bare, bare, tmp_path / "site", "1", ("cuda",))  # no nvcc: nothing that a user must fix
    assert line.startswith("compiled op, cuda: left out")
    with pytest.raises(build_ops.BuildError, match="BUILD_OPS=gpu: must be 0, 1, all, cpu, cuda"):
        build(bare, bare, tmp_path / "site", "gpu")


def test_library_of_older_sources_is_deleted_if_it_cannot_be_rebuilt(bare: Path, tmp_path: Path) -> None:
    library = bare / "_cpu.abi3.so"
    library.write_text("")
    build(bare, bare, tmp_path / "nowhere")
    assert library.exists()
    os.utime(library, (1e9, 1e9))
    build(bare, bare, tmp_path / "nowhere")
    assert not library.exists()


# --- compiling ---


@needs_compiler
def test_library_is_compiled_once_and_again_after_a_change(project: Path, site: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    lines = build(project, out, site, "cpu")
    assert lines[0] == "compiled op, cpu: compiling op.cpp" and "compiled in" in lines[1]
    assert ctypes.CDLL(str(out / "_cpu.abi3.so")).answer() == 42
    assert ["up to date" in line for line in build(project, out, site, "cpu")] == [True]
    header = project / CSRC / "answer.h"
    header.write_text("#define ANSWER 43\n")
    later = (project / "build/ops/_cpu.abi3.so").stat().st_mtime + 1
    os.utime(header, (later, later))
    assert build(project, out, site, "cpu")[0] == "compiled op, cpu: compiling op.cpp"
    copy = shutil.copy(out / "_cpu.abi3.so", tmp_path / "copy.so")  # the loader caches the first by its path
    assert ctypes.CDLL(str(copy)).answer() == 43


@needs_compiler
def test_installed_package_is_compiled_once_and_keeps_no_object_files(project: Path, site: Path) -> None:
    (project / "pyproject.toml").unlink()
    assert not Project(project).is_checkout
    before = set(project.iterdir())
    ops = project / "mask2former/ops"
    assert "compiled in" in build(project, ops, site)[1]
    assert set(project.iterdir()) == before and (ops / "_cpu.abi3.so").is_file()
    os.utime(ops / "_cpu.abi3.so", (1e9, 1e9))  # as pip leaves it, which does not keep times
    assert build(project, ops, site) == [f"compiled op, cpu: there, {ops / '_cpu.abi3.so'}"]
    assert build(project, ops, project / "no torch", "cpu") == [f"compiled op, cpu: there, {ops / '_cpu.abi3.so'}"]


@needs_compiler
def test_failing_compiler_shows_its_error_and_the_build_continues(project: Path, site: Path, tmp_path: Path) -> None:
    (project / CSRC / "cpu/op.cpp").write_text("#error no such luck\n")
    lines = build(project, tmp_path / "out", site)
    assert "no such luck" in lines[1] and "-std=c++17" in lines[1]
    assert lines[2].startswith("compiled op, cpu: left out, compiling mask2former/ops/csrc/cpu/op.cpp failed")
    with pytest.raises(build_ops.BuildError, match=r"cpu: MASK2FORMER_BUILD_OPS=1 requires it\. compiling .* failed"):
        build(project, tmp_path / "out", site, "1")


@needs_compiler
def test_wheel_with_a_library_is_for_this_platform_and_every_python(
    project: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("setuptools", minversion="77", reason="older ones cannot build a wheel by themselves")
    (project / "tools").mkdir()
    shutil.copytree(ROOT / "mask2former/installation", project / "mask2former/installation")
    (project / "configs").mkdir()
    (project / "mask2former/__init__.py").write_text('__version__ = "0.1.0"\n')
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "tools/installation_package.py"):
        shutil.copy(ROOT / name, project / name)

    def wheel(request: str) -> str:
        env = {**os.environ, "PYTHONPATH": str(site), build_ops.VARIABLE: request}
        command = [sys.executable, "setup.py", "--quiet", "bdist_wheel", "--dist-dir", f"dist-{request}"]
        done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        (path,) = (project / f"dist-{request}").glob("*.whl")
        listed = subprocess.run([sys.executable, "-m", "zipfile", "-l", str(path)], capture_output=True, text=True)
        assert ("mask2former/ops/_cpu.abi3.so" in listed.stdout) == (request == "cpu")
        return path.name

    system = "macosx" if sys.platform == "darwin" else "linux"
    assert wheel("cpu").startswith(f"mask2former-0.1.0-cp310-abi3-{system}")
    assert wheel("0") == "mask2former-0.1.0-py3-none-any.whl"  # though build/ holds the library
