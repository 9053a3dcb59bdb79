"""demo/mask2former.ipynb: no outputs in git, and it runs from top to bottom."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
NotebookClient = pytest.importorskip("nbclient").NotebookClient

ROOT = Path(__file__).parents[2]
FILE = ROOT / "demo/mask2former.ipynb"

# What the test looks at, after the last cell.
LOOK = """
print(json.dumps({
    "work": str(WORK), "nuclei": len(result), "losses": losses, "quality": quality,
    "frames": len(tracks), "tracks": [track.name for track in tracks.tracks],
    "tasks": [found.tasks for found in results], "same": float(same),
    "exported": [segment["name"] for segment in exported["segments"]],
    "expected": [segment.name for segment in results[0].panoptic.segments],
}))
"""

# What is another number here: half the iterations, and a third of the layers of the encoder, in training as in export.
# All cells run, and what the test asks of losses and quality is what it asks of the notebook as it is.
SHORTER = {
    "MAX_ITER: 200": "MAX_ITER: 100",
    "EVAL_PERIOD: 200": "EVAL_PERIOD: 100",
    "SEM_SEG_HEAD: {{": "SEM_SEG_HEAD: {{TRANSFORMER_ENC_LAYERS: 2, ",
}


def notebook() -> Any:
    return nbformat.read(FILE, as_version=4)


def test_no_outputs_are_stored() -> None:
    content = notebook()
    nbformat.validate(content)
    for cell in content.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None, "clear the outputs before you commit"
        assert not cell.metadata, "cells have no metadata"
    assert set(content.metadata) == {"kernelspec", "language_info"}


def test_the_badge_opens_this_notebook() -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    repository = re.search(r'^Repository = "https://github.com/(.*)"', project, re.MULTILINE)
    assert repository is not None
    address = f"https://colab.research.google.com/github/{repository[1]}/blob/main/demo/mask2former.ipynb"
    assert f"]({address})" in notebook().cells[0].source
    assert f"]({address})" in (ROOT / "README.md").read_text("utf-8")


def test_links_into_the_repository_lead_to_files() -> None:
    text = "\n".join(cell.source for cell in notebook().cells if cell.cell_type == "markdown")
    targets = re.findall(r"github\.com/mask2former/mask2former/blob/main/([\w./-]+)", text)
    assert len(targets) > 3
    assert not [target for target in targets if not (ROOT / target).is_file()]


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # other tests have the other cores
    for name in ("TMPDIR", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "HOME"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    content = notebook()
    for long, short in SHORTER.items():
        (cell,) = [cell for cell in content.cells if cell.cell_type == "code" and long in cell.source]
        cell.source = cell.source.replace(long, short)
    content.cells.append(nbformat.v4.new_code_cell(LOOK))
    here = tmp_path / "here"
    here.mkdir()
    NotebookClient(content, timeout=None, kernel_name="python3", resources={"metadata": {"path": str(here)}}).execute()
    assert not list(here.iterdir())  # all files are in a temporary directory

    seen = json.loads(content.cells[-1].outputs[0].text)
    work = Path(seen["work"])
    assert work.parent == tmp_path / "TMPDIR"
    assert 20 <= seen["nuclei"] <= 30  # 25 are drawn
    assert seen["frames"] == 8 and {"background", "disc"} <= set(seen["tracks"]) and len(seen["tracks"]) <= 8
    losses = [loss for _, loss in seen["losses"]]
    assert losses[-1] < losses[0] / 2
    assert seen["quality"] > 30
    assert seen["tasks"] == [["instance", "panoptic", "semantic"]] * 2
    assert seen["same"] > 0.98 and sorted(seen["exported"]) == sorted(seen["expected"])
    files = ("overlay.png", "objects.csv", "objects.json", "objects.geojson", "tracks.mp4", "tracks.csv", "shapes.onnx")
    assert all((work / name).stat().st_size > 100 for name in files)
    images = [data for cell in content.cells for out in cell.get("outputs", ()) for data in out.get("data", ())]
    assert images.count("image/png") >= 6
