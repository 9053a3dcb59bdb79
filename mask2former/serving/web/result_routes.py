"""The addresses of results: `results/KEY/NAME`, for the images of pages and for downloads."""

from __future__ import annotations

from urllib.parse import quote

from fastapi import FastAPI
from fastapi.responses import FileResponse, Response

from ..answers import error_answer
from .store import VIEWS, Download, Entry, ResultStore

PREFIX = "/results/"


def address(entry: Entry, name: str) -> str:
    """Return the address of a file of a result, relative to the page."""
    return f"{PREFIX[1:]}{entry.key}/{name}"


def add_routes(app: FastAPI, store: ResultStore) -> None:
    """Add the routes to an application."""

    @app.get(PREFIX + "{key}/{name}", include_in_schema=False)
    def file(key: str, name: str) -> Response:
        entry = store.get(key)
        downloads = {} if entry is None else entry.downloads()
        known = name in downloads or (name in VIEWS and entry is not None and entry.result is not None)
        if entry is None or not known:
            message = "this result is no longer on the server; segment the image again"
            return error_answer(404, "not_found", message)
        headers = {"Cache-Control": "private, max-age=1800"}
        download = downloads.get(name)
        if download is None:
            return Response(entry.file(name), media_type="image/webp", headers=headers)
        headers["Content-Disposition"] = _disposition(entry, download)
        if entry.directory is not None:
            return FileResponse(entry.directory / name, media_type=download.media_type, headers=headers)
        return Response(entry.file(name), media_type=download.media_type, headers=headers)


def _disposition(entry: Entry, download: Download) -> str:
    # Pages play the video at its address too; links with `download` save it under this name in any case.
    kind = "inline" if download.media_type.startswith("video/") else "attachment"
    return f"{kind}; filename*=utf-8''{quote(entry.stem + download.suffix)}"
