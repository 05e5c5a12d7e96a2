"""Parse a multipart form while it streams in: photos, options, and the names that photos are sent with."""

import re
from dataclasses import dataclass
from email.errors import HeaderParseError
from email.header import decode_header
from encodings import normalize_encoding
from encodings.aliases import aliases
from typing import Any
from urllib.parse import unquote_to_bytes

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.errors import (
    BrokenUpload,
    InvalidOption,
    MissingFile,
    Problem,
    TooManyBytes,
    TooManyPhotos,
    UnsupportedType,
)
from service.runtime.admission import UploadReservation

FILE = "file"
# HTML's name for a hidden field that holds the form's encoding (RFC 7578, 4.6). It is not an option.
CHARSET_FIELD = "_charset_"
MAX_FIELD_BYTES = 1024
MAX_FIELDS = 32
# Most bytes before the first boundary (RFC 2046, 5.1.1). Real preambles have a line or two.
MAX_PREAMBLE_BYTES = 64 * 1024
# Encodings of a part's body that leave its bytes as they are.
PLAIN_ENCODINGS = frozenset({b"", b"7bit", b"8bit", b"binary"})
# Python caches every name that it looks up, so that it looks up only known names.
ENCODINGS = frozenset(aliases) | frozenset(aliases.values())
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
EXTENDED_NAME = re.compile(rb"filename\*\s*=", re.IGNORECASE)
EXTENDED_VALUE = re.compile(r"([\w-]+)'[^']*'((?:[^%]|%[0-9A-Fa-f]{2})+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one request.

    photos: number of photos. photo_bytes: bytes of one photo. bytes: bytes of all photos. overhead: all other bytes.
    """

    photos: int
    photo_bytes: int
    bytes: int
    overhead: int
    is_batch: bool

    @property
    def body(self) -> int:
        """Most bytes of the whole body."""
        return self.bytes + self.overhead

    def too_many_bytes(self) -> TooManyBytes:
        """Return the problem of a request whose photos are too large."""
        what = "all photos of a batch" if self.is_batch else "a photo"
        return TooManyBytes(f"{what} may have at most {self.bytes:,} bytes", field=FILE, limit=self.bytes)

    def photo_too_large(self) -> TooManyBytes:
        """Return the problem of one photo that is too large."""
        return TooManyBytes(f"a photo may have at most {self.photo_bytes:,} bytes", field=FILE, limit=self.photo_bytes)


@dataclass(slots=True)
class UploadedPhoto:
    """A photo of a form: its file name, and its bytes or the problem for which they were dropped."""

    name: str
    data: bytes = b""
    problem: Problem | None = None


class Preamble:
    """The bytes before the first boundary of a form, which the parser does not accept."""

    def __init__(self, boundary: bytes) -> None:
        self._first = b"--" + boundary
        self._last = self._first + b"--"
        self._held = bytearray()
        self._line = 0  # Start of the last line.
        self._looked = 0  # End of the part that was searched for line ends.

    def skip(self, data: bytes) -> bytes:
        """Return the form from its first boundary on, without spaces after it, or no bytes before the boundary arrives.

        Raises BrokenUpload if the boundary does not arrive within MAX_PREAMBLE_BYTES.
        """
        self._held += data
        while not self._held.startswith(self._last, self._line):
            line_end = self._held.find(b"\n", self._looked)
            if line_end < 0:
                return self._nothing_yet()
            if self._held[self._line : line_end] == self._first:
                raise BrokenUpload("the lines of the form end with LF alone; they must end with CR LF")
            if self._is_boundary(line_end):
                return self._first + b"\r\n" + bytes(self._held[line_end + 1 :])
            self._line = self._looked = line_end + 1
        return bytes(self._held[self._line :])

    def _is_boundary(self, line_end: int) -> bool:
        line = self._held[self._line : line_end]
        return line.endswith(b"\r") and line[:-1].rstrip(b" \t") == self._first

    def _nothing_yet(self) -> bytes:
        self._looked = len(self._held)
        if self._looked > MAX_PREAMBLE_BYTES + len(self._first):
            raise self.missing()
        return b""

    def missing(self) -> BrokenUpload:
        """Return the problem of a form without its boundary."""
        shown = self._first.decode("latin-1")
        return BrokenUpload(f"the form has no line {shown!r:.80}, which is the boundary in its Content-Type")


class Form:
    """The photos and the options of a form, collected from the callbacks of the multipart parser.

    An empty field counts as not given. A photo that is too large ends a form with a single photo. In a batch, only the
    bytes of that photo are dropped.
    """

    def __init__(self, boundary: bytes, options: frozenset[str], receiving: UploadReservation, limits: Limits) -> None:
        """Begin a form. options: names of fields that are options, even if they are sent as files."""
        self._known_options = options
        self._receiving = receiving
        self._limits = limits
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._name = ""
        self._filename: str | None = None
        self._charset = "utf-8"
        self._options = 0
        self._blank: list[str] = []
        # Slices of the chunks, joined once at the end. A growing value would be copied with every chunk.
        self._value: list[memoryview] = []
        self._bytes = 0
        self._photo_bytes = 0
        self._photo: UploadedPhoto | None = None
        self._ended = False
        self.photos: list[UploadedPhoto] = []
        self.fields: dict[str, str] = {}
        self._preamble: Preamble | None = Preamble(boundary)
        callbacks: Any = {
            "on_part_begin": self._headers.clear,
            "on_header_field": lambda data, start, end: self._header_name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._header_value.extend(data[start:end]),
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except FormParserError as error:
            raise BrokenUpload(f"the form can't be parsed: {error}") from error

    def write(self, data: bytes) -> None:
        """Parse a chunk of the body. Raises the problems that it finds."""
        if self._preamble is not None:
            data = self._preamble.skip(data)
            if not data:
                return
            self._preamble = None
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise BrokenUpload(f"the form can't be parsed: {error}") from error

    def close(self) -> None:
        """End the form. Raises BrokenUpload if it is incomplete, MissingFile if it has no photo."""
        if self._preamble is not None:
            raise self._preamble.missing()
        if not self._ended:
            raise BrokenUpload("the form ends before its last boundary")
        if not self.photos:
            is_blank = FILE in self._blank
            detail = "the field `file` is empty; choose a photo" if is_blank else "the form has no field `file`"
            raise MissingFile(detail, field=FILE)

    def _header_end(self) -> None:
        self._headers[bytes(self._header_name).lower()] = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _headers_finished(self) -> None:
        disposition = self._headers.get(b"content-disposition", b"")
        _, parameters = parse_options_header(disposition)
        self._name = parameters.get(b"name", b"").decode("utf-8", "replace")
        self._filename = _filename(disposition, parameters)
        self._bytes = 0
        self._photo = None
        self._check_encoding()
        if self._name == FILE:
            if self._filename:
                self._begin_photo()
        elif self._filename and not self._is_option:
            raise self._no_file()
        elif self._is_option:
            self._begin_option()

    @property
    def _is_option(self) -> bool:
        """True if the part is an option. Scripts of web pages may send options as files (blobs)."""
        return self._filename is None or self._name in self._known_options

    def _no_file(self) -> MissingFile:
        return MissingFile(f"the field of the photo is named {self._name!r:.80}; name it `file`", field=self._name[:80])

    def _check_encoding(self) -> None:
        encoding = self._headers.get(b"content-transfer-encoding", b"").strip().lower()
        if encoding not in PLAIN_ENCODINGS:
            shown = encoding.decode("latin-1")
            raise UnsupportedType(
                f"the Content-Transfer-Encoding {shown!r:.80} of a part is not supported; send the part as binary",
            )
        _, parameters = parse_options_header(self._headers.get(b"content-type", b""))
        self._charset = parameters.get(b"charset", b"utf-8").decode("latin-1")

    def _begin_photo(self) -> None:
        most = self._limits.photos
        if len(self.photos) >= most:
            if self._limits.is_batch:
                raise TooManyPhotos(f"a batch may have at most {most:,} photos", field=FILE, limit=most)
            raise MissingFile(
                "the form has more than one `file`; send several photos to /colorize/batch", field=FILE, limit=1
            )
        self._photo = UploadedPhoto(self._filename or "")
        self.photos.append(self._photo)

    def _begin_option(self) -> None:
        self._options += 1
        if self._options > MAX_FIELDS:
            raise BrokenUpload(f"a form may have at most {MAX_FIELDS} options", limit=MAX_FIELDS)

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._bytes += end - start
        self._value.append(memoryview(data)[start:end])
        if self._name == FILE:
            self._check_photo(end - start)
        elif not self._is_option:
            raise self._no_file()
        elif self._bytes > MAX_FIELD_BYTES:
            detail = f"an option may have at most {MAX_FIELD_BYTES} bytes"
            raise InvalidOption(detail, field=self._name[:80], limit=MAX_FIELD_BYTES)

    def _check_photo(self, came: int) -> None:
        if self._photo is None:
            self._begin_photo()
        self._photo_bytes += came
        if self._photo_bytes > self._limits.bytes:
            raise self._limits.too_many_bytes()
        if self._bytes > self._limits.photo_bytes:
            self.photos[-1].problem = self._limits.photo_too_large()
            self._receiving.shrink(sum(map(len, self._value)))
            self._value.clear()

    def _part_end(self) -> None:
        value = b"".join(self._value)
        self._value.clear()
        if self._photo is not None:
            self._photo.data = value
        elif self._name == FILE or not self._is_option:
            self._end_blank_file()
        elif value and self._name != CHARSET_FIELD:
            self._end_option(value)

    def _end_blank_file(self) -> None:
        """Skip a part without file name and bytes, which browsers send for each empty file field."""
        self._blank.append(self._name)
        most = self._limits.photos + MAX_FIELDS
        if len(self._blank) > most:
            raise BrokenUpload(f"a form may have at most {most:,} empty files", limit=most)

    def _end_option(self, value: bytes) -> None:
        if self._name in self.fields:
            raise InvalidOption(
                f"the option {self._name[:80]!r} is given more than once; send it once", field=self._name[:80]
            )
        self.fields[self._name] = _decoded(value, self._charset) or value.decode("utf-8", "replace")

    def _end(self) -> None:
        self._ended = True


def _decoded(data: bytes, encoding: str) -> str | None:
    """Return the text in an encoding that the client names, or None if it is unknown or does not fit the data."""
    name = normalize_encoding(encoding).lower()
    if name not in ENCODINGS:
        return None
    try:
        return data.decode(name)
    except (LookupError, UnicodeError):  # LookupError: base64 and others are no text encodings.
        return None


def _filename(disposition: bytes, parameters: dict[bytes, bytes]) -> str | None:
    """Return the file name of a part, or None if the part is not a file.

    `filename*` (RFC 8187) overrides `filename`, which is for receivers that don't know it. A malformed `filename*` is
    ignored, unless there is no other name.
    """
    plain = parameters.get(b"filename")
    if b"*" in disposition:
        _, renamed = parse_options_header(EXTENDED_NAME.sub(b"filename-extended=", disposition))
        extended = renamed.get(b"filename-extended")
        if extended is not None:
            text = extended.decode("latin-1")
            return _whole(_extended(text) or (_plain(plain) if plain else text))
    return None if plain is None else _whole(_plain(plain))


def _extended(value: str) -> str | None:
    """Return the decoded text of a value such as `utf-8'en'%C3%A0.jpg`, or None if it is malformed."""
    found = EXTENDED_VALUE.fullmatch(value)
    return found and _decoded(unquote_to_bytes(found[2].encode("latin-1")), found[1])


def _plain(name: bytes) -> str:
    """Return a name that is in UTF-8, or else in Latin-1, which fits any bytes and is what old clients send."""
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        return name.decode("latin-1")
    return _decoded_words(text) if text.startswith("=?") else text


def _decoded_words(text: str) -> str:
    """Return a name that is encoded as in e-mail (RFC 2047), as .NET does in forms."""
    try:
        words = decode_header(text)
    except HeaderParseError:
        return text
    decoded = [
        word if isinstance(word, str) else _decoded(word, (encoding or "ascii").partition("*")[0])
        for word, encoding in words
    ]
    return text if None in decoded else "".join(filter(None, decoded))


def _whole(text: str) -> str:
    """Return the text with lone surrogates replaced, because they can't be encoded as UTF-8.

    UTF-7 and other encodings that a client may name can express them.
    """
    return LONE_SURROGATE.sub("\ufffd", text)
