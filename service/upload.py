"""Receives photos, in memory, counted while they stream: one of a form or a bare body, or several of a form."""

import asyncio
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.errors import HeaderParseError
from email.header import decode_header, make_header

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.types import Message, Receive

from service.admission import Receiving
from service.problems import (
    BrokenUpload,
    ClientGone,
    InvalidOption,
    MissingFile,
    Problem,
    TooManyBytes,
    TooManyPhotos,
    UnsupportedType,
    UploadTooSlow,
)
from service.settings import FORM_OVERHEAD, Settings

log = logging.getLogger(__name__)

FORM = b"multipart/form-data"
PHOTO_OVERHEAD = 1024
MAX_FIELD_BYTES = 1024
MAX_FIELDS = 32


@dataclass(slots=True)
class Upload:
    """One photo as it came, and the form's other fields."""

    data: bytes
    fields: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class SentPhoto:
    """A photo of a form: the name it was sent with, and its bytes, or why they were thrown away."""

    name: str
    data: bytes = b""
    problem: Problem | None = None


@dataclass(slots=True)
class BatchUpload:
    """The photos of a form, in the order they came, and its other fields."""

    photos: list[SentPhoto]
    fields: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Limits:
    """Of one request: its photos, their bytes together, and what its body may have beside them."""

    photos: int
    bytes: int
    overhead: int
    is_batch: bool

    @property
    def body(self) -> int:
        return self.bytes + self.overhead

    def too_many_bytes(self) -> TooManyBytes:
        who = "the photos of a batch together" if self.is_batch else "a photo"
        return TooManyBytes(f"{who} may have {self.bytes:,} bytes", field="file", limit=self.bytes)


def _photo_limits(settings: Settings, overhead: int = 0) -> _Limits:
    return _Limits(1, settings.max_bytes, overhead, is_batch=False)


def _batch_limits(settings: Settings) -> _Limits:
    """Whatever a batch has, there is room for a whole photo beside it."""
    photos = settings.max_batch_photos
    overhead = FORM_OVERHEAD + PHOTO_OVERHEAD * photos
    room = settings.max_upload_bytes - settings.max_form_bytes - overhead
    return _Limits(photos, max(0, min(settings.max_batch_bytes, room)), overhead, is_batch=True)


def tell_of_cap(settings: Settings) -> None:
    """Warns when a batch may not have as many bytes as is set."""
    most = _batch_limits(settings).bytes
    if most < settings.max_batch_bytes:
        log.warning(
            "TOMAU_MAX_BATCH_BYTES=%d: a batch may have %d bytes only, so that TOMAU_MAX_UPLOAD_BYTES=%d has room for a"
            " photo of TOMAU_MAX_BYTES=%d beside it",
            *(settings.max_batch_bytes, most, settings.max_upload_bytes, settings.max_bytes),
        )


def left_by_batches(settings: Settings) -> int:
    """How many of the bytes of all uploads no batch takes, so that single photos find some."""
    return max(settings.max_form_bytes, settings.max_upload_bytes - _batch_limits(settings).body)


class _Body:
    """The request's body, chunk by chunk, with a least rate, a longest time and a greatest size."""

    def __init__(
        self,
        request: Mapping[str, str],
        receive: Receive,
        receiving: Receiving,
        settings: Settings,
        limits: _Limits,
    ) -> None:
        length = request.get("content-length", "0")
        if length.isdecimal() and int(length) > limits.body:
            raise limits.too_many_bytes()
        self._receive = receive
        self._receiving = receiving
        self._settings = settings
        self._limits = limits
        now = time.monotonic()
        self._ends = now + settings.upload_grace_s if settings.min_upload_rate else math.inf
        self._ends_at_last = now + settings.max_upload_s
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
        """What has come in time is taken, however late it is looked at."""
        try:
            async with asyncio.timeout(min(self._ends, self._ends_at_last) - time.monotonic()):
                return await self._receive()
        except TimeoutError:
            raise self._too_slow() from None

    def _too_slow(self) -> UploadTooSlow:
        if self._ends_at_last < self._ends:
            most = self._settings.max_upload_s
            return UploadTooSlow(f"after {self._bytes} bytes the upload has taken {most:g} s", limit=most)
        least, grace = self._settings.min_upload_rate, self._settings.upload_grace_s
        detail = f"after {self._bytes} bytes the upload is {grace:g} s behind the least, {least} bytes a second"
        return UploadTooSlow(detail, limit=least)

    def _allow_time_for(self, count: int) -> None:
        """The bytes buy time for the next ones, but what comes faster than it must saves up no more than the grace."""
        if rate := self._settings.min_upload_rate:
            self._ends = min(self._ends + count / rate, time.monotonic() + self._settings.upload_grace_s)


class _Form:
    """The callbacks of the multipart parser: collects the photos and the small fields.

    A photo too large ends the form. Of a batch only its bytes are thrown away, and the others go on.
    """

    def __init__(self, boundary: bytes, receiving: Receiving, settings: Settings, limits: _Limits) -> None:
        self._receiving = receiving
        self._settings = settings
        self._limits = limits
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._name = ""
        self._options = 0
        # Parts of the chunks as they came, joined once: a value that grew would be copied again and again.
        self._value: list[memoryview] = []
        self._bytes = 0
        self._photo_bytes = 0
        self.ended = False
        self.photos: list[SentPhoto] = []
        self.fields: dict[str, str] = {}
        self.parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._headers.clear,
                "on_header_field": lambda data, start, end: self._header_name.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._header_value.extend(data[start:end]),
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._part_data,
                "on_part_end": self._part_end,
                "on_end": self._end,
            },
        )

    def _header_end(self) -> None:
        self._headers[bytes(self._header_name).lower()] = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _headers_finished(self) -> None:
        _, parameters = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._name = parameters.get(b"name", b"").decode("utf-8", "replace")
        self._bytes = 0
        if self._name == "file":
            self._begin_photo(parameters.get(b"filename", b""))
        elif b"filename" in parameters:
            raise MissingFile(f"the form's file is named {self._name!r:.80}, not `file`", field=self._name[:80])
        else:
            self._begin_option()

    def _begin_photo(self, name: bytes) -> None:
        most = self._limits.photos
        if len(self.photos) >= most:
            if self._limits.is_batch:
                raise TooManyPhotos(f"a batch may have {most:,} photos", field="file", limit=most)
            raise MissingFile("the form has more than one `file`; /colorize/batch takes several", field="file", limit=1)
        self.photos.append(SentPhoto(_text(name)))

    def _begin_option(self) -> None:
        self._options += 1
        if self._options > MAX_FIELDS:
            raise BrokenUpload(f"a form may have {MAX_FIELDS} options", limit=MAX_FIELDS)

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._bytes += end - start
        self._value.append(memoryview(data)[start:end])
        if self._name == "file":
            self._check_photo(end - start)
        elif self._bytes > MAX_FIELD_BYTES:
            detail = f"an option may have {MAX_FIELD_BYTES} bytes"
            raise InvalidOption(detail, field=self._name[:80], limit=MAX_FIELD_BYTES)

    def _check_photo(self, came: int) -> None:
        self._photo_bytes += came
        if self._photo_bytes > self._limits.bytes:
            raise self._limits.too_many_bytes()
        if self._bytes > self._settings.max_bytes:
            self.photos[-1].problem = _photo_limits(self._settings).too_many_bytes()
            self._receiving.shrink(sum(map(len, self._value)))
            self._value.clear()

    def _part_end(self) -> None:
        value = b"".join(self._value)
        self._value.clear()
        if self._name == "file":
            self.photos[-1].data = value
            return
        if self._name in self.fields:
            raise InvalidOption("the option is given twice", field=self._name[:80])
        self.fields[self._name] = value.decode("utf-8", "replace")

    def _end(self) -> None:
        self.ended = True


def _text(name: bytes) -> str:
    """UTF-8, or else the code page of an old client; this one takes any bytes."""
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        return name.decode("latin-1")
    return _decoded_word(text) if text.startswith("=?") else text


def _decoded_word(text: str) -> str:
    """As mails have their names, and .NET's forms."""
    try:
        return str(make_header(decode_header(text)))
    except (HeaderParseError, LookupError, ValueError):
        return text


async def _receive_form(
    body: _Body, boundary: bytes | None, receiving: Receiving, settings: Settings, limits: _Limits
) -> _Form:
    if not boundary:
        raise BrokenUpload("the Content-Type multipart/form-data has no boundary")
    try:
        form = _Form(boundary, receiving, settings, limits)
        async for chunk in body:
            form.parser.write(chunk)
    except FormParserError as error:
        raise BrokenUpload(f"the multipart form can't be parsed: {error}") from error
    if not form.ended:
        raise BrokenUpload("the multipart form breaks off before its last boundary")
    if not form.photos:
        raise MissingFile("the form has no `file`", field="file")
    return form


def _type(request: Mapping[str, str]) -> tuple[bytes, bytes | None]:
    """The body's media type, and the boundary of a form. Raises UnsupportedType for one that is compressed."""
    encoding = request.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedType(f"a body with the Content-Encoding {encoding!r:.80} can't be read; send it as it is")
    declared = request.get("content-type", "")
    if len(declared) > MAX_FIELD_BYTES:
        # Parsing it takes quadratic time.
        raise BrokenUpload(f"the Content-Type may have {MAX_FIELD_BYTES} bytes", limit=MAX_FIELD_BYTES)
    kind, parameters = parse_options_header(declared)
    return kind, parameters.get(b"boundary")


async def receive(request: Mapping[str, str], stream: Receive, receiving: Receiving, settings: Settings) -> Upload:
    """Receives a photo. `request` are the headers, `stream` the ASGI channel.

    Raises TooManyBytes (from Content-Length where there is one), UploadTooSlow, BrokenUpload, MissingFile,
    InvalidOption, UnsupportedType for a body that is neither a form nor an image, and ClientGone.
    """
    kind, boundary = _type(request)
    is_form = kind == FORM
    if not is_form and kind and kind != b"application/octet-stream" and not kind.startswith(b"image/"):
        raise UnsupportedType(
            "send the photo as multipart/form-data in a field `file`, or as a bare body of a type image/*"
        )
    limits = _photo_limits(settings, FORM_OVERHEAD if is_form else 0)
    body = _Body(request, stream, receiving, settings, limits)
    if not is_form:
        return Upload(b"".join([chunk async for chunk in body]))
    form = await _receive_form(body, boundary, receiving, settings, limits)
    return Upload(form.photos[0].data, form.fields)


async def receive_batch(
    request: Mapping[str, str], stream: Receive, receiving: Receiving, settings: Settings
) -> BatchUpload:
    """Receives several photos. One that is too large comes as its problem, without its bytes.

    Raises TooManyPhotos, TooManyBytes for all of them together, and what `receive` does for a form.
    """
    kind, boundary = _type(request)
    if kind != FORM:
        raise UnsupportedType("send the photos as multipart/form-data, each in a field `file`")
    limits = _batch_limits(settings)
    body = _Body(request, stream, receiving, settings, limits)
    form = await _receive_form(body, boundary, receiving, settings, limits)
    return BatchUpload(form.photos, form.fields)
