"""A webcam as a source of frames, and the window that shows them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import suppress

import cv2
import numpy as np

from ..video.reader import DEFAULT_RATE, Frame

WINDOW = "Mask2Former (q: quit)"


class Camera:
    """Frames of a webcam, with the time at which they were read."""

    length = None
    rate = DEFAULT_RATE
    damaged = False

    def __init__(self, number: int) -> None:
        self._capture = cv2.VideoCapture(number)
        if not self._capture.isOpened():
            self._capture.release()
            raise ValueError(
                f"camera {number} cannot be opened: it is not connected, in use, or access is denied. "
                "Try another number (--webcam 1), or give a video file."
            )
        self.name = f"camera{number}"

    def read(self) -> Iterator[Frame]:
        """Yield frames until the camera gives no more."""
        start = time.perf_counter()
        try:
            for index in itertools.count():
                good, frame = self._capture.read()
                if not good:
                    return
                yield Frame(index, time.perf_counter() - start, np.ascontiguousarray(frame[..., ::-1]))
        finally:
            self._capture.release()


# ------------------------------------------------------------------ showing
def has_windows() -> bool:
    """Return whether this OpenCV build can open windows (the headless build cannot)."""
    try:
        cv2.namedWindow(WINDOW, cv2.WINDOW_NORMAL)
        return True
    except cv2.error:
        return False


def show(image: np.ndarray) -> bool:
    """Show an image; return False after the user pressed q or Escape or closed the window."""
    cv2.imshow(WINDOW, np.ascontiguousarray(image[..., ::-1]))
    if cv2.waitKey(1) & 0xFF in (ord("q"), 27):
        with suppress(cv2.error):
            cv2.destroyWindow(WINDOW)
        return False
    return cv2.getWindowProperty(WINDOW, cv2.WND_PROP_VISIBLE) >= 1
