"""The installation: what is looked at, decided, done and checked; what is left alone."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mask2former.installation import command, verification
from mask2former.installation import environment as environments
from mask2former.installation import pip_steps as steps
from mask2former.installation.environment import Environment
from mask2former.installation.messages import InstallError
from mask2former.installation.project import Project
from mask2former.installation.requirements import build_setuptools, select_requirements
from tests.installation.imitation import PAIR, PINS, REQUIRES, environment, imitate_pip

ROOT = Path(__file__).resolve().parents[2]
CHECKOUT = Project(ROOT)


def test_probe_sees_this_environment() -> None:
    env = environments.probe(sys.executable)
    assert env.version == sys.version_info[:2]
    assert env.packages["pytest"] == importlib.metadata.version("pytest")
    assert env.detectron2 and Path(env.detectron2, "detectron2/__init__.py").exists()
    assert env.torch == str(importlib.metadata.distribution("torch").locate_file(""))


def test_what_lies_in_the_working_directory_is_not_what_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert "No module named 'only_here'" in environments.run_script(sys.executable, "import only_here").stderr


@pytest.fixture
def verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    """An environment that has been verified with the extras demo and dev; nothing may be started in it."""
    env = replace(environment(torch="2.11.0", torchvision="0.26.0"), python=sys.executable, site_packages=str(tmp_path))

    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("nothing is missing, and yet a program is started")

    monkeypatch.setattr(verification, "VERIFIED", ["json"])
    verification.verify(env, CHECKOUT, {"demo", "dev"})
    monkeypatch.setattr(command, "probe", lambda python: env)
    monkeypatch.setattr(environments.subprocess, "run", forbidden)
    monkeypatch.setattr(steps.subprocess, "Popen", forbidden)
    return env


@pytest.mark.parametrize("arguments", [[], ["--offline"], ["--extras", "dev, demo"], ["--torch", "keep"]])
def test_second_run_does_nothing(
    arguments: list[str], verified: Environment, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([*arguments, "--ops", "none"]) == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["package", "place", "extra", "checkout", "declaration", "stamp"])
def test_what_changed_is_installed_and_checked_again(
    change: str, verified: Environment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    env, extras = verified, {"demo"}
    if change == "package":
        env = replace(env, packages={**env.packages, "numpy": "2.5.0"})
    elif change == "place":
        env = replace(env, project='{"url": "file:///elsewhere"}')
    elif change == "extra":
        extras = {"demo", "video"}
    elif change == "stamp":
        (tmp_path / verification.STAMP).write_text("[]")
    else:
        copy = tmp_path / "checkout"
        for file in CHECKOUT.declarations():
            target = copy / file.relative_to(ROOT)
            target.parent.mkdir(exist_ok=True, parents=True)
            shutil.copy(file, target)
        project = Project(copy)
        assert project.is_checkout
        if change == "declaration":  # in the same place, as after git pull
            stamp = {"fingerprint": verification.fingerprint(env, project), "extras": ["demo"]}
            Path(env.site_packages, verification.STAMP).write_text(json.dumps(stamp))
            with (copy / "pyproject.toml").open("a") as file:
                file.write("\n")
        monkeypatch.setattr(command, "this_project", lambda: project)
    seen: list[object] = []
    monkeypatch.setattr(command, "probe", lambda python: env)
    monkeypatch.setattr(command, "take_steps", lambda env, project, extras, *rest: seen.append(extras) or env)
    monkeypatch.setattr(command, "verify", lambda env, project, extras: seen.append(extras))
    assert command.main(["--ops", "none", "--extras", ",".join(extras)]) == 0
    # An extra that comes later does not make the others forgotten.
    assert seen == [extras, {"demo", "dev", "video"} if change == "extra" else {"demo"}]


def test_steps_of_an_incomplete_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    env = replace(environment(torch="2.11.0", torchvision="0.26.0"), requires=REQUIRES, extras=["video"])
    calls = imitate_pip(monkeypatch, "", "", "")
    detectron2: list[object] = []
    monkeypatch.setattr(command, "probe", lambda python: env)
    monkeypatch.setattr(command, "install_detectron2", lambda *args: detectron2.append(args))
    source = ["--no-index", "--find-links", "wheels"]
    command.take_steps(env, CHECKOUT, {"video"}, [*PINS, ("setuptools", "setuptools==80.8.0")], [], source)
    assert calls[0][-4:] == [*source, "setuptools==80.8.0"]
    assert calls[1][-2:] == ["--editable", str(ROOT)] and {"--no-deps", "--no-build-isolation"} <= set(calls[1])
    assert calls[2][-7:] == [*source, *select_requirements(env, {"video"})]
    assert "torch==2.11.0\n" in calls[2][calls[2].index("--constraint") + 1]
    assert detectron2 == [("/env/bin/python", source)]


def test_the_setuptools_that_builds_is_the_one_of_the_build_system(monkeypatch: pytest.MonkeyPatch) -> None:
    toml = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    content = toml.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert content["build-system"]["requires"] == [f"setuptools>={build_setuptools(CHECKOUT)}"]
    calls = imitate_pip(monkeypatch, "", "", "")
    env = replace(environment(setuptools="76.1.0"), requires=REQUIRES, detectron2="/env/lib")
    monkeypatch.setattr(command, "probe", lambda python: env)
    command.take_steps(env, CHECKOUT, set(), [*PINS, ("setuptools", "setuptools==80.8.0")], PAIR, [])
    assert calls[0][-1] == "setuptools==80.8.0" and "--editable" in calls[1]


def test_installed_detectron2_and_setuptools_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    env = replace(environment(setuptools=build_setuptools(CHECKOUT)), requires=REQUIRES, detectron2="/env/lib")
    calls = imitate_pip(monkeypatch, "", "")
    monkeypatch.setattr(command, "probe", lambda python: env)
    command.take_steps(env, CHECKOUT, set(), PINS, PAIR, [])
    assert "--editable" in calls[0]
    assert calls[1][-5:-3] == PAIR


def test_failed_import_names_the_package_and_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.py").write_text("import no_such_module")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(verification, "VERIFIED", ["json", "broken"])
    monkeypatch.setitem(verification.VERIFY_REMEDY, "broken", "Repair it")
    env = replace(environment(), python=sys.executable, site_packages=str(tmp_path))
    with pytest.raises(InstallError, match=r"(?s)^broken cannot be used.*no_such_module.*Repair it"):
        verification.verify(env, CHECKOUT, set())
    assert not (tmp_path / verification.STAMP).exists()


def test_every_verified_module_has_a_remedy() -> None:
    assert {name.partition(".")[0] for name in verification.VERIFIED} == set(verification.VERIFY_REMEDY)
    assert set(verification.VERIFY_REMEDY) == {"torch", "torchvision", "detectron2", "mask2former"}


def test_dry_run_only_prints(
    verified: Environment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "probe", lambda python: replace(environment(), python=sys.executable))
    assert command.main(["--dry-run", "--extras", "video"]) == 0
    printed = capsys.readouterr().out
    assert all(text in printed for text in ["would install: torch==2.11.0", "[video]", steps.DETECTRON2])


def test_environment_that_cannot_be_written(
    verified: Environment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command.os, "access", lambda path, mode: False)
    assert command.main(["--ops", "none"]) == 0  # it is complete
    assert command.main(["--ops", "none", "--extras", "video"]) == 1
    assert "No permission to write" in capsys.readouterr().err


@pytest.mark.parametrize("version", [(3, 9), (3, 14)])
def test_unsupported_python_is_explained(version: tuple[int, int]) -> None:
    with pytest.raises(InstallError, match=rf"is Python 3\.{version[1]}; Mask2Former needs 3\.10 to 3\.13"):
        environments.check_python("python", version)


@pytest.mark.parametrize(
    ("choice", "variable", "parts", "request_"),
    [
        ("auto", "", ("cpu", "cuda"), None),  # None: CUDA code only where a GPU is
        ("auto", "1", ("cpu", "cuda"), "1"),
        ("all", "", ("cpu", "cuda"), "all"),
        ("cuda", "", ("cuda",), "all"),
        ("cpu", "", ("cpu",), None),
        ("cpu", "cpu", ("cpu",), "cpu"),
        ("none", "1", (), "1"),
    ],
)
def test_op_is_compiled_for_the_torch_of_the_environment(
    choice: str, variable: str, parts: tuple[str, ...], request_: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[object, ...]] = []
    monkeypatch.setattr(command.build_ops, "build", lambda *args: seen.append(args))
    monkeypatch.setenv("MASK2FORMER_BUILD_OPS", variable)
    command.compile_op(replace(environment(), torch="/env/lib"), CHECKOUT, choice)
    assert [args[:-1] for args in seen] == [(CHECKOUT, None, [Path("/env/lib")], parts, request_)]


def test_demanded_op_that_fails_ends_the_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASK2FORMER_BUILD_OPS", "1")
    with pytest.raises(InstallError, match="MASK2FORMER_BUILD_OPS=1 requires it. no torch"):
        command.compile_op(environment(), CHECKOUT, "cpu")


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
    assert command.main(arguments) == 1
    assert message in capsys.readouterr().err
    assert (tmp_path / "full" / "thesis.txt").exists() and not (tmp_path / "new").exists()


# --- of an installed package ---


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A package in site-packages, with the tested versions."""
    (tmp_path / "site/mask2former/installation").mkdir(parents=True)
    project = Project(tmp_path / "site")
    shutil.copy(CHECKOUT.constraints, project.constraints)
    monkeypatch.setattr(command, "this_project", lambda: project)
    monkeypatch.delenv(command.build_ops.VARIABLE, raising=False)
    return project


def test_installed_package_gets_what_it_requires_and_is_not_installed_again(
    installed: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    env = environment(mask2former="0.1.0", torch="2.11.0", torchvision="0.26.0")
    env = replace(env, python=sys.executable, site_packages=str(installed.root), requires=REQUIRES, extras=["video"])
    library = installed.root / "mask2former/ops/_cpu.abi3.so"
    done: list[object] = []
    monkeypatch.setattr(command, "probe", lambda python: env)
    monkeypatch.setattr(command, "install_detectron2", lambda python, source: done.append("detectron2"))
    monkeypatch.setattr(command.build_ops, "build", lambda *args: [library])
    monkeypatch.setattr(command, "add_to_record", lambda project, files: done.append((project, files)))
    monkeypatch.setattr(command, "verify", lambda env, project, extras: done.append(extras))
    calls = imitate_pip(monkeypatch, "")
    assert command.main(["--extras", "video"]) == 0
    (call,) = calls  # one call of pip, for what the metadata requires
    assert "av>=12.0" in call and "--editable" not in call
    assert done == ["detectron2", (installed, [library]), {"video"}]
    assert "Done. Try it:" in capsys.readouterr().out


def test_dry_run_of_an_installed_package(
    installed: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    env = replace(environment(mask2former="0.1.0"), python=sys.executable, site_packages=str(installed.root))
    monkeypatch.setattr(command, "probe", lambda python: env)
    assert command.main(["--dry-run"]) == 0
    expected = "would install: torch==2.11.0, torchvision==0.26.0, mask2former 0.1.0 with what is missing of its"
    assert expected in capsys.readouterr().out


def test_copy_without_metadata_is_refused(
    installed: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "probe", lambda python: replace(environment(), python=sys.executable))
    assert command.main([]) == 1
    assert "was not installed by pip into" in capsys.readouterr().err


def test_upgrade_is_checked_again(installed: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    env = replace(environment(mask2former="0.1.0"), python=sys.executable, site_packages=str(installed.root))
    monkeypatch.setattr(verification, "VERIFIED", ["json"])
    verification.verify(env, installed, set())
    assert verification.verified_extras(env, installed) == set()
    later = replace(env, packages={**env.packages, "mask2former": "0.2.0"})
    assert verification.verified_extras(later, installed) is None
