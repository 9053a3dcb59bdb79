from __future__ import annotations

import argparse
import builtins
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mask2former.cli import main, serve
from mask2former.cli.parser import CommandParser

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("python_multipart")

from fastapi.testclient import TestClient


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of the command."""
    parser = CommandParser("mask2former serve")
    serve.add_arguments(parser)
    return parser.parse_args(list(arguments))


def paths(app: Any) -> set[str]:
    return {getattr(route, "path", "") for route in app.routes}


def test_models_and_limits(tmp_path: Path) -> None:
    args = parse(["--model", "nuclei", "--model", "coco-panoptic-r50", "--device", "cpu", "--max-mb", "0.5"])
    with serve.open_engine(args) as engine:
        assert [model.name for model in engine.models()] == ["nuclei", "coco-panoptic-r50"]
        assert engine.limits.max_bytes == 1 << 19 and engine.limits.max_video_seconds == 60
        app = serve.build_app(parse(["--api-only"]), engine)
        assert "/v1/segment" in paths(app) and not any("results" in path for path in paths(app))


def test_pages_are_beside_the_api() -> None:
    pytest.importorskip("gradio")
    args = parse(["--model", "nuclei", "--device", "cpu"])
    with serve.open_engine(args) as engine:
        app = serve.build_app(args, engine)
        assert {"/v1/segment", "/results/{key}/{name}"} <= paths(app)
        app.state.site.uploads.close()


@pytest.mark.parametrize(
    ("arguments", "answered", "refused"),
    [
        ([], ["127.0.0.1:7860", "localhost", "[::1]:7860"], ["evil.example"]),
        (["--host", "::1"], ["[::1]:7860", "localhost:7860"], ["evil.example", "[::2]"]),
        (["--host", "0.0.0.0"], ["127.0.0.1:7860", "anything.example"], []),
        # As a health check inside a container asks.
        (["--host", "0.0.0.0", "--allow-host", "me.example"], ["127.0.0.1:8000", "me.example"], ["evil.example"]),
        (["--allow-host", "me.example"], ["127.0.0.1", "me.example"], ["evil.example"]),
    ],
)
def test_names_of_the_server(arguments: list[str], answered: list[str], refused: list[str]) -> None:
    args = parse(["--model", "nuclei", "--device", "cpu", "--api-only", *arguments])
    with serve.open_engine(args) as engine:
        client = TestClient(serve.build_app(args, engine))
        for hosts, status in ((answered, 200), (refused, 400)):
            for host in hosts:
                assert client.get("/healthz", headers={"Host": host}).status_code == status, host


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_the_command_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    command = [sys.executable, "-m", "mask2former", "serve", "--model", "nuclei", "--device", "cpu", "--port", "0"]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            address = re.search(r"http://127\.0\.0\.1:[0-9]+", process.stdout.readline())
            assert address is not None
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(address[0], timeout=300) as page:
                assert b"Mask2Former" in page.read()
            assert list(tmp_path.glob("mask2former_web_*"))
            process.send_signal(signal.SIGTERM)
            process.wait(300)
        finally:
            process.kill()
    assert process.returncode in (0, -signal.SIGTERM) and not list(tmp_path.glob("mask2former_web_*"))


def test_an_address_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    with serve.listen("127.0.0.1", 0) as taken:
        assert main(["serve", "--api-only", "--port", str(taken.getsockname()[1])]) == 2
    assert "choose another --port" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["gradio", "fastapi"])
def test_missing_packages_are_named(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = builtins.__import__

    def refuse(name: str, *arguments: Any, **options: Any) -> Any:
        if name == missing:
            raise ImportError(name)
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert main(["serve", "--model", "nuclei", "--device", "cpu", "--port", "0"]) == 2
    assert 'pip install "mask2former[serve]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "coco-panoptic-r5"], "coco-panoptic-r50"),
        (["--api-only", "--data", "x"], "--data has no effect"),
        (["--model", "nuclei", "--data", "no-such-directory"], "no-such-directory does not exist"),
        (["--model", "nuclei", "--token", " "], "the token must be"),
        (["--model", "nuclei", "--token", ""], "--token is empty"),
        (["--model", "nuclei", "--embed-in", "https://x.example; script-src *"], "is no web site"),
        (["--api-only", "--embed-in", "https://x.example"], "--embed-in has no effect"),
        (["--port", "70000"], "between 0 and 65535"),
        (["--max-mb", "0"], "more than 0"),
    ],
)
def test_errors_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gradio")
    assert main(["serve", "--device", "cpu", "--port", "0", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ")
