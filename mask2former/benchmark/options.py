"""Arguments that the commands share."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..modeling.runtime import MODES

COMPARE = ("huggingface",)


def add_output(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add where the report goes."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON too")
    parser.add_argument("--label", metavar="TEXT", help="of this run, in the JSON: before, after, ...")


def add_model(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add what changes a model and what it is compared with."""
    parser.add_argument("--compile", choices=MODES, help="MODEL.COMPILE (default: that of the config)")
    parser.add_argument("--compare", choices=COMPARE, help="measure this implementation too, in turn")


def add_inference(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add what only inference has."""
    parser.add_argument(
        "--source",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="size of the images and results (default: --size, which the network sees)",
    )
    parser.add_argument("--dense", action="store_true", help="class scores near 1, so that results hold most queries")


def add_training(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add what only training has."""
    parser.add_argument("--uneven", action="store_true", help="1 to 2 x --objects per image, at random")
