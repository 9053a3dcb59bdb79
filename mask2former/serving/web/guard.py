"""What requests may reach of Gradio, and which files they may name.

Gradio has many routes that these pages do not need, some of which fetch URLs; and in an application that it did not
launch itself it does not check the paths that a request holds. Both are closed here, before Gradio sees a request.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..answers import error_answer
from ..errors import BusyError
from ..origins import FOREIGN, is_foreign
from .uploads import UploadDirectory

_API = "/gradio_api"
_PAGES = re.compile(r"/(|config/?|theme\.css|manifest\.json|robots\.txt|favicon\.ico|(static|assets|svelte)/.*)")
_GET = re.compile(rf"{_API}/(queue/data|upload_progress|heartbeat/\w+|startup-events|theme\.css|info/?)")
_POST = re.compile(rf"{_API}/(queue/join|run/predict|cancel|reset)/?")
_FILE = re.compile(rf"{_API}/file=(.+)", re.DOTALL)
_UPLOAD = re.compile(rf"{_API}/upload/?")

_BODY_BYTES = 1 << 20  # of a request with JSON
_FORM_BYTES = 64 << 10  # of a form beside its file
_UPLOAD_SECONDS = 900.0

# 'unsafe-inline' and 'unsafe-eval': Gradio's page starts with an inline script and compiles its templates.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

# Gradio lets pages of any site read answers if the server's name is not local.
_CROSS_ORIGIN = ("Access-Control-Allow-Origin", "Access-Control-Allow-Credentials")


class Guard:
    """Middleware that lets only what the pages need through to Gradio, and adds headers for the browser.

    Args:
        app: the application.
        uploads: the directory whose files a request may name.
        ours: returns whether a path belongs to a route that is not Gradio's.
        max_upload_bytes: of one upload.
        embed_in: origins whose pages may show these pages in a frame, for example "https://huggingface.co".
    """

    def __init__(
        self,
        app: ASGIApp,
        uploads: UploadDirectory,
        ours: Callable[[str], bool],
        max_upload_bytes: int,
        embed_in: Sequence[str] = (),
    ) -> None:
        self._app, self._uploads, self._ours = app, uploads, ours
        self._max_upload = max_upload_bytes + _FORM_BYTES
        self._headers = {"Content-Security-Policy": " ".join((_POLICY, *embed_in)), **_HEADERS}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":  # a websocket, which nothing here uses
            await send({"type": "websocket.close", "code": 1008})
        elif self._ours(scope["path"]):
            await self._app(scope, receive, self._with_headers(send))
        else:
            await self._gradio(scope, receive, self._with_headers(send))

    async def _gradio(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        read = method in ("GET", "HEAD")
        if read and (_PAGES.fullmatch(path) or _GET.fullmatch(path)):
            await self._app(scope, receive, send)
        elif read and (named := _FILE.fullmatch(path)):
            if self._uploads.contains(named[1]):
                await self._app(scope, receive, send)
            else:
                await _refuse(scope, receive, send, 403, "forbidden", "this file is not for the web app")
        elif method == "POST" and is_foreign(scope):
            await _refuse(scope, receive, send, 403, "forbidden", FOREIGN)
        elif method == "POST" and _POST.fullmatch(path):
            await self._checked(scope, receive, send)
        elif method == "POST" and _UPLOAD.fullmatch(path):
            await self._upload(scope, receive, send)
        else:
            await _refuse(scope, receive, send, 404, "not_found", "there is no such page")

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        length = headers.get("content-length", "")
        # A body in chunks may be longer than the length that is said beside it.
        if not length.isdigit() or "transfer-encoding" in headers:
            await _refuse(scope, receive, send, 411, "length_required", "an upload has to say how long it is")
            return
        size = int(length)
        if size > self._max_upload:
            text = f"the file has more than {self._max_upload - _FORM_BYTES:,} bytes, which is the limit"
            await _refuse(scope, receive, send, 413, "too_large", text)
            return
        try:
            await asyncio.to_thread(self._uploads.reserve, size)
        except BusyError as error:
            await _refuse(scope, receive, send, error.status, error.code, str(error))
            return
        try:
            await self._app(scope, _within(receive, _UPLOAD_SECONDS), send)
        except ClientDisconnect:
            pass  # `UploadDirectory.sweep` deletes what has arrived
        finally:
            self._uploads.release(size)

    async def _checked(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request with JSON on if all files that it names were uploaded."""
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > _BODY_BYTES:
                await _refuse(
                    scope, receive, send, 413, "too_large", f"the request has more than {_BODY_BYTES:,} bytes"
                )
                return
        try:
            content = json.loads(bytes(body)) if body else None
        except (ValueError, RecursionError):
            await _refuse(scope, receive, send, 400, "invalid_request", "the body is not JSON")
            return
        if not all(map(self._allowed, _objects(content))):
            await _refuse(scope, receive, send, 403, "forbidden", "a file was named that was not uploaded")
            return
        await self._app(scope, _replayed(bytes(body), receive), send)

    def _with_headers(self, send: Send) -> Send:
        async def add(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name in _CROSS_ORIGIN:
                    del headers[name]
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
            await send(message)

        return add

    def _allowed(self, entry: dict[str, Any]) -> bool:
        """Return whether an object of a request names no file, or one that was uploaded."""
        return not entry.get("is_stream") and (entry.get("path") is None or self._uploads.contains(entry["path"]))


def _objects(content: Any) -> Iterator[dict[str, Any]]:
    """Yield all objects in a JSON value, however deep."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _within(receive: Receive, seconds: float) -> Receive:
    """Return a `receive` that says after some seconds that the client has gone."""
    end = time.monotonic() + seconds

    async def limited() -> Message:
        try:
            return await asyncio.wait_for(receive(), max(0.0, end - time.monotonic()))
        except asyncio.TimeoutError:
            return {"type": "http.disconnect"}

    return limited


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives a body that was read already."""
    waiting = [body]

    async def replay() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return replay


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, code: str, message: str) -> None:
    await error_answer(status, code, message)(scope, receive, send)
