from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

httpx = pytest.importorskip("httpx2")
pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")
pytest.importorskip("python_multipart")

from mask2former.serving.app import create_app  # noqa: E402
from mask2former.serving.engine import Engine, Limits  # noqa: E402

from .conftest import HeldModel, make_engine, png, running, wait_for  # noqa: E402
from .test_limits import png_of_size, tiff  # noqa: E402

LIMITS = Limits(max_bytes=300_000, max_pixels=10_000, max_side=500)
ROOT = Path(__file__).parents[2]


@pytest.fixture
def engine(held: HeldModel) -> Iterator[Engine]:
    """Return an engine with room for three images."""
    with make_engine(held, LIMITS, max_waiting=3, timeout=60.0) as engine:
        yield engine


@pytest.fixture
def client(engine: Engine) -> Iterator[Any]:
    """Return a client of a running server."""
    with running(create_app(engine)) as address, httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
        yield client


def error_of(answer: Any) -> tuple[int, str]:
    """Return status and code of an error, whose form is checked."""
    content = answer.json()
    assert set(content) == {"error"} and set(content["error"]) == {"code", "message"}
    assert content["error"]["message"]
    return answer.status_code, content["error"]["code"]


# ------------------------------------------------------------------ other sites
@pytest.mark.parametrize("headers", [{"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}])
def test_pages_of_other_sites_may_not_segment(client: Any, headers: dict[str, str]) -> None:
    image = png(4, 4)
    assert error_of(client.post("/v1/segment", content=image, headers=headers)) == (403, "forbidden")
    for own in ({}, {"Origin": str(client.base_url).rstrip("/")}, {**headers, "Authorization": "Bearer any"}):
        assert client.post("/v1/segment", content=image, headers=own).status_code == 200


# ------------------------------------------------------------------ results
def test_json_with_run_lengths(client: Any) -> None:
    answer = client.post("/v1/segment?task=instance", content=png(), headers={"Content-Type": "image/png"})
    assert answer.status_code == 200, answer.text
    content = answer.json()
    assert {key: content[key] for key in ("model", "task", "width", "height")} == {
        "model": "stub",
        "task": "instance",
        "width": 8,
        "height": 6,
    }
    first = content["objects"][0]
    assert (first["id"], first["class"], first["score"], first["area"]) == (1, "a", 0.9, 24)
    assert first["bbox"] == [0, 0, 4, 6]
    assert coco_mask.decode(first["segmentation"]).sum() == 24


def test_polygons_from_a_form(client: Any) -> None:
    answer = client.post(
        "/v1/segment?segmentation=rle",
        files={"image": ("x.png", png())},
        data={"segmentation": "polygons", "task": "instance"},
    )
    assert answer.json()["objects"][0]["segmentation"] == [[4, 0, 4, 6, 0, 6, 0, 0]]


@pytest.mark.parametrize(("task", "values"), [("panoptic", [0, 7]), ("instance", [0, 1, 2]), ("semantic", [1, 2])])
def test_label_maps(client: Any, task: str, values: list[int]) -> None:
    answer = client.post(f"/v1/segment?format=png&task={task}", content=png())
    assert answer.headers["content-type"] == "image/png"
    label_map = np.array(Image.open(io.BytesIO(answer.content)))
    assert label_map.shape == (6, 8) and label_map.dtype == np.uint16
    assert set(values) <= set(np.unique(label_map).tolist())


def test_semantic_classes_have_no_score(client: Any) -> None:
    objects = client.post("/v1/segment?task=semantic", content=png()).json()["objects"]
    assert [each["class"] for each in objects] == ["a", "b"] or [each["class"] for each in objects] == ["b", "a"]
    assert all(each["score"] is None for each in objects)


def test_the_threshold_is_used(client: Any) -> None:
    counts = [
        len(client.post(f"/v1/segment?task=instance&score_threshold={score}", content=png()).json()["objects"])
        for score in (0.3, 0.5, 1)
    ]
    assert counts == [2, 1, 0]


def test_the_server_gives_the_results_of_the_engine(client: Any, engine: Engine) -> None:
    records = engine.segment(png(9, 9)).to_coco()
    objects = client.post("/v1/segment", content=png(9, 9)).json()["objects"]
    assert [each["segmentation"] for each in objects] == [each["segmentation"] for each in records]


# ------------------------------------------------------------------ errors
def test_models_health_and_unknown_paths(client: Any) -> None:
    models = client.get("/v1/models").json()
    assert models["default"] == "stub"
    assert [(row["name"], row["available"], row["reason"]) for row in models["models"]] == [
        ("stub", True, ""),
        ("absent", False, "its weights are on the moon"),
    ]
    assert client.get("/healthz").json() == {"status": "ok", "waiting": 0}
    assert error_of(client.get("/../../etc/passwd")) == (404, "not_found")
    assert error_of(client.get("/v1/segment")) == (405, "method_not_allowed")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("model=nobody", (404, "unknown_model")),
        ("model=../../etc", (404, "unknown_model")),
        ("model=absent", (503, "model_unavailable")),
        ("task=video", (422, "invalid_option")),
        ("task=everything", (422, "invalid_option")),
        ("score_threshold=2", (422, "invalid_option")),
        ("score_threshold=nan", (422, "invalid_option")),
        ("tile=10", (422, "invalid_option")),
        ("tile=-5", (422, "invalid_option")),
        ("format=exe", (422, "invalid_option")),
        ("segmentation=dots", (422, "invalid_option")),
        ("threshold=0.5", (422, "invalid_option")),
    ],
)
def test_options_out_of_range(client: Any, query: str, expected: tuple[int, str]) -> None:
    assert error_of(client.post(f"/v1/segment?{query}", content=png())) == expected
    assert client.post("/v1/segment", content=png()).status_code == 200


BAD_FILES = {
    "empty": (b"", 422),
    "text": (b"hello", 415),
    "program": (b"\x7fELF" + bytes(100), 415),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>", 415),
    "array": (b"\x93NUMPY\1\0v\0{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", 415),
    "truncated header": (png()[:20], 422),
    "truncated pixels": (png(90, 90)[:-2000], 422),
    "truncated JPEG": (png(kind="JPEG")[:100], 422),
    "bomb": (png_of_size(50_000, 50_000, bytes(10_000_000)), 413),
    "huge header": (png_of_size(2**31 - 1, 2**31 - 1), 413),
    "too wide": (png_of_size(501, 1), 413),
    "no rows": (png_of_size(8, 6), 422),
    "no pixels": (png_of_size(0, 0), 422),
    "many channels": (tiff(90, 90, samples=60_000), 422),
    "circle of pages": (b"II*\0\x08\0\0\0\0\0\x08\0\0\0", 422),
    "many bytes": (b"\xff\xd8\xff" + bytes(300_000), 413),
}


@pytest.mark.parametrize("kind", ["application/octet-stream", "application/x-www-form-urlencoded", ""])
def test_a_body_is_a_file_whatever_type_curl_gives_it(client: Any, kind: str) -> None:
    answer = client.post("/v1/segment", content=png(), headers={"Content-Type": kind})
    assert answer.status_code == 200, answer.text


def test_an_unknown_option_is_told_which_there_are(client: Any) -> None:
    answer = client.post("/v1/segment?treshold=0.5", content=png())
    assert error_of(answer) == (422, "invalid_option")
    message = answer.json()["error"]["message"]
    assert message.startswith("treshold: there is no such option") and "score_threshold" in message


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_refused_and_the_server_goes_on(client: Any, engine: Engine, name: str) -> None:
    data, status = BAD_FILES[name]
    assert error_of(client.post("/v1/segment", content=data))[0] == status
    assert error_of(client.post("/v1/segment", files={"image": ("a.png", data, "image/png")}))[0] == status
    assert client.post("/v1/segment", content=png()).status_code == 200
    wait_for(lambda: engine.status().accepted == 0)
    assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("application/json", b'{"path": "/etc/passwd"}', 415),
        ("text/plain", b"http://example.com/a.png", 415),
        ("multipart/form-data", b"x", 422),
        ("multipart/form-data; boundary=b", b"--b\r\nnonsense", 422),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\ntext\r\n--b--\r\n',
            422,
        ),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="image"; filename="f"\r\n\r\nte',
            422,
        ),
        ("multipart/form-data; boundary=b; charset=nope", b"--b--\r\n", 422),
    ],
)
def test_bad_bodies(client: Any, kind: str, body: bytes, status: int) -> None:
    assert error_of(client.post("/v1/segment", content=body, headers={"Content-Type": kind}))[0] == status


def test_bad_forms(client: Any) -> None:
    two = [("image", ("a", png())), ("image", ("b", png()))]
    assert error_of(client.post("/v1/segment", files=two)) == (422, "unreadable_image")
    assert error_of(client.post("/v1/segment", files={"file": ("a", png())})) == (422, "unreadable_image")
    image = {"image": ("a", png())}
    assert error_of(client.post("/v1/segment", files=image, data={"path": "/etc/passwd"})) == (422, "invalid_option")
    assert error_of(client.post("/v1/segment", files=image, data={"task": ["auto", "auto"]})) == (422, "invalid_option")
    assert error_of(client.post("/v1/segment", files=image, data={f"f{i}": "" for i in range(50)}))[0] == 422
    assert error_of(client.post("/v1/segment", files=image, data={"model": "m" * 100_000}))[0] == 422
    name = {"image": ("../../../etc/passwd", png(), "text/html")}  # is never looked at
    assert client.post("/v1/segment", files=name).status_code == 200


def test_a_body_without_length_is_cut_where_it_becomes_too_long(client: Any) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(40):
            yield bytes(10_000)

    assert error_of(client.post("/v1/segment", content=endless())) == (413, "too_large")


def test_no_file_is_written(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> Any:
        raise AssertionError("a temporary file was made")

    for name in ("TemporaryFile", "NamedTemporaryFile", "mkstemp", "mkdtemp"):
        monkeypatch.setattr(tempfile, name, refuse)
    whole = png() + bytes(290_000)
    assert client.post("/v1/segment", files={"image": ("a.png", whole)}).status_code == 200


# ------------------------------------------------------------------ queue
def test_a_full_queue_is_429_and_nothing_accepted_is_lost(client: Any, engine: Engine, held: HeldModel) -> None:
    held.go.clear()
    with ThreadPoolExecutor(8) as pool:
        accepted = [pool.submit(client.post, "/v1/segment", content=png()) for _ in range(3)]
        wait_for(lambda: engine.status().accepted == 3)
        answer = client.post("/v1/segment", content=png())
        assert error_of(answer) == (429, "busy")
        assert int(answer.headers["Retry-After"]) >= 1
        assert client.get("/healthz").status_code == 200  # answers while the worker is busy
        held.go.set()
        assert [each.result(60).status_code for each in accepted] == [200] * 3
    wait_for(lambda: engine.status().accepted == 0)
    assert client.post("/v1/segment", content=png()).status_code == 200


def test_a_timeout_is_504(held: HeldModel, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], perf_counter=lambda: now[0])
    monkeypatch.setattr("mask2former.serving.app.time", clock)
    with (
        make_engine(held, LIMITS, timeout=60.0) as engine,
        running(create_app(engine, close_engine=False)) as address,
        httpx.Client(base_url=address, timeout=60, trust_env=False) as client,
    ):
        submit = engine.submit

        def submit_and_wait(*arguments: Any, **options: Any) -> Any:
            future = submit(*arguments, **options)
            now[0] = 60.0  # not before the image is there, which would be another error
            return future

        monkeypatch.setattr(engine, "submit", submit_and_wait)
        held.go.clear()
        assert error_of(client.post("/v1/segment", content=png())) == (504, "timeout")
        held.go.set()
        wait_for(lambda: engine.status().accepted == 0)
        assert client.get("/healthz").status_code == 200


def test_a_slow_upload_is_408(held: HeldModel) -> None:
    with make_engine(held, LIMITS, timeout=0.3) as engine, running(create_app(engine, close_engine=False)) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(b"POST /v1/segment HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nabc")
            assert connection.recv(100).startswith(b"HTTP/1.1 408")


def test_a_client_who_leaves_makes_room(client: Any, engine: Engine, held: HeldModel) -> None:
    held.go.clear()
    held.entered.clear()
    host, port = client.base_url.host, client.base_url.port
    data = png()
    connections = []
    for _ in range(3):
        connection = socket.create_connection((host, port), timeout=60)
        head = f"POST /v1/segment HTTP/1.1\r\nHost: a\r\nContent-Length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data)
        connections.append(connection)
        assert held.entered.wait(60)  # the first is in the model alone: the others cannot join its batch
    wait_for(lambda: engine.status().accepted == 3)
    for connection in connections:
        connection.close()
    wait_for(lambda: engine.status().accepted == 1)  # the one that runs
    held.go.set()
    wait_for(lambda: engine.status().accepted == 0)


def test_many_clients_lose_nothing(held: HeldModel) -> None:
    async def ask(address: str) -> list[tuple[int, int]]:
        async with httpx.AsyncClient(base_url=address, timeout=120, trust_env=False) as client:

            async def one(number: int) -> tuple[int, int]:
                width = 5 + number % 4
                answer = await client.post("/v1/segment", content=png(6, width))
                return width, answer.json()["width"]

            return await asyncio.gather(*(one(i) for i in range(80)))

    with make_engine(held, LIMITS, max_waiting=100, max_images=4) as engine, running(create_app(engine)) as address:
        pairs = asyncio.run(ask(address))
    assert len(pairs) == 80 and all(sent == got for sent, got in pairs)


# ------------------------------------------------------------------ access
def test_the_token(engine: Engine) -> None:
    with (
        running(create_app(engine, token="s3cret")) as address,
        httpx.Client(base_url=address, timeout=60, trust_env=False) as client,
    ):
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic s3cret"},
            {"Authorization": "é"},
        ):
            raw = {name: value.encode("latin-1") for name, value in headers.items()}
            answer = client.post("/v1/segment", content=png(90, 90), headers=raw)
            assert error_of(answer) == (401, "unauthorized")
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert error_of(client.get("/v1/models", headers=raw)) == (401, "unauthorized")
            assert error_of(client.get("/metrics", headers=raw)) == (401, "unauthorized")
        right = {"Authorization": "Bearer s3cret"}
        assert client.post("/v1/segment", content=png(), headers=right).status_code == 200
        assert client.get("/healthz").status_code == 200
    with pytest.raises(ValueError, match="token"):
        create_app(engine, token=" ")


def test_other_hosts_are_refused(engine: Engine) -> None:
    with running(create_app(engine, hosts=["127.0.0.1"])) as address:
        assert httpx.get(f"{address}/healthz", trust_env=False).status_code == 200
        answer = httpx.get(f"{address}/healthz", headers={"Host": "evil.example"}, trust_env=False)
        assert answer.status_code == 400


# ------------------------------------------------------------------ operation
def test_metrics(client: Any) -> None:
    client.post("/v1/segment", content=png())
    client.post("/v1/segment", content=b"hello")
    client.get("/no/such/path")
    client.request("BREW", "/v1/segment")
    lines = client.get("/metrics").text.splitlines()
    assert 'mask2former_http_requests_total{method="POST",path="/v1/segment",status="200"} 1' in lines
    assert 'mask2former_http_requests_total{method="POST",path="/v1/segment",status="415"} 1' in lines
    assert 'mask2former_http_requests_total{method="GET",path="other",status="404"} 1' in lines
    assert not any("BREW" in line or "such" in line for line in lines)
    assert "mask2former_images_total 1" in lines and "mask2former_healthy 1" in lines
    buckets = [int(line.split()[-1]) for line in lines if line.startswith("mask2former_segment_seconds_bucket")]
    assert buckets == sorted(buckets) and "mask2former_segment_seconds_count" in "".join(lines)
    for line in lines:
        assert line.startswith("# ") or (len(line.rsplit(" ", 1)) == 2 and float(line.rsplit(" ", 1)[1]) >= 0)


def test_the_description_has_all_options_and_loads_nothing_from_elsewhere(client: Any) -> None:
    schema = client.get("/openapi.json").json()
    post = schema["paths"]["/v1/segment"]["post"]
    assert {each["name"] for each in post["parameters"]} == {
        "model",
        "task",
        "score_threshold",
        "tile",
        "format",
        "segmentation",
    }
    assert all(each["description"] for each in post["parameters"])
    assert {"200", "401", "413", "415", "422", "429", "503", "504"} <= set(post["responses"])
    assert "multipart/form-data" in post["requestBody"]["content"]
    page = client.get("/docs").text
    assert "score_threshold" in page and "<script" not in page and "http://" not in page and "https://" not in page


def test_a_failed_worker_is_unhealthy(client: Any, engine: Engine) -> None:
    engine._failure = "the GPU has failed"
    assert client.get("/healthz").status_code == 503
    assert error_of(client.post("/v1/segment", content=png())) == (503, "stopping")


def test_stopping_finishes_accepted_requests(held: HeldModel) -> None:
    engine = make_engine(held)
    held.go.clear()
    with ThreadPoolExecutor(4) as pool:
        with running(create_app(engine)) as address:
            answers = [pool.submit(httpx.post, f"{address}/v1/segment", content=png(), timeout=60) for _ in range(3)]
            wait_for(lambda: engine.status().accepted == 3)
            threading.Timer(0.2, held.go.set).start()
        assert [each.result(60).status_code for each in answers] == [200] * 3
    assert not engine._worker.is_alive()


SERVER = """
import sys
from tests.serving.conftest import HeldModel, make_engine, running
from mask2former.serving.app import create_app
from mask2former.serving.server import make_server
import threading, time
model = HeldModel()
engine = make_engine(model)
server = make_server(create_app(engine), port=0, graceful=20)
def tell():
    while not server.started:
        time.sleep(0.01)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
    model.go.clear()
    while not model.entered.is_set():
        time.sleep(0.01)
    print("busy", flush=True)
    while not server.should_exit:
        time.sleep(0.01)
    time.sleep(0.3)
    model.go.set()
threading.Thread(target=tell, daemon=True).start()
server.run()
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_sigterm_finishes_accepted_requests() -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as process:
        try:
            assert process.stdout is not None
            address = f"http://127.0.0.1:{int(process.stdout.readline())}"
            with ThreadPoolExecutor(1) as pool:
                answer = pool.submit(httpx.post, f"{address}/v1/segment", content=png(), timeout=120)
                assert process.stdout.readline() == "busy\n"
                process.send_signal(signal.SIGTERM)
                assert answer.result(120).status_code == 200
            assert process.wait(60) == -signal.SIGTERM  # uvicorn ends as the signal would have
            with pytest.raises(httpx.TransportError):
                httpx.get(f"{address}/healthz", timeout=5)
        finally:
            process.kill()
            process.wait(60)


def test_answers_are_plain_json(client: Any) -> None:
    text = client.post("/v1/segment", content=png()).text
    assert json.dumps(json.loads(text), separators=(",", ":")) == text
