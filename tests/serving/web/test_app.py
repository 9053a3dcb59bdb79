"""The served web app without a browser: what Gradio may be asked, and which files it reads."""

from __future__ import annotations

import inspect
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")
httpx = pytest.importorskip("httpx2")

from ..conftest import make_engine, png, running, wait_for  # noqa: E402
from .conftest import LIMITS  # noqa: E402

SESSION = "abcdefgh"


@pytest.fixture
def client(server: str) -> Iterator[Any]:
    """Return a client of the web app."""
    with httpx.Client(base_url=server, timeout=300, trust_env=False) as client:
        yield client


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """Return an image that nobody uploaded."""
    path = tmp_path / "secret.png"
    path.write_bytes(png())
    return path


def upload(client: Any, content: bytes, name: str = "x.png") -> str:
    """Upload a file as pages do; return its path on the server."""
    answer = client.post("/gradio_api/upload", files={"files": (name, content)})
    assert answer.status_code == 200, answer.text
    return str(answer.json()[0])


def segment_event(client: Any) -> dict[str, Any]:
    """Return the event of the button Segment, of the page's description."""
    config = client.get("/config").json()
    button = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == "segment")
    return next(d for d in config["dependencies"] if [button, "click"] in d["targets"] and d["inputs"])


def file_data(path: str, **other: Any) -> dict[str, Any]:
    """Return a file in the form in which pages name it."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **other}


def join(client: Any, first: Any, **headers: str) -> Any:
    """Ask for the segmentation of a file."""
    body = {
        "data": [first, "stub", "instance", 0.3, ""],
        "fn_index": segment_event(client)["id"],
        "session_hash": SESSION,
    }
    return client.post("/gradio_api/queue/join", json=body, headers=headers)


def outcome(client: Any) -> dict[str, Any]:
    """Return what the event gave."""
    with client.stream("GET", f"/gradio_api/queue/data?session_hash={SESSION}") as lines:
        for line in lines.iter_lines():
            if line.startswith("data:") and (message := json.loads(line[5:]))["msg"] == "process_completed":
                return dict(message)
    raise AssertionError("no outcome")


def test_an_upload_is_segmented(client: Any) -> None:
    assert join(client, file_data(upload(client, png()))).status_code == 200
    message = outcome(client)
    assert message["success"] and "2 objects" in message["output"]["data"][0]


def test_paths_of_the_server_are_refused(client: Any, web_app: Any, secret: Path) -> None:
    root = web_app.state.site.uploads.root
    link = root / "link.png"
    link.symlink_to(secret)
    for path in (
        *(str(secret), "/etc/passwd", str(link), f"{root}/../{secret.name}", "relative.png", str(root), "", "\0"),
        *(f"file://{secret}", "http://127.0.0.1:1/x.png", f"/gradio_api/file={secret}"),
    ):
        answer = join(client, file_data(path))
        assert answer.status_code == 403, path
        assert join(client, {"path": path}).status_code == 403, path  # without Gradio's mark
        assert join(client, [{"deep": [file_data(path)]}]).status_code == 403, path
    assert join(client, file_data(upload(client, png()), is_stream=True)).status_code == 403


def test_without_the_guard_gradio_checks_paths_too(web_app: Any, secret: Path) -> None:
    from gradio import processing_utils
    from gradio.context import LocalContext
    from gradio.exceptions import InvalidPathError

    mounted = next(route.app for route in web_app.routes if route.path == "" and hasattr(route.app, "get_blocks"))
    mark = LocalContext.blocks.set(mounted.get_blocks())
    try:
        with pytest.raises(InvalidPathError):
            processing_utils._check_allowed(str(secret), check_in_upload_folder=True)
    finally:
        LocalContext.blocks.reset(mark)


@pytest.mark.parametrize("prefix", ["/gradio_api/file=", "/file=", "/gradio_api/file/", "/gradio_api/proxy="])
def test_files_of_the_server_are_not_served(client: Any, secret: Path, prefix: str) -> None:
    for path in (secret, "/etc/passwd", "..%2f..%2fetc%2fpasswd", "http://127.0.0.1:1/", Path(__file__)):
        assert client.get(f"{prefix}{path}").status_code in (403, 404)


def test_uploads_are_served(client: Any) -> None:
    answer = client.get(f"/gradio_api/file={upload(client, png())}")
    assert answer.content == png()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/monitoring"),
        ("GET", "/gradio_api/openapi.json"),
        ("GET", "/gradio_api/runs"),
        ("GET", "/gradio_api/dev/reload"),
        ("POST", "/gradio_api/call/segment"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/gradio_api/process_recording"),
        ("POST", "/gradio_api/vibe-edit"),
        ("PUT", "/gradio_api/upload"),
        ("GET", "/results/unknown/view.webp"),
    ],
)
def test_what_pages_do_not_need_is_closed(client: Any, method: str, path: str) -> None:
    answer = client.request(method, path)
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "not_found"


def test_other_web_sites_cannot_send(client: Any) -> None:
    path = upload(client, png())
    assert join(client, file_data(path), Origin="http://evil.example").status_code == 403
    assert join(client, file_data(path), Origin="null").status_code == 403
    assert join(client, file_data(path), **{"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 400
    assert join(client, file_data(path), Origin=str(client.base_url).rstrip("/")).status_code == 200
    outcome(client)


def test_other_web_sites_cannot_use_the_api(client: Any) -> None:
    origin = {"Origin": "http://evil.example"}
    assert client.post("/v1/segment", content=png(), headers=origin).status_code == 403
    # Browsers ask before they send this header, so that who sends it may.
    assert client.post("/v1/segment", content=png(), headers={**origin, "Authorization": "x"}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "http://localhost:1"])
def test_other_web_sites_cannot_read(origin: str) -> None:
    from mask2former.serving.web.app import create_web_app

    with (
        make_engine() as engine,
        running(create_web_app(engine, close_engine=False)) as address,  # any name of the server is answered
        httpx.Client(base_url=address, timeout=300, trust_env=False) as client,
    ):
        for host in ("192.0.2.1", "127.0.0.1"):
            answer = client.get("/config", headers={"Origin": origin, "Host": host})
            assert answer.status_code == 200
            assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_pages_in_frames_of_other_sites() -> None:
    from mask2former.serving.web.app import create_web_app

    with make_engine() as engine:
        app = create_web_app(engine, embed_in=["https://a.example", "https://*.b.example:8"], close_engine=False)
        with running(app) as address, httpx.Client(base_url=address, timeout=300, trust_env=False) as client:
            policy = client.get("/").headers["content-security-policy"]
        assert policy.endswith("frame-ancestors 'self' https://a.example https://*.b.example:8")
        for wrong in (
            "a.example",
            "*",
            "https://a.example; script-src *",
            "https://a.example *",
            "https://a.example/x",
        ):
            with pytest.raises(ValueError, match="no web site"):
                create_web_app(engine, embed_in=[wrong])


def test_the_health_needs_no_thread(web_app: Any) -> None:
    """Threads may all be busy with drawing; a container whose health check waits for them would be stopped."""
    routes = {route.path: route.endpoint for route in web_app.routes if hasattr(route, "endpoint")}
    assert inspect.iscoroutinefunction(routes["/healthz"]) and inspect.iscoroutinefunction(routes["/metrics"])


def test_limits(client: Any, web_app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    large = max(LIMITS.max_bytes, LIMITS.max_video_bytes) + 100_000
    assert client.post("/gradio_api/upload", files={"files": ("x.png", b"0" * large)}).status_code == 413
    assert client.post("/gradio_api/upload", content=iter([b"0"])).status_code == 411
    assert client.post("/gradio_api/queue/join", content=b"[" * 2_000_000).status_code == 413
    assert client.post("/gradio_api/queue/join", content=b"[" * 500_000).status_code == 400
    for name in ("max_bytes", "max_files"):
        with monkeypatch.context() as patch:
            patch.setattr(web_app.state.site.uploads, name, 1)
            answer = client.post("/gradio_api/upload", files={"files": ("x.png", png())})
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, "busy"), name
    upload(client, png())  # what was refused took no room


def test_an_upload_is_not_longer_than_it_says(client: Any, web_app: Any) -> None:
    """A body in chunks counts, whatever length is said beside it."""
    root = web_app.state.site.uploads.root
    head = b'--X\r\nContent-Disposition: form-data; name="files"; filename="chunks.bin"\r\n\r\n'
    lines = (
        b"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=X\r\n"
        b"Content-Length: 10\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (head, b"0" * 5000, b"\r\n--X--\r\n"))
        + b"0\r\n\r\n"
    )
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=300) as connection:
        connection.sendall(lines)
        assert b" 411 " in connection.recv(1000)
    assert not list(root.rglob("chunks.bin"))


def test_uploads_that_arrive_at_once_share_the_room(client: Any, web_app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    uploads, size = web_app.state.site.uploads, 1_000_000
    monkeypatch.setattr(uploads, "max_bytes", 10 * size)  # a quarter of which may arrive at once
    lines = (
        b"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=X\r\n"
        b"Content-Length: %d\r\n\r\n"
        b'--X\r\nContent-Disposition: form-data; name="files"; filename="x.bin"\r\n\r\n'
    ) % size
    with ExitStack() as stack:
        connections = []
        for count in (1, 2, 2):
            address = (client.base_url.host, client.base_url.port)
            connections.append(stack.enter_context(socket.create_connection(address, timeout=300)))
            connections[-1].sendall(lines)
            wait_for(lambda count=count: uploads._arriving == count * size)
        assert b" 429 " in connections[-1].recv(1000)
    wait_for(lambda: uploads._arriving == 0)  # the clients have gone
    upload(client, png())


def test_pages_ask_no_other_server(client: Any) -> None:
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "googleapis" not in answer.text + client.get("/theme.css").text
    assert client.get("/config").json()["analytics_enabled"] is False


def test_the_api_is_beside_the_pages(client: Any) -> None:
    assert client.post("/v1/segment", content=png()).json()["model"] == "stub"
    assert client.get("/healthz").status_code == 200
    assert "/v1/segment" in client.get("/openapi.json").json()["paths"]
    assert "Mask2Former" in client.get("/docs").text


def test_a_result_is_served_as_files(client: Any, web_app: Any) -> None:
    site = web_app.state.site
    entry = site.segment(upload(client, png(), 'wild "na\u00efve" <name>.png'), "stub", "instance", 0.3)
    start = f"/results/{entry.key}/"
    assert client.get(start + "view.webp").headers["content-type"] == "image/webp"
    answer = client.get(start + "coco.json")
    assert len(answer.json()["annotations"]) == 2 and answer.headers["content-disposition"].startswith("attachment; ")
    for name in ("labels.tif", "overlay.mp4", "secret", "..%2f..%2fetc"):
        assert client.get(start + name).status_code == 404


def test_temporary_files_are_removed() -> None:
    from mask2former.serving.web.app import create_web_app

    with make_engine() as engine:
        app = create_web_app(engine, close_engine=False)
        root = app.state.site.uploads.root
        with running(app) as address, httpx.Client(base_url=address, timeout=300, trust_env=False) as client:
            old, new = Path(upload(client, png())), Path(upload(client, png(seed=1)))
            assert old.is_relative_to(root) and old.is_file()
            part, other = root / "tmp1", root / "tmp2"  # uploads that are not complete
            for file in (part, other):
                file.touch()
            os.utime(part, (time.time() - 600,) * 2)
            result = app.state.site.uploads.new_directory() / "overlay.mp4"  # of a result that someone looks at
            result.touch()
            for file in (old, result):
                os.utime(file, (1, 1))
            app.state.site.uploads.sweep()
            assert new.is_file() and result.is_file() and other.is_file() and not old.exists() and not part.exists()
        assert not root.exists()


def test_the_token_covers_everything() -> None:
    from mask2former.serving.web.app import create_web_app

    with (
        make_engine() as engine,
        running(create_web_app(engine, token="letter", close_engine=False)) as address,
        httpx.Client(base_url=address, timeout=300, trust_env=False) as client,
    ):
        for path in (
            *("/", "/config", "/docs", "/openapi.json", "/theme.css", "/gradio_api/queue/data?session_hash=x"),
            *("/v1/models", "/metrics", "/results/x/y", "/static/img/logo.svg", "/gradio_api/startup-events"),
        ):
            assert client.get(path).status_code == 401, path
            assert client.get(f"{path}{'&' if '?' in path else '?'}token=wrong").status_code == 401, path
        for path in ("/gradio_api/upload", "/gradio_api/queue/join", "/v1/segment", "/gradio_api/run/predict"):
            assert client.post(path, content=b"").status_code == 401, path
        assert client.get("/healthz").status_code == 200
        bearer = {"Authorization": "Bearer letter"}
        assert client.get("/v1/models", headers=bearer).status_code == 200
        assert client.get("/config", headers=bearer).status_code == 200
        assert client.get("/v1/models?token=letter").status_code == 401  # the API takes the header only
        welcome = client.get("/?token=letter&x=1")
        assert (welcome.status_code, welcome.headers["location"]) == (303, "./?x=1")
        assert "httponly" in welcome.headers["set-cookie"].lower() and "letter" not in welcome.headers["set-cookie"]
        assert client.get("/").status_code == 200 and client.get("/config").status_code == 200  # with the cookie
        assert client.get("/v1/models").status_code == 401  # cookies are for pages
