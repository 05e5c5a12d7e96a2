"""The structure of a PNG file: a copy of it that holds nothing but the picture and what a decoder needs beside it.

Decoders refuse a whole file for one damaged chunk. Here, a damaged chunk beside the pixels is left out. The pixels
(IHDR, PLTE and IDAT) stay as they are, with their checksums.
"""

import itertools
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from service.errors import UnreadableImage, UnsupportedType
from service.formats.containers import MAX_CHUNKS

# The kind of a chunk, and where its content begins and ends.
Chunk = tuple[bytes, int, int]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Signature and header, which is the first chunk; places of the bit depth and the colour type in it.
HEADER_SIZE = 33
DEPTH, COLOR_TYPE = 24, 25
GRAY, RGB, PALETTE = 0, 2, 3
KIND = re.compile(rb"[A-Za-z]{4}")
PICTURE = re.compile(rb"PLTE|tRNS|IDAT")
CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
COLOR = (b"gAMA", b"sRGB", b"cICP")
TEXTS = (b"tEXt", b"zTXt", b"iTXt")
TIFF_STARTS = (b"II*\0", b"MM\0*")
# The chunks that count, each before the pixels but for EXIF and texts, with their lengths if these are fixed.
KEPT = {b"gAMA": 4, b"sRGB": 1, b"cICP": 4, b"acTL": 8, b"tRNS": None, b"eXIf": None} | dict.fromkeys(TEXTS)
# Texts in which writers give the orientation.
XMP_KEYWORD, EXIF_KEYWORD = b"XML:com.adobe.xmp", b"Raw profile type exif"
MAX_TEXT = 4 << 20
# How many places are tried as the start of the pixels, behind a chunk whose length is damaged.
MAX_ATTEMPTS = 4


@dataclass(slots=True)
class _Found:
    """What a file holds, and where.

    pixels: where chunks of pixels are, those that follow one another as one. last: the content of the last of them.
    chunks, texts: the content of the first sound chunk of each other kind, and whole chunks by keyword. frames: of an
    animation.
    """

    pixels: list[tuple[int, int]] = field(default_factory=list)
    last: tuple[int, int] = (0, 0)
    palette: bytes = b""
    chunks: dict[bytes, bytes] = field(default_factory=dict)
    texts: dict[bytes, bytes] = field(default_factory=dict)
    frames: int = 0


def plain(data: bytes) -> bytes:
    """Return the PNG without anything but its picture, transparency, gamma and orientation.

    Raises UnreadableImage, and UnsupportedType for animations and for chunks without which the picture makes no sense.
    """
    if data[12:16] == b"CgBI":
        raise UnsupportedType("the file is a PNG that was altered for Apple's devices (CgBI)", field="file")
    if len(data) < HEADER_SIZE or data[8:16] != b"\0\0\0\x0dIHDR":
        raise UnreadableImage("the PNG does not begin with its header", field="file")
    found = _find(data)
    if not found.pixels:
        raise UnreadableImage("the PNG is damaged or cut short: it has no pixels", field="file")
    if int.from_bytes(found.chunks.get(b"acTL", b"")[:4]) > 1 and found.frames > 1:
        raise UnsupportedType("the file is animated; single, still photos can be coloured", field="file")
    parts = [data[:HEADER_SIZE], *(_chunk(name, found.chunks[name]) for name in COLOR if name in found.chunks)]
    if data[COLOR_TYPE] == PALETTE:
        parts.append(found.palette)
    if clear := _transparency(found, data[COLOR_TYPE], data[DEPTH]):
        parts.append(_chunk(b"tRNS", clear))
    if b"eXIf" in found.chunks:
        parts.append(_chunk(b"eXIf", found.chunks[b"eXIf"]))
    return b"".join([*parts, *found.texts.values(), *_pixels(found, data)])


def _find(data: bytes) -> _Found:
    """Return what the chunks hold. Where the length of a damaged one leads past the picture, go on behind its name."""
    chunks = list(_chunks(data))
    found = _taken(data, chunks)
    if found.pixels and (found.palette or data[COLOR_TYPE] != PALETTE):
        return found
    damaged = next((number for number, (_, *span) in enumerate(chunks) if not _is_sound(data, *span)), None)
    if damaged is None or (position := _next_picture(data, chunks[damaged][1] - 8)) < 0:
        return found
    return _taken(data, [*chunks[:damaged], *_chunks(data, position)])


def _taken(data: bytes, chunks: list[Chunk]) -> _Found:
    found = _Found()
    for chunk in chunks:
        _take(found, data, *chunk)
    return found


def pixels_only(plain: bytes) -> bytes:
    """Return what `plain` gave without gamma and orientation, and with the right checksums.

    libpng warns of odd values of these on standard error, and takes no pixels whose checksum alone is wrong.
    """
    wanted = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
    return SIGNATURE + b"".join(_chunk(kind, plain[start:end]) for kind, start, end in _chunks(plain) if kind in wanted)


def _pixels(found: _Found, data: bytes) -> Iterator[bytes | memoryview]:
    """Yield the chunks of pixels, and the end. The last chunk, if it is cut short, says how much of it there is."""
    view = memoryview(data)
    start, end = found.last
    yield from (view[begin : min(stop, start - 8)] for begin, stop in found.pixels)
    # Where only the checksum or the length is damaged, the decoder finds all pixels.
    yield view[start - 8 : end + 4] if end + 4 <= len(data) else _chunk(b"IDAT", data[start:end])
    yield _chunk(b"IEND", b"")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", len(body), kind) + body + zlib.crc32(body, zlib.crc32(kind)).to_bytes(4)


def _chunks(data: bytes, position: int = len(SIGNATURE)) -> Iterator[Chunk]:
    """Yield the kind of each chunk, and where its content begins and ends, which may be past the end of the file.

    position: where the first chunk begins.
    """
    has_pixels = False
    for _ in range(MAX_CHUNKS):
        if position + 8 > len(data):
            return
        (size,) = struct.unpack_from(">I", data, position)
        kind, start = data[position + 4 : position + 8], position + 8
        has_pixels = has_pixels or kind == b"IDAT"
        if not KIND.fullmatch(kind) or (start + size > len(data) and kind != b"IDAT"):
            # The length of this chunk or of the one before it is damaged.
            position = -1 if has_pixels else _next_picture(data, position)
            if position < 0:
                return
            continue
        yield kind, start, start + size
        if kind == b"IEND":
            return
        position = start + size + 4
    raise UnreadableImage("the PNG has too many chunks", field="file", limit=MAX_CHUNKS)


def _next_picture(data: bytes, position: int) -> int:
    """Return where the next sound palette, transparency or chunk of pixels begins, -1 if none is found."""
    for match in itertools.islice(PICTURE.finditer(data, position + 5), MAX_ATTEMPTS):
        begin = match.start() - 4
        (size,) = struct.unpack_from(">I", data, begin)
        if _is_sound(data, begin + 8, begin + 8 + size):
            return begin
    return -1


def _is_sound(data: bytes, start: int, end: int) -> bool:
    """Return whether the content of a chunk fits its checksum."""
    view = memoryview(data)[start - 4 : end]
    return end + 4 <= len(data) and zlib.crc32(view).to_bytes(4) == data[end : end + 4]


def _take(found: _Found, data: bytes, kind: bytes, start: int, end: int) -> None:
    if kind == b"IDAT":
        begin = start - 8
        if found.pixels and found.pixels[-1][1] == begin:
            begin, _ = found.pixels.pop()
        found.pixels.append((begin, end + 4))
        found.last = start, end
    elif kind == b"PLTE":
        found.palette = found.palette or data[start - 8 : end + 4]
    elif kind == b"fcTL":
        found.frames += 1
    elif kind in KEPT and _is_sound(data, start, end):
        _keep(found, kind, data[start:end])
    elif kind not in CRITICAL and kind[:1].isupper() and _is_sound(data, start, end):
        raise UnsupportedType(f"the PNG has a critical chunk that is not known ({kind.decode()})", field="file")


def _keep(found: _Found, kind: bytes, body: bytes) -> None:
    """Take over a chunk beside the pixels, if its content makes sense and it is the first of its kind."""
    if kind in TEXTS:
        _keep_text(found, kind, body)
    elif kind == b"eXIf":
        body = body.removeprefix(b"Exif\0\0")
        if body.startswith(TIFF_STARTS):
            found.chunks.setdefault(kind, body)
    elif KEPT[kind] in (None, len(body)) and not found.pixels:
        found.chunks.setdefault(kind, body)


def _keep_text(found: _Found, kind: bytes, body: bytes) -> None:
    """Take over a text that tells the orientation, without its compression."""
    keyword, _, rest = body.partition(b"\0")
    if keyword in found.texts or keyword != (XMP_KEYWORD if kind == b"iTXt" else EXIF_KEYWORD):
        return
    is_packed = kind == b"zTXt"
    if kind == b"iTXt":
        is_packed = rest[:1] == b"\1"
        # Behind the flag: the method, the language, the keyword in that language.
        _, _, rest = (*rest[2:].split(b"\0", 2), b"", b"")[:3]
    elif is_packed:
        rest = rest[1:]
    text = _inflated(rest) if is_packed else rest
    if text:
        middle = b"\0\0\0\0\0" if kind == b"iTXt" else b"\0"
        found.texts[keyword] = _chunk(b"iTXt" if kind == b"iTXt" else b"tEXt", keyword + middle + text)


def _inflated(packed: bytes) -> bytes:
    """Return the content of a zlib stream, or nothing when it is damaged or too long."""
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(packed, MAX_TEXT)
    except zlib.error:
        return b""
    return text if unpacker.eof else b""


def _transparency(found: _Found, kind: int, depth: int) -> bytes:
    """Return the content of tRNS as the format wants it, or nothing if it makes no sense."""
    body = found.chunks.get(b"tRNS", b"")
    if kind == PALETTE:
        return body[: (len(found.palette) - 12) // 3]
    if len(body) != {GRAY: 2, RGB: 6}.get(kind):
        return b""
    # Of the stored 16 bits, only those of the depth count.
    levels = struct.unpack(f">{len(body) // 2}H", body)
    return struct.pack(f">{len(levels)}H", *(level & (1 << depth) - 1 for level in levels))
