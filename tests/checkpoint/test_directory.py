"""Which checkpoint a resume takes, when `last_checkpoint` is of no use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mask2former.checkpoint import CheckpointError, CorruptCheckpointError, SafeCheckpointer
from mask2former.checkpoint.directory import finished_iterations, has_checkpoint, read_tag


class Counter:
    """A checkpointable."""

    value = 0

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


def write(directory: Path, name: str, iteration: int, time: int) -> None:
    """Save a checkpoint, with a time of its own."""
    counter = Counter()
    counter.value = iteration
    SafeCheckpointer(nn.Linear(2, 2), str(directory), trainer=counter).save(name, iteration=iteration)
    os.utime(directory / f"{name}.pth", (time, time))


def resume(directory: Path, weights: str = "") -> int:
    counter = Counter()
    counter.value = -1
    checkpointer = SafeCheckpointer(nn.Linear(2, 2), str(directory), required=("trainer",), trainer=counter)
    checkpointer.resume_or_load(weights)
    return counter.value


def directory_of(path: Path) -> Path:
    for iteration in (2, 5):
        write(path, f"model_{iteration:07d}", iteration, 1000 + iteration)
    return path


@pytest.mark.parametrize(
    "content",
    [None, b"", b"  \n", b"\xff\xfe\x00", b"a" * 9000, b"../model_0000002.pth", b"/etc/passwd", b"..", b".",
     b"model_0000002.pth\nmodel_0000005.pth", b"model_0000009.pth", b"directory"],
    ids=repr,
)  # fmt: skip
def test_a_useless_tag_leads_to_the_newest(
    tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    directory_of(tmp_path / "out")
    write(tmp_path, "model_0000002", 2, 9000)  # beside the directory
    (tmp_path / "out/directory").mkdir()
    tag = tmp_path / "out/last_checkpoint"
    tag.unlink()
    if content is not None:
        tag.write_bytes(content)
    assert read_tag(tmp_path / "out")[0] is None
    assert finished_iterations(tmp_path / "out") is None
    assert has_checkpoint(tmp_path / "out")
    assert resume(tmp_path / "out") == 5
    assert "last_checkpoint" in caplog.text


def test_a_tag_that_is_a_directory(tmp_path: Path) -> None:
    directory_of(tmp_path)
    (tmp_path / "last_checkpoint").unlink()
    (tmp_path / "last_checkpoint").mkdir()
    assert resume(tmp_path) == 5


def test_a_tag_counts_more_than_times(tmp_path: Path) -> None:
    directory_of(tmp_path)
    (tmp_path / "last_checkpoint").write_text("model_0000002.pth\n")
    assert resume(tmp_path) == 2
    assert finished_iterations(tmp_path) == 3
    write(tmp_path, "model_final", 7, 2000)
    assert finished_iterations(tmp_path) == 8


def test_without_a_tag_copies_are_ambiguous(tmp_path: Path) -> None:
    """Copied files have the time of the copying; a directory may also hold files of an earlier run."""
    directory_of(tmp_path)
    (tmp_path / "last_checkpoint").unlink()
    os.utime(tmp_path / "model_0000002.pth", (2000, 2000))
    with pytest.raises(CheckpointError, match=r"model_0000002.pth was written last .*model_0000005.pth has 6"):
        resume(tmp_path)
    (tmp_path / "model_0000005.pth").write_bytes(b"of another program")
    assert resume(tmp_path) == 2


def test_a_tag_without_checkpoints_is_no_start(tmp_path: Path) -> None:
    (tmp_path / "last_checkpoint").write_text("model_0000002.pth")
    with pytest.raises(CorruptCheckpointError, match=r"(?s)names model_0000002.pth, which is missing.*new training"):
        resume(tmp_path)


def test_the_final_weights_alone_are_no_start(tmp_path: Path) -> None:
    (tmp_path / "model_final.safetensors").touch()
    with pytest.raises(CheckpointError, match="finished training"):
        resume(tmp_path)


def test_weights_without_the_state_of_a_training(tmp_path: Path) -> None:
    torch.save({"model": nn.Linear(2, 2).state_dict()}, tmp_path / "start.pth")
    with pytest.raises(CorruptCheckpointError, match=r"start.pth has weights only"):
        resume(tmp_path)
    assert resume(tmp_path, str(tmp_path / "start.pth")) == -1  # they are those to start from
    directory_of(tmp_path)
    (tmp_path / "last_checkpoint").write_text("start.pth")
    assert resume(tmp_path) == 5


def test_resume_starts_in_a_new_directory(tmp_path: Path) -> None:
    assert resume(tmp_path / "absent") == -1
    assert not has_checkpoint(tmp_path / "absent")
