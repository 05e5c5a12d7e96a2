"""Read and write the segments of a JPEG, the chunks of a PNG or WebP, and the blocks of a GIF.

This module does not interpret their content. Every walk is bounded and ends at the first damage.
"""

import itertools
import re
import struct
import zlib
from collections.abc import Collection, Iterable, Iterator

# A marker of a segment. Stuffed zeros, restart markers, fill bytes and other markers without a length are excluded.
MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
END_OF_IMAGE, START_OF_SCAN = 0xD9, 0xDA
APP0 = 0xE0
# A photo with large metadata has a few hundred segments. A large PNG has about ten thousand chunks, mostly pixels.
MAX_SEGMENTS = 2000
MAX_CHUNKS = 100_000
# The largest content of a JPEG segment: its length of 16 bits counts itself.
SEGMENT_BYTES = 65_533
# A sub-block has up to 255 bytes. A GIF with 100 megapixels of noise has about 600,000.
MAX_GIF_SUB_BLOCKS = 1_000_000
# Walking over one block costs as much time as this many sub-blocks.
GIF_BLOCK_COST = 20
GIF_SEPARATOR, GIF_CONTROL, GIF_COMMENT, GIF_END = 0x2C, 0xF9, 0xFE, 0x3B
# The kind of an image block. It is larger than a byte, because an extension may have any byte as its label.
GIF_IMAGE = 0x100
GIF_BLOCK = re.compile(rb"[,!;]")

# The signature and IHDR, which is always the first chunk.
PNG_HEADER_SIZE = 33
WEBP_ALPHA, WEBP_EXIF, WEBP_XMP = 0x10, 0x08, 0x04
WEBP_PIXELS = (b"VP8 ", b"VP8L")
# The chunks of a still image, in the order that the format requires.
WEBP_STILL_CHUNKS = (b"VP8X", b"ALPH", *WEBP_PIXELS, b"EXIF", b"XMP ")


class TooManyBlocks(ValueError):
    """Raised when a GIF has more sub-blocks than a photo needs."""


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield each marker and the offset behind it, up to the end of the image.

    The markers are those that a decoder finds.
    """
    position = 2
    while match := MARKER.search(data, position):
        marker, start = data[match.end() - 1], match.end()
        if marker == END_OF_IMAGE:
            return
        yield marker, start
        position = start + int.from_bytes(data[start : start + 2])


def jpeg_bodies(data: bytes, wanted: Collection[int]) -> Iterator[tuple[int, bytes]]:
    """Yield marker and content of the JPEG segments before the first scan whose marker is in `wanted`."""
    for number, (marker, start) in enumerate(jpeg_segments(data)):
        if marker == START_OF_SCAN or number >= MAX_SEGMENTS:
            return
        end = start + int.from_bytes(data[start : start + 2])
        if marker in wanted and end <= len(data):
            yield marker, data[start + 2 : end]


def jpeg_without_segments(data: bytes, marker: int, beginning: bytes) -> bytes:
    """Return the JPEG without those segments before its first scan that have this marker and beginning."""
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
    """Yield kind and content of the PNG chunks whose kind is in `wanted`, behind the pixels too.

    Chunks with a wrong checksum are skipped.
    """
    position = 8
    for _ in range(MAX_CHUNKS):
        if position + 12 > len(data):
            return
        (size,) = struct.unpack_from(">I", data, position)
        kind, end = data[position + 4 : position + 8], position + 8 + size
        # zlib.crc32 continues from the checksum of the kind, so the chunk need not be copied.
        if kind in wanted and end + 4 <= len(data):
            body = data[position + 8 : end]
            if zlib.crc32(body, zlib.crc32(kind)).to_bytes(4) == data[end : end + 4]:
                yield kind, body
        position = end + 4


def webp_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the kind of each WebP chunk and the start and end of its content.

    The end of the last chunk may be behind the end of the file.
    """
    position = 12
    for _ in range(MAX_SEGMENTS):
        if position + 8 > len(data):
            return
        (size,) = struct.unpack_from("<I", data, position + 4)
        yield data[position : position + 4], position + 8, position + 8 + size
        position += 8 + size + size % 2


def webp_bodies(data: bytes, wanted: Collection[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and content of the WebP chunks whose kind is in `wanted`."""
    for kind, start, end in webp_chunks(data):
        if kind in wanted and end <= len(data):
            yield kind, data[start:end]


def gif_blocks(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield kind, start and end of each GIF block. The kind is `GIF_IMAGE` or the label of an extension.

    The last block may be cut short. Bytes between blocks are skipped, as Pillow does. Raises TooManyBlocks after
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
            raise TooManyBlocks(f"it has more than {MAX_GIF_SUB_BLOCKS:,} sub-blocks")
        left = max(0, left - GIF_BLOCK_COST)
        position = min(position + 1, len(data))
        yield kind, start, position


def _gif_header_size(data: bytes) -> int:
    """Return the size of a GIF's header and global palette, in bytes."""
    return 13 + _gif_palette_size(data[10:11])


def _gif_palette_size(flags: bytes) -> int:
    """Return the size of the palette that a byte of flags announces, in bytes."""
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0


def gif_comments(data: bytes) -> Iterator[bytes]:
    """Yield the comments of a GIF before its first image."""
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
    """Return a GIF with the first image and its graphic control only. Raises TooManyBlocks."""
    control = b""
    for kind, start, end in gif_blocks(data):
        if kind == GIF_CONTROL:
            control = data[start:end]
        if kind == GIF_IMAGE and any(data[start + 5 : start + 7]) and any(data[start + 7 : start + 9]):
            return b"".join([data[: _gif_header_size(data)], control, data[start:end], bytes([GIF_END])])
    return data[: _gif_header_size(data)]


def jpeg_with_segments(encoded: bytes, segments: Iterable[tuple[int, bytes]]) -> bytes:
    """Return the JPEG with these segments (marker and content) added behind its JFIF header.

    Each content may have at most `SEGMENT_BYTES`.
    """
    start = 2
    if encoded[3] == APP0:
        start = 4 + int.from_bytes(encoded[4:6])
    added = (struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body for marker, body in segments)
    return b"".join([encoded[:start], *added, encoded[start:]])


def png_with_chunks(encoded: bytes, chunks: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the PNG with these chunks (kind and content) added between its header and its pixels."""
    added = (
        part
        for kind, body in chunks
        for part in (struct.pack(">I4s", len(body), kind), body, zlib.crc32(body, zlib.crc32(kind)).to_bytes(4))
    )
    return b"".join([encoded[:PNG_HEADER_SIZE], *added, encoded[PNG_HEADER_SIZE:]])


def webp_still(data: bytes) -> bytes:
    """Return a WebP with nothing but its still image, EXIF and XMP.

    Decoders reject a whole file for a wrong container length or for one chunk that is cut short. An animated or
    incomplete WebP is returned unchanged.
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
    """Return the WebP with this EXIF and XMP, in the extended format that they need; unchanged if both are None."""
    if exif is None and xmp is None:
        return encoded
    chunks = {kind: encoded[start:end] for kind, start, end in webp_chunks(encoded)}
    flags, width, height = _webp_canvas(chunks)
    chunks.pop(b"VP8X", None)
    flags |= WEBP_EXIF * (exif is not None) | WEBP_XMP * (xmp is not None)
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    # The order that the format requires: the extended header, alpha and pixels, then metadata.
    whole = {b"VP8X": struct.pack("<I", flags) + sides} | chunks
    whole |= {kind: body for kind, body in ((b"EXIF", exif), (b"XMP ", xmp)) if body is not None}
    return _webp_file(whole)


def _webp_file(chunks: dict[bytes, bytes]) -> bytes:
    parts = [struct.pack("<4sI", kind, len(body)) + body + bytes(len(body) % 2) for kind, body in chunks.items()]
    content = b"WEBP" + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(content)) + content


def _webp_canvas(chunks: dict[bytes, bytes]) -> tuple[int, int, int]:
    """Return flags, width and height (pixels) of a WebP that one of our encoders made."""
    if extended := chunks.get(b"VP8X"):
        return extended[0], 1 + int.from_bytes(extended[4:7], "little"), 1 + int.from_bytes(extended[7:10], "little")
    if lossless := chunks.get(b"VP8L"):
        bits = int.from_bytes(lossless[1:5], "little")
        has_alpha = bits >> 28 & 1
        return WEBP_ALPHA * has_alpha, 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    # A lossy frame has three bytes of tag, three of start code, and two sides with two bits of scaling each.
    width, height = struct.unpack_from("<HH", chunks[b"VP8 "], 6)
    return 0, width & 0x3FFF, height & 0x3FFF
