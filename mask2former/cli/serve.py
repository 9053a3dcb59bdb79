"""`mask2former serve`: a web app and an HTTP API on this machine."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from socket import AF_INET, AF_INET6, create_server
from socket import socket as Socket
from typing import TYPE_CHECKING, Any

from ..serving.engine import Batching, Engine, Limits, ModelSource
from .parser import length, positive, refuse_given

if TYPE_CHECKING:
    from fastapi import FastAPI

HELP = "open a web app, and an HTTP API, for images and videos"
DESCRIPTION = """Open a web app in which people segment images and videos, and an HTTP API for programs, in one process.

It listens on this machine only, unless --host says otherwise. Models of the zoo are offered if their weights are here;
the included one always is.

examples:
  mask2former serve                                          http://127.0.0.1:7860
  mask2former serve --model output/cells --model nuclei      your model, and the included one
  mask2former serve --data datasets/cells                    with a tab that shows training data
  mask2former serve --host 0.0.0.0 --token "$TOKEN"          for others in the network
  mask2former serve --api-only --port 8000                   without pages
"""
_LOCAL = ("127.0.0.1", "localhost", "::1")
_MISSING = 'the web app and the HTTP API need more packages: pip install "mask2former[serve]"'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    model = parser.add_argument_group("models")
    model.add_argument(
        "--model",
        action="append",
        metavar="NAME",
        help="model of the zoo, or a training output directory; can be repeated (default: all of the zoo)",
    )
    model.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    model.add_argument("--loaded", type=positive, default=2, metavar="N", help="models in memory at once (default: 2)")
    server = parser.add_argument_group("server")
    server.add_argument("--host", default=_LOCAL[0], help=f"address to listen on (default: {_LOCAL[0]})")
    server.add_argument("--port", type=_port, default=7860, help="0: a free one (default: 7860)")
    server.add_argument("--token", metavar="TEXT", help="ask for this text (default: MASK2FORMER_TOKEN, else nothing)")
    server.add_argument(
        "--allow-host",
        action="append",
        metavar="NAME",
        help="name of this server in addresses; others are refused; can be repeated (default: with a local --host none "
        "but the local names, else any)",
    )
    server.add_argument(
        "--embed-in",
        action="append",
        metavar="URL",
        help="web site whose pages may show these in a frame, such as https://huggingface.co; can be repeated",
    )
    server.add_argument("--api-only", action="store_true", help="the HTTP API without pages")
    server.add_argument("--data", metavar="PATH", help="dataset, as of `mask2former check`, to show in a tab")
    limits = parser.add_argument_group("limits")
    normal, usual = Limits(), Batching()
    for name, kind, metavar, text, default in (
        ("max-mb", length, "N", "size of an image file, in MiB", normal.max_bytes >> 20),
        ("max-megapixels", length, "N", "pixels of an image, in millions", normal.max_pixels // 10**6),
        ("max-video-mb", length, "N", "size of a video file, in MiB", normal.max_video_bytes >> 20),
        ("max-video-seconds", length, "S", "length of a video", normal.max_video_seconds),
        ("max-waiting", positive, "N", "images that may wait; more are refused", usual.max_waiting),
        ("max-videos", positive, "N", "videos that may wait; more are refused", usual.max_jobs),
        ("timeout", length, "S", "seconds that an image may take, with its time in the queue", usual.timeout),
        ("video-timeout", length, "S", "the same of a video", usual.job_timeout),
    ):
        limits.add_argument(
            f"--{name}", type=kind, default=default, metavar=metavar, help=f"{text} (default: {default:g})"
        )


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM; return 0.

    Raises:
        ImportError: packages are missing; the message has the command that installs them.
        FileNotFoundError, ValueError: no such model, dataset or device; an argument out of range; an address in use.
    """
    if args.api_only:
        refuse_given(args, ("data", "embed_in"), "with --api-only, which has no pages")
    if args.token == "":  # of a shell variable that is not set: a server for everybody is not what was meant
        raise ValueError("--token is empty; give a text, or leave the option out for a server without a token")
    args.token = args.token or os.environ.get("MASK2FORMER_TOKEN") or None
    make_server = _packages()
    with listen(args.host, args.port) as socket, open_engine(args) as engine:
        server = make_server(build_app(args, engine), host=args.host, port=args.port)
        shown = f"[{args.host}]" if ":" in args.host else args.host
        kind = "HTTP API" if args.api_only else "web app and HTTP API"
        print(f"{kind}: http://{shown}:{socket.getsockname()[1]}  (Ctrl-C stops it)", flush=True)
        if args.host not in _LOCAL and args.token is None:
            print("note: everybody who can reach this machine can use it; --token asks for one", flush=True)
        server.run(sockets=[socket])
    return 0


def listen(host: str, port: int) -> Socket:
    """Return a socket that listens; port 0 takes a free one.

    Raises:
        ValueError: the address is in use, or not of this machine.
    """
    try:
        return create_server((host, port), family=AF_INET6 if ":" in host else AF_INET, backlog=2048)
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"cannot listen on {host}, port {port}: {reason}; choose another --port or --host") from None


def open_engine(args: argparse.Namespace) -> Engine:
    """Start an engine with the models and limits of the arguments.

    Raises:
        FileNotFoundError, ValueError: no such model or device.
    """
    models = None
    if args.model:
        models = {_name(text): _source(text) for text in args.model}
        if len(models) < len(args.model):
            raise ValueError("two models have the same name; rename one of the directories")
    limits = {
        "max_bytes": int(args.max_mb * (1 << 20)),
        "max_pixels": int(args.max_megapixels * 10**6),
        "max_video_bytes": int(args.max_video_mb * (1 << 20)),
        "max_video_seconds": args.max_video_seconds,
    }
    batching = Batching(
        max_waiting=args.max_waiting, max_jobs=args.max_videos, timeout=args.timeout, job_timeout=args.video_timeout
    )
    return Engine(models, limits=Limits(**limits), batching=batching, device=args.device, max_loaded=args.loaded)


def build_app(args: argparse.Namespace, engine: Engine) -> FastAPI:
    """Return the application for an engine.

    Raises:
        ImportError, FileNotFoundError, ValueError: as `run`.
    """
    hosts = None
    if args.allow_host or args.host in _LOCAL:
        hosts = [*(args.allow_host or ()), *_LOCAL[:2], f"[{_LOCAL[2]}]"]  # local names are no other site's
    if args.api_only:
        from ..serving.app import create_app

        return create_app(engine, token=args.token, hosts=hosts)
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise ImportError(_MISSING) from None
    from ..serving.web.app import create_web_app

    return create_web_app(engine, token=args.token, hosts=hosts, data=args.data, embed_in=args.embed_in or ())


def _packages() -> Any:
    """Return `make_server`, if the packages of the HTTP API are installed."""
    try:
        import fastapi  # noqa: F401
        import python_multipart  # noqa: F401

        from ..serving.server import make_server
    except ImportError:
        raise ImportError(_MISSING) from None
    return make_server


def _name(text: str) -> str:
    return Path(text).resolve().name if _is_directory(text) else text


def _source(text: str) -> ModelSource:
    return ModelSource.directory(text) if _is_directory(text) else ModelSource.named(text)


def _is_directory(text: str) -> bool:
    return Path(text).is_dir()


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value < 1 << 16:
        raise argparse.ArgumentTypeError(f"must lie between 0 and 65535, not {text}")
    return value
