"""Errors of serving: each has the status of the HTTP answer, a code for programs and a message for people."""

from __future__ import annotations


class ServingError(ValueError):
    """A request that gets no result.

    Attributes:
        status: of the HTTP answer.
        code: the kind of error in one word, for programs.
    """

    status = 500
    code = "internal_error"


class InvalidOptionError(ServingError):
    """An option has a value that it cannot have, or that this model does not have."""

    status, code = 422, "invalid_option"


class UnreadableImageError(ServingError):
    """The file says that it is an image, but it is damaged or empty."""

    status, code = 422, "unreadable_image"


class UnsupportedTypeError(ServingError):
    """The content is of no type that is accepted."""

    status, code = 415, "unsupported_type"


class TooLargeError(ServingError):
    """The file has too many bytes or pixels, or the video is too long."""

    status, code = 413, "too_large"


class UnknownModelError(ServingError):
    """No model has this name."""

    status, code = 404, "unknown_model"


class ModelUnavailableError(ServingError):
    """The model is known, but cannot be used on this machine; the message says why."""

    status, code = 503, "model_unavailable"


class BusyError(ServingError):
    """The queue is full.

    Args:
        message: what is full.
        retry_after: seconds after which it is worth another try.
    """

    status, code = 429, "busy"

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RequestTimeoutError(ServingError):
    """The result did not come in time."""

    status, code = 504, "timeout"


class ClosedError(ServingError):
    """The server is stopping, or its worker has failed."""

    status, code = 503, "stopping"


class InferenceError(ServingError):
    """The model failed on this image; the log has the reason."""

    status, code = 500, "inference_failed"


class UnauthorizedError(ServingError):
    """The token is missing or wrong."""

    status, code = 401, "unauthorized"


class ForbiddenError(ServingError):
    """The request comes from a page of another site."""

    status, code = 403, "forbidden"
