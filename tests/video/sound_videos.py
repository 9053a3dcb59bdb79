"""Video files of noise with a sine as their sound, to be cut and compared frame by frame."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

RATE, SAMPLES = 25, 16_000


def write(
    path: Path, count: int, *, options: dict[str, str] | None = None, sound: str | None = None, **more: Any
) -> Path:
    """Write `count` frames of noise (32, 48) with B-frames and a key frame every 12; `sound` is an audio codec.

    Args:
        more: `codec` of the images, `shift` of all times in seconds, and `gaps`: whether each third frame stays longer.
    """
    av = pytest.importorskip("av")
    rng, codec, shift = np.random.default_rng(0), more.get("codec", "libx264"), more.get("shift", 0.0)
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=RATE, options={"g": "12", "bf": "3", **(options or {})})
        video.width, video.height, video.pix_fmt = 48, 32, more.get("pix_fmt", "yuv420p")
        video.codec_context.time_base = Fraction(1, 1000)
        audio = container.add_stream(sound, rate=SAMPLES, layout="mono") if sound else None
        time = round(1000 * shift)
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(rng.integers(0, 256, (32, 48, 3), dtype=np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(video.encode(frame))
            time += 80 if more.get("gaps") and index % 3 == 2 else 40
        container.mux(video.encode(None))
        if audio is not None:
            _write_sine(av, container, audio, round(shift * SAMPLES), count * SAMPLES // RATE)
    return path


def _write_sine(av: Any, container: Any, stream: Any, start: int, count: int) -> None:
    """Encode a tone whose pitch rises from second to second: 400 Hz, 800 Hz ..."""
    time = np.arange(count) / SAMPLES
    wave = (0.5 * np.sin(2 * np.pi * 400 * (time.astype(int) + 1) * time)).astype(np.float32)
    size = stream.codec_context.frame_size or 1024
    for at in range(0, count, size):
        block = wave[None, at : at + size]
        if stream.codec_context.name.startswith("pcm"):
            block = (block * 32_767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(block, format="s16" if block.dtype == np.int16 else "fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = SAMPLES, start + at, Fraction(1, SAMPLES)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def sound_of(path: Path) -> tuple[float, float, np.ndarray] | None:
    """Return start and duration in seconds, and the samples, of the sound of a file; None if it has none."""
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return None
        frames = list(container.decode(audio=0))
    samples = np.concatenate([frame.to_ndarray()[0] for frame in frames])
    return frames[0].time, len(samples) / SAMPLES, samples


def pitch(samples: np.ndarray) -> float:
    """Return the loudest frequency, in hertz."""
    spectrum = np.abs(np.fft.rfft(samples.astype(np.float64)))
    return float(np.fft.rfftfreq(len(samples), 1 / SAMPLES)[spectrum.argmax()])
