"""A server on loopback with a stub model, and an engine whose model can be held."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mask2former.segmenter import Segmenter
from mask2former.serving.engine import Batching, Engine, Limits, ModelSource

from ..stub_model import ALL_PARTS, StubModel

TASKS = ("panoptic", "instance", "semantic")


def png(height: int = 6, width: int = 8, seed: int = 0, kind: str = "PNG") -> bytes:
    """Return an image file."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


class HeldModel(StubModel):
    """A stub that waits in its forward pass until `go` is set."""

    def __init__(self) -> None:
        super().__init__(ALL_PARTS)
        self.go, self.entered = threading.Event(), threading.Event()
        self.go.set()
        self.eval()  # a model in training mode would be copied

    def forward(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self.entered.set()
        assert self.go.wait(60)
        answers = super().forward(inputs)
        self.seen.clear()
        return answers


def make_engine(model: StubModel | None = None, limits: Limits | None = None, **batching: Any) -> Engine:
    """Return an engine with the models "stub" and "absent"."""
    segmenter = Segmenter(model or HeldModel(), classes=["a", "b"], min_size=0, max_size=0, score_threshold=0.3)
    absent = ModelSource(lambda device: segmenter, lambda: "its weights are on the moon")
    sources = {"stub": ModelSource.ready(segmenter, TASKS), "absent": absent}
    return Engine(sources, limits=limits, batching=Batching(**batching), device="cpu")


def wait_for(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never became true"
        time.sleep(0.002)


@contextmanager
def running(app: Any, **options: Any) -> Iterator[str]:
    """Serve an application from a thread; yield its address."""
    from mask2former.serving.server import make_server

    server = make_server(app, port=0, **options)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for(lambda: server.started or not thread.is_alive())
    assert server.started
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture
def held() -> Iterator[HeldModel]:
    """Return a model that runs freely until a test holds it; it is let go at the end."""
    model = HeldModel()
    yield model
    model.go.set()
