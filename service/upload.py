"""Receives one photo: a multipart form or a bare body, in memory, counted while it streams."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.types import Message, Receive

from service.admission import Receiving
from service.problems import (
    BrokenUpload,
    ClientGone,
    InvalidOption,
    MissingFile,
    TooManyBytes,
    UnsupportedType,
    UploadTooSlow,
)
from service.settings import Settings

# What a form may have beside its photo: boundaries, part headers, options.
FORM_OVERHEAD = 64 * 1024
MAX_FIELD_BYTES = 1024
MAX_PARTS = 32


@dataclass(slots=True)
class Upload:
    """One photo as it came, and the form's other fields."""

    data: bytes
    fields: dict[str, str] = field(default_factory=dict)


class _Body:
    """The request's body, chunk by chunk, with a least rate and a greatest size."""

    def __init__(self, receive: Receive, receiving: Receiving, settings: Settings, limit: int) -> None:
        self._receive = receive
        self._receiving = receiving
        self._settings = settings
        self._limit = limit
        self._started = time.monotonic()
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
        if self._bytes > self._limit:
            raise too_many_bytes(self._settings)
        self._receiving.grow(len(chunk))
        return chunk

    async def _next_message(self) -> Message:
        """A body of n bytes has to be here `grace + n / rate` seconds after its start."""
        settings = self._settings
        if not settings.min_upload_rate:
            return await self._receive()
        allowed = settings.upload_grace_s + (self._bytes + 1) / settings.min_upload_rate
        try:
            async with asyncio.timeout(self._started + allowed - time.monotonic()):
                return await self._receive()
        except TimeoutError:
            raise UploadTooSlow(
                f"{self._bytes} bytes in {allowed:.0f} s are too few; the least is {settings.min_upload_rate} a second",
                limit=settings.min_upload_rate,
            ) from None


def too_many_bytes(settings: Settings) -> TooManyBytes:
    """The refusal of a photo that is too large."""
    return TooManyBytes(f"a photo may have {settings.max_bytes:,} bytes", field="file", limit=settings.max_bytes)


class _Form:
    """The callbacks of the multipart parser: collects the photo and the small fields."""

    def __init__(self, boundary: bytes, settings: Settings) -> None:
        self._settings = settings
        self._parts = 0
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._name = ""
        # Parts of the chunks as they came, joined once: a value that grew would be copied again and again.
        self._value: list[memoryview] = []
        self._bytes = 0
        self.ended = False
        self.file: list[memoryview] | None = None
        self.fields: dict[str, str] = {}
        self.parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._part_begin,
                "on_header_field": lambda data, start, end: self._header_name.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._header_value.extend(data[start:end]),
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._part_data,
                "on_part_end": self._part_end,
                "on_end": self._end,
            },
        )

    def _part_begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise BrokenUpload(f"a form may have {MAX_PARTS} parts", limit=MAX_PARTS)
        self._headers = {}

    def _header_end(self) -> None:
        self._headers[bytes(self._header_name).lower()] = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        if self._name == "file":
            if self.file is not None:
                raise MissingFile("the form has more than one `file`", field="file", limit=1)
            self.file = self._value = []
        elif b"filename" in options:
            raise InvalidOption(f"the form's file is named {self._name!r:.80}, not `file`", field=self._name[:80])
        else:
            self._value = []
        self._bytes = 0

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        limit = self._settings.max_bytes if self._name == "file" else MAX_FIELD_BYTES
        self._bytes += end - start
        if self._bytes > limit:
            if self._name == "file":
                raise too_many_bytes(self._settings)
            raise InvalidOption(f"an option may have {limit} bytes", field=self._name[:80], limit=limit)
        self._value.append(memoryview(data)[start:end])

    def _part_end(self) -> None:
        if self._name == "file":
            return
        if self._name in self.fields:
            raise InvalidOption("the option is given twice", field=self._name[:80])
        self.fields[self._name] = b"".join(self._value).decode("utf-8", "replace")

    def _end(self) -> None:
        self.ended = True


async def _receive_form(body: _Body, boundary: bytes, settings: Settings) -> Upload:
    try:
        form = _Form(boundary, settings)
        async for chunk in body:
            form.parser.write(chunk)
    except FormParserError as error:
        raise BrokenUpload(f"the multipart form can't be parsed: {error}") from error
    if not form.ended:
        raise BrokenUpload("the multipart form breaks off before its last boundary")
    if form.file is None:
        raise MissingFile("the form has no `file`", field="file")
    return Upload(b"".join(form.file), form.fields)


async def receive(request: Mapping[str, str], stream: Receive, receiving: Receiving, settings: Settings) -> Upload:
    """Receives a photo. `request` are the headers, `stream` the ASGI channel.

    Raises TooManyBytes (from Content-Length where there is one), UploadTooSlow, BrokenUpload, MissingFile,
    InvalidOption, UnsupportedType for a body that is neither a form nor an image, and ClientGone.
    """
    if len(request.get("content-type", "")) > MAX_FIELD_BYTES:
        # Parsing it takes quadratic time.
        raise BrokenUpload(f"the Content-Type may have {MAX_FIELD_BYTES} bytes", limit=MAX_FIELD_BYTES)
    kind, parameters = parse_options_header(request.get("content-type", ""))
    is_form = kind == b"multipart/form-data"
    if not is_form and kind and kind != b"application/octet-stream" and not kind.startswith(b"image/"):
        raise UnsupportedType(
            "send the photo as multipart/form-data in a field `file`, or as a bare body of a type image/*"
        )
    limit = settings.max_bytes + (FORM_OVERHEAD if is_form else 0)
    length = request.get("content-length", "0")
    if length.isdecimal() and int(length) > limit:
        raise too_many_bytes(settings)
    body = _Body(stream, receiving, settings, limit)
    if not is_form:
        return Upload(b"".join([chunk async for chunk in body]))
    if not parameters.get(b"boundary"):
        raise BrokenUpload("the Content-Type multipart/form-data has no boundary")
    return await _receive_form(body, parameters[b"boundary"], settings)
