#!/usr/bin/env python
"""Write the tables of docs/compatibility.md: which names of the reference implementation are here, and in which form.

    python tools/make_compatibility.py            # after a change of names, parameters or remarks
    python tools/make_compatibility.py --check    # exit with status 1 if the page is out of date

Compares tests/facts/reference_names.json (modules, names and parameters of the reference) with the modules of this
checkout, which are imported. Remarks are in tools/compatibility_remarks.json; each name that is missing or has another
form needs one, and no other may have one for its difference.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import inspect
import itertools
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mask2former.utils.failures import run_program  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
from generated_page import write_page  # noqa: E402

NAMES = ROOT / "tests" / "facts" / "reference_names.json"
REMARKS = ROOT / "tools" / "compatibility_remarks.json"
PAGE = ROOT / "docs" / "compatibility.md"
BEGIN, END = "<!-- names: begin -->\n", "<!-- names: end -->\n"

SAME, OTHER, NOT = "same", "other form", "not"

Fact = str | Mapping[str, str]
"""Parameters of a function; those of the constructor (key "") and the methods of a class; "value"; "from MODULE"."""


class Difference(NamedTuple):
    """How a name differs; `explained` if the text says enough for a user of it, so that no remark is needed."""

    text: str
    explained: bool = False


class Entry(NamedTuple):
    """A name of the reference ("" for a file without any): its state here, and what differs."""

    module: str
    name: str
    state: str
    differences: list[Difference]

    @property
    def needs_remark(self) -> bool:
        """Return whether a reader would ask why, or what to use instead."""
        return self.state == NOT or any(not difference.explained for difference in self.differences)


class Parameters(NamedTuple):
    """Parameters of the reference: by position, and by keyword only; name and whether it has a default."""

    positional: list[tuple[str, bool]]
    keywords: list[tuple[str, bool]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="do not write, only compare")
    return run_program(parser, _write_page, argv)


def _write_page(args: argparse.Namespace) -> int:
    found = list(entries(read(NAMES)))
    remarks = read(REMARKS)
    for problem in (problems := wrong_remarks(found, remarks)):
        print(problem, file=sys.stderr)
    current = PAGE.read_text(encoding="utf-8")
    before, _, rest = current.partition(BEGIN)
    _, _, after = rest.partition(END)
    text = before + BEGIN + tables(found, remarks) + END + after
    outdated = write_page(PAGE, text, "make_compatibility.py", args.check)
    return 1 if problems or outdated else 0


def read(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def entries(modules: Mapping[str, Mapping[str, Fact]]) -> Iterator[Entry]:
    """Compare each name of the reference with the modules of this checkout."""
    for path, names in modules.items():
        if not names:
            yield Entry(path, "", SAME if (ROOT / path).exists() else NOT, [])
            continue
        module = load(path)
        for name, fact in names.items():
            if not hasattr(module, name):
                yield Entry(path, name, NOT, [])
                continue
            differences = list(compare(getattr(module, name), fact, modules, name))
            yield Entry(path, name, OTHER if differences else SAME, differences)


def load(path: str) -> ModuleType | None:
    """Import the module of a file in this checkout; None if there is no such Python file."""
    if not (ROOT / path).is_file() or not path.endswith(".py"):
        return None
    name = path.removesuffix("/__init__.py").removesuffix(".py").replace("/", ".")
    if name.partition(".")[0] in ("mask2former", "mask2former_video"):
        return importlib.import_module(name)
    return _load_script(path)


@functools.cache
def _load_script(path: str) -> ModuleType:
    """Run a script up to its main part, with its directory in front of the search path as Python does."""
    spec = importlib.util.spec_from_file_location(f"script_{path.replace('/', '_').removesuffix('.py')}", ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    directory, known = str((ROOT / path).parent), set(sys.modules)
    search_path = list(sys.path)
    sys.path.insert(0, directory)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = search_path
        for name in set(sys.modules) - known:  # demo and demo_video both have a module "predictor"
            file = getattr(sys.modules[name], "__file__", None)
            if file and str(Path(file).parent) == directory and directory != str(ROOT):
                del sys.modules[name]
    return module


def compare(
    ours: Any, fact: Fact, modules: Mapping[str, Mapping[str, Fact]] | None = None, name: str = ""
) -> Iterator[Difference]:
    """Yield how `ours` differs from what the reference has: parameters, missing methods."""
    if isinstance(fact, str) and fact.startswith("from "):
        assert modules is not None
        source = fact.removeprefix("from ")
        if getattr(load(source), name, None) is not ours:
            yield Difference(f"is another object than in `{source}`")
        elif any(compare(ours, modules[source][name])):
            yield Difference(f"see `{source}`", explained=True)
    elif isinstance(fact, str):
        yield from _compare_call(ours, fact)
    elif not inspect.isclass(ours):
        yield Difference("is no class")
    else:
        for method, parameters in fact.items():
            if not method:
                yield from differing(_constructor(ours, parameters), parse(parameters))
            elif not hasattr(ours, method):
                yield Difference(f"no `{method}`")
            else:
                for text, explained in _compare_method(ours, method, parameters):
                    yield Difference(f"`{method}`: {text}", explained)


def _constructor(ours: type, parameters: str) -> list[inspect.Parameter]:
    """Return the parameters of a constructor, with those that **keywords pass on to the constructors of bases."""
    if parameters.startswith("(cfg") and hasattr(ours, "from_config"):  # `configurable` calls it with the same
        return list(inspect.signature(ours.from_config).parameters.values())
    found: dict[str, inspect.Parameter] = {}
    for cls in (c for c in ours.__mro__ if "__init__" in vars(c)):
        own = list(inspect.signature(vars(cls)["__init__"]).parameters.values())[1:]
        passes_on = any(p.kind is p.VAR_KEYWORD for p in own)
        own = [p for p in own if p.kind is not p.VAR_KEYWORD]
        if found:
            own = [p.replace(kind=p.KEYWORD_ONLY) for p in own if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        found |= {p.name: p for p in own if p.name not in found}
        if not passes_on:
            break
    return list(found.values())


def _compare_method(ours: type, method: str, parameters: str) -> Iterator[Difference]:
    if parameters == "property":
        if callable(inspect.getattr_static(ours, method)):
            yield Difference("is a method")
        return
    is_bound = isinstance(inspect.getattr_static(ours, method), (staticmethod, classmethod))
    yield from _compare_call(getattr(ours, method), parameters, drop_first=not is_bound)


def _compare_call(ours: Callable[..., Any], fact: str, drop_first: bool = False) -> Iterator[Difference]:
    if fact == "value":
        return
    if not callable(ours):
        yield Difference("is not callable")
        return
    parameters = list(inspect.signature(ours).parameters.values())
    yield from differing(parameters[1:] if drop_first else parameters, parse(fact))


def parse(text: str) -> Parameters:
    """Read parameters such as `(image, scale=, *, mode)`; `=` marks those that have a default."""
    positional: list[tuple[str, bool]] = []
    keywords: list[tuple[str, bool]] = []
    current = positional
    for part in filter(None, (part.strip() for part in text.strip("()").split(","))):
        if part == "*":
            current = keywords
        else:
            current.append((part.removesuffix("="), part.endswith("=")))
    return Parameters(positional, keywords)


def differing(ours: Sequence[inspect.Parameter], theirs: Parameters) -> Iterator[Difference]:
    """Yield which calls of the reference `ours` does not take; more keywords with defaults are no difference."""
    places = [p for p in ours if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    keywords = {p.name: p for p in ours if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    kinds = {p.kind for p in ours}
    any_place, any_keyword = inspect.Parameter.VAR_POSITIONAL in kinds, inspect.Parameter.VAR_KEYWORD in kinds
    names = {name for name, _ in (*theirs.positional, *theirs.keywords)}
    renamed: set[str] = set()
    by_place: list[str] = []
    missing: list[str] = []
    for index, (name, default) in enumerate(theirs.positional):
        at_place = places[index] if index < len(places) else None
        if at_place is not None and at_place.name == name:
            yield from _default(at_place, default)
        elif at_place is not None and name not in keywords and at_place.name not in names:
            renamed.add(at_place.name)
            yield Difference(f"parameter `{at_place.name}` for `{name}`", explained=True)
            yield from _default(at_place, default)
        elif at_place is None and any_place:
            by_place += [] if any_keyword else [name]
        elif name in keywords:
            yield Difference(f"`{name}` is not parameter {index + 1}")
        else:
            missing.append(name)
    for name, default in theirs.keywords:
        if name in keywords:
            yield from _default(keywords[name], default)
        elif not any_keyword:
            missing.append(name)
    if by_place:
        yield Difference(f"by position only {_listed(by_place)}", explained=True)
    if missing:
        yield Difference(f"no parameter {_listed(missing)}")
    required = [name for name, p in keywords.items() if name not in names | renamed and p.default is p.empty]
    if required:
        yield Difference(f"needs {_listed(required)}")


def _default(ours: inspect.Parameter, expected: bool) -> Iterator[Difference]:
    if expected and ours.default is ours.empty:
        yield Difference(f"`{ours.name}` has no default")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def wrong_remarks(found: Sequence[Entry], remarks: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the remarks: differences without one, and remarks on what does not exist."""
    different = [entry for entry in found if entry.needs_remark]
    wrong = [
        f"{entry.module}: {entry.name or 'the file'}: {_text(entry) or 'missing'}, and no remark"
        for entry in different
        if not remark(entry, remarks)
    ]
    for kind, of in (("differences", different), ("notes", found)):
        known = {(entry.module, name) for entry in of for name in (entry.name, "*")}
        wrong += [
            f"{module}: {name}: is in {kind!r} of {REMARKS.name}, but not among them"
            for module, texts in remarks[kind].items()
            for name in texts
            if (module, name) not in known
        ]
    return wrong


def remark(entry: Entry, remarks: Mapping[str, Any]) -> str:
    """Return what the table says of a name, beside the difference of its parameters."""
    notes = remarks["notes"].get(entry.module, {})
    parts = [notes.get(entry.name, "")]
    if entry.needs_remark:
        of_module = remarks["differences"].get(entry.module, {})
        parts.append(of_module.get(entry.name, of_module.get("*", "")))
    return " ".join(filter(None, parts))


def _text(entry: Entry) -> str:
    return "; ".join(difference.text for difference in entry.differences)


def tables(found: Sequence[Entry], remarks: Mapping[str, Any]) -> str:
    """Build the generated part of the page: the numbers, then one table for each module."""
    counts = Counter(entry.state for entry in found if entry.name)
    lines = [
        f"Of {sum(counts.values())} names {counts[SAME]} are the same, {counts[OTHER]} have another form, "
        f"{counts[NOT]} are not here.",
        "",
    ]
    for module, of_module in itertools.groupby(found, lambda entry: entry.module):
        title = module.replace("__", r"\_\_")  # two underscores would begin bold text
        lines += [f"#### {title}", "", "| name | state | remark |", "|---|---|---|"]
        for entry in of_module:
            text = "; ".join(filter(None, [_text(entry), remark(entry, remarks)]))
            lines.append(f"| {f'`{entry.name}`' if entry.name else 'the file'} | {entry.state} | {text} |")
        lines.append("")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
