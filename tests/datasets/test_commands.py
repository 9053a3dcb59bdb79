"""What all scripts have in common: they run from a clone, explain themselves, work in parallel and stop cleanly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

SCRIPTS = Path(__file__).parents[2] / "datasets"
NAMES = sorted(path.stem for path in SCRIPTS.glob("prepare_*.py"))


def test_all_are_there() -> None:
    assert {
        "prepare_ade20k_sem_seg",
        "prepare_ade20k_pan_seg",
        "prepare_ade20k_ins_seg",
        "prepare_ade20k_full_sem_seg",
        "prepare_coco_semantic_annos_from_panoptic_annos",
        "prepare_coco_panoptic_zips",
        "prepare_coco_stuff_10k",
        "prepare_cityscapes",
        "prepare_mapillary",
    } == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_help_and_missing_data(
    name: str, load: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    module = load(name)
    with pytest.raises(SystemExit, match="0"):
        module.main(["--help"])
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("Reads", "Writes", "--root", "--workers", "--overwrite", "--splits"))
    assert module.main(["--root", str(tmp_path / "nothing")]) == 1
    shown = capsys.readouterr().err
    assert str(tmp_path / "nothing") in shown and "DETECTRON2_DATASETS" in shown and "--root" in shown
    assert not list(tmp_path.iterdir())  # a wrong root leaves nothing behind
    with pytest.raises(SystemExit, match="2"):
        module.main(["--workers", "0"])


@pytest.fixture
def many(tmp_path: Path) -> Path:
    directory = tmp_path / "ADEChallengeData2016/annotations/validation"
    directory.mkdir(parents=True)
    for number in range(40):
        Image.fromarray(np.full((8, 9), number, np.uint8)).save(directory / f"{number:03d}.png")
    return tmp_path


def start(root: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPTS / "prepare_ade20k_sem_seg.py"), "--splits", "val", *arguments]
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env |= {"DETECTRON2_DATASETS": str(root), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=root, env=env, stdout=pipe, stderr=pipe, text=True, **options)


def test_from_anywhere_on_two_processes(many: Path) -> None:
    """Without installation and PYTHONPATH, in another directory, the root from the environment."""
    run = start(many, "--workers", "2")
    shown, errors = run.communicate()
    assert run.returncode == 0, errors
    assert "ade20k_sem_seg_val: 40 written, 0 already there" in shown and "40/40" in errors
    written = sorted((many / "ADEChallengeData2016/annotations_detectron2/validation").iterdir())
    values = [int(np.asarray(Image.open(path))[0, 0]) for path in written]
    assert values == [255, *range(39)]


def test_interrupt_leaves_complete_files_only(many: Path, prepare: Callable[..., int], capsys: Any) -> None:
    """Ctrl-C in the middle; then the same command finishes the work."""
    directory = many / "ADEChallengeData2016/annotations/validation"
    # Far more work than can be done before the interrupt arrives, however late that is.
    Image.fromarray(np.full((1200, 1200), 40, np.uint8)).save(directory / "0040.png")
    for number in range(41, 4000):
        os.link(directory / "0040.png", directory / f"{number:04d}.png")
    target = many / "ADEChallengeData2016/annotations_detectron2/validation"
    # What a shell starts in the background ignores SIGINT, and so would the script: give it the usual action back.
    usual = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    run = start(many, "--workers", "2", start_new_session=True, preexec_fn=usual)
    while not (target.is_dir() and len(list(target.glob("*.png"))) > 45) and run.poll() is None:
        time.sleep(0.005)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does
    _, errors = run.communicate()
    assert run.returncode == 130 and "interrupted. Run the same command again" in errors, errors
    assert "Traceback" not in errors
    names = {path.name for path in target.iterdir()}
    assert 45 < len(names) < 4000 and not [name for name in names if name.endswith(".tmp")]
    for path in target.iterdir():
        assert np.asarray(Image.open(path)).flat[-1] == min(int(path.stem), 40) - 1 & 255

    missing = sorted(path for path in directory.iterdir() if path.name not in names)
    for path in missing[20:]:  # enough for the second run
        path.unlink()
    assert prepare("prepare_ade20k_sem_seg", "--splits", "val") == 0
    shown = capsys.readouterr().out
    assert f"20 written, {len(names)} already there, 0 repaired, 0 failed" in shown
