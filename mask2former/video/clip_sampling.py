"""Which frames of a video a training clip shows."""

from __future__ import annotations

import numpy as np


def sample_frames(length: int, count: int, reach: int, shuffle: bool = False) -> list[int]:
    """Draw a reference frame, and the others from its neighbourhood.

    No frame is drawn twice as long as the neighbourhood has enough of them; in shorter ones, down to videos of one
    frame, each frame comes equally often, give or take one. Numbers come from numpy's global state.

    Args:
        length: frames of the video.
        count: frames of the clip (INPUT.SAMPLING_FRAME_NUM).
        reach: largest distance from the reference frame (INPUT.SAMPLING_FRAME_RANGE).
        shuffle: leave the frames in the order of drawing instead of the order of time.

    Returns:
        `count` frame numbers in [0, length).
    """
    reference = int(np.random.randint(length))
    window = np.arange(max(0, reference - reach), min(length, reference + reach + 1))
    others = np.random.permutation(window[window != reference])
    # The reference frame ends a round, so that it is repeated last.
    chosen = [reference, *np.resize(np.append(others, reference), count - 1).tolist()]
    if shuffle:
        return [int(frame) for frame in np.random.permutation(chosen)]
    return sorted(chosen)
