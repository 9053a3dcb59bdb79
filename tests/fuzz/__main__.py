"""Run the harness: `python -m tests.fuzz KIND SEED` repeats a case, `--count N` runs many; see CONTRIBUTING.md."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from .core import KINDS, Result, run_case, run_cases, summarize

_SHOWN_SECONDS = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 1 if there is a finding."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("kind", nargs="?", choices=KINDS, help="kind of files; all without it")
    parser.add_argument("seed", nargs="?", type=int, help="repeat this case, in this process and without limits")
    parser.add_argument("--count", type=int, default=200, help="cases of each kind (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write how each case of --count ended")
    parser.add_argument("--offset", type=int, default=0, help="first seed (default: %(default)s)")
    args = parser.parse_args(arguments)
    if args.seed is not None:
        with tempfile.TemporaryDirectory(prefix="fuzz_") as directory:
            accepted = run_case(args.kind, args.seed, Path(directory).resolve())
            print(f"{args.kind} {args.seed}: no finding, {'accepted' if accepted else 'refused'}")
        return 0
    rows, failed, ended = [], False, []
    for kind in [args.kind] if args.kind else KINDS:
        results = _run(kind, range(args.offset, args.offset + args.count))
        ended += results
        reports = summarize(results)
        failed = failed or bool(reports)
        accepted = sum(result.accepted for result in results)
        findings = sum(bool(result.finding) for result in results)
        seconds = sum(result.seconds for result in results)
        rows.append((kind, len(results), accepted, findings, len(reports), f"{seconds:.1f}"))
        print("".join(f"{report}\n" for report in reports), end="", flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(result) for result in ended]), encoding="utf-8")
    head = ("kind", "cases", "accepted", "findings", "sorts", "CPU s")
    for row in [head, *rows]:
        print("".join(str(value).rjust(12) for value in row))
    return int(failed)


def _run(kind: str, seeds: range) -> list[Result]:
    """Run cases with a line of progress."""
    results: list[Result] = []
    last = time.monotonic()
    for result in run_cases(kind, seeds):
        results.append(result)
        if time.monotonic() - last > _SHOWN_SECONDS:
            last = time.monotonic()
            findings = sum(bool(entry.finding) for entry in results)
            print(f"{kind}: {len(results)} of {len(seeds)} cases, {findings} findings", file=sys.stderr, flush=True)
    return results


if __name__ == "__main__":
    sys.exit(main())
