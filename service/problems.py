"""Every error that a client can get, as RFC 9457 problem+json.

Problem
├── 400  InvalidRequest  EmptyUpload  BrokenUpload  UnreadableImage
├── 404  UnknownModel  NotFound
├── 405  MethodNotAllowed
├── 408  UploadTooSlow
├── 413  TooManyBytes  TooManyPixels  TooManyScans
├── 415  UnsupportedType
├── 422  InvalidOption  MissingFile
├── 431  HeadTooLarge
├── 499  ClientGone (nobody reads it; for the log)
├── 500  InternalError
├── 503  Overloaded  OutOfMemory  Draining
└── 504  DeadlineExceeded
"""

from collections.abc import Mapping
from typing import Any, ClassVar


class Problem(Exception):
    """An error with a status, a stable code, a public text, and the field and the limit it is about, if any."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Internal error"

    def __init__(
        self,
        detail: str,
        *,
        field: str | None = None,
        limit: int | float | None = None,
        retry_after: int | None = None,
        allow: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field
        self.limit = limit
        self.retry_after = retry_after
        self.allow = allow

    def body(self, request_id: str) -> dict[str, Any]:
        """The members of the problem document."""
        document: dict[str, Any] = {
            "type": f"urn:tomau:problem:{self.code}",
            "title": self.title,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
            "instance": f"urn:tomau:request:{request_id}",
        }
        optional = {"field": self.field, "limit": self.limit}
        return document | {key: value for key, value in optional.items() if value is not None}

    def headers(self) -> Mapping[str, str]:
        """Headers that belong to the answer."""
        optional = {"Retry-After": self.retry_after, "Allow": self.allow}
        return {name: str(value) for name, value in optional.items() if value is not None}


class InvalidRequest(Problem):
    """Not HTTP."""

    status, code, title = 400, "invalid_request", "The request is not valid HTTP"


class EmptyUpload(Problem):
    """There is no byte to decode."""

    status, code, title = 400, "empty_upload", "The upload is empty"


class BrokenUpload(Problem):
    """The request's body breaks off or is not the form it claims to be."""

    status, code, title = 400, "broken_upload", "The request's body is broken"


class UnreadableImage(Problem):
    """The image is of a known type but can't be decoded."""

    status, code, title = 400, "unreadable_image", "The image can't be read"


class UnknownModel(Problem):
    """No model of that name is served."""

    status, code, title = 404, "unknown_model", "There is no such model"


class NotFound(Problem):
    """No such path."""

    status, code, title = 404, "not_found", "There is nothing here"


class MethodNotAllowed(Problem):
    """The path exists for other methods."""

    status, code, title = 405, "method_not_allowed", "The method is not allowed here"


class UploadTooSlow(Problem):
    """The body comes more slowly than it must."""

    status, code, title = 408, "upload_too_slow", "The upload is too slow"


class TooManyBytes(Problem):
    """The upload is larger than is taken."""

    status, code, title = 413, "too_many_bytes", "The upload has too many bytes"


class TooManyPixels(Problem):
    """The image is larger than is taken; known from its header, before it is decoded."""

    status, code, title = 413, "too_many_pixels", "The image has too many pixels"


class TooManyScans(Problem):
    """A progressive JPEG has so many scans that decoding it would take for ever."""

    status, code, title = 413, "too_many_scans", "The JPEG has too many scans"


class UnsupportedType(Problem):
    """Not an image of a type, depth or number of frames that is taken."""

    status, code, title = 415, "unsupported_type", "The image's type is not supported"


class InvalidOption(Problem):
    """An option is unknown, out of range, or can't be met."""

    status, code, title = 422, "invalid_option", "An option is invalid"


class MissingFile(Problem):
    """The form has not exactly one file."""

    status, code, title = 422, "missing_file", "The form needs one file"


class HeadTooLarge(Problem):
    """The request line and the headers, or what stands around the body's chunks, are too long."""

    status, code, title = 431, "head_too_large", "The request's head is too large"


class ClientGone(Problem):
    """The client hung up before its answer was ready."""

    status, code, title = 499, "client_gone", "The client is gone"


class InternalError(Problem):
    """A fault of the service; the log has the rest."""


class Overloaded(Problem):
    """No place for another photo now."""

    status, code, title = 503, "overloaded", "The service is overloaded"


class OutOfMemory(Problem):
    """There is no memory for the photo now; a smaller one, or the same one later, may be done."""

    status, code, title = 503, "out_of_memory", "There is not enough memory now"


class Draining(Problem):
    """The service is about to stop."""

    status, code, title = 503, "draining", "The service is stopping"


class DeadlineExceeded(Problem):
    """The answer was not ready in time."""

    status, code, title = 504, "deadline_exceeded", "The answer was not ready in time"
