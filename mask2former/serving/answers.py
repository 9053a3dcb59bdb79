"""Answers of HTTP: results as JSON with run lengths or polygons, or as a label map; errors as JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from PIL import Image
from starlette.responses import JSONResponse

from ..result_files import encode_image
from ..results import Result
from .errors import InvalidOptionError


def error_answer(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return an error as an answer.

    Args:
        status: of HTTP.
        code: the kind of error in one word, for programs.
        message: for people.
        headers: further ones.
    """
    return JSONResponse({"error": {"code": code, "message": message}}, status, headers)


def result_json(result: Result, model: str, task: str, segmentation: str) -> bytes:
    """Return a result as JSON.

    Args:
        result: the result.
        model: name of the model.
        task: "auto" or one that the result has.
        segmentation: "rle" (compressed, as pycocotools reads it) or "polygons" (flat lists x0, y0, x1, y1, ...).
    """
    task = shown_task(result, task)
    objects = result.objects(task)
    records = result.to_coco(1, task, polygons=segmentation == "polygons")
    rows: list[dict[str, Any]] = []
    for i, record in enumerate(records):
        del record["image_id"]
        score = None if objects.scores[i] is None else record["score"]
        rows.append({"id": int(objects.ids[i]), "class": objects.names[i], **record, "score": score})
    height, width = result.size
    seconds = None if result.seconds is None else round(result.seconds, 4)
    content = {"model": model, "task": task, "width": width, "height": height, "seconds": seconds, "objects": rows}
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()


def label_map_png(result: Result, task: str) -> bytes:
    """Return the label map as PNG of 16 bits: 0 background, else the id of an object.

    Raises:
        InvalidOptionError: an id does not fit into 16 bits.
    """
    label_map = result.objects(shown_task(result, task)).label_map()
    if label_map.dtype != np.uint16:
        raise InvalidOptionError("the ids of the objects do not fit into the 16 bits of a PNG; use format=json")
    return encode_image(Image.fromarray(label_map))


def shown_task(result: Result, task: str) -> str:
    """Return the task of an answer; "auto" is the first of panoptic, instance and semantic that the result has."""
    if task != "auto":
        return task
    return next(each for each in ("panoptic", "instance", "semantic") if each in result.tasks)
