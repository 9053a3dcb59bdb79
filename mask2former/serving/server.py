"""Run an application with uvicorn, with a stop that finishes what was accepted."""

from __future__ import annotations

from typing import Any

import uvicorn

_MOST_HEADER_BYTES = 32 << 10


def make_server(
    app: Any, *, host: str = "127.0.0.1", port: int = 8000, graceful: float = 30.0, connections: int = 512
) -> uvicorn.Server:
    """Return a server; `run()` serves until SIGINT or SIGTERM, `should_exit = True` stops it from another thread.

    Args:
        app: the application.
        host, port: address; port 0 takes a free one.
        graceful: seconds that accepted requests have to finish after a signal; new connections are refused.
        connections: open ones; more get status 503.
    """
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=connections,
        timeout_graceful_shutdown=max(1, round(graceful)),
        timeout_keep_alive=15,
        h11_max_incomplete_event_size=_MOST_HEADER_BYTES,
        http="h11",
    )
    return uvicorn.Server(config)
