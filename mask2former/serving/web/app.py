"""The application: the HTTP API and Gradio's pages in one process, behind a token and a check of what requests name."""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from fastapi import FastAPI

from ... import zoo
from ...data.shapes.examples import write_examples
from ...model_source import SHAPES_MODEL
from ..app import create_app
from ..engine import Engine
from .access import TokenGate
from .dataset import Dataset
from .examples import example_files
from .guard import Guard
from .result_routes import PREFIX, add_routes
from .site import Site
from .store import ResultStore
from .uploads import UploadDirectory

_SWEEP = 60.0  # seconds
_WAITING = 64  # events of pages that may wait; more are refused
_UPLOAD_ROOM = 4 << 30  # bytes
_SCENES = 3  # example images of the shapes world
_ORIGIN = re.compile(r"https?://(\*\.)?[\w.-]+(:\d+)?", re.ASCII)
_STYLE = Path(__file__).parent / "static" / "app.css"


def create_web_app(
    engine: Engine,
    *,
    token: str | None = None,
    hosts: Sequence[str] | None = None,
    data: str | os.PathLike[str] | None = None,
    embed_in: Sequence[str] = (),
    close_engine: bool = True,
) -> FastAPI:
    """Build the application with pages; arguments are those of `create_app`, and:

    Args:
        engine: runs the requests of pages and API.
        token: pages ask for it once (or take it from the address, `?token=...`) and set a cookie; the API takes it as
            header.
        hosts: values of the header Host that are answered.
        data: dataset to show in a tab of its own, see `Dataset`.
        embed_in: web sites whose pages may show these in a frame, for example "https://huggingface.co".
        close_engine: close the engine when the application shuts down.

    Raises:
        ImportError: Gradio is missing.
        FileNotFoundError, ValueError: the dataset cannot be read; an invalid token or web site; no model of images.
    """
    for site in embed_in:
        if not _ORIGIN.fullmatch(site):
            raise ValueError(f"{site!r} is no web site that can embed the pages; write https://example.com")
    dataset = None if data is None else Dataset(data)
    app = create_app(engine, token=token, hosts=hosts, close_engine=close_engine)
    largest = max(engine.limits.max_bytes, engine.limits.max_video_bytes)
    uploads, store = UploadDirectory(max(_UPLOAD_ROOM, 8 * largest)), ResultStore()
    try:
        examples = _examples(engine, uploads)
        add_routes(app, store)
        api = {route.path for route in app.routes if hasattr(route, "path")}
        app.state.site = Site(engine, uploads, store, examples)
        _add_pages(app, app.state.site, dataset)
    except BaseException:
        uploads.close()
        raise
    _clean_up(app, uploads, store)

    def ours(path: str) -> bool:
        return path in api or path.startswith(PREFIX)

    app.add_middleware(Guard, uploads=uploads, ours=ours, max_upload_bytes=largest, embed_in=embed_in)
    if token is not None:
        # The API checks the token itself, and load balancers ask for the health without one.
        free = api - {"/docs", "/openapi.json"}
        app.add_middleware(TokenGate, token=token, free=lambda path: path in free)
    return app


def _examples(engine: Engine, uploads: UploadDirectory) -> list[Path]:
    """Put the example images into the directory of uploads; return them."""
    here = {model.name for model in engine.models() if model.available}
    with tempfile.TemporaryDirectory() as drawn:
        shapes = write_examples(Path(drawn), _SCENES) if SHAPES_MODEL in here else []
        photos = bool(here - set(zoo.list_bundled()))
        return [uploads.add_example(file) for file in example_files(engine.default, photos, shapes)]


def _add_pages(app: FastAPI, site: Site, dataset: Dataset | None) -> None:
    # Read by Gradio when it is imported and when components are made.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(site.uploads.root)
    import gradio as gr

    from . import pages

    blocks = pages.build(site, dataset)
    blocks.queue(max_size=_WAITING, default_concurrency_limit=8, api_open=False)
    largest = max(site.engine.limits.max_bytes, site.engine.limits.max_video_bytes)
    gr.mount_gradio_app(
        app,
        blocks,
        "/",
        theme=pages.theme(),
        css=_STYLE.read_text(encoding="utf-8"),
        footer_links=[],
        run_history=False,
        max_file_size=largest,
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
    )
    blocks.has_launched = True  # otherwise Gradio's own check of paths is off; `Guard` comes before it


def _clean_up(app: FastAPI, uploads: UploadDirectory, store: ResultStore) -> None:
    """Delete old files and results while the application runs, and all of them at its end."""
    inner = app.router.lifespan_context

    async def sweep() -> None:
        while True:
            await asyncio.sleep(_SWEEP)
            await asyncio.to_thread(store.sweep)
            await asyncio.to_thread(uploads.sweep)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(sweep())
        try:
            async with inner(app):
                yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            store.close()
            uploads.close()

    app.router.lifespan_context = lifespan
