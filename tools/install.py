#!/usr/bin/env python3
"""Install Mask2Former and all it needs. With a compiler, its op is compiled; none is needed.

    python3 tools/install.py --venv .venv            into an environment of its own, made if it is not there
    python3 tools/install.py                         into the Python that runs this script
    python3 tools/install.py --venv .venv --extras dev,video

A detectron2 that can be imported is kept, and so is a torch >= 2.6 with its torchvision; other packages that
are installed keep their version unless pyproject.toml needs a newer one. What is missing is installed in the
versions of requirements/constraints.txt. A second run finds nothing to do and ends within seconds, also
without a connection. Standard library only. install_plan.py decides what to do, install_steps.py does it,
build_ops.py compiles the op (MASK2FORMER_BUILD_OPS, see INSTALL.md, 'The compiled op').
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
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

sys.path.insert(0, str(Path(__file__).resolve().parent))
import build_ops
import install_plan as planning
from install_plan import Environment, InstallError, Plan
from install_steps import Installer, say

ROOT = Path(__file__).resolve().parent.parent
STAMP = ".mask2former-verified.json"  # in site-packages: which set of packages was imported successfully

PROBE = r"""
import importlib.metadata, importlib.util, JSON, os, re, sys, sysconfig
sys.path[:] = [path for path in sys.path if path not in ("", os.getcwd())]
packages, wants, project_url = {}, None, None
for dist in importlib.metadata.distributions():
    name, version = dist.metadata["Name"], dist.version
    if not name or not version:
        continue
    name = re.sub(r"[-_.]+", "-", name).lower()
    packages.setdefault(name, version)
    if name == "torchvision" and wants is None:
        found = [re.match(r"torch\s*\(?==\s*([\w.+]+)", text) for text in dist.requires or []]
        wants = next((match.group(1) for match in found if match), None)
    if name == "mask2former":
        direct = json.loads(dist.read_text("direct_url.json") or "{}")
        if direct.get("dir_info", {}).get("editable"):
            project_url = direct["url"]
modules = []
for name in ("detectron2", "panopticapi"):
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.origin is not None:  # a mere directory of that name has no origin
        modules.append(name)
torch = importlib.util.find_spec("torch")
site_packages = sysconfig.get_path("purelib")
existing = site_packages
while not os.path.isdir(existing):
    existing = os.path.dirname(existing)
managed = sys.prefix == sys.base_prefix and os.path.exists(
    os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED"))
print(json.dumps(dict(
    version=sys.version_info[:2], site_packages=site_packages, packages=packages, modules=modules,
    torchvision_wants=wants, project_url=project_url,
    torch_parent=os.path.dirname(os.path.dirname(torch.origin)) if torch and torch.origin else None,
    writable=os.access(existing, os.W_OK),
    externally_managed=managed and os.environ.get("PIP_BREAK_SYSTEM_PACKAGES", "0") not in ("1", "true"),
    has_pip=importlib.util.find_spec("pip") is not None)))
"""

# One line per check: NAME<tab>what was found. The first that fails ends the script with its traceback.
VERIFY = """
import os, sys
sys.path[:] = [path for path in sys.path if path not in ("", os.getcwd())]
print("torch", end="\\t", flush=True)
import torch
print(torch.__version__ + (", with a GPU" if torch.cuda.is_available() else ", no GPU found"))
print("torchvision", end="\\t", flush=True)
import torchvision
torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
print(torchvision.__version__)
print("detectron2", end="\\t", flush=True)
import detectron2, detectron2.engine, detectron2.evaluation, detectron2.modeling, detectron2.utils.visualizer
print(getattr(detectron2, "__version__", "unknown version"))
print("panopticapi", end="\\t", flush=True)
import panopticapi.evaluation
print("yes")
print("mask2former", end="\\t", flush=True)
import mask2former
print(mask2former.__version__)
"""

VERIFY_REMEDY = {
    "torch": "The installed PyTorch does not work. Replace it by the tested one: --torch pinned",
    "torchvision": "It does not fit the installed torch. Replace both by the tested pair: --torch pinned",
    "detectron2": "The detectron2 that is installed cannot be imported; it was left as it is. Repair it, or "
    "remove it (python -m pip uninstall detectron2 sal-detectron2) and run this script again: that installs "
    "one that works.",
    "panopticapi": "Remove it (python -m pip uninstall panopticapi panopticapi-lite) and run this again.",
    "mask2former": "The dependencies work, this package does not. Is the checkout complete (git status)?",
}


def venv_python(directory: Path) -> Path:
    return directory / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def prepare_venv(directory: Path, offline: bool) -> str:
    """Return the Python of the virtual environment ``directory``; make the environment if it is not there."""
    python = venv_python(directory)
    made = (directory / "pyvenv.cfg").exists()
    if made and python.exists():
        return str(python)
    if made:
        raise InstallError(f"{directory} has lost its Python ({python}). Delete the directory and run this again.")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InstallError(f"{directory} exists and is not a virtual environment. Choose another directory for --venv.")
    if offline:
        raise InstallError(
            f"--offline, but {directory} does not exist yet. Make it with a connection: leave out --offline."
        )
    if not planning.PYTHON_VERSIONS[0] <= sys.version_info[:2] <= planning.PYTHON_VERSIONS[1]:
        planning.check_environment(Environment(sys.executable, sys.version_info[:2], ""))
    say(f"==> making the virtual environment {directory} with Python {sys.version.split()[0]}")
    done = subprocess.run([sys.executable, "-m", "venv", str(directory)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        shutil.rmtree(directory, ignore_errors=True)
        raise InstallError(
            f"Python could not make a virtual environment:\n{(done.stdout + done.stderr).strip()}\n"
            "On Debian and Ubuntu install the missing part first: sudo apt install python3-venv"
        )
    return str(python)


def probe(python: str) -> Environment:
    """Look at the environment of ``python``: a quarter of a second, imports nothing heavy."""
    done = subprocess.run([python, "-c", PROBE], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise InstallError(f"{python} does not work:\n{done.stderr.strip()}")
    found = json.loads(done.stdout.splitlines()[-1])
    found["version"] = tuple(found["version"])
    found["modules"] = frozenset(found["modules"])
    if found["project_url"]:
        found["project_url"] = unquote(found["project_url"]).rstrip("/")
    return Environment(python=python, **found)


def project_version() -> str:
    init = ROOT / "mask2former" / "__init__.py"
    text = init.read_text("utf-8") if init.exists() else ""
    found = re.search(r"""^__version__\s*(?::\s*str\s*)?=\s*["']([^"']+)["']""", text, re.MULTILINE)
    if found is None:
        raise InstallError(f"{init} is missing or has no version. Restore the checkout: git checkout -- mask2former")
    return found.group(1)


def plan_for(env: Environment, extras: Sequence[str], torch_mode: str) -> Plan:
    required, known_extras = planning.read_requirements(ROOT / "pyproject.toml")
    pins = planning.read_pins((ROOT / "requirements/constraints.txt").read_text("utf-8").splitlines(), env.version)
    requirements = [*required, *planning.select_extras(known_extras, extras)]
    project_url = unquote(ROOT.as_uri()).rstrip("/")
    return planning.make_plan(env, requirements, pins, project_url, project_version(), torch_mode)


def fingerprint(env: Environment) -> str:
    state = json.dumps([env.version, sorted(env.packages.items()), sorted(env.modules), str(ROOT)])
    return hashlib.sha256(state.encode()).hexdigest()


def is_verified(env: Environment) -> bool:
    """True when exactly these packages were imported successfully before."""
    try:
        stamp = json.loads((Path(env.site_packages) / STAMP).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return stamp == {"fingerprint": fingerprint(env)}


def verify(env: Environment) -> None:
    """Import everything once in the environment; an InstallError says which part fails and what to do."""
    say("==> checking that everything can be imported")
    done = subprocess.run([env.python, "-c", VERIFY], capture_output=True, text=True, check=False)
    lines = [line.partition("\t") for line in done.stdout.splitlines() if "\t" in line]
    for name, _, found in lines:
        if found:
            say(f"    {name:<12} {found}")
    if done.returncode != 0:
        failed = done.stdout.rpartition("\n")[2].partition("\t")[0] or "torch"
        cause = "\n".join(done.stderr.strip().splitlines()[-4:])
        raise InstallError(f"{failed} cannot be used:\n{cause}\n{VERIFY_REMEDY.get(failed, '')}")
    stamp = Path(env.site_packages) / STAMP
    if env.writable:
        stamp.write_text(json.dumps({"fingerprint": fingerprint(env)}), "utf-8")


def compile_op(env: Environment, choice: str) -> None:
    """Compile the op into this directory for the torch of ``env``; what cannot be compiled is left out with a line."""
    parts = {"all": build_ops.PARTS, "cpu": ("cpu",), "none": ()}[choice]
    directories = [Path(env.torch_parent)] if env.torch_parent else []
    try:
        build_ops.build(ROOT / build_ops.OPS, directories, parts, os.environ.get(build_ops.VARIABLE), say)
    except build_ops.BuildError as error:
        raise InstallError(str(error)) from error


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, help="virtual environment to install into; default: this Python itself")
    parser.add_argument("--extras", action="append", default=[], help="comma-separated, for example dev,video")
    parser.add_argument(
        "--torch",
        choices=["auto", "keep", "pinned"],
        default="auto",
        help="auto: keep a torch that fits, else install the tested one; keep: never install torch; "
        "pinned: replace whatever is there by the tested pair",
    )
    parser.add_argument(
        "--ops",
        choices=["all", "cpu", "none"],
        default="all",
        help="what to compile of the op where a compiler is there: all: for CPU, and for CUDA with nvcc (minutes, "
        "once); cpu: for CPU only (seconds); none: nothing",
    )
    parser.add_argument("--offline", action="store_true", help="download nothing; say what is missing")
    parser.add_argument("--wheels", type=Path, help="take packages from this directory of wheels, not from the index")
    parser.add_argument("--dry-run", action="store_true", help="print the steps and do nothing")
    return parser.parse_args(arguments)


def install(args: argparse.Namespace) -> None:
    if args.wheels is not None and not args.wheels.is_dir():
        raise InstallError(f"--wheels: there is no directory {args.wheels}")
    extras = [name.strip() for text in args.extras for name in text.split(",") if name.strip()]
    offline = args.offline and args.wheels is None
    python = prepare_venv(args.venv.absolute(), offline or args.dry_run) if args.venv else sys.executable
    env = probe(python)
    plan = plan_for(env, extras, args.torch)
    say(f"Python {'.'.join(map(str, env.version))} at {env.python}")
    for name in plan.kept:
        say(f"    kept: {name}")
    if offline:
        planning.check_offline(plan)
    for number, step in enumerate(plan.steps, 1):
        say(f"==> [{number}/{len(plan.steps)}] {step.why}: {', '.join(step.items)}")
        if not args.dry_run:
            Installer(env, plan, ROOT, args.wheels).run(step)
    if args.dry_run:
        return
    if not plan.steps and is_verified(env):
        compile_op(env, args.ops)
        say("Everything is there: nothing to do.")
        return
    env = probe(python)
    left = plan_for(env, extras, args.torch).steps
    if left:
        items = ", ".join(item for step in left for item in step.items)
        raise InstallError(f"Still missing after the installation: {items}. Run the same command once more.")
    compile_op(env, args.ops)
    verify(env)
    say(f"Done. Try it: {env.python} demo/demo.py")


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        install(parse_arguments(arguments))
    except InstallError as error:
        print(f"\nNot installed. {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. The same command continues; finished downloads are kept.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
