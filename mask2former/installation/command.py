"""The installation itself: look, decide about PyTorch, take the steps that are missing, and check the result."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence, Set
from pathlib import Path

from . import build_ops
from .environment import Environment, check_python, prepare_venv, probe, release
from .messages import OWN_ENVIRONMENT, InstallError, say
from .pip_steps import DETECTRON2, install_detectron2, install_packages, run_pip
from .project import Project, this_project
from .record import add_to_record
from .requirements import build_setuptools, constraints, read_pins, select_requirements, torch_to_install
from .verification import verified_extras, verify

OPS_CHOICES = ("auto", "all", "cpu", "cuda", "none")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that every way to install takes."""
    parser.add_argument("--extras", action="append", default=[], help="comma-separated, for example dev,video")
    torch_help = (
        "auto: keep a torch that fits, else install the tested one; keep: never install torch; pinned: replace "
        "whatever is there by the tested pair (default: %(default)s)"
    )
    parser.add_argument("--torch", choices=["auto", "keep", "pinned"], default="auto", help=torch_help)
    ops_help = (
        "what to compile of the op where a compiler is there: auto: for CPU (seconds), and for CUDA where an NVIDIA "
        "GPU and nvcc are; all: for CUDA without a GPU too (minutes, once); cpu, cuda: only this; none: nothing "
        "(default: %(default)s)"
    )
    parser.add_argument("--ops", choices=OPS_CHOICES, default="auto", help=ops_help)
    parser.add_argument("--offline", action="store_true", help="download nothing; say what is missing")
    parser.add_argument("--wheels", type=_path, help="take packages from this directory of wheels, not from the index")
    parser.add_argument("--dry-run", action="store_true", help="print the steps and do nothing")


def _path(text: str) -> Path:
    return Path(text).expanduser()


def install(args: argparse.Namespace, project: Project, venv: Path | None = None) -> None:
    """Do what the command line asks for: look, decide about torch, and take the steps unless nothing is missing.

    Args:
        args: what ``add_arguments`` describes.
        project: what is installed: a checkout in editable mode; of an installed package, what it needs.
        venv: the virtual environment to install into, made if it is not there; None: the running Python.

    Raises:
        InstallError: something that the user has to decide or repair.
    """
    if args.wheels is not None and not args.wheels.is_dir():
        raise InstallError(f"--wheels: there is no directory {args.wheels}")
    extras = {name.strip() for text in args.extras for name in text.split(",") if name.strip()}
    may_make = not args.dry_run and not (args.offline and args.wheels is None)
    env = probe(prepare_venv(venv.absolute(), may_make) if venv else sys.executable)
    check_python(env.python, env.version)
    if not project.is_checkout and "mask2former" not in env.packages:
        raise InstallError(
            f"{project.root / project.name} was not installed by pip into {env.python}, so that its requirements are "
            "unknown. Install it with pip, or clone the repository and run tools/install.py there."
        )
    say(f"Python {'.'.join(map(str, env.version))} at {env.python}")
    pins = read_pins(project)
    new_torch = torch_to_install(env, pins, args.torch)
    verified = verified_extras(env, project)
    if verified is not None and extras <= verified and not new_torch:
        if not args.dry_run:
            compile_op(env, project, args.ops)
        say("Everything is there: nothing to do.")
        return
    kept = [f"{name} {env.packages[name]}" for name in ("torch", "torchvision") if not new_torch]
    for text in [*kept, *([f"detectron2 in {env.detectron2}"] if env.detectron2 else [])]:
        say(f"    kept: {text}")
    if args.dry_run:
        what = str(project.root) if project.is_checkout else f"mask2former {env.packages['mask2former']}"
        what = f"{what}[{','.join(sorted(extras))}] with what is missing of its requirements".replace("[]", "")
        say(f"would install: {', '.join([*new_torch, what, *([] if env.detectron2 else [DETECTRON2])])}")
        return
    if not os.access(env.site_packages, os.W_OK):  # pip would install for this user only, and not say so in time
        raise InstallError(f"No permission to write to {env.site_packages}. {OWN_ENVIRONMENT}")
    source = ["--no-index", *(["--find-links", str(args.wheels)] if args.wheels else [])]
    env = take_steps(env, project, extras, pins, new_torch, source if args.wheels or args.offline else [])
    compile_op(env, project, args.ops)
    verify(env, project, extras | (verified or set()))
    say(f"Done. Try it: {env.python} {'demo/demo.py' if project.is_checkout else f'-m {project.name} --help'}")


def take_steps(
    env: Environment,
    project: Project,
    extras: Set[str],
    pins: Sequence[tuple[str, str]],
    new_torch: Sequence[str],
    source: Sequence[str],
) -> Environment:
    """Install a checkout, then what its metadata requires, then detectron2; return the environment as it is then."""
    if project.is_checkout:
        install_checkout(env, project, pins, source)
        env = probe(env.python)
    needed = [*source, *new_torch, *select_requirements(env, extras)]
    long = ", with PyTorch, several GB: this is the long one" if len(new_torch) == 2 else ""
    say(f"==> what is missing of the libraries{long}")
    install_packages(env.python, needed, constraints(env, pins, new_torch))
    if not env.detectron2:
        say(f"==> detectron2: {DETECTRON2} without its compiled part")
        install_detectron2(env.python, source)
    return probe(env.python)


def install_checkout(
    env: Environment, project: Project, pins: Sequence[tuple[str, str]], source: Sequence[str]
) -> None:
    """Install the checkout in editable mode, without what it requires."""
    if release(env.packages.get("setuptools", "0")) < release(build_setuptools(project)):
        say("==> setuptools, which builds this project")
        run_pip(env.python, "install", "--quiet", *source, *(line for name, line in pins if name == "setuptools"))
    say("==> this directory, editable")
    # --no-index: what builds the project is there by now, so nothing may be looked up.
    options = ["--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
    run_pip(env.python, "install", *options, "--editable", str(project.root))


def compile_op(env: Environment, project: Project, choice: str) -> None:
    """Compile the op into the package for the torch of ``env``; what cannot be compiled is left out with a line.

    ``choice`` is one of ``OPS_CHOICES``; the variable ``MASK2FORMER_BUILD_OPS`` may exclude or require parts.
    """
    parts = {"cpu": ("cpu",), "cuda": ("cuda",), "none": ()}.get(choice, build_ops.PARTS)
    demanded = "all" if choice in ("all", "cuda") else None
    request = os.environ.get(build_ops.VARIABLE) or demanded
    directories = [Path(env.torch)] if env.torch else []
    try:
        built = build_ops.build(project, None, directories, parts, request, say)
    except build_ops.BuildError as error:
        raise InstallError(str(error)) from error
    if not project.is_checkout:
        add_to_record(project, built)


def main(arguments: Sequence[str] | None = None, description: str | None = None) -> int:
    """Run tools/install.py: the installation of a checkout into this Python or a virtual environment."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=_path, help="virtual environment to install into; default: this Python itself")
    add_arguments(parser)
    args = parser.parse_args(arguments)
    try:
        install(args, this_project(), args.venv)
    except InstallError as error:
        print(f"\nNot installed. {error.args[0]}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. The same command continues; finished downloads are kept.", file=sys.stderr)
        return 130
    return 0
