"""tools/install.py: what it would do, how it explains failures; and what the wheel holds."""

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
from pathlib import Path

import install
import install_plan as planning
import install_steps as steps
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[2]


REQUIREMENTS = ["torch>=2.6", "torchvision>=0.21", "numpy>=1.26", "opencv-python-headless>=4.8"]
PINS = {
    "torch": "2.11.0",
    "torchvision": "0.26.0",
    "triton": "3.6.0",
    "nvidia-nccl-cu13": "2.28.9",
    "numpy": "2.4.6",
    "opencv-python-headless": "5.0.0.93",
}
COMPLETE = {
    "setuptools": "80.8.0",
    "torch": "2.11.0",
    "torchvision": "0.26.0",
    "numpy": "2.4.6",
    "opencv-python-headless": "5.0.0.93",
    "sal-detectron2": "0.7.2",
    "panopticapi-lite": "0.2.0",
    "mask2former": "0.1.0",
}
PROJECT_URL = "file:///checkout"


def environment(packages: dict[str, str] | None = None, **changes: object):
    """A complete environment, or one that holds ``packages`` only."""
    complete = packages is None
    base = planning.Environment(
        python="/env/bin/python",
        version=(3, 11),
        site_packages="/env/lib",
        packages=dict(COMPLETE if packages is None else packages),
        modules=frozenset({"detectron2", "panopticapi"} if complete else ()),
        torchvision_wants="2.11.0" if complete else None,
        project_url=PROJECT_URL if complete else None,
    )
    return replace(base, **changes)


def with_packages(**versions: str | None):
    """A complete environment with other versions; None removes a package, underscores stand for dashes."""
    packages = dict(COMPLETE)
    for name, version in versions.items():
        packages.pop(name.replace("_", "-"), None)
        if version is not None:
            packages[name.replace("_", "-")] = version
    return environment(packages, modules=frozenset({"detectron2", "panopticapi"}), project_url=PROJECT_URL)


def plan(env, torch_mode: str = "auto"):
    return planning.make_plan(env, REQUIREMENTS, PINS, PROJECT_URL, "0.1.0", torch_mode)


# --- reading the lists ---


@settings(deadline=None, max_examples=50)
@given(
    version=st.lists(st.integers(0, 12), min_size=1, max_size=3),
    bound=st.lists(st.integers(0, 12), min_size=2, max_size=3),
    operator=st.sampled_from([">=", "<=", ">", "<", "==", "!=", "~="]),
)
def test_accepts_agrees_with_packaging(version: list[int], bound: list[int], operator: str) -> None:
    have, want = (".".join(map(str, part)) for part in (version, bound))
    ours = planning.parse_requirement(f"name{operator}{want}").accepts(have)
    assert ours == SpecifierSet(f"{operator}{want}").contains(have)


@pytest.mark.parametrize(
    ("text", "version", "accepted"),
    [
        ("torch>=2.6", "2.6.0a0+ecf3bae40a.nv25.01", True),  # a container's build of 2.6
        ("torch>=2.6", "2.11.0+cpu", True),  # 11 is more than 6, though "1" sorts before "6"
        ("torch>=2.6", "2.5.1", False),
        ("torchvision==0.26.*", "0.26.1", True),
        ("torchvision==0.26.*", "0.2", False),
        ("a>=1,<2", "2.0", False),
        ("a", "0.0.1", True),
    ],
)
def test_accepts_special_versions(text: str, version: str, accepted: bool) -> None:
    assert planning.parse_requirement(text).accepts(version) is accepted


def test_unreadable_requirement_is_an_error() -> None:
    with pytest.raises(planning.InstallError, match="cannot read the requirement 'torch =>2.6'"):
        planning.parse_requirement("torch =>2.6")


def test_pins_follow_the_python_version() -> None:
    lines = ["# note", "", 'NumPy==2.2.6; python_version < "3.11"', 'numpy==2.4.6; python_version >= "3.11"']
    assert planning.read_pins(lines, (3, 10)) == {"numpy": "2.2.6"}
    assert planning.read_pins(lines, (3, 11)) == {"numpy": "2.4.6"}
    with pytest.raises(planning.InstallError, match="numpy>=2"):
        planning.read_pins(["numpy>=2"], (3, 11))


@pytest.mark.parametrize("minor", [10, 11, 12, 13])
def test_every_tested_requirement_is_pinned_within_its_range(minor: int) -> None:
    required, extras = planning.read_requirements(ROOT / "pyproject.toml")
    lines = (ROOT / "requirements/constraints.txt").read_text("utf-8").splitlines()
    pins = planning.read_pins(lines, (3, minor))
    tested = [*planning.BUILD_REQUIRES, *required, *planning.select_extras(extras, ["dev", "demo", "video", "docs"])]
    for requirement in map(planning.parse_requirement, tested):
        assert requirement.name in pins, f"{requirement.name} has no tested version"
        assert requirement.accepts(pins[requirement.name]), requirement.text
    assert planning.torchvision_for(pins["torch"]) == ".".join(pins["torchvision"].split(".")[:2])


def test_requirements_are_read_as_a_toml_reader_reads_them() -> None:
    toml = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    content = toml.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    project = content["project"]
    read = planning.read_requirements(ROOT / "pyproject.toml")
    assert read == (project["dependencies"], project["optional-dependencies"])
    assert content["build-system"]["requires"] == list(planning.BUILD_REQUIRES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[project]\nname = 'x'\n", "lists of dependencies are missing"),
        ('[project]\ndependencies = [\n    "a",\n]\n', "lists of dependencies are missing"),
        ('[project]\ndependencies = [\n    "a",\n]\n[project.optional-dependencies]\nx-y = ["b"]\n', "plain lists"),
        ('[project]\ndependencies = [\n    true,\n]\n[project.optional-dependencies]\nx = ["b"]\n', "plain lists"),
    ],
)
def test_dependencies_that_cannot_be_read_are_an_error(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(planning.InstallError, match=message):
        planning.read_requirements(tmp_path / "pyproject.toml")


def test_extras_are_the_documented_ones() -> None:
    _, extras = planning.read_requirements(ROOT / "pyproject.toml")
    assert set(extras) == {"demo", "dev", "video", "cityscapes", "docs"}
    with pytest.raises(planning.InstallError, match="no extra 'deb'.*cityscapes, demo, dev"):
        planning.select_extras(extras, ["deb"])


# --- the plan ---


def test_fresh_environment_gets_everything_in_order() -> None:
    result = plan(environment({"pip": "23.2.1", "setuptools": "65.5.0"}))
    assert [step.kind for step in result.steps] == ["pip", "pip", "detectron2", "panopticapi", "project"]
    assert result.steps[0].items == ("torch==2.11.0", "torchvision==0.26.0")
    assert set(result.steps[1].items) == {"setuptools>=77", "numpy>=1.26", "opencv-python-headless>=4.8"}
    assert result.steps[2].items == ("sal-detectron2==0.7.2",)
    assert "numpy==2.4.6" in result.constraints and "nvidia-nccl-cu13==2.28.9" in result.constraints
    assert not any(line.startswith("setuptools") for line in result.holds)  # too old, so it may move


def test_complete_environment_needs_nothing() -> None:
    result = plan(environment())
    assert result.steps == ()
    planning.check_offline(result)


def test_complete_environment_may_be_read_only() -> None:
    assert plan(environment(writable=False, externally_managed=True, has_pip=False)).steps == ()


@pytest.mark.parametrize("owner", [{"detectron2": "0.6"}, {"sal-detectron2": "0.7.2"}, {}])
def test_importable_detectron2_is_kept(owner: dict[str, str]) -> None:
    env = environment({"torch": "2.11.0", "torchvision": "0.26.0", **owner}, modules=frozenset({"detectron2"}))
    result = plan(env)
    assert "detectron2" not in [step.kind for step in result.steps]
    assert any(line.startswith("detectron2") for line in result.kept)
    assert all(f"{name}=={version}" in result.constraints for name, version in owner.items())


def test_other_torch_is_kept_with_all_that_belongs_to_it() -> None:
    packages = {"torch": "2.8.0", "torchvision": "0.23.0", "nvidia-nccl-cu12": "2.27.3", "numpy": "1.26.4"}
    result = plan(environment(packages, torchvision_wants="2.8.0"))
    installed = [item for step in result.steps for item in step.items]
    assert not any(item.startswith("torch") for item in installed)
    assert {"torch==2.8.0", "nvidia-nccl-cu12==2.27.3", "numpy==1.26.4"} <= set(result.constraints)
    assert not any("cu13" in line or line.startswith("triton") for line in result.constraints)


def test_container_build_without_metadata_is_kept() -> None:
    env = with_packages(torch="2.7.0a0+7c8ec84dab.nv25.3", torchvision="0.22.0a0")
    assert plan(env).steps == ()


@pytest.mark.parametrize("wants", [None, "2.6.0"])
def test_wrong_torchvision_is_explained(wants: str | None) -> None:
    env = replace(with_packages(torch="2.10.0", torchvision="0.21.0"), torchvision_wants=wants)
    message = r'torch 2\.10\.0 and torchvision 0\.21\.0 .*"torchvision==0\.25\.\*".*--torch pinned'
    with pytest.raises(planning.InstallError, match=message):
        plan(env)
    replaced = plan(env, "pinned")
    assert replaced.steps[0].items == ("torch==2.11.0", "torchvision==0.26.0")


def test_old_torch_is_left_alone_unless_asked() -> None:
    env = with_packages(torch="2.5.1", torchvision="0.20.1", nvidia_nccl_cu12="2.21.5", triton="3.1.0")
    with pytest.raises(planning.InstallError, match=r"torch 2\.5\.1 is installed.*2\.6 or newer.*--venv"):
        plan(env)
    result = plan(env, "pinned")
    assert [step.kind for step in result.steps] == ["pip"]
    assert "triton==3.6.0" in result.constraints  # the new torch brings its own
    assert not any("cu12" in line or line.startswith("torch==2.5") for line in result.constraints)


def test_pinned_pair_already_there_is_kept() -> None:
    assert plan(environment(), "pinned").steps == ()


def test_missing_torchvision_follows_the_installed_torch() -> None:
    result = plan(with_packages(torch="2.9.1", torchvision=None))
    assert [step.items for step in result.steps] == [("torchvision==0.24.*",)]
    assert "torch==2.9.1" in result.constraints
    assert not any(line.startswith("torchvision") for line in result.constraints)


def test_missing_torchvision_of_a_cpu_build_names_its_index() -> None:
    with pytest.raises(planning.InstallError, match=r"torchvision==0\.28\.\*.*whl/cpu"):
        plan(with_packages(torch="2.13.0+cpu", torchvision=None))


def test_keep_never_installs_torch() -> None:
    with pytest.raises(planning.InstallError, match="has no torch"):
        plan(with_packages(torch=None, torchvision=None), "keep")


def test_only_what_is_too_old_is_replaced() -> None:
    result = plan(with_packages(numpy="1.21.0", pillow="10.2.0"))
    assert [step.items for step in result.steps] == [("numpy>=1.26",)]
    assert "numpy==2.4.6" in result.constraints and "pillow==10.2.0" in result.constraints
    assert not any(line.startswith("numpy") for line in result.holds)


@pytest.mark.parametrize("name", ["opencv_python", "opencv_contrib_python"])
def test_other_opencv_builds_count(name: str) -> None:
    assert plan(with_packages(opencv_python_headless=None, **{name: "4.10.0.84"})).steps == ()


def test_another_checkout_or_version_is_installed_again() -> None:
    for env in (environment(project_url="file:///elsewhere"), with_packages(mask2former="0.0.9")):
        assert [step.kind for step in plan(env).steps] == ["project"]
        planning.check_offline(plan(env))  # needs no download


def test_offline_names_what_is_missing() -> None:
    env = replace(with_packages(numpy=None), modules=frozenset())
    with pytest.raises(planning.InstallError) as error:
        planning.check_offline(plan(env))
    assert "numpy>=1.26, sal-detectron2==0.7.2, panopticapi-lite==0.2.0" in str(error.value)
    assert "--wheels" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": (3, 9)}, r"is Python 3\.9; Mask2Former needs 3\.10 to 3\.13"),
        ({"version": (3, 14)}, r"is Python 3\.14"),
        ({"externally_managed": True}, "belongs to the operating system.*--venv"),
        ({"writable": False}, "No permission to write to /env/lib.*--venv"),
        ({"has_pip": False}, "has no pip.*ensurepip"),
    ],
)
def test_unusable_environment_is_explained(changes: dict[str, object], message: str) -> None:
    with pytest.raises(planning.InstallError, match=message):
        plan(environment({}, **changes))


# --- carrying it out ---


@pytest.mark.parametrize(
    ("output", "advice"),
    [
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("NewConnectionError(...)\nERROR: No matching distribution found for torch", "cannot be reached"),
        ("ERROR: No matching distribution found for torch==2.11.0", "no file for this Python"),
        ("ReadTimeoutError: Read timed out.", "Run the same command again"),
        ("THESE PACKAGES DO NOT MATCH THE HASHES", "not the expected one"),
        ("something new", "pip's own words"),
    ],
)
def test_pip_failures_come_with_advice(output: str, advice: str) -> None:
    assert advice in steps.remedy(output)


def test_pip_output_is_shown_without_the_noise(capfd: pytest.CaptureFixture[str]) -> None:
    script = "import sys; print(\"WARNING: Location 'file:///x' is ignored: gone\", file=sys.stderr);"
    script += "print('ERROR: real', file=sys.stderr); sys.exit(3)"
    assert steps.pip_once([sys.executable, "-c", script]) == (3, "ERROR: real\n")
    assert capfd.readouterr().err == "ERROR: real\n"


def installer(env=None):
    env = environment({"numpy": "1.26.4"}) if env is None else env
    return steps.Installer(env, plan(env), ROOT, None)


def test_broken_download_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [(1, "IncompleteRead"), (1, "Connection broken"), (0, "")]
    monkeypatch.setattr(steps, "pip_once", lambda command: answers.pop(0))
    monkeypatch.setattr(steps.time, "sleep", lambda seconds: None)
    installer().pip("install", "x")
    assert answers == []


def test_tested_versions_give_way_to_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def pip_once(command: list[str]) -> tuple[int, str]:
        seen.append(Path(command[command.index("--constraint") + 1]).read_text("utf-8"))
        return (1, "ERROR: ResolutionImpossible") if len(seen) == 1 else (0, "")

    monkeypatch.setattr(steps, "pip_once", pip_once)
    task = installer()
    task.run(task.plan.steps[1])
    assert "opencv-python-headless==5.0.0.93" in seen[0] and "numpy==1.26.4" in seen[0]
    assert seen[1] == "numpy==1.26.4\n"


def test_detectron2_is_stripped_of_what_must_not_be_installed(tmp_path: Path) -> None:
    for name in ("detectron2/__init__.py", "detectron2/_C.cpython-310.so", "tools/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    info = tmp_path / "sal_detectron2-0.7.2.dist-info"
    info.mkdir()
    metadata = "Name: sal-detectron2\nRequires-Dist: numpy<2\nRequires-Dist: numpy-like\nRequires-Dist: yacs\n"
    (info / "METADATA").write_text(metadata)
    record = "detectron2/_C.cpython-310.so,,\ndetectron2/__init__.py,,\ntools/__init__.py,,\n"
    record += f"{info.name}/METADATA,sha256=abc,9\n"
    (info / "RECORD").write_text(record)
    steps.strip_detectron2(tmp_path)
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    files = ["METADATA", "RECORD", "top_level.txt"]
    assert left == ["detectron2/__init__.py", *(f"{info.name}/{name}" for name in files)]
    assert (info / "RECORD").read_text() == f"detectron2/__init__.py,,\n{info.name}/METADATA,,\n"
    left_over = "Name: sal-detectron2\nRequires-Dist: numpy-like\nRequires-Dist: yacs\n"
    assert (info / "METADATA").read_text() == left_over  # with NumPy 2, pip would report a conflict for ever


def test_probe_sees_this_environment() -> None:
    env = install.probe(sys.executable)
    assert env.version == sys.version_info[:2]
    assert env.packages["pytest"] == importlib.metadata.version("pytest")
    assert "detectron2" in env.modules


def complete_environment(site_packages: Path):
    """An environment in which everything of pyproject.toml is installed in its tested version."""
    lines = (ROOT / "requirements/constraints.txt").read_text("utf-8").splitlines()
    packages = planning.read_pins(lines, (3, 11)) | {"mask2former": install.project_version()}
    return environment(
        packages,
        modules=frozenset({"detectron2", "panopticapi"}),
        torchvision_wants=packages["torch"],
        project_url=ROOT.as_uri(),
        site_packages=str(site_packages),
    )


def test_second_run_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    env = complete_environment(tmp_path)
    (tmp_path / install.STAMP).write_text(json.dumps({"fingerprint": install.fingerprint(env)}))

    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("a second run starts no other program")

    monkeypatch.setattr(install, "probe", lambda python: env)
    monkeypatch.setattr(install.subprocess, "run", forbidden)
    monkeypatch.setattr(steps.subprocess, "Popen", forbidden)
    assert install.main(["--offline", "--extras", "dev,video", "--ops", "none"]) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_changed_package_is_checked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = complete_environment(tmp_path)
    (tmp_path / install.STAMP).write_text(json.dumps({"fingerprint": install.fingerprint(env)}))
    newer = replace(env, packages={**env.packages, "numpy": "2.5.0"})
    checked = []
    monkeypatch.setattr(install, "probe", lambda python: newer)
    monkeypatch.setattr(install, "verify", checked.append)
    assert install.main(["--ops", "none"]) == 0
    assert checked == [newer]


def test_failed_import_names_the_package_and_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "print('torch', end='\\t'); print('2.11'); print('detectron2', end='\\t'); import no_such_module"
    monkeypatch.setattr(install, "VERIFY", script)
    env = environment(python=sys.executable, site_packages=str(tmp_path))
    with pytest.raises(planning.InstallError, match=r"(?s)^detectron2 cannot be used.*no_such_module.*Repair it"):
        install.verify(env)
    assert not (tmp_path / install.STAMP).exists()


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
    with pytest.raises(planning.InstallError, match="MASK2FORMER_BUILD_OPS=1 demands it. no torch"):
        install.compile_op(environment(torch_parent=None), "cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--wheels", "nowhere"], "there is no directory nowhere"),
        (["--venv", "full"], "is not a virtual environment"),
        (["--venv", "lost"], "has lost its Python"),
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


def test_wheel_metadata_states_the_true_dependencies(wheel: zipfile.ZipFile) -> None:
    info = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(wheel.read(info))
    assert metadata["Version"] == install.project_version()
    assert SpecifierSet(metadata["Requires-Python"]) == SpecifierSet(">=3.10,<3.14")
    requires = metadata.get_all("Requires-Dist") or []
    assert "torch>=2.6" in requires
    assert metadata["License-Expression"] == "MIT"
    assert (metadata.get_payload() or "").startswith("# Mask2Former")
    assert not any("detectron2" in text for text in requires)  # not on PyPI: pip could not install the package
    assert "video" in (metadata.get_all("Provides-Extra") or [])
    assert any(name.endswith("LICENSE") for name in wheel.namelist())
