"""The containers: which segments and chunks a JPEG, PNG, WebP or GIF file holds beside its pixels, and how to add some.

Nothing here knows what is inside them. Walks are bounded, and end where a file is damaged.
"""

import itertools
import re
import struct
import zlib
from collections.abc import Collection, Iterable, Iterator

# A marker: not a stuffed zero, a restart, a fill byte, or another one that stands alone.
MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
END_OF_IMAGE, START_OF_SCAN = 0xD9, 0xDA
APP0 = 0xE0
# A photo with large metadata has some hundred segments; a large PNG some ten thousand chunks, nearly all of pixels.
MAX_SEGMENTS = 2000
MAX_CHUNKS = 100_000
SEGMENT_BYTES = 65_533
# Of up to 255 bytes; a GIF of a hundred megapixels of noise has some six hundred thousand.
MAX_GIF_SUB_BLOCKS = 1_000_000
# Going over a block takes as long as so many parts.
GIF_BLOCK_COST = 20
GIF_SEPARATOR, GIF_CONTROL, GIF_COMMENT, GIF_END = 0x2C, 0xF9, 0xFE, 0x3B
# Not the label of an extension, which may be any byte.
GIF_IMAGE = 0x100
GIF_BLOCK = re.compile(rb"[,!;]")

# Signature and IHDR, which is always the first chunk.
PNG_HEADER_SIZE = 33
WEBP_ALPHA, WEBP_EXIF, WEBP_XMP = 0x10, 0x08, 0x04
WEBP_PIXELS = (b"VP8 ", b"VP8L")
# What a still picture consists of, in the order that the format asks for.
WEBP_STILL_CHUNKS = (b"VP8X", b"ALPH", *WEBP_PIXELS, b"EXIF", b"XMP ")


class TooManyBlocks(ValueError):
    """A file has more parts than a photo needs."""


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Markers and where what follows them begins, up to the end of the image, as a decoder would find them."""
    position = 2
    while match := MARKER.search(data, position):
        marker, start = data[match.end() - 1], match.end()
        if marker == END_OF_IMAGE:
            return
        yield marker, start
        position = start + int.from_bytes(data[start : start + 2])


def jpeg_bodies(data: bytes, wanted: Collection[int]) -> Iterator[tuple[int, bytes]]:
    """Marker and content of a JPEG's segments before its first scan that have one of the markers."""
    for number, (marker, start) in enumerate(jpeg_segments(data)):
        if marker == START_OF_SCAN or number >= MAX_SEGMENTS:
            return
        end = start + int.from_bytes(data[start : start + 2])
        if marker in wanted and end <= len(data):
            yield marker, data[start + 2 : end]


def jpeg_without_segments(data: bytes, marker: int, beginning: bytes) -> bytes:
    """Return the JPEG without the segments before its first scan that have a marker and a beginning."""
    parts = []
    position = 0
    for found, start in itertools.islice(jpeg_segments(data), MAX_SEGMENTS):
        if found == START_OF_SCAN:
            break
        if found == marker and data.startswith(beginning, start + 2):
            parts.append(data[position : start - 2])
            position = start + int.from_bytes(data[start : start + 2])
    return b"".join([*parts, data[position:]])


def png_bodies(data: bytes, wanted: Collection[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of a PNG's chunks of these kinds, behind the pixels too; those with a wrong CRC are left out."""
    position = 8
    for _ in range(MAX_CHUNKS):
        if position + 12 > len(data):
            return
        (size,) = struct.unpack_from(">I", data, position)
        kind, end = data[position + 4 : position + 8], position + 8 + size
        # zlib.crc32 goes on from the kind's, so that a chunk is not copied to be checked.
        if kind in wanted and end + 4 <= len(data):
            body = data[position + 8 : end]
            if zlib.crc32(body, zlib.crc32(kind)).to_bytes(4) == data[end : end + 4]:
                yield kind, body
        position = end + 4


def webp_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind of a WebP's chunks, and where their content begins and ends; the last may be cut short."""
    position = 12
    for _ in range(MAX_SEGMENTS):
        if position + 8 > len(data):
            return
        (size,) = struct.unpack_from("<I", data, position + 4)
        yield data[position : position + 4], position + 8, position + 8 + size
        position += 8 + size + size % 2


def webp_bodies(data: bytes, wanted: Collection[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of a WebP's chunks of these kinds."""
    for kind, start, end in webp_chunks(data):
        if kind in wanted and end <= len(data):
            yield kind, data[start:end]


def gif_blocks(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield kind, start and end of a GIF's blocks: `GIF_IMAGE`, or the label of an extension.

    The last one may be cut short. What stands between blocks is passed over, as Pillow does. Raises TooManyBlocks after
    `MAX_GIF_SUB_BLOCKS`.
    """
    position = _gif_header_size(data)
    left = MAX_GIF_SUB_BLOCKS
    while match := GIF_BLOCK.search(data, position):
        start = match.start()
        if data[start] == GIF_END:
            return
        if data[start] == GIF_SEPARATOR:
            kind, position = GIF_IMAGE, start + 10 + _gif_palette_size(data[start + 9 : start + 10]) + 1
        else:
            kind, position = int.from_bytes(data[start + 1 : start + 2]), start + 2
        while (size := int.from_bytes(data[position : position + 1])) and left:
            position += 1 + size
            left -= 1
        if not left:
            raise TooManyBlocks(f"it is in more than {MAX_GIF_SUB_BLOCKS:,} parts")
        left = max(0, left - GIF_BLOCK_COST)
        position = min(position + 1, len(data))
        yield kind, start, position


def _gif_header_size(data: bytes) -> int:
    """Return how long a GIF's header and global palette are."""
    return 13 + _gif_palette_size(data[10:11])


def _gif_palette_size(flags: bytes) -> int:
    """Return the length of the palette that a byte of flags announces."""
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0


def gif_comments(data: bytes) -> Iterator[bytes]:
    """The comments of a GIF that stand before its picture."""
    try:
        for kind, start, end in gif_blocks(data):
            if kind == GIF_IMAGE:
                return
            if kind == GIF_COMMENT:
                yield b"".join(_gif_sub_blocks(data, start + 2, end))
    except TooManyBlocks:
        return


def _gif_sub_blocks(data: bytes, position: int, end: int) -> Iterator[bytes]:
    while position < end and data[position]:
        yield data[position + 1 : position + 1 + data[position]]
        position += 1 + data[position]


def gif_still(data: bytes) -> bytes:
    """A GIF with its first picture and what its decoding needs, and no other block. Raises TooManyBlocks."""
    control = b""
    for kind, start, end in gif_blocks(data):
        if kind == GIF_CONTROL:
            control = data[start:end]
        if kind == GIF_IMAGE and any(data[start + 5 : start + 7]) and any(data[start + 7 : start + 9]):
            return b"".join([data[: _gif_header_size(data)], control, data[start:end], bytes([GIF_END])])
    return data[: _gif_header_size(data)]


def jpeg_with_segments(encoded: bytes, segments: Iterable[tuple[int, bytes]]) -> bytes:
    """The JPEG with these segments, marker and content, before its others but behind its JFIF header.

    Each content must fit: `SEGMENT_BYTES` at most.
    """
    start = 2
    if encoded[3] == APP0:
        start = 4 + int.from_bytes(encoded[4:6])
    added = (struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body for marker, body in segments)
    return b"".join([encoded[:start], *added, encoded[start:]])


def png_with_chunks(encoded: bytes, chunks: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The PNG with these chunks, kind and content, between its header and its pixels."""
    added = (
        part
        for kind, body in chunks
        for part in (struct.pack(">I4s", len(body), kind), body, zlib.crc32(body, zlib.crc32(kind)).to_bytes(4))
    )
    return b"".join([encoded[:PNG_HEADER_SIZE], *added, encoded[PNG_HEADER_SIZE:]])


def webp_still(data: bytes) -> bytes:
    """Return the still picture of a WebP with its EXIF and XMP alone; as it is when it is animated or not whole.

    Decoders refuse a whole file for a wrong length of the container or for a chunk that is cut short.
    """
    chunks: dict[bytes, bytes] = {}
    for kind, start, end in webp_chunks(data):
        if kind == b"ANMF" or (kind in WEBP_PIXELS and end > len(data)):
            return data
        if kind in WEBP_STILL_CHUNKS and end <= len(data):
            chunks.setdefault(kind, data[start:end])
    if not any(kind in chunks for kind in WEBP_PIXELS):
        return data
    if len(extended := chunks.get(b"VP8X", b"")) >= 10:
        has_alpha = b"ALPH" in chunks or (b"VP8L" in chunks and bool(extended[0] & WEBP_ALPHA))
        flags = WEBP_ALPHA * has_alpha | WEBP_EXIF * (b"EXIF" in chunks) | WEBP_XMP * (b"XMP " in chunks)
        chunks[b"VP8X"] = bytes([flags, 0, 0, 0]) + extended[4:10]
        wanted: tuple[bytes, ...] = WEBP_STILL_CHUNKS
    else:
        wanted = WEBP_PIXELS
    return _webp_file({kind: chunks[kind] for kind in wanted if kind in chunks})


def webp_with_metadata(encoded: bytes, exif: bytes | None, xmp: bytes | None) -> bytes:
    """The WebP with this EXIF and XMP, in the extended form that they need; as it is when there is neither."""
    if exif is None and xmp is None:
        return encoded
    chunks = {kind: encoded[start:end] for kind, start, end in webp_chunks(encoded)}
    flags, width, height = _webp_canvas(chunks)
    chunks.pop(b"VP8X", None)
    flags |= WEBP_EXIF * (exif is not None) | WEBP_XMP * (xmp is not None)
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    # In the order that the format asks for: the header, alpha and pixels as they are, then these.
    whole = {b"VP8X": struct.pack("<I", flags) + sides} | chunks
    whole |= {kind: body for kind, body in ((b"EXIF", exif), (b"XMP ", xmp)) if body is not None}
    return _webp_file(whole)


def _webp_file(chunks: dict[bytes, bytes]) -> bytes:
    parts = [struct.pack("<4sI", kind, len(body)) + body + bytes(len(body) % 2) for kind, body in chunks.items()]
    content = b"WEBP" + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(content)) + content


def _webp_canvas(chunks: dict[bytes, bytes]) -> tuple[int, int, int]:
    """Flags, width and height, pixels, of a WebP that one of our encoders made."""
    if extended := chunks.get(b"VP8X"):
        return extended[0], 1 + int.from_bytes(extended[4:7], "little"), 1 + int.from_bytes(extended[7:10], "little")
    if lossless := chunks.get(b"VP8L"):
        bits = int.from_bytes(lossless[1:5], "little")
        has_alpha = bits >> 28 & 1
        return WEBP_ALPHA * has_alpha, 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    # A lossy frame: three bytes of tag, three of start code, then the sides with two bits of scaling each.
    width, height = struct.unpack_from("<HH", chunks[b"VP8 "], 6)
    return 0, width & 0x3FFF, height & 0x3FFF
