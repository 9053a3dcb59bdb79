"""Whether somebody has drawn random numbers of the CPU."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from mask2former.utils.host_random import HostRandom


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: torch.rand(1).item()])
def test_drawn_numbers_are_noticed_and_come_again(draw: Callable[[], Any]) -> None:
    before = HostRandom()
    assert not before.was_drawn()
    first = draw()
    assert before.was_drawn()
    before.restore()
    assert not before.was_drawn() and draw() == first
