"""Running pip: failures come with advice, and detectron2 is installed without its compiled part."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

from mask2former.installation import pip_steps as steps
from mask2former.installation.messages import InstallError
from tests.installation.imitation import imitate_pip


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
    with pytest.raises(InstallError) as error:
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
