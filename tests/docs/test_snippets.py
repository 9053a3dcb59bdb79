"""The Python examples of the guides run: blocks that are marked `python runnable`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.markdown import ROOT, Block, blocks, pages
from tests.docs.run_snippets import IMPORTED
from tests.forked_programs import ForkedPrograms

EXAMPLES = [b for p in pages() for b in blocks(p) if b.info[:1] == ("python",)]
PYTHON = [p for p in pages() if any(b.info == ("python", "runnable") for b in blocks(p))]


def test_there_are_examples() -> None:
    assert {"README.md", "GETTING_STARTED.md", "ADVANCED_USAGE.md"} <= {p.name for p in PYTHON}


@pytest.fixture(scope="module")
def programs() -> Iterator[ForkedPrograms]:
    """Return a process that has imported what the inputs of every guide need, and nothing more."""
    with ForkedPrograms(["tests.docs.run_snippets", *IMPORTED], {"OMP_NUM_THREADS": "1"}) as programs:
        yield programs


@pytest.mark.parametrize("page", PYTHON, ids=lambda p: str(p.relative_to(ROOT)))
def test_examples_run(page: Path, tmp_path: Path, programs: ForkedPrograms) -> None:
    run = programs.run("tests.docs.run_snippets", [str(page)], tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stderr.count(" passed\n") == sum(b.info == ("python", "runnable") for b in blocks(page))


@pytest.mark.parametrize("block", EXAMPLES, ids=lambda b: b.name)
def test_examples_are_python(block: Block) -> None:
    compile(block.code, block.name, "exec")


def test_a_failing_example_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "PAGE.md"
    page.write_text("# Page\n\n```python runnable\nx = 1\nraise RuntimeError(x)\n```\n", encoding="utf-8")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path;"
        "from tests.docs import run_snippets as r, markdown as m;"
        "m.ROOT = Path(sys.argv[2]).parent; r.make_inputs = lambda: None;"
        "sys.exit(r.main(sys.argv[2:]))"
    )
    run = subprocess.run([sys.executable, "-c", code, ROOT, page], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 1 and "line 5" in run.stderr and "RuntimeError: 1" in run.stderr
