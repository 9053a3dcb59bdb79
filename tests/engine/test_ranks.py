"""Two processes must agree on weights, statistics and the step to begin with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import rank_checks
import torch.multiprocessing as mp


@pytest.mark.slow
@pytest.mark.parametrize(
    "check",
    [
        rank_checks.all_evaluate_the_model_that_is_saved,
        rank_checks.parts_come_to_the_main_process,
        rank_checks.averages_begin_with_the_common_weights,
        rank_checks.a_checkpoint_that_one_process_lacks_is_an_error,
        rank_checks.images_without_objects_are_no_obstacle,
        rank_checks.gradients_do_not_depend_on_the_way_of_reduction,
    ],
)
def test_two_processes(check: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    mp.start_processes(rank_checks.joined, args=(check, str(tmp_path)), nprocs=2, start_method="spawn")
