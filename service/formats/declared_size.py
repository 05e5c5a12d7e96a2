"""Read the size and the number of frames from a file's header, without a library and without allocating memory.

TIFF, AVIF and HEIC have readers of their own, tiff_page and heif_still, because their structure is more complex.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from service.formats import containers

# Markers of all frames: baseline to lossless and JPEG-LS, without DHT (C4), JPG (C8) and DAC (CC).
JPEG_FRAMES = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}
# Huffman-coded frames that libjpeg decodes: baseline, extended and progressive.
HUFFMAN_FRAMES = (0xC0, 0xC1, 0xC2)
# The size of the BMP header from before Windows 3, whose sides have 16 bits.
BMP_CORE_HEADER = 12
VP8_START_CODE = b"\x9d\x01\x2a"
VP8L_SIGNATURE = 0x2F
# Number of channels by the colour type of a PNG.
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# The largest ratio of decompressed to compressed size: Deflate, and the LZW of a GIF.
DEFLATE_GROWTH, GIF_GROWTH = 1032, 1400

SizedFormat = Literal["jpeg", "png", "webp", "bmp", "gif"]


@dataclass(frozen=True, slots=True)
class DeclaredSize:
    """The largest width and height (pixels) that a file declares, and its number of frames, counted up to 2.

    Width and height are 0 if the header is damaged. Then the decoder reports what is wrong.
    """

    width: int = 0
    height: int = 0
    frames: int = 1


def read(data: bytes, source: SizedFormat) -> DeclaredSize:
    """Return the size that the header of a file declares. Raises containers.TooManyBlocks."""
    try:
        return READERS[source](data)
    except struct.error:
        return DeclaredSize()


def min_bytes(data: bytes, source: SizedFormat, width: int, height: int) -> int:
    """Return the least number of bytes that an image of that size needs; 0 if no bound is known.

    A shorter file is cut short. A decoder would allocate memory for all pixels before it finds out.
    """
    pixels = width * height
    if source == "jpeg":
        # One bit for each block of the largest component, which may have a quarter of the pixels in one direction.
        return pixels // (64 * 8 * 4) if jpeg_frame(data) in HUFFMAN_FRAMES else 0
    if source == "png":
        return pixels * data[24] * PNG_CHANNELS.get(data[25], 1) // (8 * DEFLATE_GROWTH)
    if source == "bmp":
        offset = 24 if data[14] == BMP_CORE_HEADER else 28
        return pixels * int.from_bytes(data[offset : offset + 2], "little") // 8
    return pixels // GIF_GROWTH if source == "gif" else 0


def jpeg_frame(data: bytes) -> int:
    """Return the marker of a JPEG's first frame, which shows its coding; 0 without a frame."""
    return next((marker for marker, _ in containers.jpeg_segments(data) if marker in JPEG_FRAMES), 0)


def _jpeg(data: bytes) -> DeclaredSize:
    """Return the largest size of all frames before the first scan: decoders disagree on which frame counts."""
    width = height = 0
    for number, (marker, start) in enumerate(containers.jpeg_segments(data)):
        if marker == containers.START_OF_SCAN or number > containers.MAX_SEGMENTS:
            break
        if marker in JPEG_FRAMES:
            sides = struct.unpack_from(">HH", data, start + 3)
            height, width = max(height, sides[0]), max(width, sides[1])
    return DeclaredSize(width, height)


def _png(data: bytes) -> DeclaredSize:
    """Return the size. Pillow counts the frames, without decoding them."""
    return DeclaredSize(*struct.unpack_from(">II", data, 16))


def _bmp(data: bytes) -> DeclaredSize:
    (size,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if size == BMP_CORE_HEADER else "<ii", data, 18)
    # A negative height means that the rows begin at the top. Pillow reads a width as unsigned.
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
    """Return the logical screen, enlarged to hold the first frame as in Pillow."""
    width, height = struct.unpack_from("<HH", data, 6)
    frames = 0
    for kind, start, _ in containers.gif_blocks(data):
        if kind != containers.GIF_IMAGE:
            continue
        left, top, across, down = struct.unpack_from("<HHHH", data, start + 1)
        # Some writers begin with a frame without pixels.
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
