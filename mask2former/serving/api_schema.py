"""What the API says of itself: the options of a request, the OpenAPI description with examples, and a page of it."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .engine import Options
from .upload import FIELD

API_VERSION = "1.0"
DESCRIPTION = """Segment images. A request waits in a bounded queue for one worker; requests for the same model,
options and size of image are run together. Errors are JSON: `{"error": {"code": "too_large", "message": "..."}}`."""


class SegmentOptions(BaseModel):
    """Options of `POST /v1/segment`."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str | None = Field(None, max_length=200, description="A name of /v1/models.", examples=["nuclei"])
    task: Literal["auto", "panoptic", "instance", "semantic"] = Field(
        "auto", description="What to return; auto: the first of panoptic, instance, semantic that the model computes."
    )
    score_threshold: float | None = Field(
        None, ge=0, le=1, description="Drop objects with a lower score. Default: that of the model.", examples=[0.5]
    )
    tile: str | None = Field(
        None,
        pattern=r"^(auto|off|[0-9]{1,5})$",
        description="Cut large images into tiles: auto, off, or their edge in pixels. Default: that of the model.",
        examples=["auto", "512"],
    )
    format: Literal["json", "png"] = Field(
        "json",
        description="json: objects with masks; png: label map of 16 bits, 0 background, else the id of an object.",
    )
    segmentation: Literal["rle", "polygons"] = Field(
        "rle", description="Masks in JSON: rle as of pycocotools, or polygons, flat lists x0, y0, x1, y1, ..."
    )

    def for_engine(self) -> Options:
        """Return what the engine needs to know.

        Raises:
            InvalidOptionError: a value out of range.
        """
        tile = int(self.tile) if self.tile is not None and self.tile.isdigit() else self.tile
        return Options(self.task, self.score_threshold, tile)


# ------------------------------------------------------------------ OpenAPI
_EXAMPLE = {
    "model": "nuclei",
    "task": "instance",
    "width": 320,
    "height": 240,
    "seconds": 0.031,
    "objects": [
        {
            "id": 1,
            "class": "nucleus",
            "category_id": 1,
            "bbox": [12.0, 30.0, 21.0, 18.0],
            "area": 297,
            "score": 0.962,
            "segmentation": {"size": [240, 320], "counts": "bk0..."},
        }
    ],
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FORM = {
    "schema": {
        "type": "object",
        "required": [FIELD],
        "properties": {
            FIELD: {"type": "string", "format": "binary", "description": "The image file."},
            **{name: {"type": "string"} for name in SegmentOptions.model_fields},
        },
    }
}
SEGMENT: dict[str, Any] = {
    "summary": "Segment an image",
    "tags": ["Segmentation"],
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": _FORM,
                "image/png": _BINARY,
                "image/jpeg": _BINARY,
                "application/octet-stream": _BINARY,
            },
        }
    },
}
_MEANINGS = {
    401: ("unauthorized", "The token is missing or wrong."),
    404: ("unknown_model", "No model has this name."),
    403: ("forbidden", "A browser sends this from a page of another site."),
    408: ("slow_upload", "The image did not arrive in time."),
    413: ("too_large", "The image has too many bytes or pixels."),
    415: ("unsupported_type", "The content is no image of a known type."),
    422: ("unreadable_image", "The image is damaged or empty, or an option is invalid (`invalid_option`)."),
    429: ("busy", "The queue is full; the header Retry-After has the seconds to wait."),
    500: ("inference_failed", "The model failed on this image."),
    503: ("model_unavailable", "The weights are not on this machine, or the server is stopping (`stopping`)."),
    504: ("timeout", "The result was not ready in time."),
}
ERRORS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The objects, or the label map.",
        "content": {"application/json": {"example": _EXAMPLE}, "image/png": _BINARY},
    },
    **{
        status: {
            "description": text,
            "content": {"application/json": {"example": {"error": {"code": code, "message": text}}}},
        }
        for status, (code, text) in _MEANINGS.items()
    },
}

# ------------------------------------------------------------------ the page
_STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2430}
code,pre{font:14px/1.5 ui-monospace,monospace;background:#f2f4f7;border-radius:4px}code{padding:.1em .3em}
pre{padding:1rem;overflow:auto}table{border-collapse:collapse;width:100%}table+table{margin-top:1.5rem}
td,th{text-align:left;padding:.4rem .6rem;border-bottom:1px solid #dfe3e8;vertical-align:top}h2{margin-top:2.5rem}
@media(prefers-color-scheme:dark){body{background:#14181f;color:#dfe3e8}code,pre{background:#232a35}td,th{border-color:#39414d}
a{color:#8ab4f8}}"""
_CURL = """curl -s {token}--data-binary @cells.png -H "Content-Type: image/png" \\
     "$SERVER/v1/segment?score_threshold=0.5&segmentation=polygons"
curl -s {token}-F image=@cells.png -F format=png -o labels.png "$SERVER/v1/segment\""""


def docs_page(schema: dict[str, Any], token: bool) -> str:
    """Return a page (HTML without scripts, nothing from other servers) of an OpenAPI schema.

    Args:
        schema: the schema.
        token: whether requests need one.
    """
    header = '-H "Authorization: Bearer $TOKEN" ' if token else ""
    parts = [
        f"<h1>{_text(schema['info']['title'])} {_text(schema['info']['version'])}</h1>",
        f"<p>{_text(schema['info']['description'])}</p>",
        '<p>The schema for programs: <a href="openapi.json">openapi.json</a>. Examples:</p>',
        f"<pre>{_text(_CURL.format(token=header))}</pre>",
    ]
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            parts += _operation(f"{method.upper()} {path}", operation)
    body = "\n".join(parts)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{_text(schema['info']['title'])} API</title><style>{_STYLE}</style><body>{body}</body></html>"
    )


def _operation(title: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"<h2><code>{_text(title)}</code></h2><p>{_text(operation.get('description', ''))}</p>"
    if parameters := operation.get("parameters"):
        yield "<table><tr><th>Option<th>Values<th>Meaning</tr>"
        for each in parameters:
            meaning = _text(each.get("description", ""))
            yield f"<tr><td><code>{_text(each['name'])}</code><td>{_text(_values(each['schema']))}<td>{meaning}</tr>"
        yield "</table>"
    yield "<table><tr><th>Status<th>Meaning</tr>"
    for status, answer in operation["responses"].items():
        yield f"<tr><td>{_text(status)}<td>{_text(answer.get('description', ''))}</tr>"
    yield "</table>"
    example = operation["responses"].get("200", {}).get("content", {}).get("application/json", {}).get("example")
    if example:
        yield f"<pre>{_text(json.dumps(example, indent=1))}</pre>"


def _values(schema: dict[str, Any]) -> str:
    """Return in words what a parameter may be."""
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    options = [option for option in schema.get("anyOf", [schema]) if option.get("type") != "null"]
    first = options[0]
    if "minimum" in first:
        return f"{first['minimum']:g} to {first['maximum']:g}"
    return str(first.get("pattern", "text")).strip("^$()").replace("|", ", ").replace("[0-9]{1,5}", "a number")


def _text(text: Any) -> str:
    return re.sub("`(.+?)`", r"<code>\1</code>", html.escape(str(text)))
