"""What a file's header states of its size and frames, read without a library: nothing is allocated for it.

TIFF, AVIF and HEIC, whose structure needs more than that, have readers of their own: tiff_page and still.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from service.formats import containers

# Every kind of frame: baseline to lossless, without DHT (C4), JPG (C8) and DAC (CC), and JPEG-LS.
JPEG_FRAMES = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}
# Those that libjpeg decodes, with Huffman codes: baseline, extended and progressive.
HUFFMAN_FRAMES = (0xC0, 0xC1, 0xC2)
# The BMP header that is older than Windows 3, with sides of 16 bits.
BMP_CORE_HEADER = 12
VP8_START_CODE = b"\x9d\x01\x2a"
VP8L_SIGNATURE = 0x2F
# Channels of a PNG by its colour type.
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# How many times its size a stream grows at most when it is decompressed: Deflate, and the LZW of a GIF.
DEFLATE_GROWTH, GIF_GROWTH = 1032, 1400

SizedFormat = Literal["jpeg", "png", "webp", "bmp", "gif"]


@dataclass(frozen=True, slots=True)
class DeclaredSize:
    """The largest width and height, pixels, that a file states of its picture, and its frames: 2 where it is animated.

    A size is 0 where the header is damaged; then the decoder tells what is wrong.
    """

    width: int = 0
    height: int = 0
    frames: int = 1


def read(data: bytes, source: SizedFormat) -> DeclaredSize:
    """Return what the header of a file states. Raises containers.TooManyBlocks where there is no end to its blocks."""
    try:
        return READERS[source](data)
    except struct.error:
        return DeclaredSize()


def min_bytes(data: bytes, source: SizedFormat, width: int, height: int) -> int:
    """Return how many bytes a file of that size has at least, however even its picture is; 0 where there is no bound.

    A file of fewer bytes is cut short, and a decoder would make room for all of its pixels before it sees that.
    """
    pixels = width * height
    if source == "jpeg":
        # A bit for each block of the largest component, which may have a quarter of the pixels across or down.
        return pixels // (64 * 8 * 4) if jpeg_frame(data) in HUFFMAN_FRAMES else 0
    if source == "png":
        return pixels * data[24] * PNG_CHANNELS.get(data[25], 1) // (8 * DEFLATE_GROWTH)
    if source == "bmp":
        place = 24 if data[14] == BMP_CORE_HEADER else 28
        return pixels * int.from_bytes(data[place : place + 2], "little") // 8
    return pixels // GIF_GROWTH if source == "gif" else 0


def jpeg_frame(data: bytes) -> int:
    """Return the marker of a JPEG's first frame, which tells how it is coded; 0 without a frame."""
    return next((marker for marker, _ in containers.jpeg_segments(data) if marker in JPEG_FRAMES), 0)


def _jpeg(data: bytes) -> DeclaredSize:
    """Return the largest of all frames before the first scan: decoders do not agree on which one counts."""
    width = height = 0
    for number, (marker, start) in enumerate(containers.jpeg_segments(data)):
        if marker == containers.START_OF_SCAN or number > containers.MAX_SEGMENTS:
            break
        if marker in JPEG_FRAMES:
            sides = struct.unpack_from(">HH", data, start + 3)
            height, width = max(height, sides[0]), max(width, sides[1])
    return DeclaredSize(width, height)


def _png(data: bytes) -> DeclaredSize:
    """Return the size. Frames are left to Pillow, which tells them without decoding any."""
    return DeclaredSize(*struct.unpack_from(">II", data, 16))


def _bmp(data: bytes) -> DeclaredSize:
    (size,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if size == BMP_CORE_HEADER else "<ii", data, 18)
    # A negative height tells that the rows begin at the top; Pillow takes a width for unsigned.
    return DeclaredSize(width & 0xFFFFFFFF, abs(height))


def _webp(data: bytes) -> DeclaredSize:
    width = height = frames = 0
    for kind, start, _ in containers.webp_chunks(data):
        if kind == b"VP8X":
            sides = tuple(1 + int.from_bytes(data[start + at : start + at + 3], "little") for at in (4, 7))
        elif kind == b"VP8 " and data[start + 3 : start + 6] == VP8_START_CODE:
            sides = tuple(side & 0x3FFF for side in struct.unpack_from("<HH", data, start + 6))
        elif kind == b"VP8L" and data[start : start + 1] == bytes([VP8L_SIGNATURE]):
            (bits,) = struct.unpack_from("<I", data, start + 1)
            sides = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        else:
            frames += kind == b"ANMF"
            continue
        width, height = max(width, sides[0]), max(height, sides[1])
    return DeclaredSize(width, height, frames)


def _gif(data: bytes) -> DeclaredSize:
    """Return the screen, enlarged to hold the first frame as Pillow does."""
    width, height = struct.unpack_from("<HH", data, 6)
    frames = 0
    for kind, start, _ in containers.gif_blocks(data):
        if kind != containers.GIF_IMAGE:
            continue
        left, top, across, down = struct.unpack_from("<HHHH", data, start + 1)
        # Some writers begin with a frame of no pixels.
        frames += bool(across and down)
        if frames > 1:
            break
        width, height = max(width, left + across), max(height, top + down)
    return DeclaredSize(width, height, frames)


READERS: Mapping[SizedFormat, Callable[[bytes], DeclaredSize]] = {
    "jpeg": _jpeg,
    "png": _png,
    "webp": _webp,
    "bmp": _bmp,
    "gif": _gif,
}
