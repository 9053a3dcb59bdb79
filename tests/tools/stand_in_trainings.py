"""Trainings that are small programs: what runs them side by side can be tested in seconds."""

from __future__ import annotations

import sys
from pathlib import Path

import training_runs

from mask2former.config import load_config


class Program(training_runs.Training):
    """A program in place of a training; its overrides are Python code."""

    def command(self) -> list[str]:
        return [sys.executable, "-S", "-c", *self.overrides]


def programs(directory: Path, *codes: str) -> list[training_runs.Training]:
    return [
        Program(title=f"p{i}", directory=directory / f"p{i}", config="", overrides=(code,), cfg=load_config())
        for i, code in enumerate(codes)
    ]
