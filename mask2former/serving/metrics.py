"""Counts and times of requests in the text format of Prometheus, and the engine's beside them."""

from __future__ import annotations

import bisect
import threading
from collections import Counter

from .engine import EngineStatus

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PREFIX = "mask2former_"
_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # seconds


class Metrics:
    """Requests by path, method and status, and a histogram of their times; any thread may count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._buckets = [0] * (len(_BOUNDS) + 1)
        self._seconds = 0.0

    def count(self, method: str, path: str, status: int, seconds: float) -> None:
        """Count an answer. `path` is the route, never what a stranger asked for, so that the table stays small."""
        with self._lock:
            self._requests[method, path, status] += 1
            if path.startswith("/v1/segment"):
                self._buckets[bisect.bisect_left(_BOUNDS, seconds)] += 1
                self._seconds += seconds

    def render(self, engine: EngineStatus) -> str:
        """Return all metrics as text."""
        with self._lock:
            requests, buckets, seconds = dict(self._requests), list(self._buckets), self._seconds
        lines = _head("http_requests_total", "counter", "Answers by method, path and status.")
        for (method, path, status), number in sorted(requests.items()):
            labels = f'method="{method}",path="{path}",status="{status}"'
            lines.append(f"{_PREFIX}http_requests_total{{{labels}}} {number}")
        lines += _head("segment_seconds", "histogram", "Time of /v1/segment from the first byte to the answer.")
        total = 0
        for bound, number in zip((*map(str, _BOUNDS), "+Inf"), buckets, strict=True):
            total += number
            lines.append(f'{_PREFIX}segment_seconds_bucket{{le="{bound}"}} {total}')
        lines += [f"{_PREFIX}segment_seconds_sum {seconds:.6f}", f"{_PREFIX}segment_seconds_count {total}"]
        for name, kind, text, value in (
            ("healthy", "gauge", "1 if the worker works.", int(engine.healthy)),
            ("waiting_images", "gauge", "Images in the queue.", engine.waiting),
            ("waiting_jobs", "gauge", "Jobs in the queue.", engine.jobs),
            ("accepted_images", "gauge", "Images that are decoded, wait or run.", engine.accepted),
            ("images_total", "counter", "Images that the model was run on.", engine.images),
            ("batches_total", "counter", "Batches of them.", engine.batches),
            ("inference_seconds_total", "counter", "Time of these batches.", round(engine.seconds, 6)),
        ):
            lines += [*_head(name, kind, text), f"{_PREFIX}{name} {value}"]
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {_PREFIX}{name} {text}", f"# TYPE {_PREFIX}{name} {kind}"]
