"""Drawing of segmentation results: semi-transparent fills, anti-aliased contours and legible labels.

Everything that is drawn is a `Region`: a boolean mask cropped to its bounding box, a color and a text. The signed
distance to the mask's border gives smooth fills, contours of any width at any scale, and the position with the most
room for a label, without polygons.

Images are (H, W, 3) uint8 RGB, colors (r, g, b) in 0..255, boxes XYXY in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from .structures.colors import Color, lifted
from .structures.masks import Patch
from .utils.fonts import load_font, readable

_BORDER = 3  # pixels of context around a region, for the soft edge of its contour
_MAX_AUTO_LABELS = 40
_DARK = (18, 20, 24)
_LINE_LUMINANCE = 150.0  # contours are brighter than fills: they carry the shape


# ------------------------------------------------------------------ regions
@dataclass
class Region:
    """One region to draw. `mask` (h, w) bool covers the part of the image that starts at pixel (x, y)."""

    mask: np.ndarray
    x: int
    y: int
    color: Color
    text: str = ""
    area: int = field(init=False)

    def __post_init__(self) -> None:
        self.area = int(np.count_nonzero(self.mask))


def regions_from_patches(
    patches: Iterable[Patch], colors: Sequence[Color], texts: Sequence[str] | None = None
) -> list[Region]:
    """Build the regions of N masks that are stored inside their bounding boxes; empty masks give none."""
    texts = texts if texts is not None else [""] * len(colors)
    rows = zip(patches, colors, texts, strict=True)
    return [Region(p.bits, p.left, p.top, color, text) for p, color, text in rows if p.bits.size]


def regions_from_map(
    label_map: np.ndarray, colors: dict[int, Color], texts: dict[int, str] | None = None
) -> list[Region]:
    """Build the regions of a (H, W) integer map: one for each key of `colors`; other values are not drawn."""
    keys = np.array(sorted(colors), dtype=np.int64)
    if not len(keys):
        return []
    position = np.searchsorted(keys, label_map).clip(max=len(keys) - 1)
    dense = np.where(keys[position] == label_map, position + 1, 0)
    regions = []
    for i, window in enumerate(ndimage.find_objects(dense, max_label=len(keys))):
        if window is None:
            continue
        ys, xs = window
        key = int(keys[i])
        text = (texts or {}).get(key, "")
        regions.append(Region(dense[ys, xs] == i + 1, xs.start, ys.start, colors[key], text))
    return regions


# ------------------------------------------------------------------ painting
def draw_regions(
    image: np.ndarray,
    regions: Sequence[Region],
    *,
    alpha: float = 0.4,
    line_width: float | None = None,
    labels: bool | None = None,
    scale: float = 1.0,
) -> Image.Image:
    """Paint regions over an image, large ones first so that small ones stay visible.

    Args:
        image: (H, W, 3) uint8 RGB; not changed.
        alpha: opacity of the fill, 0 to 1; 0 draws contours only.
        line_width: of the contours, in output pixels; 0 draws none; None: by the size of image and objects.
        labels: write the regions' texts. None: only if there are few regions, and where a text has room.
        scale: size of the output relative to the image.

    Returns:
        An RGB image of (round(W * scale), round(H * scale)) pixels.

    Raises:
        ValueError: image of another shape or type; alpha outside 0..1; scale that is not positive.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be (H, W, 3) uint8, not {image.shape} {image.dtype}")
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must lie between 0 and 1, not {alpha}")
    if scale <= 0:
        raise ValueError(f"scale must be positive, not {scale}")
    height, width = max(round(image.shape[0] * scale), 1), max(round(image.shape[1] * scale), 1)
    if scale == 1.0:
        canvas = image.copy()
    else:
        interpolation = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
        canvas = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=interpolation)
    if line_width is None:
        line_width = _line_width(height, width, regions, scale)
    spots = []
    for region in sorted(regions, key=lambda r: -r.area):
        if region.area:
            spots.append(_paint(canvas, region, alpha, line_width, scale))
    drawn = Image.fromarray(canvas)
    if labels or (labels is None and len(spots) <= _MAX_AUTO_LABELS):
        _write_labels(drawn, [s for s in spots if s.text], force=bool(labels))
    return drawn


def _line_width(height: int, width: int, regions: Sequence[Region], scale: float) -> float:
    """Choose a width for the size of image and objects: a contour must not cover a small object."""
    by_image = 0.0022 * (height * width) ** 0.5
    if not regions:
        return by_image
    typical = float(np.median([r.area for r in regions])) ** 0.5 * scale
    return float(np.clip(min(by_image, typical / 9), 1.2, 6.0))


@dataclass
class _Spot:
    """Position of a region's text: the point of the region farthest from its border, and that distance."""

    text: str
    x: float
    y: float
    room: float
    top: float
    area: float


def _paint(canvas: np.ndarray, region: Region, alpha: float, line_width: float, scale: float) -> _Spot:
    """Blend fill and contour of one region into the canvas (in place); return the position of its label."""
    height, width = canvas.shape[:2]
    depth = _depth(region.mask)
    # The distance map starts at source pixel x - BORDER; map output pixel centers back into it.
    x0, x1 = _output_range(region.x, region.mask.shape[1], scale, width)
    y0, y1 = _output_range(region.y, region.mask.shape[0], scale, height)
    if scale == 1.0:
        oy, ox = y0 - region.y + _BORDER, x0 - region.x + _BORDER
        depth = depth[oy : oy + y1 - y0, ox : ox + x1 - x0]
    else:
        columns = (np.arange(x0, x1, dtype=np.float32) + 0.5) / scale - 0.5 - (region.x - _BORDER)
        rows = (np.arange(y0, y1, dtype=np.float32) + 0.5) / scale - 0.5 - (region.y - _BORDER)
        xs, ys = np.meshgrid(columns, rows)
        depth = cv2.remap(depth, xs, ys, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) * np.float32(scale)
    if not depth.size:
        return _Spot("", 0, 0, 0, 0, 0)
    inside = np.clip(depth + 0.5, 0.0, 1.0)
    part = canvas[y0:y1, x0:x1]
    blended = _blend(part.astype(np.float32), region.color, alpha * inside)
    if line_width > 0:
        # A faint dark rim outside, for bright images; the line itself is inside the border, so that touching
        # objects have two separate lines.
        blended = _blend(blended, _DARK, 0.45 * (1.0 - inside) * np.clip(1.8 + depth, 0.0, 1.0))
        blended = _blend(
            blended,
            lifted(region.color, _LINE_LUMINANCE),
            inside * np.clip(line_width + 0.5 - depth, 0.0, 1.0),
        )
    part[...] = (blended + 0.5).astype(np.uint8)

    y, x = divmod(int(depth.argmax()), depth.shape[1])
    return _Spot(region.text, x0 + x + 0.5, y0 + y + 0.5, float(depth[y, x]), float(y0), region.area * scale**2)


def _blend(pixels: np.ndarray, color: Color, opacity: np.ndarray) -> np.ndarray:
    """Blend (h, w, 3) float32 pixels with one color at (h, w) opacity."""
    return pixels + (np.array(color, np.float32) - pixels) * opacity[..., None]


def _output_range(start: int, size: int, scale: float, limit: int) -> tuple[int, int]:
    first = int(np.floor((start - _BORDER) * scale))
    last = int(np.ceil((start + size + _BORDER) * scale))
    return max(first, 0), min(last, limit)


def _depth(mask: np.ndarray) -> np.ndarray:
    """Compute the signed distance (pixels, positive inside) of each pixel center to the mask's border.

    Returns (h + 2 BORDER, w + 2 BORDER) float32. A light blur removes the staircase from slanted borders.
    """
    padded = np.pad(mask.astype(np.uint8), _BORDER)
    inner = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_5)
    outer = cv2.distanceTransform(1 - padded, cv2.DIST_L2, cv2.DIST_MASK_5)
    signed = np.where(padded > 0, inner - 0.5, 0.5 - outer)
    if min(mask.shape) < 3:
        return signed
    return cv2.GaussianBlur(signed, (0, 0), 0.8)


# ------------------------------------------------------------------ text
def _font_size(width: int, height: int) -> int:
    return int(np.clip(round(0.019 * (width * height) ** 0.5), 11, 40))


def _write_labels(image: Image.Image, spots: Sequence[_Spot], force: bool) -> None:
    """Write each text into its region, large regions first; texts without free room are left out.

    With `force` all texts are written, at the free position nearest to the region's center.
    """
    size = _font_size(*image.size)
    layer = Image.new("RGBA", image.size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    taken: list[tuple[float, float, float, float]] = []
    for spot in sorted(spots, key=lambda s: -s.area):
        text, font = readable(spot.text), load_font(size, spot.text)
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font, anchor="lt")
        w, h = right - left + 0.7 * size, bottom - top + 0.5 * size
        if not force and (h > 2.2 * spot.room or w * h > 0.35 * spot.area):
            continue
        box = _free_box(spot, w, h, image.size, taken)
        if box is None:
            if not force:
                continue
            box = _clamped(spot.x, spot.y, w, h, image.size)
        taken.append(box)
        draw.rounded_rectangle(box, radius=0.3 * size, fill=(*_DARK, 178))
        draw.text(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), text, font=font, anchor="mm", fill="white")
    image.paste(layer, (0, 0), layer)


def _free_box(
    spot: _Spot, w: float, h: float, size: tuple[int, int], taken: Sequence[tuple[float, float, float, float]]
) -> tuple[float, float, float, float] | None:
    """Return the first free box for a w x h text: in the center, then above and below it; None if all are taken."""
    for dy in (0.0, -1.1, 1.1, -2.2, 2.2):
        box = _clamped(spot.x, spot.y + dy * h, w, h, size)
        if all(box[2] <= t[0] or box[0] >= t[2] or box[3] <= t[1] or box[1] >= t[3] for t in taken):
            return box
    return None


def _clamped(x: float, y: float, w: float, h: float, size: tuple[int, int]) -> tuple[float, float, float, float]:
    x0 = min(max(x - w / 2, 2.0), max(size[0] - w - 2.0, 0.0))
    y0 = min(max(y - h / 2, 2.0), max(size[1] - h - 2.0, 0.0))
    return x0, y0, x0 + w, y0 + h


# ------------------------------------------------------------------ around the image
def add_legend(image: Image.Image, entries: Sequence[tuple[str, Color]]) -> Image.Image:
    """Add a panel at the right of the image, with the color and name of each entry, as many as fit."""
    if not entries:
        return image
    size = _font_size(*image.size)
    row = round(1.7 * size)
    fitting = max((image.height - row) // row, 1)
    shown = list(entries[:fitting])
    rest = len(entries) - len(shown)
    names = [name for name, _ in shown] + ([f"and {rest} more"] if rest else [])
    fonts = [load_font(size, name) for name in names]
    names = [readable(name) for name in names]
    panel_width = round(max(font.getlength(name) for name, font in zip(names, fonts, strict=True)) + 3.4 * size)
    out = Image.new("RGB", (image.width + panel_width, image.height), _DARK)
    out.paste(image, (0, 0))
    draw = ImageDraw.Draw(out)
    for i, (name, font) in enumerate(zip(names, fonts, strict=True)):
        x, y = image.width + size, (i + 1) * row
        if i < len(shown):
            draw.rounded_rectangle((x, y - size / 2, x + size, y + size / 2), radius=size / 4, fill=shown[i][1])
        draw.text((x + 1.6 * size, y), name, font=font, anchor="lm", fill=(235, 235, 235))
    return out


def add_caption(image: Image.Image, text: str) -> Image.Image:
    """Add a dark strip below the image with the text, wrapped to the image's width."""
    size = _font_size(*image.size)
    font = load_font(size, text)
    lines, line = [], ""
    for word in readable(text).split():
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > image.width - 1.4 * size:
            lines.append(line)
            longer = word
        line = longer
    lines.append(line)
    row = round(1.45 * size)
    out = Image.new("RGB", (image.width, image.height + row * len(lines) + size // 2), _DARK)
    out.paste(image, (0, 0))
    draw = ImageDraw.Draw(out)
    for i, content in enumerate(lines):
        y = image.height + size // 4 + (i + 0.5) * row
        draw.text((0.7 * size, y), content, font=font, anchor="lm", fill=(235, 235, 235))
    return out


def comfortable_scale(height: int, width: int) -> float:
    """Return the integer scale that enlarges a small image to about 1000 pixels; 1 for large ones."""
    return float(max(1, min(4, round(1000 / max(height, width, 1)))))
