#!/usr/bin/env python3
"""Install Mask2Former and all it needs. With a compiler, its op is compiled; none is needed.

    python3 tools/install.py --venv .venv            into an environment of its own, made if it is not there
    python3 tools/install.py                         into the Python that runs this script
    python3 tools/install.py --venv .venv --extras dev,video

A detectron2 that can be imported is kept, and so is a torch >= 2.6 with its torchvision; other packages that are
installed keep their version unless it is too old. What is missing is installed in the versions of
requirements/constraints.txt. A second run finds nothing to do and ends within a second, also without a connection.
Standard library only. install_steps.py runs pip, build_ops.py compiles the op (MASK2FORMER_BUILD_OPS, see INSTALL.md,
'The compiled op').
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 10):  # noqa: UP036  a clear message instead of a SyntaxError further on
    raise SystemExit("tools/install.py needs Python 3.10 to 3.13; this is Python " + sys.version.split()[0])

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import build_ops
from install_steps import DETECTRON2, OWN_ENVIRONMENT, InstallError, install_detectron2, install_packages, run_pip, say

ROOT = Path(__file__).resolve().parent.parent
PYTHON_VERSIONS = ((3, 10), (3, 13))  # first and last supported, both included
MIN_TORCH = (2, 6)
STAMP = ".mask2former-verified.json"  # in site-packages: what was there when everything could be imported
DECLARED = ("setup.py", "pyproject.toml", "requirements/constraints.txt", "mask2former/__init__.py")
TORCH_STACK = re.compile(r"(torch|torchvision|triton|pytorch-triton.*|nvidia-.*|cuda-.*)")
OPENCV = {"opencv-python-headless", "opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless"}

PROBE = r"""
import importlib.metadata, importlib.util, json, os, re, sys, sysconfig
packages, project = {}, (None, None, None)
for dist in importlib.metadata.distributions():
    name = re.sub(r"[-_.]+", "-", dist.metadata["Name"] or "").lower()
    if name and name not in packages:
        packages[name] = dist.version or ""
        if name == "mask2former":
            project = dist.read_text("direct_url.json"), dist.requires, dist.metadata.get_all("Provides-Extra")
def parent(module):  # a mere directory of that name has no origin
    spec = importlib.util.find_spec(module)
    return spec and spec.origin and os.path.dirname(os.path.dirname(spec.origin))
print(json.dumps(dict(
    version=sys.version_info[:2], site_packages=sysconfig.get_path("purelib"), packages=packages, project=project[0],
    requires=project[1] or [], extras=project[2] or [], detectron2=parent("detectron2"), torch=parent("torch"))))
"""

# One line per module: NAME<tab>version. The first that fails ends the script with its traceback.
VERIFY = r"""
import importlib, sys
for name in sys.argv[1:]:
    print(name, end="\t", flush=True)
    print(getattr(importlib.import_module(name), "__version__", "can be imported"))
"""
VERIFIED = ["torch", "torchvision", "detectron2", "detectron2.engine", "detectron2.evaluation", "mask2former"]
VERIFY_REMEDY = {
    "torch": "The installed PyTorch does not work. Replace it by the tested one: --torch pinned",
    "torchvision": "It does not fit the installed torch. Replace both by the tested pair: --torch pinned",
    "detectron2": "The detectron2 that is installed cannot be imported; it was left as it is. Repair it, or remove it "
    "(python -m pip uninstall detectron2 sal-detectron2) and run this script again: that installs one that works.",
    "mask2former": "The dependencies work, this package does not. Is the checkout complete (git status)?",
}


@dataclass(frozen=True)
class Environment:
    """One Python environment, as ``probe`` finds it.

    ``packages`` maps normalized distribution names to versions. ``project`` tells where the installed mask2former lies;
    ``requires`` and ``extras`` are from its metadata. ``detectron2`` and ``torch`` are the directories above these
    modules.
    """

    python: str
    version: tuple[int, int]
    site_packages: str
    packages: Mapping[str, str]
    project: str | None = None
    requires: Sequence[str] = ()
    extras: Sequence[str] = ()
    detectron2: str | None = None
    torch: str | None = None


def check_python(python: str, version: tuple[int, int]) -> None:
    """Raise InstallError for a Python that Mask2Former does not run on."""
    if not PYTHON_VERSIONS[0] <= version <= PYTHON_VERSIONS[1]:
        raise InstallError(
            f"{python} is Python {version[0]}.{version[1]}; Mask2Former needs 3.10 to 3.13. Run this script with such "
            "a Python, for example: python3.11 tools/install.py --venv .venv"
        )


def prepare_venv(directory: Path, make: bool) -> str:
    """Return the Python of the virtual environment ``directory``; make the environment if it is not there."""
    python = directory / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if python.exists() and (directory / "pyvenv.cfg").exists():
        return str(python)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InstallError(
            f"{directory} exists and is not a virtual environment, or one that has lost its Python ({python}). "
            "Delete it, or choose another directory for --venv."
        )
    if not make:
        raise InstallError(f"{directory} does not exist yet. Leave out --offline and --dry-run to have it made.")
    check_python(sys.executable, sys.version_info[:2])
    say(f"==> making the virtual environment {directory} with Python {sys.version.split()[0]}")
    done = subprocess.run([sys.executable, "-m", "venv", str(directory)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        shutil.rmtree(directory, ignore_errors=True)
        raise InstallError(
            f"Python could not make a virtual environment:\n{(done.stdout + done.stderr).strip()}\n"
            "On Debian and Ubuntu install the missing part first: sudo apt install python3-venv"
        )
    return str(python)


def run_script(python: str, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``script`` from where no module lies: it must find what is installed, not what this directory holds."""
    command = [python, "-c", script, *arguments]
    return subprocess.run(command, cwd=Path(python).parent, capture_output=True, text=True, check=False)


def probe(python: str) -> Environment:
    """Look at the environment of ``python``: a quarter of a second, imports nothing heavy."""
    done = run_script(python, PROBE)
    if done.returncode != 0:
        raise InstallError(f"{python} does not work:\n{done.stderr.strip()}")
    found = json.loads(done.stdout.splitlines()[-1])
    return Environment(python=python, **{**found, "version": tuple(found["version"])})


def release(version: str) -> tuple[int, ...]:
    """Return the numbers of a version: ``2.6.0a0+git1`` -> (2, 6, 0), since containers ship such builds as 2.6."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found.group().split(".")) if found else (0,)


def read_pins() -> list[tuple[str, str]]:
    """Return (name, line) of every line of requirements/constraints.txt; lines may end with a marker for pip."""
    lines = (ROOT / "requirements/constraints.txt").read_text("utf-8").splitlines()
    return [(line.partition("==")[0], line) for line in lines if line and not line.startswith("#")]


def build_setuptools() -> str:
    """Return the lowest version of setuptools that builds the project; Python 3.10 has no TOML reader."""
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    found = re.search(r'^requires = \["setuptools>=([\d.]+)"\]', project, re.MULTILINE)
    if found is None:
        raise InstallError(f"{ROOT / 'pyproject.toml'} names no setuptools to build with. Restore the file from git.")
    return found[1]


def torch_to_install(env: Environment, pins: Sequence[tuple[str, str]], mode: str) -> list[str]:
    """Return what pip must install of torch and torchvision; nothing where the installed pair stays.

    ``mode``: "auto" keeps torch >= 2.6 with its torchvision, and takes the tested pair where there is none; "keep"
    never installs torch; "pinned" replaces whatever is there by the tested pair. InstallError where the user must
    decide.
    """
    torch, vision = env.packages.get("torch"), env.packages.get("torchvision")
    if torch is None and mode == "keep":
        raise InstallError(f"--torch keep: {env.python} has no torch. Install it first, or leave out --torch keep.")
    if torch is None or mode == "pinned":
        installed = [f"torch=={str(torch).partition('+')[0]}", f"torchvision=={str(vision).partition('+')[0]}"]
        pair = [line for name, line in pins if name in ("torch", "torchvision")]
        return [] if installed == pair else pair
    if release(torch) < MIN_TORCH:
        raise InstallError(
            f"torch {torch} is installed; Mask2Former needs 2.6 or newer. It was left as it is. Either use an "
            "environment of its own (--venv .venv), or have torch replaced: --torch pinned"
        )
    matching, local = f"0.{release(torch)[1] + 15}", torch.partition("+")[2]  # holds for torch 2
    if vision is None and mode == "auto" and not local:
        return [f"torchvision=={matching}.*"]
    if vision is None or (release(torch)[0] == 2 and release(vision)[:2] != release(matching)):
        # A +cpu or +cu126 build comes from another index than PyPI, and so must its torchvision.
        index = f" --index-url https://download.pytorch.org/whl/{local}" if re.fullmatch(r"cpu|cu\d+", local) else ""
        raise InstallError(
            f"torch {torch} and torchvision {vision} do not belong together. Both were left as they are. Install the "
            f'one that fits: {env.python} -m pip install "torchvision=={matching}.*"{index}   or let this script '
            "replace both by the tested pair: --torch pinned"
        )
    return []


def constraints(env: Environment, pins: Sequence[tuple[str, str]], new_torch: Sequence[str]) -> list[list[str]]:
    """Return the lists of constraints for pip to try in turn.

    The first keeps every installed package at its version and takes the tested one of all others; the second does
    without the tested ones; the third, for where an installed package is too old, fixes PyTorch only.
    """
    replaced = any(text.startswith("torch==") for text in new_torch)  # and with it all that torch brings
    kept = {name for name in env.packages if not (replaced and TORCH_STACK.fullmatch(name))}
    kept = {name for name in kept if re.fullmatch(r"\d[\w.+!]*", env.packages[name])}
    held = [(name, f"{name}=={env.packages[name]}") for name in sorted(kept)]
    tested = [(name, line) for name, line in pins if name not in kept and (replaced or not TORCH_STACK.fullmatch(name))]
    stack = [(name, line) for name, line in held + tested if TORCH_STACK.fullmatch(name)]
    return [[line for _, line in lines] for lines in (held + tested, held, stack)]


def select_requirements(env: Environment, extras: Set[str]) -> list[str]:
    """Return what the metadata of the installed project requires with ``extras``; torch is decided elsewhere."""
    unknown = sorted(extras - set(env.extras))
    if unknown:
        raise InstallError(f"--extras: there is no extra {unknown[0]!r}. Choose from: {', '.join(sorted(env.extras))}.")
    selected = []
    for text in env.requires:
        requirement, _, marker = text.partition(";")
        extra = re.search(r"""\s*(?:\band\s+)?\bextra\s*==\s*["']([^"']+)["']""", marker)
        name = re.split(r"[^\w.-]", requirement.strip())[0].lower()
        # Any of OpenCV's packages will do; two of them would overwrite each other's files.
        decided = name in ("torch", "torchvision") or (name in OPENCV and OPENCV & set(env.packages))
        if not decided and (extra is None or extra[1] in extras):
            selected.append(f"{requirement};{marker.replace(extra[0], '') if extra else marker}".rstrip("; "))
    return selected


def fingerprint(env: Environment) -> str:
    """Return a digest of the environment, of where this checkout lies and of what it declares."""
    declared = [hashlib.sha256((ROOT / name).read_bytes()).hexdigest() for name in DECLARED if (ROOT / name).exists()]
    return hashlib.sha256(json.dumps([asdict(env), str(ROOT), declared], sort_keys=True).encode()).hexdigest()


def verified_extras(env: Environment) -> set[str] | None:
    """Return the extras that are installed, or None where this very state has not been verified."""
    try:
        stamp = json.loads(Path(env.site_packages, STAMP).read_text("utf-8"))
        return set(stamp["extras"]) if stamp["fingerprint"] == fingerprint(env) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def verify(env: Environment, extras: Set[str]) -> None:
    """Import everything once in the environment; an InstallError says which part fails and what to do."""
    say("==> checking that everything can be imported")
    done = run_script(env.python, VERIFY, *VERIFIED)
    if done.returncode != 0:
        failed = done.stdout.rpartition("\n")[2].partition(".")[0].strip()
        cause = "\n".join(done.stderr.strip().splitlines()[-4:])
        raise InstallError(f"{failed} cannot be used:\n{cause}\n{VERIFY_REMEDY.get(failed, '')}")
    say("\n".join(f"    {line}".expandtabs(26) for line in done.stdout.splitlines()))
    stamp = {"fingerprint": fingerprint(env), "extras": sorted(extras)}
    Path(env.site_packages, STAMP).write_text(json.dumps(stamp), "utf-8")


def compile_op(env: Environment, choice: str) -> None:
    """Compile the op into this checkout for the torch of ``env``; what cannot be compiled is left out with a line."""
    parts = {"all": build_ops.PARTS, "cpu": ("cpu",), "none": ()}[choice]
    directories = [Path(env.torch)] if env.torch else []
    try:
        build_ops.build(ROOT / build_ops.OPS, directories, parts, os.environ.get(build_ops.VARIABLE), say)
    except build_ops.BuildError as error:
        raise InstallError(str(error)) from error


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, help="virtual environment to install into; default: this Python itself")
    parser.add_argument("--extras", action="append", default=[], help="comma-separated, for example dev,video")
    torch_help = (
        "auto: keep a torch that fits, else install the tested one; keep: never install torch; pinned: replace "
        "whatever is there by the tested pair"
    )
    parser.add_argument("--torch", choices=["auto", "keep", "pinned"], default="auto", help=torch_help)
    ops_help = (
        "what to compile of the op where a compiler is there: all: for CPU, and for CUDA with nvcc (minutes, once); "
        "cpu: for CPU only (seconds); none: nothing"
    )
    parser.add_argument("--ops", choices=["all", "cpu", "none"], default="all", help=ops_help)
    parser.add_argument("--offline", action="store_true", help="download nothing; say what is missing")
    parser.add_argument("--wheels", type=Path, help="take packages from this directory of wheels, not from the index")
    parser.add_argument("--dry-run", action="store_true", help="print the steps and do nothing")
    return parser.parse_args(arguments)


def install(args: argparse.Namespace) -> None:
    """Do what the command line asks for: look, decide about torch, and take the steps unless nothing is missing."""
    if args.wheels is not None and not args.wheels.is_dir():
        raise InstallError(f"--wheels: there is no directory {args.wheels}")
    extras = {name.strip() for text in args.extras for name in text.split(",") if name.strip()}
    may_make = not args.dry_run and not (args.offline and args.wheels is None)
    env = probe(prepare_venv(args.venv.absolute(), may_make) if args.venv else sys.executable)
    check_python(env.python, env.version)
    say(f"Python {'.'.join(map(str, env.version))} at {env.python}")
    pins = read_pins()
    new_torch = torch_to_install(env, pins, args.torch)
    verified = verified_extras(env)
    if verified is not None and extras <= verified and not new_torch:
        if not args.dry_run:
            compile_op(env, args.ops)
        say("Everything is there: nothing to do.")
        return
    kept = [f"{name} {env.packages[name]}" for name in ("torch", "torchvision") if not new_torch]
    for text in [*kept, *([f"detectron2 in {env.detectron2}"] if env.detectron2 else [])]:
        say(f"    kept: {text}")
    if args.dry_run:
        project = f"{ROOT}[{','.join(sorted(extras))}] with what is missing of its requirements".replace("[]", "")
        say(f"would install: {', '.join([*new_torch, project, *([] if env.detectron2 else [DETECTRON2])])}")
        return
    if not os.access(env.site_packages, os.W_OK):  # pip would install for this user only, and not say so in time
        raise InstallError(f"No permission to write to {env.site_packages}. {OWN_ENVIRONMENT}")
    source = ["--no-index", *(["--find-links", str(args.wheels)] if args.wheels else [])]
    env = take_steps(env, extras, pins, new_torch, source if args.wheels or args.offline else [])
    compile_op(env, args.ops)
    verify(env, extras | (verified or set()))
    say(f"Done. Try it: {env.python} demo/demo.py")


def take_steps(
    env: Environment, extras: Set[str], pins: Sequence[tuple[str, str]], new_torch: Sequence[str], source: Sequence[str]
) -> Environment:
    """Install the project, then what its metadata requires, then detectron2; return the environment as it is then."""
    if release(env.packages.get("setuptools", "0")) < release(build_setuptools()):
        say("==> setuptools, which builds this project")
        run_pip(env.python, "install", "--quiet", *source, *(line for name, line in pins if name == "setuptools"))
    say("==> this directory, editable")
    # --no-index: what builds the project is there by now, so nothing may be looked up.
    options = ["--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
    run_pip(env.python, "install", *options, "--editable", str(ROOT))
    env = probe(env.python)
    needed = [*source, *new_torch, *select_requirements(env, extras)]
    long = ", with PyTorch, several GB: this is the long one" if len(new_torch) == 2 else ""
    say(f"==> what is missing of the libraries{long}")
    install_packages(env.python, needed, constraints(env, pins, new_torch))
    if not env.detectron2:
        say(f"==> detectron2: {DETECTRON2} without its compiled part")
        install_detectron2(env.python, source)
    return probe(env.python)


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        install(parse_arguments(arguments))
    except InstallError as error:
        print(f"\nNot installed. {error.args[0]}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. The same command continues; finished downloads are kept.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
