"""Every error that a client can get, as RFC 9457 problem+json.

Problem
├── 400  InvalidRequest  EmptyUpload  BrokenUpload  UnreadableImage
├── 401  MissingKey  InvalidKey
├── 404  UnknownModel  NotFound
├── 405  MethodNotAllowed
├── 408  UploadTooSlow
├── 413  TooManyBytes  TooManyPhotos  TooManyPixels  TooManyScans
├── 415  UnsupportedType
├── 422  InvalidOption  MissingFile  ColorPhoto
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
    advice: ClassVar[str] = ""  # what the caller should do
    retry: ClassVar[str] = "no"  # whether the same request may succeed later
    challenge: ClassVar[str | None] = None
    retry_after_s: ClassVar[int | None] = None  # the Retry-After header, where the raiser gives no other value

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
        self.retry_after = self.retry_after_s if retry_after is None else retry_after
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
        optional = {"Retry-After": self.retry_after, "Allow": self.allow, "WWW-Authenticate": self.challenge}
        return {name: str(value) for name, value in optional.items() if value is not None}


class InvalidRequest(Problem):
    """Not HTTP."""

    status, code, title = 400, "invalid_request", "The request is not valid HTTP"
    advice = "send HTTP/1.1, and no TLS where the service has none"


class EmptyUpload(Problem):
    """There is no byte to decode."""

    status, code, title = 400, "empty_upload", "The upload is empty"
    advice = "send the photo's bytes"


class BrokenUpload(Problem):
    """The request's body breaks off or is not the form it claims to be."""

    status, code, title = 400, "broken_upload", "The request's body is broken"
    advice = "send all of the body, with the boundary that its Content-Type names"
    retry = "when the connection broke off"


class UnreadableImage(Problem):
    """The image is of a known type but can't be decoded."""

    status, code, title = 400, "unreadable_image", "The image can't be read"
    advice = "open the photo elsewhere; when that works, save it anew"


class MissingKey(Problem):
    """The service asks for an API key, and the request has none."""

    status, code, title = 401, "missing_key", "An API key is needed"
    advice = "send `Authorization: Bearer KEY` or `X-API-Key: KEY`"
    challenge = 'Bearer realm="tomau"'


class InvalidKey(Problem):
    """The request's API key is not known, or it has two different ones."""

    status, code, title = 401, "invalid_key", "The API key is not valid"
    advice = "ask who runs the service for a key, and send just that"
    challenge = 'Bearer realm="tomau", error="invalid_token"'


class UnknownModel(Problem):
    """No model of that name is served."""

    status, code, title = 404, "unknown_model", "There is no such model"
    advice = "take a name that `GET /models` lists"


class NotFound(Problem):
    """No such path."""

    status, code, title = 404, "not_found", "There is nothing here"
    advice = "look the path up in `/docs`"


class MethodNotAllowed(Problem):
    """The path exists for other methods."""

    status, code, title = 405, "method_not_allowed", "The method is not allowed here"
    advice = "use a method of the `Allow` header"


class UploadTooSlow(Problem):
    """The body comes more slowly than it must."""

    status, code, title = 408, "upload_too_slow", "The upload is too slow"
    advice = "send a smaller photo, or over a faster line"
    retry = "yes"


class TooManyBytes(Problem):
    """The upload is larger than is taken, or than can be decoded in time."""

    status, code, title = 413, "too_many_bytes", "The upload has too many bytes"
    advice = "send a smaller file; `limit` is the most bytes"


class TooManyPhotos(Problem):
    """The batch has more photos than are taken at once."""

    status, code, title = 413, "too_many_photos", "The batch has too many photos"
    advice = "send them in several batches of at most `limit`"


class TooManyPixels(Problem):
    """The image is larger than is taken; known from its header, before it is decoded."""

    status, code, title = 413, "too_many_pixels", "The image has too many pixels"
    advice = "shrink the photo; `limit` is the most pixels, or the longest side"


class TooManyScans(Problem):
    """A progressive JPEG has so many scans that decoding it would take for ever."""

    status, code, title = 413, "too_many_scans", "The JPEG has too many scans"
    advice = "save the JPEG as a baseline one"


class UnsupportedType(Problem):
    """Not an image of a type, depth or number of frames that is taken."""

    status, code, title = 415, "unsupported_type", "The image's type is not supported"
    advice = "convert the photo to a type that is taken; the README lists them"


class InvalidOption(Problem):
    """An option is unknown, out of range, or can't be met."""

    status, code, title = 422, "invalid_option", "An option is invalid"
    advice = "correct the option that `field` names; `limit` is its bound"


class MissingFile(Problem):
    """The form has not exactly one file."""

    status, code, title = 422, "missing_file", "The form needs one file"
    advice = "send just one part named `file`"


class ColorPhoto(Problem):
    """The photo is in colour already, and `if_color=reject` asked not to colour such ones."""

    status, code, title = 422, "color_photo", "The photo is in colour"
    advice = "keep the photo as it is, or leave `if_color` out to colour it anew"


class HeadTooLarge(Problem):
    """The request line and the headers, or what stands around the body's chunks, are too long."""

    status, code, title = 431, "head_too_large", "The request's head is too large"
    advice = "send fewer and shorter headers, and options rather as form fields"


class ClientGone(Problem):
    """The client hung up before its answer was ready."""

    status, code, title = 499, "client_gone", "The client is gone"


class InternalError(Problem):
    """A fault of the service; the log has the rest."""

    advice = "tell who runs the service, with the request's id from `instance`"
    retry = "once"


class Overloaded(Problem):
    """No place for another photo now."""

    status, code, title = 503, "overloaded", "The service is overloaded"
    advice = "wait the seconds of `Retry-After`, a random part more each time"
    retry = "yes"
    retry_after_s = 1


class OutOfMemory(Problem):
    """There is no memory for the photo now; a smaller one, or the same one later, may be done."""

    status, code, title = 503, "out_of_memory", "There is not enough memory now"
    advice = "wait the seconds of `Retry-After`; if that does not help, send a smaller photo"
    retry = "yes"
    retry_after_s = 5


class Draining(Problem):
    """The service is about to stop."""

    status, code, title = 503, "draining", "The service is stopping"
    advice = "wait the seconds of `Retry-After`, or ask another instance"
    retry = "yes"
    retry_after_s = 5


class DeadlineExceeded(Problem):
    """The answer was not ready in time."""

    status, code, title = 504, "deadline_exceeded", "The answer was not ready in time"
    advice = "send a smaller photo, or come back when less is going on"
    retry = "yes"


def table() -> str:
    """Every problem that an answer can be, as a Markdown table, by status."""
    lines = ["| status | code | title | meaning | what to do | retry? |", "| --- | --- | --- | --- | --- | --- |"]
    for kind in sorted(kinds(), key=lambda kind: kind.status):
        meaning = " ".join((kind.__doc__ or "").split())
        lines.append(f"| {kind.status} | `{kind.code}` | {kind.title} | {meaning} | {kind.advice} | {kind.retry} |")
    return "\n".join(lines) + "\n"


def kinds() -> list[type[Problem]]:
    """Every kind of problem that a client can read."""
    return [kind for kind in Problem.__subclasses__() if kind.__module__ == __name__ and kind is not ClientGone]
