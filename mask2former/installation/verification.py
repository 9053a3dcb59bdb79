"""Whether everything can be imported, and a stamp that remembers it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Set
from dataclasses import asdict
from pathlib import Path

from .environment import Environment, run_script
from .messages import InstallError, say
from .project import Project

STAMP = ".mask2former-verified.json"  # in site-packages: what was there when everything could be imported

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
    "(python -m pip uninstall detectron2 sal-detectron2) and run the same command again: it installs one that works.",
    "mask2former": "The dependencies work, this package does not. Is it complete? In a checkout, git status tells; "
    "elsewhere install it again: python -m pip install --force-reinstall --no-deps",
}


def fingerprint(env: Environment, project: Project) -> str:
    """Return a digest of the environment, of where the project lies and of what it declares."""
    declared = [hashlib.sha256(file.read_bytes()).hexdigest() for file in project.declarations()]
    return hashlib.sha256(json.dumps([asdict(env), str(project.root), declared], sort_keys=True).encode()).hexdigest()


def verified_extras(env: Environment, project: Project) -> set[str] | None:
    """Return the extras that are installed, or None where this very state has not been verified."""
    try:
        stamp = json.loads(Path(env.site_packages, STAMP).read_text("utf-8"))
        return set(stamp["extras"]) if stamp["fingerprint"] == fingerprint(env, project) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def verify(env: Environment, project: Project, extras: Set[str]) -> None:
    """Import everything once in the environment; an InstallError says which part fails and what to do."""
    say("==> checking that everything can be imported")
    done = run_script(env.python, VERIFY, *VERIFIED)
    if done.returncode != 0:
        failed = done.stdout.rpartition("\n")[2].partition(".")[0].strip()
        cause = "\n".join(done.stderr.strip().splitlines()[-4:])
        raise InstallError(f"{failed} cannot be used:\n{cause}\n{VERIFY_REMEDY.get(failed, '')}")
    say("\n".join(f"    {line}".expandtabs(26) for line in done.stdout.splitlines()))
    stamp = {"fingerprint": fingerprint(env, project), "extras": sorted(extras)}
    Path(env.site_packages, STAMP).write_text(json.dumps(stamp), "utf-8")
