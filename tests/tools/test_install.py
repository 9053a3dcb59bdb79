"""tools/install.py: what it decides, how it explains failures, what it leaves alone; and what the wheel holds."""

from __future__ import annotations

import email
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from email.message import Message
from pathlib import Path

import install
import install_steps as steps
import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import mask2former

ROOT = Path(__file__).resolve().parents[2]
PINS = [
    ("torch", "torch==2.11.0"),
    ("torchvision", "torchvision==0.26.0"),
    ("triton", "triton==3.6.0"),
    ("nvidia-nccl-cu13", "nvidia-nccl-cu13==2.28.9"),
    ("numpy", 'numpy==2.2.6; python_version < "3.11"'),
    ("numpy", 'numpy==2.4.6; python_version >= "3.11"'),
    ("opencv-python-headless", "opencv-python-headless==5.0.0.93"),
]
PAIR = ["torch==2.11.0", "torchvision==0.26.0"]


def environment(**versions: str) -> install.Environment:
    """An environment with these packages; underscores stand for dashes."""
    packages = {name.replace("_", "-"): version for name, version in versions.items()}
    return install.Environment("/env/bin/python", (3, 11), "/env/lib", packages)


# --- PyTorch ---


def test_fresh_environment_gets_the_tested_pair() -> None:
    env = environment(pip="23.2.1", setuptools="65.5.0")
    assert install.torch_to_install(env, PINS, "auto") == PAIR
    first = install.constraints(env, PINS, PAIR)[0]
    assert {line for _, line in PINS} | {"pip==23.2.1", "setuptools==65.5.0"} == set(first)


@pytest.mark.parametrize(
    ("torch", "vision"),
    [
        ("2.6.0", "0.21.0"),
        ("2.11.0+cpu", "0.26.0+cpu"),  # 11 is more than 6, though "1" sorts before "6"
        ("2.6.0a0+ecf3bae40a.nv25.01", "0.21.0a0"),  # a container's build of 2.6
        ("3.0.0", "0.40.0"),  # the rule of the minor numbers is torch 2's: the import decides
    ],
)
def test_torch_that_fits_is_kept_with_all_that_belongs_to_it(torch: str, vision: str) -> None:
    env = environment(torch=torch, torchvision=vision, nvidia_nccl_cu12="2.27.3", numpy="1.26.4")
    assert install.torch_to_install(env, PINS, "auto") == []
    tested, held, stack = install.constraints(env, PINS, [])
    of_torch = {f"torch=={torch}", f"torchvision=={vision}", "nvidia-nccl-cu12==2.27.3"}
    assert set(stack) == of_torch
    assert set(held) == of_torch | {"numpy==1.26.4"}
    assert set(tested) == of_torch | {"numpy==1.26.4", "opencv-python-headless==5.0.0.93"}


def test_wrong_torchvision_is_explained() -> None:
    env = environment(torch="2.10.0", torchvision="0.21.0")
    message = r'torch 2\.10\.0 and torchvision 0\.21\.0 .*"torchvision==0\.25\.\*".*--torch pinned'
    with pytest.raises(install.InstallError, match=message):
        install.torch_to_install(env, PINS, "auto")
    assert install.torch_to_install(env, PINS, "pinned") == PAIR


def test_old_torch_is_left_alone_unless_asked() -> None:
    env = environment(torch="2.5.1", torchvision="0.20.1", nvidia_nccl_cu12="2.21.5", triton="3.1.0", numpy="2.0.0")
    with pytest.raises(install.InstallError, match=r"torch 2\.5\.1 is installed.*2\.6 or newer.*--venv"):
        install.torch_to_install(env, PINS, "auto")
    assert install.torch_to_install(env, PINS, "pinned") == PAIR
    for lines in install.constraints(env, PINS, PAIR):
        assert not any("cu12" in line or line in ("torch==2.5.1", "triton==3.1.0") for line in lines)
    assert "triton==3.6.0" in install.constraints(env, PINS, PAIR)[2]  # the new torch brings its own
    assert "numpy==2.0.0" in install.constraints(env, PINS, PAIR)[1]


@pytest.mark.parametrize("local", ["", "+cu130"])
def test_pinned_pair_already_there_is_kept(local: str) -> None:
    env = environment(torch=f"2.11.0{local}", torchvision=f"0.26.0{local}")
    assert install.torch_to_install(env, PINS, "pinned") == []


def test_missing_torchvision_follows_the_installed_torch() -> None:
    env = environment(torch="2.9.1")
    new = install.torch_to_install(env, PINS, "auto")
    assert new == ["torchvision==0.24.*"]
    first = install.constraints(env, PINS, new)[0]
    assert "torch==2.9.1" in first and not any(line.startswith("torchvision") for line in first)


def test_missing_torchvision_of_a_cpu_build_names_its_index() -> None:
    with pytest.raises(install.InstallError, match=r"torchvision==0\.28\.\*.*whl/cpu"):
        install.torch_to_install(environment(torch="2.13.0+cpu"), PINS, "auto")


def test_keep_never_installs_torch() -> None:
    with pytest.raises(install.InstallError, match="has no torch"):
        install.torch_to_install(environment(), PINS, "keep")
    with pytest.raises(install.InstallError, match=r"torchvision==0\.24"):
        install.torch_to_install(environment(torch="2.9.1"), PINS, "keep")


# --- what the project requires ---

REQUIRES = [
    "torch>=2.6",
    "torchvision>=0.21",
    "numpy>=1.26",
    "opencv-python-headless>=4.8",
    'tomli>=2; python_version < "3.11"',
    'av>=12.0; extra == "video"',
    'ruff>=0.9; extra == "dev"',
    'exceptiongroup>=1; python_version < "3.11" and extra == "dev"',
    'pywin32>=3; (sys_platform == "win32") and extra == "dev"',
]


def test_requirements_of_the_chosen_extras() -> None:
    env = replace(environment(), requires=REQUIRES, extras=["dev", "video"])
    base = ["numpy>=1.26", "opencv-python-headless>=4.8", 'tomli>=2; python_version < "3.11"']
    assert install.select_requirements(env, set()) == base
    assert install.select_requirements(env, {"video"}) == [*base, "av>=12.0"]
    dev = ["ruff>=0.9", 'exceptiongroup>=1; python_version < "3.11"', 'pywin32>=3; (sys_platform == "win32")']
    assert install.select_requirements(env, {"dev"}) == [*base, *dev]
    with pytest.raises(install.InstallError, match="no extra 'deb'.*dev, video"):
        install.select_requirements(env, {"deb"})


@pytest.mark.parametrize("name", ["opencv_python", "opencv_contrib_python"])
def test_other_opencv_builds_count(name: str) -> None:
    env = replace(environment(**{name: "4.10.0.84"}), requires=REQUIRES)
    assert not any("opencv" in text for text in install.select_requirements(env, set()))


# --- pip ---


def imitate_pip(monkeypatch: pytest.MonkeyPatch, *answers: str) -> list[list[str]]:
    """Have each call of pip fail with the next of ``answers``, or succeed on ""; return the calls."""
    calls: list[list[str]] = []
    left = list(answers)

    class Process:
        def __init__(self, command: list[str], **options: object) -> None:
            for place, option in enumerate(command[:-1]):
                if option == "--constraint":
                    command[place + 1] = Path(command[place + 1]).read_text()
            calls.append(command)
            self.stderr = [left.pop(0)]
            self.returncode = int(self.stderr != [""])

        def __enter__(self) -> Process:
            return self

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(steps.subprocess, "Popen", Process)
    return calls


@pytest.mark.parametrize(
    ("output", "advice"),
    [
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("NewConnectionError(...)\nERROR: No matching distribution found for torch", "cannot be reached. Check"),
        ("ERROR: No matching distribution found for torch==2.11.0", "No file for this Python"),
        ("ReadTimeoutError: Read timed out.", "Run the same command again"),
        ("THESE PACKAGES DO NOT MATCH THE HASHES", "not the expected one"),
        ("error: externally-managed-environment", "--venv .venv"),
        ("/usr/bin/python3: No module named pip", "ensurepip"),
        ("something new", "pip's own words"),
    ],
)
def test_pip_failures_come_with_advice(output: str, advice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    imitate_pip(monkeypatch, output)
    with pytest.raises(install.InstallError) as error:
        steps.run_pip("python", "install", "x")
    assert advice in error.value.args[0] and "pip failed: python -m pip" in error.value.args[0]


def test_pip_output_is_shown_without_the_noise(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho \"WARNING: Location 'file:///x' is ignored: gone\" >&2\necho real >&2\nexit 3\n")
    fake.chmod(0o755)
    with pytest.raises(steps.PipError) as error:
        steps.run_pip(str(fake), "install", "x")
    assert error.value.args[1] == capfd.readouterr().err == "real\n"


def test_tested_versions_give_way_to_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = imitate_pip(monkeypatch, "ERROR: ResolutionImpossible", "ERROR: ResolutionImpossible", "")
    steps.install_packages("python", ["numpy"], [["a==1", "b==2"], ["a==1"], ["c==3"]])
    assert [call[call.index("--constraint") + 1] for call in calls] == ["a==1\nb==2\n", "a==1\n", "c==3\n"]


@pytest.mark.parametrize("answers", [["No space left"], ["ResolutionImpossible", "ResolutionImpossible"]])
def test_packages_that_cannot_be_installed(answers: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = imitate_pip(monkeypatch, *answers)
    with pytest.raises(steps.PipError):
        steps.install_packages("python", ["numpy"], [["a==1"], ["b==2"]])
    assert len(calls) == len(answers)


def test_detectron2_is_stripped_of_what_must_not_be_installed(tmp_path: Path) -> None:
    info = "sal_detectron2-0.7.2.dist-info"
    metadata = "Metadata-Version: 2.1\nName: sal-detectron2\nVersion: 0.7.2\n"
    wheel = "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: cp310-cp310-linux_x86_64\n"
    files = {
        "detectron2/__init__.py": "value = 3\n",
        "detectron2/_C.cpython-310.so": "",
        "tools/__init__.py": "",
        f"{info}/METADATA": metadata + "Requires-Dist: numpy<2\nRequires-Dist: numpy-like\nRequires-Dist: yacs\n",
        f"{info}/WHEEL": wheel,
        f"{info}/top_level.txt": "detectron2\ntools\n",
        f"{info}/RECORD": "detectron2/__init__.py,,\n",
    }
    with zipfile.ZipFile(tmp_path / "sal_detectron2-0.7.2-cp310-none-any.whl", "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        original = Path(str(archive.filename))
    (tmp_path / "plain").mkdir()
    steps.strip_detectron2(original, tmp_path / "plain")
    # pip is the judge of the copy.
    target = tmp_path / "installed"
    options = ["--quiet", "--no-deps", "--no-index", "--no-compile", "--find-links", str(tmp_path / "plain")]
    steps.run_pip(sys.executable, "install", *options, "--target", str(target), steps.DETECTRON2)
    left = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    left -= {f"{info}/{name}" for name in ("INSTALLER", "REQUESTED")}
    assert left == {"detectron2/__init__.py", *(f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL"))}
    assert (target / "detectron2/__init__.py").read_text() == "value = 3\n"
    assert "Tag: py3-none-any\n" in (target / info / "WHEEL").read_text()  # `pip check` of Python 3.13 looks at it
    # with numpy<2 left in, pip would report a conflict for ever
    assert (target / info / "METADATA").read_text() == metadata + "Requires-Dist: numpy-like\nRequires-Dist: yacs\n"


# --- the whole way ---


def test_probe_sees_this_environment() -> None:
    env = install.probe(sys.executable)
    assert env.version == sys.version_info[:2]
    assert env.packages["pytest"] == importlib.metadata.version("pytest")
    assert env.detectron2 and Path(env.detectron2, "detectron2/__init__.py").exists()
    assert env.torch == str(importlib.metadata.distribution("torch").locate_file(""))


def test_what_lies_in_the_working_directory_is_not_what_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert "No module named 'only_here'" in install.run_script(sys.executable, "import only_here").stderr


@pytest.fixture
def verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> install.Environment:
    """An environment that has been verified with the extras demo and dev; nothing may be started in it."""
    env = replace(environment(torch="2.11.0", torchvision="0.26.0"), python=sys.executable, site_packages=str(tmp_path))

    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("nothing is missing, and yet a program is started")

    monkeypatch.setattr(install, "VERIFIED", ["json"])
    install.verify(env, {"demo", "dev"})
    monkeypatch.setattr(install, "probe", lambda python: env)
    monkeypatch.setattr(install.subprocess, "run", forbidden)
    monkeypatch.setattr(steps.subprocess, "Popen", forbidden)
    return env


@pytest.mark.parametrize("arguments", [[], ["--offline"], ["--extras", "dev, demo"], ["--torch", "keep"]])
def test_second_run_does_nothing(
    arguments: list[str], verified: install.Environment, capsys: pytest.CaptureFixture[str]
) -> None:
    assert install.main([*arguments, "--ops", "none"]) == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["package", "place", "extra", "checkout", "declaration", "stamp"])
def test_what_changed_is_installed_and_checked_again(
    change: str, verified: install.Environment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    env, extras = verified, {"demo"}
    if change == "package":
        env = replace(env, packages={**env.packages, "numpy": "2.5.0"})
    elif change == "place":
        env = replace(env, project='{"url": "file:///elsewhere"}')
    elif change == "extra":
        extras = {"demo", "video"}
    elif change == "stamp":
        (tmp_path / install.STAMP).write_text("[]")
    else:
        copy = tmp_path / "checkout"
        for name in install.DECLARED:
            (copy / name).parent.mkdir(exist_ok=True, parents=True)
            shutil.copy(ROOT / name, copy / name)
        if change == "declaration":  # in the same place, as after git pull
            monkeypatch.setattr(install, "ROOT", copy)
            Path(env.site_packages, install.STAMP).write_text(
                json.dumps({"fingerprint": install.fingerprint(env), "extras": ["demo"]})
            )
            (copy / "pyproject.toml").write_text("")
        monkeypatch.setattr(install, "ROOT", copy)
    seen: list[object] = []
    monkeypatch.setattr(install, "probe", lambda python: env)
    monkeypatch.setattr(install, "take_steps", lambda env, extras, *rest: seen.append(extras) or env)
    monkeypatch.setattr(install, "verify", lambda env, extras: seen.append(extras))
    assert install.main(["--ops", "none", "--extras", ",".join(extras)]) == 0
    # An extra that comes later does not make the others forgotten.
    assert seen == [extras, {"demo", "dev", "video"} if change == "extra" else {"demo"}]


def test_steps_of_an_incomplete_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    env = replace(environment(torch="2.11.0", torchvision="0.26.0"), requires=REQUIRES, extras=["video"])
    calls = imitate_pip(monkeypatch, "", "", "")
    detectron2: list[object] = []
    monkeypatch.setattr(install, "probe", lambda python: env)
    monkeypatch.setattr(install, "install_detectron2", lambda *args: detectron2.append(args))
    source = ["--no-index", "--find-links", "wheels"]
    install.take_steps(env, {"video"}, [*PINS, ("setuptools", "setuptools==80.8.0")], [], source)
    assert calls[0][-4:] == [*source, "setuptools==80.8.0"]
    assert calls[1][-2:] == ["--editable", str(ROOT)] and {"--no-deps", "--no-build-isolation"} <= set(calls[1])
    assert calls[2][-7:] == [*source, *install.select_requirements(env, {"video"})]
    assert "torch==2.11.0\n" in calls[2][calls[2].index("--constraint") + 1]
    assert detectron2 == [("/env/bin/python", source)]


def test_the_setuptools_that_builds_is_the_one_of_the_build_system(monkeypatch: pytest.MonkeyPatch) -> None:
    toml = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    content = toml.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert content["build-system"]["requires"] == [f"setuptools>={install.build_setuptools()}"]
    calls = imitate_pip(monkeypatch, "", "", "")
    env = replace(environment(setuptools="76.1.0"), requires=REQUIRES, detectron2="/env/lib")
    monkeypatch.setattr(install, "probe", lambda python: env)
    install.take_steps(env, set(), [*PINS, ("setuptools", "setuptools==80.8.0")], PAIR, [])
    assert calls[0][-1] == "setuptools==80.8.0" and "--editable" in calls[1]


def test_installed_detectron2_and_setuptools_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    env = replace(environment(setuptools=install.build_setuptools()), requires=REQUIRES, detectron2="/env/lib")
    calls = imitate_pip(monkeypatch, "", "")
    monkeypatch.setattr(install, "probe", lambda python: env)
    install.take_steps(env, set(), PINS, PAIR, [])
    assert "--editable" in calls[0]
    assert calls[1][-5:-3] == PAIR


def test_failed_import_names_the_package_and_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.py").write_text("import no_such_module")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(install, "VERIFIED", ["json", "broken"])
    monkeypatch.setitem(install.VERIFY_REMEDY, "broken", "Repair it")
    env = replace(environment(), python=sys.executable, site_packages=str(tmp_path))
    with pytest.raises(install.InstallError, match=r"(?s)^broken cannot be used.*no_such_module.*Repair it"):
        install.verify(env, set())
    assert not (tmp_path / install.STAMP).exists()


def test_every_verified_module_has_a_remedy() -> None:
    assert {name.partition(".")[0] for name in install.VERIFIED} == set(install.VERIFY_REMEDY)
    assert set(install.VERIFY_REMEDY) == {"torch", "torchvision", "detectron2", "mask2former"}


def test_dry_run_only_prints(
    verified: install.Environment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(install, "probe", lambda python: replace(environment(), python=sys.executable))
    assert install.main(["--dry-run", "--extras", "video"]) == 0
    printed = capsys.readouterr().out
    assert all(text in printed for text in ["would install: torch==2.11.0", "[video]", steps.DETECTRON2])


def test_environment_that_cannot_be_written(
    verified: install.Environment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(install.os, "access", lambda path, mode: False)
    assert install.main(["--ops", "none"]) == 0  # it is complete
    assert install.main(["--ops", "none", "--extras", "video"]) == 1
    assert "No permission to write" in capsys.readouterr().err


@pytest.mark.parametrize("version", [(3, 9), (3, 14)])
def test_unsupported_python_is_explained(version: tuple[int, int]) -> None:
    with pytest.raises(install.InstallError, match=rf"is Python 3\.{version[1]}; Mask2Former needs 3\.10 to 3\.13"):
        install.check_python("python", version)


def test_op_is_compiled_for_the_torch_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    env = install.probe(sys.executable)
    seen = []
    monkeypatch.setattr(install.build_ops, "build", lambda *args: seen.append(args))
    monkeypatch.setenv("MASK2FORMER_BUILD_OPS", "cpu")
    for choice in ("all", "cpu", "none"):
        install.compile_op(env, choice)
    torch_parent = Path(importlib.metadata.distribution("torch").locate_file(""))
    expected = (ROOT / "mask2former/ops", [torch_parent])
    assert [args[:2] for args in seen] == [expected] * 3
    assert [args[2:4] for args in seen] == [(("cpu", "cuda"), "cpu"), (("cpu",), "cpu"), ((), "cpu")]


def test_demanded_op_that_fails_ends_the_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASK2FORMER_BUILD_OPS", "1")
    with pytest.raises(install.InstallError, match="MASK2FORMER_BUILD_OPS=1 requires it. no torch"):
        install.compile_op(environment(), "cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--wheels", "nowhere"], "there is no directory nowhere"),
        (["--venv", "full"], "is not a virtual environment"),
        (["--venv", "lost"], "has lost its Python"),
        (["--venv", "new", "--dry-run"], "does not exist yet"),
        (["--venv", "new", "--offline"], "does not exist yet"),
    ],
)
def test_wrong_directories_are_explained(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    (tmp_path / "lost").mkdir()
    (tmp_path / "lost" / "pyvenv.cfg").write_text("")
    monkeypatch.chdir(tmp_path)
    assert install.main(arguments) == 1
    assert message in capsys.readouterr().err
    assert (tmp_path / "full" / "thesis.txt").exists() and not (tmp_path / "new").exists()


# --- the wheel ---


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this checkout, built in a copy so that the checkout gets no build directory."""
    pytest.importorskip("setuptools", minversion="77", reason="older ones cannot build a wheel by themselves")
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md", "tools/build_ops.py", "tools/build_library.py"):
        (copy / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    for name in ("mask2former", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "-w", str(copy), str(copy)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options],
        env={**os.environ, "MASK2FORMER_BUILD_OPS": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(copy.glob("mask2former-*.whl")))


def test_wheel_carries_every_config_table_and_model_file(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    configs = {f"mask2former/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert len(configs) >= 20 and configs <= names
    package = [path for path in (ROOT / "mask2former").rglob("*") if path.is_file()]
    data = [path for path in package if path.suffix in (".py", ".json") or "bundled" in path.parts]
    assert {path.relative_to(ROOT).as_posix() for path in data} <= names
    assert "mask2former/py.typed" in names
    assert not any(name.startswith(("tests/", "tools/", "configs/", "demo/")) for name in names)
    assert not any(name.endswith((".so", ".cu", ".h")) for name in names)  # nor what is compiled in the checkout


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    info = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(wheel.read(info))


def test_wheel_metadata_states_the_true_dependencies(metadata: Message, wheel: zipfile.ZipFile) -> None:
    assert metadata["Version"] == mask2former.__version__
    assert SpecifierSet(metadata["Requires-Python"]) == SpecifierSet(">=3.10,<3.14")
    requires = metadata.get_all("Requires-Dist") or []
    assert "torch>=2.6" in requires
    assert metadata["License-Expression"] == "MIT"
    assert (metadata.get_payload() or "").startswith("# Mask2Former")
    assert not any("detectron2" in text for text in requires)  # not on PyPI: pip could not install the package
    assert set(metadata.get_all("Provides-Extra") or []) == {"demo", "dev", "video", "cityscapes", "docs"}
    assert any(name.endswith("LICENSE") for name in wheel.namelist())


@pytest.mark.parametrize("minor", [10, 11, 12, 13])
def test_every_tested_requirement_is_pinned_within_its_range(minor: int, metadata: Message) -> None:
    python = {**default_environment(), "python_version": f"3.{minor}", "python_full_version": f"3.{minor}.0"}

    def holds(requirement: Requirement, extra: str = "") -> bool:
        return requirement.marker is None or requirement.marker.evaluate({**python, "extra": extra})

    lines = [Requirement(line) for _, line in install.read_pins()]
    pins = {line.name.lower(): next(iter(line.specifier)).version for line in lines if holds(line)}
    assert len(pins) == sum(map(holds, lines)), "two tested versions of a package"
    requires = [Requirement(text) for text in metadata.get_all("Requires-Dist") or []]
    tested = [r for r in requires if any(holds(r, extra) for extra in ("", "dev", "demo", "video", "docs"))]
    assert len(tested) > 20
    for requirement in [Requirement(f"setuptools>={install.build_setuptools()}"), *tested]:
        assert requirement.name.lower() in pins, f"{requirement.name} has no tested version"
        assert requirement.specifier.contains(pins[requirement.name.lower()]), str(requirement)
    pair = environment(torch=pins["torch"], torchvision=pins["torchvision"])
    assert install.torch_to_install(pair, install.read_pins(), "auto") == []


def test_tested_versions_are_exact() -> None:
    for name, line in install.read_pins():
        requirement = Requirement(line)
        assert requirement.name == name and [part.operator for part in requirement.specifier] == ["=="], line
