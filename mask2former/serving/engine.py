"""The engine: requests of many threads go through one bounded queue to one worker thread, which owns the models."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from ..results import Result
from ..segmenter import Segmenter
from ..utils.device import select_device
from .errors import ClosedError, InferenceError, InvalidOptionError, RequestTimeoutError, ServingError
from .limits import Limits, check_array, decode_image, read_header
from .model_pool import ModelPool, ModelSource, ModelStatus, zoo_models
from .request_queue import Batching, Request, RequestQueue

logger = logging.getLogger(__name__)

T = TypeVar("T")
Turn = Callable[[], None]

_SMALLEST_TILE = 64  # pixels
_CUDA_BATCH, _CPU_BATCH = 8, 4  # images


@dataclass(frozen=True)
class Options:
    """What a request may choose; see `Segmenter.stream`.

    Attributes:
        task: "auto" (all that the model computes) or one of panoptic, instance, semantic.
        score_threshold: 0 to 1; None: that of the model.
        tile: None (that of the model), "auto", "off" or an edge in pixels.
    """

    task: str = "auto"
    score_threshold: float | None = None
    tile: int | str | None = None

    def __post_init__(self) -> None:
        score, tile = self.score_threshold, self.tile
        if score is not None and not 0.0 <= score <= 1.0:  # also for NaN
            raise InvalidOptionError(f"score_threshold must lie between 0 and 1, not {score}")
        named = tile in (None, "auto", "off")
        if not named and (not isinstance(tile, int) or isinstance(tile, bool) or tile < _SMALLEST_TILE):
            raise InvalidOptionError(
                f"tile must be auto, off or at least {_SMALLEST_TILE} pixels, not {str(tile)[:40]!r}"
            )


@dataclass(frozen=True)
class EngineStatus:
    """The state of an engine.

    Attributes:
        healthy: whether the worker works; `reason` says why not.
        device: "cuda" or "cpu".
        waiting, jobs: images and jobs that wait; `accepted`: images that are decoded, wait or run.
        images, batches, seconds: of all forward calls so far.
    """

    healthy: bool
    reason: str
    device: str
    waiting: int
    jobs: int
    accepted: int
    images: int
    batches: int
    seconds: float


class Engine:
    """One worker that loads models and runs requests; all methods may be called from any thread.

    ```python
    with Engine({"nuclei": ModelSource.named("nuclei")}) as engine:
        result = engine.segment(png_bytes, "nuclei", Options(score_threshold=0.6))
    ```
    """

    def __init__(
        self,
        models: Mapping[str, ModelSource] | None = None,
        *,
        default: str | None = None,
        limits: Limits | None = None,
        batching: Batching | None = None,
        device: str = "auto",
        max_loaded: int = 2,
    ) -> None:
        """Start the worker.

        Args:
            models: by the names that requests use; default: those of the zoo, the bundled one first.
            default: model of requests that name none; default: the first.
            limits: what images may be.
            batching: groups, queue and times.
            device: see `Segmenter.load`.
            max_loaded: models in memory at once; the one that was not used for longest makes room.

        Raises:
            ValueError: no models, or a default that is none of them; a device that does not exist.
        """
        self.limits, self.batching = limits or Limits(), batching or Batching()
        self.device = str(select_device(device))
        self._pool = ModelPool(zoo_models() if models is None else models, self.device, max_loaded)
        self.default = default or self._pool.names()[0]
        if self.default not in self._pool.names():
            raise ValueError(f"the default model {self.default!r} is not among the models")
        self._queue = RequestQueue(self.batching)
        self._most = self.batching.max_images or (_CUDA_BATCH if self.device.startswith("cuda") else _CPU_BATCH)
        self._failure = ""
        self._images, self._batches, self._seconds = 0, 0, 0.0
        self._deadlines: list[float] = []  # of what runs now, innermost last
        self._stop_jobs = threading.Event()
        self._worker = threading.Thread(target=self._work, name="mask2former-worker", daemon=True)
        self._worker.start()

    # ---- requests
    def submit(
        self,
        image: bytes | np.ndarray,
        model: str | None = None,
        options: Options | None = None,
        *,
        timeout: float | None = None,
    ) -> Future[Result]:
        """Check and decode an image in the thread of the caller, and queue it.

        Args:
            image: bytes of a file, or uint8 (H, W, 3) RGB.
            model: name; None: the default one.
            options: see `Options`.
            timeout: seconds until the request fails; default: that of `Batching`.

        Returns:
            A future with the `Result`, or a `ServingError`. `cancel()` takes the request out of the queue.

        Raises:
            ServingError: the image or an option is refused, the model unknown or unavailable (`ModelUnavailableError`),
                the queue full (`BusyError`), the engine closed (`ClosedError`).
        """
        deadline = time.monotonic() + (self.batching.timeout if timeout is None else timeout)
        model, options = model or self.default, options or Options()
        self._check_alive()
        self._pool.check(model, options.task)
        if isinstance(image, np.ndarray):
            pixels = check_array(image, self.limits).size // 3
        else:
            pixels = read_header(image, self.limits).pixels
        self._queue.reserve(pixels)
        try:
            array = image if isinstance(image, np.ndarray) else decode_image(image, self.limits)
        except BaseException:
            self._queue.release(pixels)
            raise
        request = Request((model, options, array.shape), array, pixels, deadline)
        self._queue.add(request)
        return request.future

    def segment(
        self,
        image: bytes | np.ndarray,
        model: str | None = None,
        options: Options | None = None,
        *,
        timeout: float | None = None,
    ) -> Result:
        """Submit an image and wait for its result; errors are those of `submit`, and `RequestTimeoutError`."""
        timeout = self.batching.timeout if timeout is None else timeout
        started = time.monotonic()
        future = self.submit(image, model, options, timeout=timeout)
        try:
            return future.result(max(0.0, timeout - (time.monotonic() - started)))
        except FutureTimeoutError:
            future.cancel()
            raise overdue(timeout) from None

    def submit_job(
        self, job: Callable[[Segmenter, Turn], T], model: str | None = None, *, timeout: float | None = None
    ) -> Future[T]:
        """Queue a long job, such as a video, that runs in the worker.

        `job(segmenter, turn)` has to call `turn()` often, for example before each frame: waiting images are segmented
        in between, and it raises `RequestTimeoutError` when the job is overdue and `ClosedError` when the engine
        stops. To cancel a job that runs, let it raise `concurrent.futures.CancelledError`. Jobs run one after another.

        Raises:
            ServingError: as `submit`.
        """
        seconds = self.batching.job_timeout if timeout is None else timeout
        model = model or self.default
        self._check_alive()
        self._pool.check(model, None)
        request = Request(model, job, 0, time.monotonic() + seconds)
        self._queue.add_job(request)
        return request.future

    def _check_alive(self) -> None:
        if self._failure:
            raise ClosedError(self._failure)

    # ---- state
    def models(self) -> list[ModelStatus]:
        """Return the models with availability, and for those that cannot be used the reason."""
        return [self._pool.status(name) for name in self._pool.names()]

    def status(self) -> EngineStatus:
        """Return whether the worker works, how much it has to do, and what it has done."""
        waiting, jobs = self._queue.waiting
        alive = self._worker.is_alive()
        reason = self._failure or ("" if alive else "the worker has stopped")
        device = self.device.partition(":")[0]
        done = self._images, self._batches, self._seconds
        return EngineStatus(not reason, reason, device, waiting, jobs, self._queue.accepted, *done)

    def close(self, timeout: float = 30.0) -> bool:
        """Refuse new requests, finish the accepted ones within `timeout` seconds, fail the rest, stop the worker.

        A job that runs is stopped at its next turn. Further calls do nothing.

        Returns:
            Whether all accepted images were finished.
        """
        self._queue.close()
        self._stop_jobs.set()
        self._worker.join(timeout)
        rest = self._queue.clear()
        for request in rest:
            _fail(request, ClosedError("the server has stopped"))
        return not rest and not self._worker.is_alive()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- the worker
    def _work(self) -> None:
        try:
            while (batch := self._queue.take(self._most)) is not None:
                if callable(batch[0].payload):
                    self._run_job(batch[0])
                else:
                    self._run_images(batch)
                del batch  # an idle worker keeps no image
        except BaseException as error:  # a mistake of ours: say so, instead of leaving requests without an answer
            logger.exception("the worker of the engine has failed")
            self._failure = f"the worker has failed: {type(error).__name__}"
            self._queue.close()
            for request in self._queue.clear():
                _fail(request, ClosedError(self._failure))
        finally:
            self._pool.close()

    def _run_job(self, job: Request) -> None:
        if not self._startable(job):
            return

        def turn() -> None:
            if self._stop_jobs.is_set():
                raise ClosedError("the server is stopping")
            self._check_deadline()
            if images := self._queue.take_images(self._most):
                self._run_images(images)

        self._deadlines.append(job.deadline)
        try:
            job.future.set_result(job.payload(self._pool.get(job.key), turn))
        except (ServingError, CancelledError) as error:
            job.future.set_exception(error.with_traceback(None))
        except Exception as error:
            job.future.set_exception(self._explained(error, "video"))
        finally:
            self._deadlines.pop()

    def _run_images(self, requests: Sequence[Request]) -> None:
        """Run a batch; if it fails, each image by itself, so that none suffers for another."""
        batch = [request for request in requests if self._startable(request)]
        if not batch:
            return
        start = time.perf_counter()
        results = self._results(batch)
        if isinstance(results, Exception) and len(batch) > 1:
            outcomes: list[Result | Exception] = []
            for request in batch:
                each = self._results([request])
                outcomes.append(each if isinstance(each, Exception) else each[0])
        else:
            outcomes = [results] * len(batch) if isinstance(results, Exception) else list(results)
        seconds = time.perf_counter() - start
        self._images, self._batches = self._images + len(batch), self._batches + 1
        self._seconds += seconds
        self._queue.took(len(batch), seconds)
        for request, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Exception):
                request.future.set_exception(outcome)
            else:
                request.future.set_result(outcome)

    def _results(self, batch: Sequence[Request]) -> list[Result] | Exception:
        model, options, _ = batch[0].key
        self._deadlines.append(max(request.deadline for request in batch))
        try:
            segmenter = self._pool.get(model, options.task)
            handle = segmenter.model.register_forward_pre_hook(lambda *_: self._check_deadline())
            try:
                return segmenter(
                    [request.payload for request in batch],
                    score_threshold=options.score_threshold,
                    tile=options.tile,
                    batch_size=len(batch),
                )
            finally:
                handle.remove()
        except ServingError as error:
            return error.with_traceback(None)
        except Exception as error:
            return self._explained(error)
        finally:
            self._deadlines.pop()

    def _check_deadline(self) -> None:
        """Raise between two forward passes, so that an image in many tiles does not hold up all others."""
        if time.monotonic() > self._deadlines[-1]:
            raise RequestTimeoutError("the result was not ready in time; a smaller image or larger tiles take less")

    def _startable(self, request: Request) -> bool:
        """Mark a request as running; False if it was canceled, or is overdue and fails."""
        if not request.future.set_running_or_notify_cancel():
            return False
        if time.monotonic() > request.deadline:
            request.future.set_exception(RequestTimeoutError("the request waited too long for its turn"))
            return False
        return True

    def _explained(self, error: Exception, kind: str = "image") -> ServingError:
        """Log an error of a model and return one that shows nothing of the server; its traceback would keep images.

        Args:
            error: the error.
            kind: what was sent.
        """
        logger.error("a request failed", exc_info=error)
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            return InferenceError(f"the memory of the server does not suffice for this {kind}; send a smaller one")
        if "CUDA error" in str(error):  # no kernel runs in this process any more
            self._failure = "the GPU has failed; the server has to be started again"
        return InferenceError(f"the model failed on this {kind}; the log of the server says why")


def overdue(timeout: float) -> RequestTimeoutError:
    """Return the error of a caller who waited for `timeout` seconds."""
    return RequestTimeoutError(f"no result after {timeout:g} seconds")


def _fail(request: Request, error: ServingError) -> None:
    """Fail a request that waits, unless it was canceled."""
    if request.future.set_running_or_notify_cancel():
        request.future.set_exception(error)


__all__ = [
    "Batching",
    "Engine",
    "EngineStatus",
    "Limits",
    "ModelSource",
    "ModelStatus",
    "Options",
    "Turn",
]
