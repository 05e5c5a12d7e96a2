"""Make a copy of a PNG that holds nothing but the image and the chunks that a decoder needs for it.

Decoders reject a whole file for one damaged chunk. Here, damaged chunks that are not needed for the pixels are left
out. IHDR, PLTE and IDAT are copied unchanged, with their checksums.
"""

import itertools
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from service.errors import UnreadableImage, UnsupportedType
from service.formats.containers import MAX_CHUNKS

# The kind of a chunk, and the start and end of its content.
Chunk = tuple[bytes, int, int]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Size of the signature and the header, which is the first chunk; offsets of the bit depth and the colour type.
HEADER_SIZE = 33
DEPTH, COLOR_TYPE = 24, 25
GRAY, RGB, PALETTE = 0, 2, 3
KIND = re.compile(rb"[A-Za-z]{4}")
PICTURE = re.compile(rb"PLTE|tRNS|IDAT")
CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
COLOR = (b"gAMA", b"sRGB", b"cICP")
TEXTS = (b"tEXt", b"zTXt", b"iTXt")
TIFF_STARTS = (b"II*\0", b"MM\0*")
# Chunks that are kept, with their lengths if these are fixed. All but EXIF and texts must precede the pixels.
KEPT = {b"gAMA": 4, b"sRGB": 1, b"cICP": 4, b"acTL": 8, b"tRNS": None, b"eXIf": None} | dict.fromkeys(TEXTS)
# Keywords of texts that may contain the orientation.
XMP_KEYWORD, EXIF_KEYWORD = b"XML:com.adobe.xmp", b"Raw profile type exif"
MAX_TEXT = 4 << 20
# Number of offsets that are tried as the start of the pixels behind a chunk with a damaged length.
MAX_ATTEMPTS = 4


@dataclass(slots=True)
class _Found:
    """The parts of a file that are kept.

    pixels: start and end of each run of adjacent IDAT chunks. last: start and end of the content of the last IDAT.
    palette: the whole PLTE chunk. chunks: content of the first sound chunk of each other kind. texts: whole chunks by
    keyword. frames: number of frames of an animation.
    """

    pixels: list[tuple[int, int]] = field(default_factory=list)
    last: tuple[int, int] = (0, 0)
    palette: bytes = b""
    chunks: dict[bytes, bytes] = field(default_factory=dict)
    texts: dict[bytes, bytes] = field(default_factory=dict)
    frames: int = 0


def plain(data: bytes) -> bytes:
    """Return the PNG with nothing but its image, transparency, gamma and orientation.

    Raises UnreadableImage, and UnsupportedType for animations and for unknown critical chunks.
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
    """Return the parts that are kept.

    If the damaged length of a chunk leads past the image, the search continues behind the kind of that chunk.
    """
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
    """Return a PNG from `plain` without gamma and orientation, and with correct checksums.

    libpng prints warnings about odd gamma and orientation values. It also rejects sound pixels with a wrong checksum.
    """
    wanted = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
    return SIGNATURE + b"".join(_chunk(kind, plain[start:end]) for kind, start, end in _chunks(plain) if kind in wanted)


def _pixels(found: _Found, data: bytes) -> Iterator[bytes | memoryview]:
    """Yield the IDAT chunks and IEND. If the last IDAT is cut short, its length is set to the bytes present."""
    view = memoryview(data)
    start, end = found.last
    yield from (view[begin : min(stop, start - 8)] for begin, stop in found.pixels)
    # The decoder finds all pixels if only the checksum or the length of that chunk is damaged.
    yield view[start - 8 : end + 4] if end + 4 <= len(data) else _chunk(b"IDAT", data[start:end])
    yield _chunk(b"IEND", b"")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", len(body), kind) + body + zlib.crc32(body, zlib.crc32(kind)).to_bytes(4)


def _chunks(data: bytes, position: int = len(SIGNATURE)) -> Iterator[Chunk]:
    """Yield the kind of each chunk, and the start and end of its content. The end may be behind the end of the file.

    position: offset of the first chunk.
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
    raise UnreadableImage(f"the PNG has more than {MAX_CHUNKS:,} chunks", field="file", limit=MAX_CHUNKS)


def _next_picture(data: bytes, position: int) -> int:
    """Return the offset of the next sound PLTE, tRNS or IDAT chunk; -1 if none is found."""
    for match in itertools.islice(PICTURE.finditer(data, position + 5), MAX_ATTEMPTS):
        begin = match.start() - 4
        (size,) = struct.unpack_from(">I", data, begin)
        if _is_sound(data, begin + 8, begin + 8 + size):
            return begin
    return -1


def _is_sound(data: bytes, start: int, end: int) -> bool:
    """Return whether the checksum of a chunk is correct."""
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
    """Keep a chunk if its content is valid and it is the first of its kind."""
    if kind in TEXTS:
        _keep_text(found, kind, body)
    elif kind == b"eXIf":
        body = body.removeprefix(b"Exif\0\0")
        if body.startswith(TIFF_STARTS):
            found.chunks.setdefault(kind, body)
    elif KEPT[kind] in (None, len(body)) and not found.pixels:
        found.chunks.setdefault(kind, body)


def _keep_text(found: _Found, kind: bytes, body: bytes) -> None:
    """Keep a text that may contain the orientation, decompressed."""
    keyword, _, rest = body.partition(b"\0")
    if keyword in found.texts or keyword != (XMP_KEYWORD if kind == b"iTXt" else EXIF_KEYWORD):
        return
    is_packed = kind == b"zTXt"
    if kind == b"iTXt":
        is_packed = rest[:1] == b"\1"
        # The flag is followed by the compression method, the language, and the keyword in that language.
        _, _, rest = (*rest[2:].split(b"\0", 2), b"", b"")[:3]
    elif is_packed:
        rest = rest[1:]
    text = _inflated(rest) if is_packed else rest
    if text:
        middle = b"\0\0\0\0\0" if kind == b"iTXt" else b"\0"
        found.texts[keyword] = _chunk(b"iTXt" if kind == b"iTXt" else b"tEXt", keyword + middle + text)


def _inflated(packed: bytes) -> bytes:
    """Return the content of a zlib stream; empty if it is damaged or longer than MAX_TEXT."""
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(packed, MAX_TEXT)
    except zlib.error:
        return b""
    return text if unpacker.eof else b""


def _transparency(found: _Found, kind: int, depth: int) -> bytes:
    """Return the content of tRNS in valid form; empty if it can't be valid."""
    body = found.chunks.get(b"tRNS", b"")
    if kind == PALETTE:
        return body[: (len(found.palette) - 12) // 3]
    if len(body) != {GRAY: 2, RGB: 6}.get(kind):
        return b""
    # Only the low bits of the 16, as many as the bit depth, are significant.
    levels = struct.unpack(f">{len(body) // 2}H", body)
    return struct.pack(f">{len(levels)}H", *(level & (1 << depth) - 1 for level in levels))
