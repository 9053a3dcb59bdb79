"""Whether a browser sends a request from a page of another site."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

FOREIGN = "the request comes from another web site"


def is_foreign(scope: Scope) -> bool:
    """Return whether a browser sends this from a page of another origin."""
    headers = Headers(scope=scope)
    origin = headers.get("origin")
    if origin is None:
        return headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
    # A proxy may change Host; a page of another site cannot set the second header.
    return urlsplit(origin).netloc not in (headers.get("host"), headers.get("x-forwarded-host"))
