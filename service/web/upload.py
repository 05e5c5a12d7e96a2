"""Receive photos into memory and count their bytes: one from a form or a bare body, or several from a form."""

import asyncio
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from python_multipart.multipart import parse_options_header
from starlette.types import Message, Receive

from service.errors import (
    BrokenUpload,
    ClientGone,
    UnsupportedType,
    UploadTooSlow,
)
from service.pipeline.options import Options
from service.runtime.admission import UploadReservation
from service.settings import FORM_OVERHEAD, Settings
from service.web.form import MAX_FIELD_BYTES, Form, Limits, UploadedPhoto

log = logging.getLogger(__name__)

FORM = b"multipart/form-data"
PHOTO_OVERHEAD = 1024
OPTIONS = frozenset(Options.model_fields)


@dataclass(slots=True)
class Upload:
    """One photo as the client sent it, and the other fields of the form."""

    data: bytes
    fields: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class BatchUpload:
    """The photos of a form in their order, and the other fields."""

    photos: list[UploadedPhoto]
    fields: dict[str, str]


def _photo_limits(settings: Settings, overhead: int = 0) -> Limits:
    most = settings.max_bytes
    return Limits(photos=1, photo_bytes=most, bytes=most, overhead=overhead, is_batch=False)


def _batch_limits(settings: Settings) -> Limits:
    """Return the limits of a batch. Its bytes leave room for the largest single photo."""
    photos = settings.max_batch_photos
    overhead = FORM_OVERHEAD + PHOTO_OVERHEAD * photos
    room = settings.max_upload_bytes - settings.max_form_bytes - overhead
    most = max(0, min(settings.max_batch_bytes, room))
    return Limits(photos=photos, photo_bytes=settings.max_bytes, bytes=most, overhead=overhead, is_batch=True)


def warn_about_cap(settings: Settings) -> None:
    """Log a warning if a batch may not have as many bytes as TOMAU_MAX_BATCH_BYTES says."""
    most = _batch_limits(settings).bytes
    if most < settings.max_batch_bytes:
        log.warning(
            "TOMAU_MAX_BATCH_BYTES=%d: a batch may have only %d bytes, so that TOMAU_MAX_UPLOAD_BYTES=%d has room for a"
            " single photo of TOMAU_MAX_BYTES=%d",
            *(settings.max_batch_bytes, most, settings.max_upload_bytes, settings.max_bytes),
        )


def reserved_for_photos(settings: Settings) -> int:
    """Return the number of upload bytes that batches must leave to single photos."""
    return max(settings.max_form_bytes, settings.max_upload_bytes - _batch_limits(settings).body)


class _Body:
    """The body of a request, chunk by chunk, within the limits of its size, its duration and its least rate."""

    def __init__(
        self,
        request: Mapping[str, str],
        receive: Receive,
        receiving: UploadReservation,
        settings: Settings,
        limits: Limits,
    ) -> None:
        if _is_longer(request.get("content-length", "0"), limits.body):
            raise limits.too_many_bytes()
        self._receive = receive
        self._receiving = receiving
        self._settings = settings
        self._limits = limits
        now = time.monotonic()
        self._deadline = now + settings.upload_grace_s if settings.min_upload_rate else math.inf
        self._last_deadline = now + settings.max_upload_s
        self._bytes = 0
        self._more = True

    def __aiter__(self) -> "_Body":
        return self

    async def __anext__(self) -> bytes:
        if not self._more:
            raise StopAsyncIteration
        message = await self._next_message()
        if message["type"] == "http.disconnect":
            raise ClientGone("the client hung up in the middle of its upload")
        chunk: bytes = message.get("body", b"")
        self._more = message.get("more_body", False)
        self._bytes += len(chunk)
        if self._bytes > self._limits.body:
            raise self._limits.too_many_bytes()
        self._allow_time_for(len(chunk))
        self._receiving.grow(len(chunk))
        return chunk

    async def _next_message(self) -> Message:
        """Return the next message. Raises UploadTooSlow if it did not arrive in time.

        A message that arrived in time is returned even if the event loop is late.
        """
        try:
            async with asyncio.timeout(min(self._deadline, self._last_deadline) - time.monotonic()):
                return await self._receive()
        except TimeoutError:
            raise self._too_slow() from None

    def _too_slow(self) -> UploadTooSlow:
        if self._last_deadline < self._deadline:
            most = self._settings.max_upload_s
            detail = f"the upload took longer than {most:g} s, after {self._bytes} bytes; use a faster connection"
            return UploadTooSlow(detail, limit=most)
        least, grace = self._settings.min_upload_rate, self._settings.upload_grace_s
        detail = f"after {self._bytes} bytes the upload is {grace:g} s behind the least rate, {least} bytes per second"
        return UploadTooSlow(detail, limit=least)

    def _allow_time_for(self, count: int) -> None:
        """Extend the deadline by count / min_upload_rate: a token bucket whose capacity is upload_grace_s."""
        if rate := self._settings.min_upload_rate:
            self._deadline = min(self._deadline + count / rate, time.monotonic() + self._settings.upload_grace_s)


def _is_longer(length: str, limit: int) -> bool:
    """Return whether a Content-Length exceeds the limit. The protocol refuses anything that is not a number.

    A number may have leading zeros, but Python's `int` raises ValueError above 4,300 digits.
    """
    if not (length.isascii() and length.isdecimal()):
        return False
    digits = length.lstrip("0") or "0"
    return len(digits) > len(str(limit)) or int(digits) > limit


async def _receive_form(body: _Body, boundary: bytes | None, receiving: UploadReservation, limits: Limits) -> Form:
    # A boundary never ends with a space (RFC 2046, 5.1.1). Spaces after it are padding.
    boundary = (boundary or b"").rstrip(b" \t")
    if not boundary:
        raise BrokenUpload("the Content-Type multipart/form-data has no boundary parameter; add it")
    form = Form(boundary, OPTIONS, receiving, limits)
    async for chunk in body:
        form.write(chunk)
    form.close()
    return form


def _type(request: Mapping[str, str]) -> tuple[bytes, bytes | None]:
    """Return the media type of the body, and the boundary of a form. Raises UnsupportedType for a compressed body."""
    encoding = request.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedType(f"the Content-Encoding {encoding!r:.80} is not supported; send the body uncompressed")
    declared = request.get("content-type", "")
    if len(declared) > MAX_FIELD_BYTES:
        # Parsing takes quadratic time.
        raise BrokenUpload(f"the Content-Type may have at most {MAX_FIELD_BYTES} bytes", limit=MAX_FIELD_BYTES)
    kind, parameters = parse_options_header(declared)
    return kind, parameters.get(b"boundary")


async def receive(
    request: Mapping[str, str], stream: Receive, receiving: UploadReservation, settings: Settings
) -> Upload:
    """Receive a single photo.

    request: the headers of the request. stream: its ASGI channel.
    Raises TooManyBytes, before the body is read if there is a Content-Length; UploadTooSlow; BrokenUpload; MissingFile;
    InvalidOption; ClientGone; and UnsupportedType for a body that is neither a form nor an image.
    """
    kind, boundary = _type(request)
    is_form = kind == FORM
    if not is_form and kind and kind != b"application/octet-stream" and not kind.startswith(b"image/"):
        raise UnsupportedType(
            "send the photo as multipart/form-data in a field `file`, or as the body with a Content-Type image/*"
        )
    limits = _photo_limits(settings, FORM_OVERHEAD if is_form else 0)
    body = _Body(request, stream, receiving, settings, limits)
    if not is_form:
        return Upload(b"".join([chunk async for chunk in body]))
    form = await _receive_form(body, boundary, receiving, limits)
    return Upload(form.photos[0].data, form.fields)


async def receive_batch(
    request: Mapping[str, str], stream: Receive, receiving: UploadReservation, settings: Settings
) -> BatchUpload:
    """Receive several photos. A photo that is too large has a problem in place of its bytes.

    Raises TooManyPhotos, TooManyBytes for all photos in total, and the problems that `receive` raises for a form.
    """
    kind, boundary = _type(request)
    if kind != FORM:
        raise UnsupportedType("send the photos as multipart/form-data, each in a field `file`")
    limits = _batch_limits(settings)
    body = _Body(request, stream, receiving, settings, limits)
    form = await _receive_form(body, boundary, receiving, limits)
    return BatchUpload(form.photos, form.fields)
