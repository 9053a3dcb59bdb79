"""predict.py, the predictor for Replicate: called directly, by cog's server, and as `cog build` reads its source."""

from __future__ import annotations

import ast
import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from mask2former import zoo
from mask2former.segmenter import Segmenter

from ..stub_model import ALL_PARTS, StubModel

create_predictor = pytest.importorskip("cog._inspector").create_predictor
predict = pytest.importorskip("predict")

ROOT = Path(__file__).parents[2]
CELLS = ROOT / "docs/images/cells.png"


@pytest.fixture
def image(tmp_path: Path) -> Any:
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(tmp_path / "a.png")
    return predict.Path(tmp_path / "a.png")


def predictor_of(parts: Any, monkeypatch: pytest.MonkeyPatch) -> predict.Predictor:
    model = Segmenter(StubModel(parts), classes=["cell", "sky"], min_size=0)
    monkeypatch.setattr(predict.Segmenter, "load", lambda name: model)
    predictor = predict.Predictor()
    predictor.setup()
    return predictor


def call(predictor: predict.Predictor, image: Any, **options: Any) -> Path:
    """Call it as cog does, with all inputs."""
    inputs: dict[str, Any] = {"task": "all", "score_threshold": None, "output": "overlay"}
    return predictor.predict(image=image, **inputs | options)


# ---- the predictor alone
@pytest.mark.parametrize(("parts", "count"), [(ALL_PARTS, 3), (("instances",), 1)], ids=["all", "instances alone"])
def test_an_image_with_the_segmentations_of_the_model(
    image: Any, monkeypatch: pytest.MonkeyPatch, parts: Any, count: int
) -> None:
    drawn = Image.open(call(predictor_of(parts, monkeypatch), image))
    assert drawn.format == "PNG" and drawn.size == (30, 20 * count)
    assert all((part != 90).any() for part in np.split(np.asarray(drawn), count))


def test_one_task_is_that_part_of_all(image: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = predictor_of(ALL_PARTS, monkeypatch)
    parts = np.split(np.asarray(Image.open(call(predictor, image))), 3)
    for part, task in zip(parts, ("panoptic", "instance", "semantic"), strict=True):
        assert np.array_equal(part, np.asarray(Image.open(call(predictor, image, task=task)))), task


def test_json_and_threshold(image: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = predictor_of(ALL_PARTS, monkeypatch)
    scores = {}
    for threshold in (0.0, 0.5):
        file = call(predictor, image, task="instance", output="json", score_threshold=threshold)
        scores[threshold] = [record["score"] for record in json.loads(file.read_text())["annotations"]]
    assert scores == {0.0: pytest.approx([0.9, 0.4, 0.0]), 0.5: pytest.approx([0.9])}


def test_wrong_inputs(image: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = predictor_of(("instances",), monkeypatch)
    with pytest.raises(ValueError, match="task: this model computes instance, not semantic"):
        call(predictor, image, task="semantic")
    with pytest.raises(ValueError, match="image: no file was given"):
        call(predictor, None)


@pytest.mark.parametrize(("value", "name"), [(None, predict.MODEL), ("", predict.MODEL), ("nuclei", "nuclei")])
def test_the_environment_chooses_the_model(monkeypatch: pytest.MonkeyPatch, value: str | None, name: str) -> None:
    names: list[str] = []
    monkeypatch.setattr(predict.Segmenter, "load", names.append)
    monkeypatch.delenv(predict.VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(predict.VARIABLE, value)
    predict.Predictor().setup()
    assert names == [name] and name in zoo.list_models()


# ---- as cog sees it
def test_inputs_and_output_that_cog_finds() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer versions of cog prefer other names
        info = create_predictor("predict", "Predictor")
    shown = {name: (field.type.primitive.name, field.default) for name, field in info.inputs.items()}
    assert shown == {
        "image": ("PATH", None),  # the reference's only input
        "task": ("STRING", "all"),
        "score_threshold": ("FLOAT", None),
        "output": ("STRING", "overlay"),
    }
    assert info.output.type.name == "PATH"


def test_cog_can_read_the_inputs_without_running_the_file() -> None:
    """`cog build` makes the schema from the source: imports at the top level, defaults as calls with literals."""
    tree = ast.parse((ROOT / "predict.py").read_text("utf-8"))
    imported = {
        n.name for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "cog" for n in node.names
    }
    assert imported == {"BasePredictor", "Input", "Path"}
    (cls,) = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    (method,) = [node for node in cls.body if isinstance(node, ast.FunctionDef) and node.name == "predict"]
    assert len(method.args.defaults) == len(method.args.args) - 1  # without self
    for default in method.args.defaults:
        assert isinstance(default, ast.Call) and ast.unparse(default.func) == "Input" and not default.args
        for keyword in default.keywords:
            ast.literal_eval(keyword.value)


def test_the_environment() -> None:
    cog = yaml.safe_load((ROOT / "cog.yaml").read_text())
    file, name = cog["predict"].split(":")
    assert (ROOT / file).is_file() and hasattr(predict, name)
    install, setup, weights = cog["build"]["run"]
    project = (ROOT / "pyproject.toml").read_text()
    assert re.search(r'git\+(\S+)\.git"', install)[1] == re.search(r'^Repository = "(.*)"', project, re.MULTILINE)[1]
    assert f"resolve_weights('{predict.MODEL}')" in weights
    assert f"Python :: {cog['build']['python_version']}" in project
    help_text = subprocess.run(
        [sys.executable, "-m", "mask2former", "setup", "--help"], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout
    assert all(word in help_text for word in setup.split() if word.startswith("--"))


def test_requirements_are_those_of_the_project() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    block = re.search(r"^dependencies = \[\n(.*?)^\]", project, re.DOTALL | re.MULTILINE)
    assert block is not None
    listed = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert listed == re.findall(r'^    "([^"]+)"', block[1], re.MULTILINE)


# ---- in cog's server
class Server:
    """cog's own HTTP server with predict.py and the bundled model."""

    def __init__(self, directory: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = directory / "cog.log"
        environment = os.environ | {
            "PORT": str(self.port),
            "COG_PREDICT_TYPE_STUB": "predict.py:Predictor",
            predict.VARIABLE: "nuclei",
            "PYTHONPATH": str(ROOT),
            # The server starts its worker as `python`.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(directory),
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cog.server.http", "--host", "127.0.0.1"],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def request(self, path: str, content: Any = None, **headers: str) -> tuple[int, Any]:
        """Return the status and the answer of a GET request, or of a POST request with JSON."""
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json", **headers}
        )
        try:
            with urllib.request.urlopen(request, timeout=300) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def predict(self, inputs: dict[str, Any]) -> tuple[int, Any]:
        """Return status and answer of a prediction; one that comes before the last is cleaned up would be refused."""
        assert self.wait(), self.log.read_text("utf-8", "replace")
        return self.request("/predictions", {"input": inputs})

    def wait(self) -> bool:
        """Wait until it takes a prediction; return False if the server has ended, because the port was taken."""
        end = time.monotonic() + 600
        while self.process.poll() is None:
            try:
                status = self.request("/health-check")[1]["status"]
            except OSError:
                status = "no answer"
            if status == "READY":
                return True
            on_its_way = status in ("no answer", "STARTING", "UNKNOWN", "BUSY")
            assert on_its_way and time.monotonic() < end, (status, self.log.read_text("utf-8", "replace"))
            time.sleep(0.2)
        return False

    def stop(self) -> None:
        """End the server and its worker, which are a process group of their own."""
        for which in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(self.process.pid, which)
                self.process.wait(30)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    for _ in range(3):
        running = Server(tmp_path_factory.mktemp("cog"))
        try:
            if running.wait():
                yield running
                return
        finally:
            running.stop()
    pytest.fail(running.log.read_text("utf-8", "replace"))


def uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def content_of(answer: Any) -> bytes:
    assert answer["status"] == "succeeded", answer
    return base64.b64decode(answer["output"].partition(",")[2])


@pytest.mark.slow
def test_predictions_of_the_server(server: Server) -> None:
    image = uri(CELLS.read_bytes())
    status, answer = server.predict({"image": image})  # as of the reference
    assert status == 200
    drawn = Image.open(io.BytesIO(content_of(answer)))
    assert drawn.size == Image.open(CELLS).size
    assert (np.asarray(drawn) != np.asarray(Image.open(CELLS).convert("RGB"))).any()
    expected = Segmenter.load("nuclei", device="cpu")(CELLS, score_threshold=0.6)
    answer = server.predict({"image": image, "output": "json", "score_threshold": 0.6})[1]
    records = json.loads(content_of(answer))["annotations"]
    assert len(records) == len(expected) > 0
    assert [r["score"] for r in records] == pytest.approx([r["score"] for r in expected.to_coco()], abs=1e-3)


@pytest.mark.slow
def test_a_prediction_waits_for_the_one_before(server: Server) -> None:
    inputs = {"image": uri(CELLS.read_bytes())}
    assert server.wait()
    assert server.request("/predictions", {"input": inputs}, Prefer="respond-async")[0] == 202
    _, answer = server.predict({**inputs, "task": "semantic"})
    assert "this model computes instance, not semantic" in json.dumps(answer)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"image": uri(b"no image")}, "cannot be read as an image"),
        ({"image": uri(CELLS.read_bytes()), "task": "semantic"}, "this model computes instance, not semantic"),
        ({}, "image"),
    ],
    ids=["no image", "another task", "nothing"],
)
def test_errors_of_the_server_name_the_input_and_leave_it_running(
    server: Server, inputs: dict[str, Any], message: str
) -> None:
    _, answer = server.predict(inputs)
    assert "output" not in answer and message in json.dumps(answer)
    assert server.wait()  # its worker may still be busy with what follows an answer
