"""The errors that a client can get, as RFC 9457 problem+json. All are subclasses of Problem:

- 400: InvalidRequest, EmptyUpload, BrokenUpload, UnreadableImage
- 401: MissingKey, InvalidKey
- 404: UnknownModel, NotFound
- 405: MethodNotAllowed
- 408: UploadTooSlow
- 413: TooManyBytes, TooManyPhotos, TooManyPixels, TooManyScans
- 415: UnsupportedType
- 422: InvalidOption, MissingFile, ColorPhoto
- 431: HeadTooLarge
- 499: ClientGone (for the log; no client reads it)
- 500: InternalError
- 503: Overloaded, OutOfMemory, Draining
- 504: DeadlineExceeded
"""

from collections.abc import Mapping
from typing import Any, ClassVar


class Problem(Exception):
    """An error with a status, a stable code and a public text.

    field, limit: the option or form field that is wrong, and the limit that it exceeds, where there is one.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Internal error"
    advice: ClassVar[str] = ""  # What the client should do.
    retry: ClassVar[str] = "no"  # Whether the same request may succeed later.
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
        """Return the members of the problem document."""
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
        """Return the headers of the response."""
        optional = {"Retry-After": self.retry_after, "Allow": self.allow, "WWW-Authenticate": self.challenge}
        return {name: str(value) for name, value in optional.items() if value is not None}


class InvalidRequest(Problem):
    """The server can't parse the request as HTTP."""

    status, code, title = 400, "invalid_request", "The request is not valid HTTP"
    advice = "send HTTP/1.1, and use http:// if the service has no TLS"


class EmptyUpload(Problem):
    """The upload has no bytes."""

    status, code, title = 400, "empty_upload", "The upload is empty"
    advice = "send the photo's bytes"


class BrokenUpload(Problem):
    """The body ends too early, or is not the form that its Content-Type announces."""

    status, code, title = 400, "broken_upload", "The request's body is broken"
    advice = "send the complete body, with the boundary that its Content-Type names"
    retry = "if the connection was lost"


class UnreadableImage(Problem):
    """The image has a supported type, but its data can't be decoded."""

    status, code, title = 400, "unreadable_image", "The image can't be read"
    advice = "open the photo in another program; if that works, save it again"


class MissingKey(Problem):
    """The service requires an API key, and the request has none."""

    status, code, title = 401, "missing_key", "An API key is required"
    advice = "send `Authorization: Bearer KEY` or `X-API-Key: KEY`"
    challenge = 'Bearer realm="tomau"'


class InvalidKey(Problem):
    """The API key of the request is unknown, or the request has two different keys."""

    status, code, title = 401, "invalid_key", "The API key is not valid"
    advice = "ask the operator of the service for a key, and send only that key"
    challenge = 'Bearer realm="tomau", error="invalid_token"'


class UnknownModel(Problem):
    """The service has no model of this name."""

    status, code, title = 404, "unknown_model", "There is no such model"
    advice = "use a name that `GET /models` lists"


class NotFound(Problem):
    """The path does not exist."""

    status, code, title = 404, "not_found", "There is no such path"
    advice = "see `/docs` for the paths"


class MethodNotAllowed(Problem):
    """The path exists, but not for this method."""

    status, code, title = 405, "method_not_allowed", "The method is not allowed here"
    advice = "use a method that the `Allow` header lists"


class UploadTooSlow(Problem):
    """The body arrives more slowly than the least rate, or the whole upload takes too long."""

    status, code, title = 408, "upload_too_slow", "The upload is too slow"
    advice = "send a smaller photo, or use a faster connection"
    retry = "yes"


class TooManyBytes(Problem):
    """The upload is larger than allowed, or decoding it would take too long."""

    status, code, title = 413, "too_many_bytes", "The upload has too many bytes"
    advice = "send a smaller file; `limit` is the largest number of bytes"


class TooManyPhotos(Problem):
    """The batch has more photos than one request may have."""

    status, code, title = 413, "too_many_photos", "The batch has too many photos"
    advice = "send several batches of at most `limit` photos each"


class TooManyPixels(Problem):
    """The image is larger than allowed, according to its header."""

    status, code, title = 413, "too_many_pixels", "The image has too many pixels"
    advice = "shrink the photo; `limit` is the largest number of pixels, or the longest side"


class TooManyScans(Problem):
    """The progressive JPEG has too many scans; decoding it would take too long."""

    status, code, title = 413, "too_many_scans", "The JPEG has too many scans"
    advice = "save the photo as a baseline JPEG"


class UnsupportedType(Problem):
    """The upload is not an image, or its type, depth or number of frames is not supported."""

    status, code, title = 415, "unsupported_type", "The image's type is not supported"
    advice = "convert the photo to a supported type; the README lists them"


class InvalidOption(Problem):
    """An option is unknown, out of range, or can't be applied to this photo."""

    status, code, title = 422, "invalid_option", "An option is invalid"
    advice = "correct the option that `field` names; `limit` is the bound that it exceeds"


class MissingFile(Problem):
    """The form has no part named `file`, or several for a single photo, or a file of another name."""

    status, code, title = 422, "missing_file", "The form needs one file"
    advice = "send one part named `file`, or several to `/colorize/batch`"


class ColorPhoto(Problem):
    """The photo is already in colour, and the request has `if_color=reject`."""

    status, code, title = 422, "color_photo", "The photo is in colour"
    advice = "keep the photo as it is, or omit `if_color` to colour it again"


class HeadTooLarge(Problem):
    """The header section of the request, or the framing of its chunked body, is too long."""

    status, code, title = 431, "head_too_large", "The header section of the request is too large"
    advice = "send fewer and shorter headers, and send options as form fields"


class ClientGone(Problem):
    """The client closed its connection before the response was ready."""

    status, code, title = 499, "client_gone", "The client is gone"


class InternalError(Problem):
    """An error in the service itself. Its log has the details."""

    advice = "report it to the operator of the service, with the request id from `instance`"
    retry = "once"


class Overloaded(Problem):
    """A limit on concurrent work is reached, so that the service can't accept the request now."""

    status, code, title = 503, "overloaded", "The service is overloaded"
    advice = "wait for the seconds in `Retry-After` plus a random time, longer after each try"
    retry = "yes"
    retry_after_s = 1


class OutOfMemory(Problem):
    """The service has not enough memory for the photo now. A smaller photo, or the same one later, may succeed."""

    status, code, title = 503, "out_of_memory", "There is not enough memory now"
    advice = "wait for the seconds in `Retry-After`; if that does not help, send a smaller photo"
    retry = "yes"
    retry_after_s = 5


class Draining(Problem):
    """The service is about to stop, or is stuck or failing."""

    status, code, title = 503, "draining", "The service is stopping"
    advice = "wait for the seconds in `Retry-After`, or use another instance"
    retry = "yes"
    retry_after_s = 5


class DeadlineExceeded(Problem):
    """The response was not ready within the deadline."""

    status, code, title = 504, "deadline_exceeded", "The response was not ready in time"
    advice = "send a smaller photo, or try again when the service is less busy"
    retry = "yes"


def table() -> str:
    """Return a Markdown table of the problems, ordered by status."""
    lines = ["| status | code | title | meaning | what to do | retry? |", "| --- | --- | --- | --- | --- | --- |"]
    for kind in sorted(kinds(), key=lambda kind: kind.status):
        meaning = " ".join((kind.__doc__ or "").split())
        lines.append(f"| {kind.status} | `{kind.code}` | {kind.title} | {meaning} | {kind.advice} | {kind.retry} |")
    return "\n".join(lines) + "\n"


def kinds() -> list[type[Problem]]:
    """Return the kinds of problem that a client can read."""
    return [kind for kind in Problem.__subclasses__() if kind.__module__ == __name__ and kind is not ClientGone]
