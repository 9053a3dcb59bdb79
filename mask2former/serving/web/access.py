"""The token of a web app: programs send it as header, people once in a form or link, and then have a cookie."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
from collections.abc import Callable
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, QueryParams
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ..answers import error_answer
from ..errors import UnauthorizedError

_DELAY = 0.5  # seconds before a wrong token is refused
_FORM_BYTES = 4096
_LOGIN = "/login"
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Mask2Former</title><style>
body{{font:16px/1.5 system-ui,sans-serif;display:grid;place-items:center;min-height:90vh;margin:0;background:#f4f6f8;
color:#1c2430}}
form{{background:#fff;border:1px solid #dfe3e8;border-radius:12px;padding:2rem;width:min(20rem,80vw)}}
h1{{font-size:1.3rem;margin:0 0 .5rem}}label{{display:block;margin:1rem 0 .3rem}}
input,button{{font:inherit;box-sizing:border-box;width:100%;padding:.6rem;border-radius:8px;border:1px solid #b8c0cc}}
button{{margin-top:1rem;background:#0f766e;color:#fff;border:0;cursor:pointer}}p{{margin:0}}.wrong{{color:#b42318}}
@media(prefers-color-scheme:dark){{body{{background:#14181f;color:#dfe3e8}}form{{background:#1d232d;border-color:#39414d}}
input{{background:#14181f;color:inherit}}.wrong{{color:#ff9d94}}}}
</style><form method="post" action="{action}"><h1>Mask2Former</h1><p class="{style}" role="status">{text}</p>
<label for="token">Token</label><input id="token" name="token" type="password" autocomplete="current-password" required
autofocus><button>Open</button></form></html>"""


class TokenGate:
    """Middleware that asks for a token, except on paths that check it themselves.

    Args:
        app: the application.
        token: the token.
        free: returns whether a path needs none, or has a check of its own.
    """

    def __init__(self, app: ASGIApp, token: str, free: Callable[[str], bool]) -> None:
        self._app, self._token, self._free = app, token, free
        self._secret = secrets.token_urlsafe(32)  # value of the cookie: worthless after a restart
        # Browsers send cookies to all ports of a host; each server has a name of its own.
        self._cookie = f"mask2former_{hashlib.sha256(self._secret.encode()).hexdigest()[:8]}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (scope["type"] == "http" and self._free(scope["path"])):
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            if self._has_cookie(scope):
                await self._app(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008})
        else:
            response = await self._answer(Request(scope, receive))
            await (self._app if response is None else response)(scope, receive, send)

    async def _answer(self, request: Request) -> Response | None:
        """Return the answer to a request that may not pass, None for others."""
        if request.method == "POST" and request.url.path == _LOGIN:
            return await self._login(request)
        given = request.query_params.get("token")
        if request.method == "GET" and given is not None:
            if self._right(given):
                return self._welcome(request, _without_token(request))
            await asyncio.sleep(_DELAY)
        kind, _, bearer = request.headers.get("authorization", "").partition(" ")
        if self._has_cookie(request.scope) or (kind.lower() == "bearer" and self._right(bearer.strip())):
            return None
        if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
            return self._page("This token is wrong." if given is not None else "")
        message = "send the header 'Authorization: Bearer <token>', or open the page in a browser"
        return error_answer(401, UnauthorizedError.code, message, {"WWW-Authenticate": "Bearer"})

    async def _login(self, request: Request) -> Response:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > _FORM_BYTES:
                return self._page("This token is wrong.")
        fields = dict(parse_qsl(body.decode("utf-8", "replace")))
        if self._right(fields.get("token", "")):
            return self._welcome(request, "./")
        await asyncio.sleep(_DELAY)
        return self._page("This token is wrong.")

    def _page(self, wrong: str) -> HTMLResponse:
        text = wrong or "Whoever started this server has the token."
        page = _PAGE.format(action=_LOGIN[1:], style="wrong" if wrong else "", text=text)
        return HTMLResponse(page, 401, {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"})

    def _welcome(self, request: Request, target: str) -> RedirectResponse:
        response = RedirectResponse(target, 303, {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"})
        secure = request.url.scheme == "https"
        response.set_cookie(self._cookie, self._secret, httponly=True, samesite="lax", path="/", secure=secure)
        return response

    def _right(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())

    def _has_cookie(self, scope: Scope) -> bool:
        header = Headers(scope=scope).get("cookie", "")
        pairs = (part.strip().partition("=") for part in header.split(";"))
        return any(
            name == self._cookie and hmac.compare_digest(value.encode(), self._secret.encode())
            for name, _, value in pairs
        )


def _without_token(request: Request) -> str:
    """Return the address of a request without its token, relative, so that it does not stay in the history."""
    rest = [(key, value) for key, value in QueryParams(request.url.query).multi_items() if key != "token"]
    last = request.url.path.rpartition("/")[2]
    return f"./{last}" + (f"?{urlencode(rest)}" if rest else "")
