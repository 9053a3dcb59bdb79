"""The bounded queue between the threads that accept requests and the worker, which takes them in batches."""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from .errors import BusyError, ClosedError


@dataclass(frozen=True)
class Batching:
    """How requests are grouped, and how many may wait.

    Attributes:
        max_images: images in one forward pass; None: 8 on CUDA, 4 on CPUs, where only small images gain by it.
        max_wait: seconds that a request waits for others of its model, options and image size.
        max_batch_pixels: images that have more together are not batched.
        max_waiting: images that may be accepted and not done; more are refused.
        max_waiting_pixels: the same in pixels of all of them, which bounds their memory (3 bytes each).
        max_jobs: long jobs (`Engine.submit_job`) that may wait.
        timeout: seconds after which a request without a result fails.
        job_timeout: the same for jobs.
    """

    max_images: int | None = None
    max_wait: float = 0.005
    max_batch_pixels: int = 8_000_000
    max_waiting: int = 64
    max_waiting_pixels: int = 200_000_000
    max_jobs: int = 4
    timeout: float = 60.0
    job_timeout: float = 900.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            low = 0 if name in ("max_wait", "max_jobs") else 1e-9
            if value is None and name == "max_images":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= low:
                raise ValueError(f"{name} must be a positive number, not {value!r}")


@dataclass(eq=False)
class Request:
    """A request that waits: `payload` is for the worker, requests with equal `key` may go into one batch."""

    key: Any  # hashable
    payload: Any
    pixels: int
    deadline: float  # of time.monotonic()
    future: Future[Any] = field(default_factory=Future)
    accepted: float = field(default_factory=time.monotonic)


class RequestQueue:
    """Images in the order in which they came, and long jobs beside them; each has a bound of its own.

    A place is reserved before an image is decoded, and is free again when its future is done, so that the memory of all
    that is accepted is bounded.
    """

    def __init__(self, limits: Batching) -> None:
        self._limits = limits
        self._changed = threading.Condition()
        self._images: deque[Request] = deque()
        self._jobs: deque[Request] = deque()
        self._count, self._pixels = 0, 0  # of images that are accepted and not done
        self._closed = False
        self._seconds = 0.1  # that an image takes the worker, a running average

    @property
    def waiting(self) -> tuple[int, int]:
        """Return how many images and how many jobs wait."""
        with self._changed:
            return len(self._images), len(self._jobs)

    @property
    def accepted(self) -> int:
        """Return the number of images that are being decoded, wait or run."""
        return self._count

    # ---- threads that accept
    def reserve(self, pixels: int) -> None:
        """Reserve a place for an image.

        Raises:
            BusyError: too many images, or pixels of them, are accepted already.
            ClosedError: the queue is closed.
        """
        with self._changed:
            self._check_open()
            # A single image is accepted whatever its size: what it may have is not decided here.
            crowded = self._count > 0 and self._pixels + pixels > self._limits.max_waiting_pixels
            if self._count >= self._limits.max_waiting or crowded:
                seconds = min(max(1.0, self._count * self._seconds), 60.0)
                raise BusyError("the queue is full; try again later", seconds)
            self._count += 1
            self._pixels += pixels

    def release(self, pixels: int) -> None:
        """Give a reserved place back."""
        with self._changed:
            self._count -= 1
            self._pixels -= pixels
            self._changed.notify_all()

    def add(self, request: Request) -> None:
        """Add an image for which a place is reserved; the place is free when its future is done.

        Raises:
            ClosedError: the queue was closed in the meantime; the place is free.
        """
        with self._changed:
            if self._closed:
                self.release(request.pixels)
                self._check_open()
            self._images.append(request)
            self._changed.notify_all()
        request.future.add_done_callback(lambda _: self._done(request))

    def add_job(self, job: Request) -> None:
        """Add a job.

        Raises:
            BusyError: too many jobs wait.
            ClosedError: the queue is closed.
        """
        with self._changed:
            self._check_open()
            if len(self._jobs) >= self._limits.max_jobs:
                raise BusyError("too many videos are waiting; try again later", 30.0)
            self._jobs.append(job)
            self._changed.notify_all()
        job.future.add_done_callback(lambda _: self._forget(self._jobs, job))

    def _done(self, request: Request) -> None:
        self._forget(self._images, request)
        self.release(request.pixels)

    def _forget(self, requests: deque[Request], request: Request) -> None:
        """Drop a request that was canceled while it waited, so that its image is not kept."""
        with self._changed:
            if request in requests:
                requests.remove(request)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the server is stopping")

    # ---- the worker
    def take(self, most: int) -> list[Request] | None:
        """Wait for work, and return a job alone or images for one batch; None: closed, and nothing is left.

        Args:
            most: largest number of images.
        """
        with self._changed:
            while True:
                if self._jobs and (not self._images or self._jobs[0].accepted <= self._images[0].accepted):
                    return [self._jobs.popleft()]
                if self._images:
                    batch = self._batch(most)
                    if batch:
                        return batch
                elif self._closed:
                    return None
                else:
                    self._changed.wait()

    def take_images(self, most: int) -> list[Request]:
        """Return images for one batch without waiting for more, [] if none wait."""
        with self._changed:
            return self._matching(most) if self._images else []

    def _batch(self, most: int) -> list[Request]:
        """Return the first image and those that fit it; [] if it was canceled while we waited for others."""
        first = self._images[0]
        room = self._room(first, most)
        until = first.accepted + self._limits.max_wait
        while not self._closed and self._images and self._images[0] is first:
            fitting = sum(request.key == first.key for request in self._images)
            left = until - time.monotonic()
            if fitting >= room or left <= 0:
                break
            self._changed.wait(left)
        return self._matching(most) if self._images and self._images[0] is first else []

    def _room(self, first: Request, most: int) -> int:
        return max(1, min(most, self._limits.max_batch_pixels // max(1, first.pixels)))

    def _matching(self, most: int) -> list[Request]:
        first = self._images[0]
        batch = [request for request in self._images if request.key == first.key][: self._room(first, most)]
        for request in batch:
            self._images.remove(request)
        return batch

    def took(self, images: int, seconds: float) -> None:
        """Tell how long a batch took, for the time after which a refused request is worth another try."""
        self._seconds += 0.1 * (seconds / max(1, images) - self._seconds)

    # ---- the end
    def close(self) -> None:
        """Refuse new requests; those that are in the queue can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def clear(self) -> list[Request]:
        """Empty the queue and return what was in it."""
        with self._changed:
            rest = [*self._images, *self._jobs]
            self._images.clear()
            self._jobs.clear()
            self._changed.notify_all()
        return rest
