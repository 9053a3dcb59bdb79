"""Drawing of the tracks of a frame, for programs that import it from the demo."""

from mask2former.engine.predictors import TrackVisualizer

__all__ = ["TrackVisualizer"]
