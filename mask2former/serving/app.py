"""The HTTP API: a FastAPI application on top of an `Engine`.

`POST /v1/segment`, `GET /v1/models`, `/healthz`, `/metrics`, `/docs` and `/openapi.json`. Errors are
`{"error": {"code": ..., "message": ...}}`. Nothing that a request holds is used as a path or URL, and nothing is
written to the disk.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..results import Result
from .answers import error_answer, label_map_png, result_json
from .api_schema import API_VERSION, DESCRIPTION, ERRORS, SEGMENT, SegmentOptions, docs_page
from .engine import Engine, overdue
from .errors import BusyError, ForbiddenError, InvalidOptionError, ServingError, UnauthorizedError
from .metrics import CONTENT_TYPE, Metrics
from .origins import FOREIGN, is_foreign
from .upload import Arrived, DisconnectedError, drain, noting_the_end, read_upload

logger = logging.getLogger(__name__)

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_DRAINED = 32 << 20  # bytes of a body whose options are refused before it is read
_UPLOADS = 8  # bodies of the largest size that may be in memory at once


class _SlowUploadError(ServingError):
    status, code = 408, "slow_upload"


def create_app(
    engine: Engine, *, token: str | None = None, hosts: Sequence[str] | None = None, close_engine: bool = True
) -> FastAPI:
    """Build the application.

    Args:
        engine: runs the requests.
        token: requests to `/v1` and `/metrics` must have the header `Authorization: Bearer <token>`; None: no token.
        hosts: values of the header Host that are answered, for example ("localhost", "127.0.0.1"), so that no web site
            can reach a local server by a name of its own; None: all.
        close_engine: close the engine when the application shuts down.
    """
    if token is not None and (not token.strip() or not token.isascii()):
        raise ValueError("the token must be ASCII text and not empty")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        if close_engine:
            await asyncio.to_thread(engine.close)

    app = FastAPI(
        title="Mask2Former",
        version=API_VERSION,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's page loads scripts from other servers
        redoc_url=None,
    )
    _Api(app, engine, token)
    if hosts is not None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    return app


class _Api:
    """The routes of an application."""

    def __init__(self, app: FastAPI, engine: Engine, token: str | None) -> None:
        self.engine, self.token, self.metrics = engine, token, Metrics()
        self._upload_bytes = 0  # of bodies that are being read or whose image is being decoded
        app.add_middleware(_Counting, metrics=self.metrics)
        app.add_exception_handler(ServingError, _serving_error)
        app.add_exception_handler(RequestValidationError, _validation_error)
        app.add_exception_handler(HTTPException, _http_error)
        app.add_exception_handler(Exception, _unexpected_error)
        guarded = [Depends(self._check_token)]
        app.post("/v1/segment", dependencies=[Depends(self._check_origin), *guarded], responses=ERRORS, **SEGMENT)(
            self.segment
        )
        app.get("/v1/models", dependencies=guarded, summary="List the models", tags=["Segmentation"])(self.models)
        app.get("/healthz", summary="Say whether the server works", tags=["Operation"])(self.health)
        app.get(
            "/metrics",
            dependencies=guarded,
            summary="Metrics for Prometheus",
            tags=["Operation"],
            response_class=Response,
            responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
        )(self.show_metrics)

        @app.get("/docs", include_in_schema=False)
        def docs() -> HTMLResponse:
            return HTMLResponse(docs_page(app.openapi(), token is not None))

    async def _check_origin(self, request: Request) -> None:
        # A page of another site cannot send this header without being asked first.
        if "authorization" not in request.headers and is_foreign(request.scope):
            await drain(request, self.engine.limits.max_bytes)
            raise ForbiddenError(FOREIGN)

    async def _check_token(self, request: Request) -> None:
        if self.token is None:
            return
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode(), self.token.encode())
        if kind.lower() != "bearer" or not right:
            await drain(request, self.engine.limits.max_bytes)
            raise UnauthorizedError("send the header 'Authorization: Bearer <token>' with the token of this server")

    # ---- segmentation
    async def segment(self, request: Request, query: Annotated[SegmentOptions, Query()]) -> Response:
        """Segment one image.

        Send the bytes of an image as body, or a form with the file `image`. Options are query parameters, or fields of
        the form, which count more. The content decides on the type of the file.
        """
        deadline = time.monotonic() + self.engine.batching.timeout
        given = query.model_dump(exclude_unset=True)
        most = self.engine.limits.max_bytes
        held = 0

        def arrived(count: int) -> None:
            nonlocal held
            held += count
            self._upload_bytes += count
            if self._upload_bytes > _UPLOADS * most:
                raise BusyError("too many images are being sent; try again later", 2.0)

        try:
            future, options = await self._accept(request, given, deadline, arrived)
        except ServingError as error:
            if not isinstance(error, _SlowUploadError):
                await drain(request, most)
            raise
        finally:
            self._upload_bytes -= held
        result = await self._wait(request, future, deadline)
        model = options.model or self.engine.default
        return await asyncio.to_thread(_answer, result, model, options)

    async def _accept(
        self, request: Request, given: dict[str, Any], deadline: float, arrived: Arrived
    ) -> tuple[asyncio.Future[Result], SegmentOptions]:
        """Read the body, decode the image in another thread and queue it."""
        try:
            left = max(0.0, deadline - time.monotonic())
            upload = read_upload(request, self.engine.limits.max_bytes, arrived)
            image, fields = await asyncio.wait_for(upload, left)
        except asyncio.TimeoutError:
            raise _SlowUploadError("the image did not arrive in time") from None
        try:
            options = SegmentOptions.model_validate({**given, **fields})
        except ValidationError as error:
            raise InvalidOptionError(_explained(error.errors())) from None
        left = max(0.0, deadline - time.monotonic())
        submit = self.engine.submit
        future = await asyncio.to_thread(submit, image, options.model, options.for_engine(), timeout=left)
        return asyncio.wrap_future(future), options

    async def _wait(self, request: Request, future: asyncio.Future[Result], deadline: float) -> Result:
        """Wait for the result; a client who leaves, or has waited too long, makes room for others."""
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            left = max(0.0, deadline - time.monotonic())
            both: set[asyncio.Future[Any]] = {future, gone}
            await asyncio.wait(both, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if future.done():
                return future.result()
            if gone.done():
                raise DisconnectedError("the client has gone")
            raise overdue(self.engine.batching.timeout)
        finally:
            gone.cancel()
            future.cancel()  # of a done future: nothing
            with suppress(asyncio.CancelledError):
                await gone

    # ---- the rest
    async def models(self) -> JSONResponse:
        """Return the models that requests can name: available or not, and why not, and their tasks."""
        rows = await asyncio.to_thread(self.engine.models)
        return JSONResponse({"default": self.engine.default, "models": [asdict(row) for row in rows]})

    # Without a thread: those may all be busy with images.
    async def health(self) -> JSONResponse:
        """Return status 200 while the worker works, 503 when the process has to be started again."""
        status = self.engine.status()
        content = {"status": "ok" if status.healthy else status.reason, "waiting": status.waiting}
        return JSONResponse(content, 200 if status.healthy else 503)

    async def show_metrics(self) -> Response:
        """Return counts of requests, times and the length of the queue, in the text format of Prometheus."""
        return Response(self.metrics.render(self.engine.status()), media_type=CONTENT_TYPE)


def _answer(result: Result, model: str, options: SegmentOptions) -> Response:
    if options.format == "png":
        return Response(label_map_png(result, options.task), media_type="image/png")
    return Response(result_json(result, model, options.task, options.segmentation), media_type="application/json")


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


# ------------------------------------------------------------------ errors
async def _serving_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServingError)
    headers = {}
    if isinstance(error, BusyError):
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    elif isinstance(error, UnauthorizedError):
        headers["WWW-Authenticate"] = "Bearer"
    return error_answer(error.status, error.code, str(error), headers)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    await drain(request, _DRAINED)
    return error_answer(422, InvalidOptionError.code, _explained(error.errors()))


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    return error_answer(error.status_code, code, str(error.detail), dict(error.headers or {}))


async def _unexpected_error(request: Request, error: Exception) -> JSONResponse:
    return error_answer(500, ServingError.code, "the server has made a mistake; its log says which")


def _explained(errors: Sequence[Any]) -> str:
    """Return the messages of a validation in one line: names and reasons, at most three."""
    texts = []
    for error in errors[:3]:
        name = ".".join(str(part)[:40] for part in error["loc"] if part != "query")
        unknown = error["type"] == "extra_forbidden"
        reason = f"there is no such option, only {', '.join(SegmentOptions.model_fields)}" if unknown else error["msg"]
        texts.append(f"{name}: {str(reason)[:200]}")
    return "; ".join(texts)


# ------------------------------------------------------------------ counting
class _Counting:
    """Counts answers and their time, and notes where bodies end."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, noting_the_end(scope, receive), watch)
        finally:
            method = scope["method"] if scope["method"] in _METHODS else "other"
            path = getattr(scope.get("route"), "path", "other")
            self._metrics.count(method, path, status, time.perf_counter() - start)
