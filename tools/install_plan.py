"""What ``tools/install.py`` would do: pure functions from "what is installed" to a list of steps.

Nothing here runs pip, reads the network or imports a third-party package, so every decision can be tested
with a made-up environment. Standard library only, Python 3.10 to 3.13.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PYTHON_VERSIONS = ((3, 10), (3, 13))  # first and last supported, both included
MIN_TORCH = "2.6"
BUILD_REQUIRES = ("setuptools>=77",)  # as in pyproject.toml; makes the editable install without a build environment

DETECTRON2_NAME = "sal-detectron2"
DETECTRON2_VERSION = "0.7.2"
DETECTRON2_SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
PANOPTICAPI = "panopticapi-lite==0.2.0"

# Distributions that bring the same module: any of them satisfies a requirement on another of its group.
SAME_MODULE = (
    {"opencv-python-headless", "opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless"},
    {"onnxruntime", "onnxruntime-gpu"},
    {"av", "pyav"},
)
TORCH_STACK = re.compile(r"^(torch|torchvision|triton|pytorch-triton.*|nvidia-.*|cuda-.*)$")


class InstallError(Exception):
    """Something that the user has to decide or repair. The message says what to do."""


@dataclass(frozen=True)
class Requirement:
    """``name`` (normalized) with ``specifiers`` such as ``((">=", "2.6"), ("<", "3"))``."""

    name: str
    specifiers: tuple[tuple[str, str], ...]
    text: str

    def accepts(self, version: str) -> bool:
        return all(_compare(version, operator, bound) for operator, bound in self.specifiers)


@dataclass(frozen=True)
class Environment:
    """One Python environment, as ``tools/install.py`` finds it.

    ``packages`` maps normalized distribution names to versions; ``modules`` tells which of ``detectron2`` and
    ``panopticapi`` can be found; ``torchvision_wants`` is the torch version named in torchvision's metadata.
    ``project_url`` is the ``file://`` URL of an editable install of this project, ``None`` without one;
    ``torch_parent`` is the directory that holds torch.
    """

    python: str
    version: tuple[int, int]
    site_packages: str
    packages: Mapping[str, str] = field(default_factory=dict)
    modules: frozenset[str] = frozenset()
    torchvision_wants: str | None = None
    project_url: str | None = None
    torch_parent: str | None = None
    writable: bool = True
    externally_managed: bool = False
    has_pip: bool = True


@dataclass(frozen=True)
class Step:
    """One action. ``kind``: "pip" (install ``items``), "detectron2", "panopticapi" or "project"."""

    kind: str
    items: tuple[str, ...]
    why: str
    network: bool = True


@dataclass(frozen=True)
class Plan:
    """Steps in order, what is kept as it is, and the lines of the constraints file for pip.

    ``holds`` are the constraints without the tested versions: for when those do not fit what is installed.
    """

    steps: tuple[Step, ...]
    kept: tuple[str, ...]
    constraints: tuple[str, ...]
    holds: tuple[str, ...]


def normalize(name: str) -> str:
    """PEP 503: ``Foo_Bar.baz`` and ``foo-bar-baz`` are one package."""
    return re.sub(r"[-_.]+", "-", name).lower()


def release(version: str) -> tuple[int, ...]:
    """The numbers of a version: ``2.6.0a0+git1`` -> (2, 6, 0), since containers ship such builds as 2.6."""
    found = re.match(r"\d+(\.\d+)*", version.strip())
    return tuple(int(part) for part in found.group().split(".")) if found else (0,)


def _compare(version: str, operator: str, bound: str) -> bool:
    if operator in ("==", "!=") and bound.endswith(".*"):
        prefix = release(bound[:-2])
        padded = release(version) + (0,) * len(prefix)
        return (padded[: len(prefix)] == prefix) == (operator == "==")
    left, right = release(version), release(bound)
    width = max(len(left), len(right))
    left, right = (tuple(list(part) + [0] * (width - len(part))) for part in (left, right))
    if operator == "~=":
        keep = len(release(bound)) - 1
        return left >= right and left[:keep] == right[:keep]
    return {
        ">=": left >= right,
        "<=": left <= right,
        ">": left > right,
        "<": left < right,
        "==": left == right,
        "!=": left != right,
    }[operator]


def parse_requirement(text: str) -> Requirement:
    """``"torch>=2.6,<3"`` -> Requirement. Extras and markers are not part of this project's lists."""
    found = re.fullmatch(r"\s*([A-Za-z0-9][\w.-]*)\s*(.*?)\s*", text)
    parts = [part.strip() for part in found.group(2).split(",") if part.strip()] if found else []
    specifiers = [re.fullmatch(r"(~=|==|!=|<=|>=|<|>)\s*([\w.*+!]+)", part) for part in parts]
    if found is None or None in specifiers:
        raise InstallError(f"pyproject.toml: cannot read the requirement {text!r}. Write it as name>=version.")
    pairs = tuple((part.group(1), part.group(2)) for part in specifiers if part)
    return Requirement(normalize(found.group(1)), pairs, text.strip())


def read_requirements(pyproject: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Return the dependencies and the extras that ``pyproject.toml`` lists.

    Python 3.10 has no TOML reader. A TOML list of plain strings is a Python list too, comments included, so the two
    lists are read as Python; anything else in their place is an error. A test compares the result with ``tomllib``.
    """
    tables = dict(re.findall(r"(?ms)^\[([\w.-]+)\]$(.*?)(?=^\[|\Z)", pyproject.read_text("utf-8")))
    required = re.search(r"(?ms)^dependencies = (\[.*?^\])$", tables.get("project", ""))
    optional = tables.get("project.optional-dependencies")
    if required is None or optional is None:
        raise InstallError(f"{pyproject}: the lists of dependencies are missing. Restore the file from git.")
    extras: dict[str, list[str]] = {}
    try:
        for node in ast.parse(optional).body:
            if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
                raise ValueError("[project.optional-dependencies] holds more than lists")
            extras[node.targets[0].id] = ast.literal_eval(node.value)
        return ast.literal_eval(required.group(1)), extras
    except (SyntaxError, ValueError) as error:
        raise InstallError(f"{pyproject}: cannot read the dependencies: {error}. Write plain lists.") from error


def read_pins(lines: Iterable[str], version: tuple[int, int]) -> dict[str, str]:
    """Pins of the constraints file that hold for Python ``version``, as {normalized name: version}."""
    pins: dict[str, str] = {}
    for line in lines:
        found = re.fullmatch(r"([\w.-]+)==([^\s;]+)(?:\s*;\s*python_version\s*(<|>=)\s*\"([\d.]+)\")?", line.strip())
        if found is None:
            if line.strip() and not line.lstrip().startswith("#"):
                raise InstallError(f"requirements/constraints.txt: cannot read the line {line.strip()!r}")
            continue
        name, pin, operator, bound = found.groups()
        if operator is None or _compare(".".join(map(str, version)), operator, bound):
            pins[normalize(name)] = pin
    return pins


def select_extras(extras: Mapping[str, Sequence[str]], chosen: Iterable[str]) -> list[str]:
    """Requirement strings of the chosen extras; an unknown name is an error that lists the known ones."""
    wanted: list[str] = []
    for name in chosen:
        if name not in extras:
            raise InstallError(f"--extras: there is no extra {name!r}. Choose from: {', '.join(sorted(extras))}.")
        wanted += [text for text in extras[name] if text not in wanted]
    return wanted


def check_environment(env: Environment) -> None:
    """Raise InstallError where nothing can be installed at all."""
    first, last = PYTHON_VERSIONS
    if not first <= env.version <= last:
        raise InstallError(
            f"{env.python} is Python {env.version[0]}.{env.version[1]}; Mask2Former needs "
            f"{first[0]}.{first[1]} to {last[0]}.{last[1]}. Run this script with such a Python, for example: "
            "python3.11 tools/install.py --venv .venv"
        )


def check_writable(env: Environment) -> None:
    """Raise InstallError when steps are due but this environment must not or cannot be changed."""
    use_venv = "Use an environment of its own: python3 tools/install.py --venv .venv"
    if env.externally_managed:
        raise InstallError(f"{env.python} belongs to the operating system, which forbids pip there. {use_venv}")
    if not env.writable:
        raise InstallError(f"No permission to write to {env.site_packages}. {use_venv}")
    if not env.has_pip:
        raise InstallError(
            f"{env.python} has no pip. Add it with: {env.python} -m ensurepip --upgrade   (or, with uv: "
            f"uv pip install --python {env.python} pip)"
        )


def torchvision_for(torch_version: str) -> str:
    """``2.11.0`` -> ``0.26``: since torch 2.0 the minor number of torchvision is 15 ahead."""
    return f"0.{release(torch_version)[1] + 15}"


def plan_torch(env: Environment, pins: Mapping[str, str], mode: str) -> tuple[list[str], list[str]]:
    """Decide about torch and torchvision. Returns (requirements to install, lines about what is kept).

    ``mode``: "auto" keeps torch >= 2.6 with its torchvision and installs the pinned pair where there is none;
    "keep" never installs torch; "pinned" replaces whatever is there by the pinned pair.
    """
    torch, vision = env.packages.get("torch"), env.packages.get("torchvision")
    pair = [f"torch=={pins['torch']}", f"torchvision=={pins['torchvision']}"]
    if mode == "pinned":
        same = torch is not None and vision is not None
        same = same and release(torch) == release(pins["torch"]) and release(vision) == release(pins["torchvision"])
        return ([], [f"torch {torch} and torchvision {vision}"]) if same else (pair, [])
    if torch is None:
        if mode == "keep":
            raise InstallError(f"--torch keep: {env.python} has no torch. Install it first, or leave out --torch keep.")
        return pair, []
    if not _compare(torch, ">=", MIN_TORCH):
        raise InstallError(
            f"torch {torch} is installed; Mask2Former needs {MIN_TORCH} or newer. It was left as it is. "
            "Either use an environment of its own (--venv .venv), or have torch replaced: --torch pinned"
        )
    matching = torchvision_for(torch)
    if vision is None:
        return _plan_missing_torchvision(env, torch, matching, mode)
    wants = env.torchvision_wants
    fits = release(wants)[:2] == release(torch)[:2] if wants else release(vision)[:2] == release(matching)
    if not fits:
        raise InstallError(
            f"torch {torch} and torchvision {vision} do not belong together (torchvision {vision} was built "
            f"for torch {wants or 'another version'}). Both were left as they are. Either install the "
            f'matching one: {env.python} -m pip install "torchvision=={matching}.*"   or let this script '
            "replace both by the tested pair: --torch pinned"
        )
    return [], [f"torch {torch} and torchvision {vision}"]


def _plan_missing_torchvision(env: Environment, torch: str, matching: str, mode: str) -> tuple[list[str], list[str]]:
    local = torch.partition("+")[2]
    if mode == "keep" or local:
        # A +cpu or +cu126 build comes from another index than PyPI, and so must its torchvision.
        index = f" --index-url https://download.pytorch.org/whl/{local}" if re.fullmatch(r"cpu|cu\d+", local) else ""
        raise InstallError(
            f"torch {torch} is installed without torchvision. Install it from where torch came: "
            f'{env.python} -m pip install "torchvision=={matching}.*"{index}   then run this script again.'
        )
    return [f"torchvision=={matching}.*"], [f"torch {torch}"]


def _installed(env: Environment, name: str) -> tuple[str, str] | None:
    """(name, version) of the installed distribution that satisfies ``name``, or None."""
    names = [name] + sorted(set().union(*(group for group in SAME_MODULE if name in group)) - {name})
    return next(((other, env.packages[other]) for other in names if other in env.packages), None)


def missing_requirements(env: Environment, texts: Iterable[str]) -> list[Requirement]:
    """The requirements that the environment does not satisfy; torch and torchvision are ``plan_torch``'s."""
    missing: list[Requirement] = []
    for requirement in map(parse_requirement, texts):
        if requirement.name in ("torch", "torchvision") or requirement.name in [item.name for item in missing]:
            continue
        found = _installed(env, requirement.name)
        if found is None or (found[0] == requirement.name and not requirement.accepts(found[1])):
            missing.append(requirement)
    return missing


def effective_constraints(env: Environment, pins: Mapping[str, str], changed: Iterable[str]) -> list[str]:
    """Constraints that keep what is installed and pin the rest.

    An installed package is held at its own version unless it is among ``changed`` (names to be replaced).
    Pins of the tested PyTorch stack are dropped where another PyTorch is kept.
    """
    changing = set(changed)
    new_torch = "torch" in changing
    lines = {name: pin for name, pin in pins.items() if new_torch or not TORCH_STACK.match(name)}
    for name, version in env.packages.items():
        replaceable = name in changing or (new_torch and TORCH_STACK.match(name))
        if not replaceable and re.fullmatch(r"\d[\w.+!]*", version):
            lines[name] = version
    return [f"{name}=={version}" for name, version in sorted(lines.items())]


def make_plan(
    env: Environment,
    requirements: Sequence[str],
    pins: Mapping[str, str],
    project_url: str,
    project_version: str,
    torch_mode: str = "auto",
) -> Plan:
    """All steps that are missing, in order; an empty list means there is nothing to do."""
    check_environment(env)
    torch_items, kept = plan_torch(env, pins, torch_mode)
    missing = missing_requirements(env, [*BUILD_REQUIRES, *requirements])
    steps: list[Step] = []
    if torch_items:
        why = "PyTorch, several GB: this is the long one" if len(torch_items) == 2 else "matches the installed torch"
        steps.append(Step("pip", tuple(torch_items), why))
    if missing:
        steps.append(Step("pip", tuple(item.text for item in missing), "libraries"))
    if "detectron2" in env.modules:
        owner = next((name for name in ("detectron2", DETECTRON2_NAME) if name in env.packages), None)
        kept.append(f"detectron2 ({owner} {env.packages[owner]})" if owner else "detectron2 (on the Python path)")
    else:
        why = "pure-Python build, nothing is compiled"
        steps.append(Step("detectron2", (f"{DETECTRON2_NAME}=={DETECTRON2_VERSION}",), why))
    if "panopticapi" in env.modules:
        kept.append("panopticapi")
    else:
        steps.append(Step("panopticapi", (PANOPTICAPI,), "panoptic quality"))
    if env.project_url != project_url or env.packages.get("mask2former") != project_version:
        steps.append(Step("project", ("mask2former",), "this directory, editable", network=False))
    changed = [parse_requirement(item).name for item in torch_items] + [item.name for item in missing]
    constraints = effective_constraints(env, pins, changed)
    holds = effective_constraints(env, {}, changed)
    if steps:
        check_writable(env)
    return Plan(tuple(steps), tuple(kept), tuple(constraints), tuple(holds))


def check_offline(plan: Plan) -> None:
    """Raise InstallError naming everything that would have to be downloaded."""
    needed = [item for step in plan.steps if step.network for item in step.items]
    if needed:
        raise InstallError(
            f"--offline, but these packages are missing: {', '.join(needed)}. Run the same command once with "
            "a connection, without --offline, or put their wheels into a directory and add --wheels FOLDER "
            "(INSTALL.md, 'Offline')."
        )
