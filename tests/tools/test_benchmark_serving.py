from __future__ import annotations

from collections import Counter

import benchmark_serving
import pytest


def test_report_tells_what_was_lost() -> None:
    args = benchmark_serving.parse_arguments(["--requests", "4", "--clients", "2"])
    seconds = [0.1, 0.2, 0.3, 2.0]  # the last one is the time of all
    measured = benchmark_serving.Measured(seconds, Counter({200: 2, 422: 1}), 1, [(2, 100.04)])
    numbers = benchmark_serving.report(measured, args, "cpu")
    assert (numbers["lost"], numbers["wrong"], numbers["images_per_second"]) == (1, 1, 2.0)
    assert (numbers["p50_ms"], numbers["p99_ms"], numbers["memory_mib"]) == (200.0, 300.0, [[2, 100.0]])


@pytest.mark.slow
def test_a_short_run_loses_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("httpx2", "fastapi", "uvicorn", "python_multipart"):
        pytest.importorskip(name)
    options = ["--requests", "6", "--clients", "3", "--size", "32", "--sizes", "2", "--bad", "3", "--device", "cpu"]
    assert benchmark_serving.main(options) == 0
    assert "answers: {200: 4, 422: 2}" in capsys.readouterr().out
