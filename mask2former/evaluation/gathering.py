"""Gathering of the results of all ranks on the main rank."""

from __future__ import annotations

from typing import TypeVar

from detectron2.utils import comm

Part = TypeVar("Part")


def gather_parts(part: Part, distributed: bool) -> list[Part] | None:
    """Gather the parts of all ranks, in rank order; None on all ranks but the main one.

    Args:
        part: result of this rank; must be picklable.
        distributed: if False, return the part of this rank only, even in a distributed job.
    """
    if not distributed:
        return [part]
    comm.synchronize()
    parts: list[Part] = comm.gather(part, dst=0)
    return parts if comm.is_main_process() else None
