"""How ``tools/install.py`` carries out its steps: pip with readable failures, and detectron2's own way in.

Standard library only, Python 3.10 to 3.13.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence, Set
from pathlib import Path

import build_ops
import install_plan as planning
from install_plan import Environment, InstallError, Plan, Step

DOWNLOAD_TRIES = 3
BROKEN_DOWNLOAD = r"IncompleteRead|Connection broken|Read timed out|ConnectionReset|ProtocolError|Connection aborted"

# (pattern in pip's messages, what to do), first match wins
PIP_REMEDIES = (
    (
        r"No space left on device",
        "The disk is full: PyTorch needs about 10 GB, half of it in the temporary directory (TMPDIR sets another).",
    ),
    (
        r"DO NOT MATCH THE HASHES",
        "A downloaded file is not the expected one. Run: python -m pip cache purge, then try "
        "again. If it stays so, the package index serves another file: do not install it.",
    ),
    (
        r"ResolutionImpossible",
        "What is installed here does not go together with what Mask2Former needs. Use an "
        "environment of its own: python3 tools/install.py --venv .venv",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|SSLError",
        "The certificate of the package index was refused. Behind a company proxy, "
        "set PIP_CERT to its certificate file.",
    ),
    (
        r"NewConnectionError|name resolution|ProxyError|ConnectTimeout|Max retries exceeded|No route to host",
        "The package index cannot be reached. Check the connection and the proxy (HTTPS_PROXY, "
        "PIP_INDEX_URL), then run the same command again; without one, see INSTALL.md, 'Offline'.",
    ),
    (
        BROKEN_DOWNLOAD,
        "The download broke off. Run the same command again: it goes on from what is already there.",
    ),
    (
        r"externally-managed-environment",
        "This Python belongs to the operating system. Use an environment of its own: "
        "python3 tools/install.py --venv .venv",
    ),
    (r"Permission denied", "No permission to write there. Use an environment of its own: --venv .venv"),
    (
        r"No matching distribution found|Could not find a version",
        "The package index gave no file for this Python and system. Either it cannot be reached (check the "
        "connection, the proxy and `pip config list`), or this is not a 64-bit Python 3.10 to 3.13.",
    ),
    (
        r"Failed building wheel|subprocess-exited-with-error",
        "A package has no ready-made build for this system; the lines above say which and why.",
    ),
)


def say(text: str) -> None:
    print(text, flush=True)


def remedy(pip_messages: str) -> str:
    """What to do about a failed pip, from what it wrote to stderr."""
    found = (text for pattern, text in PIP_REMEDIES if re.search(pattern, pip_messages))
    return next(
        found,
        "The lines above are pip's own words. Running the same command again continues where it stopped.",
    )


def pip_once(command: Sequence[str]) -> tuple[int, str]:
    """Run pip, show what it says, and return (exit status, its messages on stderr)."""
    messages: list[str] = []
    # The op is compiled afterwards, where its messages are seen.
    env = {**os.environ, build_ops.VARIABLE: "0"}
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, errors="replace") as process:
        assert process.stderr is not None
        for line in process.stderr:
            if re.search(r"Location '.*' is ignored", line):  # an index that a machine's settings name in vain
                continue
            messages.append(line)
            sys.stderr.write(line)
            sys.stderr.flush()
    return process.returncode, "".join(messages)


class PipError(InstallError):
    """pip ended with an error; ``messages`` is what it wrote to stderr."""

    def __init__(self, command: Sequence[str], messages: str) -> None:
        super().__init__(f"pip failed: {' '.join(command)}\n{remedy(messages)}")
        self.messages = messages


class Installer:
    """Carries out the steps of a plan in one environment."""

    def __init__(self, env: Environment, plan: Plan, project: Path, wheels: Path | None) -> None:
        self.env = env
        self.plan = plan
        self.project = project
        self.source = ["--no-index", "--find-links", str(wheels)] if wheels else []

    def run(self, step: Step) -> None:
        actions = {
            "pip": self.install_packages,
            "detectron2": self.install_detectron2,
            "panopticapi": self.install_panopticapi,
            "project": self.install_project,
        }
        actions[step.kind](step)

    def pip(self, *arguments: str) -> None:
        """Run pip; a broken download is tried again, any other failure raises InstallError with a remedy."""
        command = [self.env.python, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
        for attempt in range(1, DOWNLOAD_TRIES + 1):
            status, messages = pip_once(command)
            if status == 0:
                return
            if attempt == DOWNLOAD_TRIES or not re.search(BROKEN_DOWNLOAD, messages):
                raise PipError(command, messages)
            say(f"==> the download broke off; try {attempt + 1} of {DOWNLOAD_TRIES}")
            time.sleep(2 * attempt)

    def install_packages(self, step: Step) -> None:
        """Install the tested versions; where they do not fit what is installed, let pip choose."""
        with tempfile.TemporaryDirectory() as directory:
            constraints = Path(directory) / "constraints.txt"
            constraints.write_text("\n".join(self.plan.constraints) + "\n", "utf-8")
            command = ["install", *self.source, "--constraint", str(constraints), *step.items]
            try:
                self.pip(*command)
            except PipError as error:
                if self.plan.holds == self.plan.constraints or "ResolutionImpossible" not in error.messages:
                    raise
                say("==> the tested versions do not fit what is installed here; pip chooses versions that do")
                constraints.write_text("\n".join(self.plan.holds) + "\n", "utf-8")
                self.pip(*command)

    def install_detectron2(self, step: Step) -> None:
        """Put the pure-Python detectron2 into site-packages.

        The wheel is tagged for CPython 3.10 only because of its compiled part, which nothing here uses. So it
        is unpacked beside its place, relieved of that part and of a stray top-level package ``tools``, then
        moved in.
        """
        site_packages = Path(self.env.site_packages)
        staging = Path(tempfile.mkdtemp(prefix=".detectron2-", dir=site_packages))
        try:
            wanted = staging / "requirement.txt"
            wanted.write_text(f"{step.items[0]} --hash=sha256:{planning.DETECTRON2_SHA256}\n", "utf-8")
            target = staging / "target"
            options = ["--no-deps", "--no-compile", "--only-binary=:all:", "--target", str(target)]
            any_system = ["--python-version", "3.10", "--implementation", "cp", "--platform", "any"]
            self.pip("install", *options, *any_system, *self.source, "--requirement", str(wanted))
            strip_detectron2(target)
            for name in ["detectron2", *(path.name for path in target.glob("*.dist-info"))]:
                shutil.rmtree(site_packages / name, ignore_errors=True)  # the rest of an interrupted installation
                os.replace(target / name, site_packages / name)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def install_panopticapi(self, step: Step) -> None:
        self.pip("install", "--no-deps", *self.source, *step.items)
        for info in Path(self.env.site_packages).glob("panopticapi_lite-*.dist-info"):
            drop_requirements(info, {"numpy", "platformdirs", "scikit-image"})

    def install_project(self, step: Step) -> None:
        # --no-index: everything that builds the project is there by now, so nothing may be looked up.
        options = ["--no-build-isolation", "--no-deps", "--no-index", "--quiet"]
        self.pip("install", *options, "--editable", str(self.project))


def drop_requirements(info: Path, names: Set[str]) -> None:
    """Remove requirements that are wrong from an installed package's metadata.

    Both packages forbid NumPy 2, with which they work, and name packages that they do not import. Left in, pip would
    report these as errors whenever it installs something else.
    """
    metadata = info / "METADATA"
    lines = metadata.read_text("utf-8").splitlines(keepends=True)
    wrong = re.compile(rf"Requires-Dist: ({'|'.join(map(re.escape, sorted(names)))})\b(?!-)")
    metadata.write_text("".join(line for line in lines if not wrong.match(line)), "utf-8")
    record = info / "RECORD"
    entry = re.compile(rf"^{re.escape(info.name)}/METADATA,.*$", re.MULTILINE)
    record.write_text(entry.sub(f"{info.name}/METADATA,,", record.read_text("utf-8")), "utf-8")


def strip_detectron2(target: Path) -> None:
    """Remove the compiled part and the top-level ``tools`` from an unpacked wheel, and from its RECORD."""
    for library in target.glob("detectron2/_C*"):
        library.unlink()
    shutil.rmtree(target / "tools", ignore_errors=True)
    for info in target.glob("*.dist-info"):
        record = info / "RECORD"
        lines = record.read_text("utf-8").splitlines()
        kept = [line for line in lines if not line.startswith(("detectron2/_C", "tools/"))]
        record.write_text("\n".join(kept) + "\n", "utf-8")
        (info / "top_level.txt").write_text("detectron2\n", "utf-8")
        drop_requirements(info, {"numpy", "black"})
    if not (target / "detectron2" / "__init__.py").exists():
        raise InstallError(
            f"The wheel of {planning.DETECTRON2_NAME} holds no detectron2. Is the package index a mirror?"
        )
