"""What each process has evaluated, brought to the main one."""

from __future__ import annotations

from typing import TypeVar

from detectron2.utils import comm

Part = TypeVar("Part")


def gather_parts(part: Part, distributed: bool) -> list[Part] | None:
    """The parts of all processes, in the order of their ranks; None on all but the main one.

    Args:
        part: of this process; pickled.
        distributed: False: this process is alone, whatever others there are.
    """
    if not distributed:
        return [part]
    comm.synchronize()
    parts: list[Part] = comm.gather(part, dst=0)
    return parts if comm.is_main_process() else None
