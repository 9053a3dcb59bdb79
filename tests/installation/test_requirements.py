"""What has to be installed: PyTorch and its kin, the requirements of extras, the tested versions."""

from __future__ import annotations

from dataclasses import replace

import pytest
from packaging.requirements import Requirement

from mask2former.installation.messages import InstallError
from mask2former.installation.project import this_project
from mask2former.installation.requirements import constraints, read_pins, select_requirements, torch_to_install
from tests.installation.imitation import PAIR, PINS, REQUIRES, environment


def test_fresh_environment_gets_the_tested_pair() -> None:
    env = environment(pip="23.2.1", setuptools="65.5.0")
    assert torch_to_install(env, PINS, "auto") == PAIR
    first = constraints(env, PINS, PAIR)[0]
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
    assert torch_to_install(env, PINS, "auto") == []
    tested, held, stack = constraints(env, PINS, [])
    of_torch = {f"torch=={torch}", f"torchvision=={vision}", "nvidia-nccl-cu12==2.27.3"}
    assert set(stack) == of_torch
    assert set(held) == of_torch | {"numpy==1.26.4"}
    assert set(tested) == of_torch | {"numpy==1.26.4", "opencv-python-headless==5.0.0.93"}


def test_wrong_torchvision_is_explained() -> None:
    env = environment(torch="2.10.0", torchvision="0.21.0")
    message = r'torch 2\.10\.0 and torchvision 0\.21\.0 .*"torchvision==0\.25\.\*".*--torch pinned'
    with pytest.raises(InstallError, match=message):
        torch_to_install(env, PINS, "auto")
    assert torch_to_install(env, PINS, "pinned") == PAIR


def test_old_torch_is_left_alone_unless_asked() -> None:
    env = environment(torch="2.5.1", torchvision="0.20.1", nvidia_nccl_cu12="2.21.5", triton="3.1.0", numpy="2.0.0")
    with pytest.raises(InstallError, match=r"torch 2\.5\.1 is installed.*2\.6 or newer.*--venv"):
        torch_to_install(env, PINS, "auto")
    assert torch_to_install(env, PINS, "pinned") == PAIR
    for lines in constraints(env, PINS, PAIR):
        assert not any("cu12" in line or line in ("torch==2.5.1", "triton==3.1.0") for line in lines)
    assert "triton==3.6.0" in constraints(env, PINS, PAIR)[2]  # the new torch brings its own
    assert "numpy==2.0.0" in constraints(env, PINS, PAIR)[1]


@pytest.mark.parametrize("local", ["", "+cu130"])
def test_pinned_pair_already_there_is_kept(local: str) -> None:
    env = environment(torch=f"2.11.0{local}", torchvision=f"0.26.0{local}")
    assert torch_to_install(env, PINS, "pinned") == []


def test_missing_torchvision_follows_the_installed_torch() -> None:
    env = environment(torch="2.9.1")
    new = torch_to_install(env, PINS, "auto")
    assert new == ["torchvision==0.24.*"]
    first = constraints(env, PINS, new)[0]
    assert "torch==2.9.1" in first and not any(line.startswith("torchvision") for line in first)


def test_missing_torchvision_of_a_cpu_build_names_its_index() -> None:
    with pytest.raises(InstallError, match=r"torchvision==0\.28\.\*.*whl/cpu"):
        torch_to_install(environment(torch="2.13.0+cpu"), PINS, "auto")


def test_keep_never_installs_torch() -> None:
    with pytest.raises(InstallError, match="has no torch"):
        torch_to_install(environment(), PINS, "keep")
    with pytest.raises(InstallError, match=r"torchvision==0\.24"):
        torch_to_install(environment(torch="2.9.1"), PINS, "keep")


def test_requirements_of_the_chosen_extras() -> None:
    env = replace(environment(), requires=REQUIRES, extras=["dev", "video"])
    base = ["numpy>=1.26", "opencv-python-headless>=4.8", 'tomli>=2; python_version < "3.11"']
    assert select_requirements(env, set()) == base
    assert select_requirements(env, {"video"}) == [*base, "av>=12.0"]
    dev = ["ruff>=0.9", 'exceptiongroup>=1; python_version < "3.11"', 'pywin32>=3; (sys_platform == "win32")']
    assert select_requirements(env, {"dev"}) == [*base, *dev]
    with pytest.raises(InstallError, match="no extra 'deb'.*dev, video"):
        select_requirements(env, {"deb"})


@pytest.mark.parametrize("name", ["opencv_python", "opencv_contrib_python"])
def test_other_opencv_builds_count(name: str) -> None:
    env = replace(environment(**{name: "4.10.0.84"}), requires=REQUIRES)
    assert not any("opencv" in text for text in select_requirements(env, set()))


def test_tested_versions_are_exact() -> None:
    for name, line in read_pins(this_project()):
        requirement = Requirement(line)
        assert requirement.name == name and [part.operator for part in requirement.specifier] == ["=="], line
