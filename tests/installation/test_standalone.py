"""The installation runs where nothing is installed: standard library only, without the rest of the package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# -I and -S: no site-packages and no variables, as in a fresh Python.
BARE = [sys.executable, "-I", "-S"]


@pytest.mark.parametrize(("tool", "option"), [("install.py", "--wheels"), ("build_ops.py", "MASK2FORMER_BUILD_OPS")])
def test_tools_run_in_a_bare_python(tool: str, option: str, tmp_path: Path) -> None:
    done = subprocess.run([*BARE, ROOT / "tools" / tool, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and option in done.stdout, done.stderr


def test_no_other_module_of_the_package_is_imported(tmp_path: Path) -> None:
    names = [path.stem for path in (ROOT / "mask2former/installation").glob("[!_]*.py")]
    assert len(names) > 8
    script = f"""
import sys
sys.path.insert(0, {str(ROOT / "tools")!r})
from installation_package import load
for name in {names!r}:
    load(name)
others = [name for name in sys.modules if name.split(".")[0] in ("mask2former", "torch", "detectron2", "pip")]
assert not others, others
"""
    done = subprocess.run([*BARE, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_incomplete_checkout_is_explained(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    for name in ("install.py", "installation_package.py"):
        (tmp_path / "tools" / name).write_text((ROOT / "tools" / name).read_text("utf-8"), "utf-8")
    done = subprocess.run([*BARE, tmp_path / "tools/install.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "is missing. Restore the checkout" in done.stderr and "Trace" not in done.stderr
