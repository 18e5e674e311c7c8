"""
KServeKitError
├── ServingError             what a caller of a model can meet; each has one place in every protocol
│   ├── InvalidInput         400  the request is wrong: a name, datatype, shape, value or byte count
│   ├── Unauthenticated      401  a credential is asked for, and it is missing or wrong
│   ├── Forbidden            403  a closed endpoint, or a role that does not reach
│   ├── ModelNotFound        404  no such model or version
│   ├── PayloadTooLarge      413  over a limit, said before memory is spent on it
│   ├── UnsupportedMedia     415  a file that is not what it says it is
│   ├── TooManyRequests      429  a limit on callers; come back later
│   ├── Cancelled            499  the caller went away
│   ├── ModelError           500  user code or the engine failed
│   ├── NotSupported         501  not built, or not by this backend
│   ├── Unavailable          503  the backend is down or not ready: the only one that is retried
│   └── DeadlineExceeded     504  no time left
└── CannotStart              a process cannot start: a setting, a file or the machine is in the way
"""

from __future__ import annotations

import math
import re

LONGEST_MESSAGE = 1000
"""Characters of a ServingError's message."""


class KServeKitError(Exception):
    """The one class to catch. Its message names the thing, the value and the way out."""


class CannotStart(KServeKitError):
    """A setting, a file or the machine keeps a process from starting; nothing was served yet."""


class ServingError(KServeKitError):
    """An answer other than the one that was asked for.

    `retry_after` (seconds) travels as Retry-After on REST and as trailing metadata on gRPC.
    """

    http = 500
    grpc = "INTERNAL"
    default_retry_after: int | None = None
    """Seconds that a caller is told where nobody said any."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        # What a caller sent is often part of it, and gRPC carries it in a header of limited size.
        super().__init__(message if len(message) <= LONGEST_MESSAGE else f"{message[:LONGEST_MESSAGE]} ...")
        self.retry_after = retry_after
        self.elsewhere = False
        """It is one address of a backend that is ill, and another one is well."""

    @property
    def message(self) -> str:
        return str(self.args[0])

    @property
    def told_retry_after(self) -> int | None:
        """What a caller is told, in whole seconds; none for what is not mended by waiting."""
        return self.default_retry_after if self.retry_after is None else math.ceil(self.retry_after)


class InvalidInput(ServingError):
    http, grpc = 400, "INVALID_ARGUMENT"


class Unauthenticated(ServingError):
    http, grpc = 401, "UNAUTHENTICATED"


class Forbidden(ServingError):
    http, grpc = 403, "PERMISSION_DENIED"


class ModelNotFound(ServingError):
    http, grpc = 404, "NOT_FOUND"


class PayloadTooLarge(ServingError):
    http, grpc = 413, "RESOURCE_EXHAUSTED"


class UnsupportedMedia(ServingError):
    http, grpc = 415, "INVALID_ARGUMENT"


class TooManyRequests(ServingError):
    http, grpc = 429, "RESOURCE_EXHAUSTED"
    default_retry_after = 1


class Cancelled(ServingError):
    http, grpc = 499, "CANCELLED"


class ModelError(ServingError):
    http, grpc = 500, "INTERNAL"


class NotSupported(ServingError):
    http, grpc = 501, "UNIMPLEMENTED"


class Unavailable(ServingError):
    http, grpc = 503, "UNAVAILABLE"
    default_retry_after = 1


class DeadlineExceeded(ServingError):
    http, grpc = 504, "DEADLINE_EXCEEDED"


ALL: tuple[type[ServingError], ...] = (
    InvalidInput,
    Unauthenticated,
    Forbidden,
    ModelNotFound,
    PayloadTooLarge,
    UnsupportedMedia,
    TooManyRequests,
    Cancelled,
    ModelError,
    NotSupported,
    Unavailable,
    DeadlineExceeded,
)

_BY_NAME = {error.__name__: error for error in ALL}
_BY_HTTP = {error.http: error for error in ALL}
# A code that two errors share reads, from a backend that is not ours, as the one more often meant.
_BY_GRPC = {error.grpc: error for error in ALL} | {
    "INVALID_ARGUMENT": InvalidInput,
    "RESOURCE_EXHAUSTED": TooManyRequests,
}

ERROR_HEADER = "kservekit-error"
"""Trailing metadata that names our error, because gRPC has fewer codes than HTTP."""


def from_http(status: int, message: str, *, retry_after: str | None = None) -> ServingError:
    """The error that a backend's HTTP answer stands for.

    Of those that are not in the table a 4xx, such as FastAPI's 422, is an InvalidInput that keeps its status, and any
    other a ModelError.
    """
    if 400 <= status < 500 and status not in _BY_HTTP:
        refused = InvalidInput(message, retry_after=_seconds(retry_after))
        refused.http = status
        return refused
    error = _BY_HTTP.get(status, Unavailable if status == 502 else ModelError)
    return error(message, retry_after=_seconds(retry_after))


def from_grpc(code: str, message: str, *, name: str | None = None, retry_after: str | None = None) -> ServingError:
    """The error that a backend's gRPC status stands for.

    `code` is the status code's name; `name` is our own trailing metadata, where the backend is ours;
    a code not in the table is a ModelError.
    """
    error = _BY_NAME.get(name or "", _BY_GRPC.get(code, ModelError))
    return error(message, retry_after=_seconds(retry_after))


def _seconds(value: str | None) -> float | None:
    return float(value) if value and re.fullmatch(r"\d{1,6}(\.\d{1,3})?", value) else None
