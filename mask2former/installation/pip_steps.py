"""How pip is run: failures with a remedy, and the detectron2 that needs no compiler."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from .build_ops import VARIABLE
from .messages import OWN_ENVIRONMENT, InstallError, say
from .project import GUIDE

DETECTRON2 = "sal-detectron2==0.7.2"
DETECTRON2_SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"

# (pattern in pip's messages, what to do), first match wins
REMEDIES = (
    (r"No module named pip", "Add pip with: python -m ensurepip --upgrade   (or, with uv: uv pip install pip)"),
    (r"No space left", "The disk is full: PyTorch needs about 10 GB, half of it in the temporary directory (TMPDIR)."),
    (
        r"DO NOT MATCH THE HASHES",
        "A downloaded file is not the expected one. Run: python -m pip cache purge, then try again. If it stays so, "
        "the package index serves another file: do not install it.",
    ),
    (r"ResolutionImpossible", f"What is installed here does not go together with Mask2Former. {OWN_ENVIRONMENT}"),
    (
        r"CERTIFICATE_VERIFY_FAILED|SSLError",
        "The certificate of the package index was refused. Behind a company proxy, set PIP_CERT to its file.",
    ),
    (
        r"NewConnectionError|name resolution|ProxyError|ConnectTimeout|Max retries exceeded|No route to host",
        "The package index cannot be reached. Check the connection and the proxy (HTTPS_PROXY, PIP_INDEX_URL), then "
        f"run the same command again; without a connection see {GUIDE}#offline",
    ),
    (
        r"IncompleteRead|Connection broken|Read timed out|ConnectionReset|ProtocolError|Connection aborted",
        "The download broke off. Run the same command again: finished downloads are kept.",
    ),
    (r"externally-managed|Permission denied", f"This Python is not yours to change. {OWN_ENVIRONMENT}"),
    (
        r"No matching distribution found|Could not find a version",
        "No file for this Python and system was found. With --offline or --wheels, download it first: "
        f"{GUIDE}#offline. Otherwise check the connection, the proxy and `pip config list`, or take Python 3.11.",
    ),
    ("", "The lines above are pip's own words. Running the same command again continues where it stopped."),
)


class PipError(InstallError):
    """pip ended with an error: what to do about it, and what it wrote to stderr."""


def run_pip(python: str, *arguments: str) -> None:
    """Run pip and show what it says; a failure raises PipError with a remedy."""
    command = [python, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    environment = {**os.environ, VARIABLE: "0"}  # the op is compiled afterwards, where its messages are seen
    messages = ""
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, errors="replace") as process:
        assert process.stderr is not None
        for line in process.stderr:
            if not re.search(r"Location '.*' is ignored", line):  # an index that pip's settings name in vain
                messages += line
                print(line, end="", file=sys.stderr, flush=True)
    if process.returncode != 0:
        advice = next(advice for pattern, advice in REMEDIES if re.search(pattern, messages))
        raise PipError(f"pip failed: {' '.join(command)}\n{advice}", messages)


def install_packages(python: str, arguments: Sequence[str], constraints: Sequence[Sequence[str]]) -> None:
    """Install what ``arguments`` of pip name, within the first of the lists of constraints that can be satisfied."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "constraints.txt")
        for number, lines in enumerate(constraints, 1):
            file.write_text("\n".join(lines) + "\n", "utf-8")
            try:
                return run_pip(python, "install", "--constraint", str(file), *arguments)
            except PipError as error:
                if number == len(constraints) or "ResolutionImpossible" not in error.args[1]:
                    raise
            say("==> the tested versions do not fit what is installed here; pip chooses versions that do")


def install_detectron2(python: str, source: Sequence[str]) -> None:
    """Install a detectron2 of Python files only; ``source`` are pip's options on where to look.

    Its wheel is tagged for CPython 3.10 because of a compiled part, which nothing here uses: pip fetches it for that
    Python, whichever runs here, and installs a copy without that part.
    """
    with tempfile.TemporaryDirectory() as directory:
        wanted, plain = Path(directory, "requirement.txt"), Path(directory, "plain")
        wanted.write_text(f"{DETECTRON2} --hash=sha256:{DETECTRON2_SHA256}\n", "utf-8")
        plain.mkdir()
        any_system = ["--only-binary=:all:", "--python-version", "3.10", "--implementation", "cp", "--platform", "any"]
        options = ["--quiet", "--no-deps", *any_system, *source, "--dest", directory]
        run_pip(python, "download", *options, "--requirement", str(wanted))
        strip_detectron2(next(Path(directory).glob("*.whl")), plain)
        # By name from a directory: with the path of a file, `pip freeze` would name that file ever after.
        run_pip(python, "install", "--quiet", "--no-deps", "--no-index", "--find-links", str(plain), DETECTRON2)


def strip_detectron2(wheel: Path, directory: Path) -> None:
    """Copy ``wheel`` into ``directory`` as one for every system.

    Left out are the compiled part, a stray top-level package ``tools``, and two requirements: numpy<2, though it works
    with NumPy 2, and black, which it does not import. pip would report both from then on, and so it would the tag.
    """
    wrong = re.compile(rb"^Requires-Dist: (?:numpy|black)\b(?!-).*\n", re.MULTILINE)
    name, version = wheel.name.split("-")[:2]
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(directory / f"{name}-{version}-py3-none-any.whl", "w") as new:
        for path in old.namelist():
            if not path.startswith(("detectron2/_C", "tools/")) and not path.endswith(("/RECORD", "/top_level.txt")):
                content = old.read(path)
                if path.endswith(".dist-info/METADATA"):
                    content = wrong.sub(b"", content)
                elif path.endswith(".dist-info/WHEEL"):
                    content = re.sub(rb"Tag: .*", b"Tag: py3-none-any", content)
                new.writestr(path, content)
        record = f"{name}-{version}.dist-info/RECORD"
        new.writestr(record, "".join(f"{path},,\n" for path in [*new.namelist(), record]))
