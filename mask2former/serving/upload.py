"""The body of a request: an image as it is, or a form with an image and options. It stays in bounded memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress

from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive, Scope

from .errors import InvalidOptionError, ServingError, TooLargeError, UnreadableImageError, UnsupportedTypeError

FIELD = "image"  # of the form, for the file
BODY_READ = "mask2former.body_read"  # in the scope of a request whose body was read to its end

# Of a body that is a file, besides image/*; the last one is what curl says of --data-binary by itself.
_RAW = ("", "application/octet-stream", "application/x-www-form-urlencoded")
_FORM_BYTES = 64 << 10  # that a form may have beside its file
_MOST_FIELDS = 16

Arrived = Callable[[int], None]


class DisconnectedError(ServingError):
    """The client has gone; nobody reads the answer."""

    status, code = 499, "disconnected"


async def read_upload(request: Request, max_bytes: int, arrived: Arrived) -> tuple[bytes, dict[str, str]]:
    """Return the bytes of the image and the options of a form, {} without one.

    A body that is longer than allowed is refused by its Content-Length, or else where it becomes too long.

    Args:
        request: the request.
        max_bytes: of the image.
        arrived: called with the number of bytes of each part of the body; what it raises ends the reading.

    Raises:
        TooLargeError: more bytes than `max_bytes`, or too many for the options.
        UnsupportedTypeError: a type of content that is neither an image nor multipart/form-data.
        UnreadableImageError: the form is damaged or has no file `image`.
        InvalidOptionError: an option was given twice.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    form = kind == "multipart/form-data"
    if not form and kind not in _RAW and not kind.startswith("image/"):
        raise UnsupportedTypeError(f"send multipart/form-data or an image, not {kind[:60]!r}")
    most = max_bytes + (_FORM_BYTES if form else 0)
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > most:
        raise _too_long(max_bytes)
    try:
        if form:
            return await _read_form(request, most, max_bytes, arrived)
        parts = [part async for part in _bounded(request, most, max_bytes, arrived)]
    except ClientDisconnect:
        raise DisconnectedError("the client has gone") from None
    return b"".join(parts), {}


async def _bounded(request: Request, most: int, max_bytes: int, arrived: Arrived) -> AsyncGenerator[bytes, None]:
    total = 0
    async for part in request.stream():
        total += len(part)
        if total > most:
            raise _too_long(max_bytes)
        arrived(len(part))
        yield part


class _InMemory(MultiPartParser):
    """Starlette's parser, which would write files of more than 1 MB to the disk; ours are bounded already."""

    spool_max_size = 1 << 62


async def _read_form(request: Request, most: int, max_bytes: int, arrived: Arrived) -> tuple[bytes, dict[str, str]]:
    parser = _InMemory(
        request.headers,
        _bounded(request, most, max_bytes, arrived),
        max_files=1,
        max_fields=_MOST_FIELDS,
        max_part_size=_FORM_BYTES,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise UnreadableImageError(f"the form cannot be read: {error.message[:200]}") from None
    except (ServingError, ClientDisconnect):
        raise
    except (LookupError, ValueError):
        raise UnreadableImageError("the form cannot be read: it is damaged") from None
    image: bytes | None = None
    options: dict[str, str] = {}
    try:
        for name, value in form.multi_items():
            if isinstance(value, str):
                if name in options:
                    raise InvalidOptionError(f"the option {name[:40]!r} is given twice")
                options[name] = value
            elif name == FIELD:
                image = await value.read()
            else:
                raise UnreadableImageError(f"the file must be the field {FIELD!r} of the form, not {name[:40]!r}")
    finally:
        await form.close()
    if image is None:
        raise UnreadableImageError(f"the form has no file {FIELD!r}, or is truncated")
    return image, options


def noting_the_end(scope: Scope, receive: Receive) -> Receive:
    """Return a `receive` that sets `BODY_READ`; after the end of a body it would wait until the client leaves."""

    async def noting() -> Message:
        message = await receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            scope[BODY_READ] = True
        return message

    return noting


async def drain(request: Request, most: int, seconds: float = 5.0) -> None:
    """Read and forget the rest of a body that is refused: many clients send all of it before they read an answer.

    Args:
        request: the request.
        most: bytes after which the client has to live with a closed connection.
        seconds: the same for time.
    """
    if request.scope.get(BODY_READ) or "expect" in request.headers:  # which says that the client waits for an answer
        return

    async def read() -> None:
        total = 0
        while total <= most and not request.scope.get(BODY_READ):
            total += len((await request.receive()).get("body", b""))

    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(read(), seconds)


def _too_long(max_bytes: int) -> TooLargeError:
    return TooLargeError(f"the image has more than {max_bytes:,} bytes, which is the limit")
