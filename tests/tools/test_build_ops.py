"""tools/build_ops.py: what is compiled, what is left out and why; and the wheel built from it."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import build_ops
import pytest

ROOT = Path(__file__).resolve().parents[2]
NVCC_13 = (75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121)
NVCC_12_4 = (50, 60, 70, 75, 80, 86, 87, 89, 90)
SOURCE = 'extern "C" __attribute__((visibility("default"))) int answer() { return ANSWER; }\n'

needs_compiler = pytest.mark.skipif(
    sys.platform == "win32" or not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler"
)


def make_torch(directory: Path, version: str = "2.11.0+cu130", cuda: str | None = "13.0") -> build_ops.Torch:
    """Write the parts of an installed torch that a build reads."""
    (directory / "torch/include/torch/csrc/stable").mkdir(parents=True)
    (directory / "torch/lib").mkdir()
    (directory / "torch/include/torch/csrc/stable/library.h").write_text("")
    lines = [f"__version__ = '{version}'", f"cuda: Optional[str] = {cuda!r}", "hip: Optional[str] = None"]
    (directory / "torch/version.py").write_text("\n".join(lines))
    return build_ops.Torch(directory / "torch", version, cuda)


def make_nvcc(path: Path, release: str = "13.0") -> Path:
    """Write an nvcc that answers queries and compiles nothing."""
    path.parent.mkdir(parents=True)
    listed = "\\n".join(f"compute_{number}" for number in NVCC_13)
    path.write_text(f'#!/bin/sh\n[ $1 = --version ] && echo "tools, release {release}, V" || printf "{listed}"\n')
    path.chmod(0o755)
    return path


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a checkout with one small source file per part; no variables of the environment select a compiler."""
    root = tmp_path / "project"
    (root / build_ops.CSRC / "cpu").mkdir(parents=True)
    (root / build_ops.CSRC / "cuda").mkdir()
    (root / build_ops.CSRC / "answer.h").write_text("#define ANSWER 42\n")
    (root / build_ops.CSRC / "cpu/op.cpp").write_text('#include "answer.h"\n' + SOURCE)
    (root / build_ops.CSRC / "cuda/op.cu").write_text("")
    monkeypatch.setattr(build_ops, "ROOT", root)
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


def build(directory: Path, site: Path, request: str | None = None, parts: tuple[str, ...] = ("cpu",)) -> list[str]:
    """Build in the small project; return the printed lines."""
    lines: list[str] = []
    build_ops.build(directory, [site], parts, request, lines.append)
    return lines


# --- environment ---


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
    flags = build_ops.cuda_flags(requested, known)
    assert [flag.rpartition("=sm_")[2] for flag in flags if "code=sm_" in flag] == code
    assert [flag.rpartition("=compute_")[2] for flag in flags if "code=compute_" in flag] == ptx


def test_unusable_list_of_architectures_is_explained() -> None:
    with pytest.raises(build_ops.Unavailable, match="contains 'Hopper'.*9.0 or 8.6"):
        build_ops.cuda_flags("8.0;Hopper", NVCC_13)
    with pytest.raises(build_ops.Unavailable, match=r"is '7\.5'.* 8\.0, 8\.6, "):
        build_ops.cuda_flags("7.5", NVCC_13)


@pytest.mark.parametrize(("version", "cuda"), [("2.10.0", "12.8"), ("2.11.0+cpu", None), ("3.0.0a0+git1", "13.0")])
def test_torch_is_read_without_importing_it(version: str, cuda: str | None, tmp_path: Path) -> None:
    expected = make_torch(tmp_path, version, cuda)
    assert build_ops.find_torch([tmp_path / "empty", tmp_path]) == expected


def test_unusable_torch_is_explained(tmp_path: Path) -> None:
    with pytest.raises(build_ops.Unavailable, match="no torch is installed.*--no-build-isolation"):
        build_ops.find_torch([tmp_path])
    make_torch(tmp_path / "old", "2.9.1")
    with pytest.raises(build_ops.Unavailable, match=r"torch 2\.9\.1 is older than 2\.10"):
        build_ops.find_torch([tmp_path / "old"])
    headless = make_torch(tmp_path / "headless")
    shutil.rmtree(headless.directory / "include")
    with pytest.raises(build_ops.Unavailable, match="has no C.. headers"):
        build_ops.find_torch([tmp_path / "headless"])


def test_torch_of_the_surrounding_environment_is_found() -> None:
    """Find torch as in a build that pip isolates: it is not on sys.path, but installed where pip runs."""
    script = "import sys; sys.path[:] = [path for path in sys.path if 'site-packages' not in path]\n"
    script += f"sys.path.insert(0, {str(ROOT / 'tools')!r}); import build_ops\n"
    script += "print(build_ops.find_torch(build_ops.package_directories()).directory)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    assert Path(done.stdout.strip()).samefile(Path(spec.origin).parent)


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script replaces nvcc")
def test_nvcc_is_found_and_must_fit_torch(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = make_torch(tmp_path / "site")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    make_nvcc(tmp_path / "cuda/bin/nvcc")
    library = build_ops.plan_cuda(torch)
    _, command = library.commands[Path("build/ops/cuda/op.cu.o")]
    assert command[0] == str(tmp_path / "cuda/bin/nvcc") and "-gencode=arch=compute_120,code=compute_120" in command
    assert "--cudart=static" in library.link and not any("rpath" in word for word in library.link)
    with pytest.raises(build_ops.Unavailable, match=r"nvcc is CUDA 13\.0, torch 2\.10\.0 is built for CUDA 12\.8"):
        build_ops.plan_cuda(build_ops.Torch(torch.directory, "2.10.0", "12.8"))
    with pytest.raises(build_ops.NoCuda, match=r"torch 2\.11\.0\+cpu has no CUDA"):
        build_ops.plan_cuda(build_ops.Torch(torch.directory, "2.11.0+cpu", None))


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script replaces nvcc")
def test_nvcc_of_pip_is_found_beside_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = make_torch(tmp_path)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(build_ops.os, "access", lambda path, mode: tmp_path in path.parents and path.is_file())
    with pytest.raises(build_ops.NoCuda, match="nvcc not found .*CUDA toolkit 13"):
        build_ops.find_nvcc(torch)
    nvcc = make_nvcc(tmp_path / "nvidia/cu13/bin/nvcc")
    assert build_ops.find_nvcc(torch) == str(nvcc)


def test_other_processors_get_the_baseline_only(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "ccache g++")
    (project / build_ops.CSRC / "cpu/kernel_avx2.cpp").write_text("")
    torch = make_torch(tmp_path / "site")

    def flags(machine: str) -> dict[str, tuple[str, ...]]:
        monkeypatch.setattr(platform, "machine", lambda: machine)
        return {source.name: command for source, command in build_ops.plan_cpu(torch).commands.values()}

    intel, arm = flags("x86_64"), flags("aarch64")
    assert set(intel) == {"op.cpp", "kernel_avx2.cpp"} and set(arm) == {"op.cpp"}
    assert "-mavx2" in intel["kernel_avx2.cpp"] and "-mavx2" not in intel["op.cpp"]
    assert "-DMASK2FORMER_BASELINE_ONLY" in arm["op.cpp"] and "-DMASK2FORMER_BASELINE_ONLY" not in intel["op.cpp"]
    assert intel["op.cpp"][:2] == ("ccache", "g++")


# --- what is left out, and what is required ---


@pytest.fixture
def bare(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the project on a machine without compilers."""
    monkeypatch.setattr(build_ops.shutil, "which", lambda name: None)
    monkeypatch.setattr(build_ops.os, "access", lambda path, mode: False)
    return project


def test_each_part_that_is_left_out_gets_one_line(bare: Path, tmp_path: Path) -> None:
    make_torch(tmp_path / "site")
    lines = build(bare, tmp_path / "site", parts=build_ops.PARTS)
    assert len(lines) == 2
    assert lines[0].startswith("compiled op, cpu: left out, no C++ compiler found") and "apt install g++" in lines[0]
    assert lines[1].startswith("compiled op, cuda: left out, nvcc not found")


def test_one_reason_for_both_parts_is_one_line(bare: Path, tmp_path: Path) -> None:
    (line,) = build(bare, tmp_path / "nowhere", parts=build_ops.PARTS)
    assert line.startswith("compiled op, cpu and cuda: left out, no torch is installed")


def test_zero_compiles_nothing(bare: Path, tmp_path: Path) -> None:
    assert build(bare, tmp_path, "0", build_ops.PARTS) == []


def test_required_parts(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_torch(tmp_path / "site")
    for request in ("1", "cpu", "cpu,cuda"):
        with pytest.raises(build_ops.BuildError, match=f"cpu: MASK2FORMER_BUILD_OPS={request} requires it. no C"):
            build(bare, tmp_path / "site", request, build_ops.PARTS)
    with pytest.raises(build_ops.BuildError, match="cuda: .*requires it. nvcc not found"):
        build(bare, tmp_path / "site", "cuda", build_ops.PARTS)
    (line,) = build(bare, tmp_path / "site", "1", ("cuda",))  # no nvcc: nothing that a user must fix
    assert line.startswith("compiled op, cuda: left out")
    with pytest.raises(build_ops.BuildError, match="BUILD_OPS=gpu: must be 0, 1, cpu, cuda"):
        build(bare, tmp_path / "site", "gpu")


def test_library_of_older_sources_is_deleted_if_it_cannot_be_rebuilt(bare: Path, tmp_path: Path) -> None:
    library = bare / "_cpu.abi3.so"
    library.write_text("")
    build(bare, tmp_path / "nowhere")
    assert library.exists()
    os.utime(library, (1e9, 1e9))
    build(bare, tmp_path / "nowhere")
    assert not library.exists()


# --- compiling ---


@needs_compiler
def test_library_is_compiled_once_and_again_after_a_change(project: Path, site: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    lines = build(out, site, "cpu")
    assert lines[0] == "compiled op, cpu: compiling op.cpp" and "compiled in" in lines[1]
    assert ctypes.CDLL(str(out / "_cpu.abi3.so")).answer() == 42
    assert ["up to date" in line for line in build(out, site, "cpu")] == [True]
    header = project / build_ops.CSRC / "answer.h"
    header.write_text("#define ANSWER 43\n")
    later = (project / "build/ops/_cpu.abi3.so").stat().st_mtime + 1
    os.utime(header, (later, later))
    assert build(out, site, "cpu")[0] == "compiled op, cpu: compiling op.cpp"
    copy = shutil.copy(out / "_cpu.abi3.so", tmp_path / "copy.so")  # the loader caches the first by its path
    assert ctypes.CDLL(str(copy)).answer() == 43


@needs_compiler
def test_failing_compiler_shows_its_error_and_the_build_continues(project: Path, site: Path, tmp_path: Path) -> None:
    (project / build_ops.CSRC / "cpu/op.cpp").write_text("#error no such luck\n")
    lines = build(tmp_path / "out", site)
    assert "no such luck" in lines[1] and "-std=c++17" in lines[1]
    assert lines[2].startswith("compiled op, cpu: left out, compiling mask2former/ops/csrc/cpu/op.cpp failed")
    with pytest.raises(build_ops.BuildError, match=r"cpu: MASK2FORMER_BUILD_OPS=1 requires it\. compiling .* failed"):
        build(tmp_path / "out", site, "1")


@needs_compiler
def test_wheel_with_a_library_is_for_this_platform_and_every_python(
    project: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("setuptools", minversion="77", reason="older ones cannot build a wheel by themselves")
    (project / "tools").mkdir()
    (project / "configs").mkdir()
    (project / "mask2former/__init__.py").write_text('__version__ = "0.1.0"\n')
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "tools/build_ops.py", "tools/build_library.py"):
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
