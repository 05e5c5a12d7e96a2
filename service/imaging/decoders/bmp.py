"""Check the header of a BMP, and decode a BMP with bit fields, whose channels are defined by masks.

Pillow decodes the others.
"""

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.errors import UnreadableImage, UnsupportedType
from service.formats.decoding_limits import Limits, check_size
from service.imaging.color import Bytes

FILE_HEADER = 14
# Lengths of headers, bytes: OS/2's first and second, Microsoft's without and with an alpha mask.
CORE, OS2, INFO, WITH_ALPHA = 12, 64, 40, 56
HEADERS = (CORE, INFO, 52, WITH_ALPHA, OS2, 108, 124)
# Position of the number of palette colours.
COLORS_AT = 46
BIT_FIELDS, ALPHA_BIT_FIELDS = 3, 6
# Compressions that are refused, by number. Pillow decodes run lengths in Python, which takes seconds.
REFUSED = {1: "run-length compression", 2: "run-length compression", 4: "a JPEG inside", 5: "a PNG inside"}
REFUSED_OS2 = REFUSED | {3: "fax compression", 4: "run-length compression"}
DEPTHS = (1, 4, 8, 16, 24, 32)
# Masks to use where all masks are 0, by bits per pixel. Other numbers of bits have no masks.
DEFAULT_MASKS = {16: (0x7C00, 0x3E0, 0x1F), 24: (0xFF0000, 0xFF00, 0xFF), 32: (0xFF0000, 0xFF00, 0xFF)}


@dataclass(frozen=True, slots=True)
class BitFields:
    """The header of a BMP with bit fields.

    width, height: pixels. bits: per pixel. masks: of red, green, blue and, if present, alpha. start: position of the
    pixels in the file.
    """

    width: int
    height: int
    is_top_down: bool
    bits: int
    masks: tuple[int, ...]
    start: int


def read_bit_fields(data: bytes, limits: Limits) -> BitFields | None:
    """Return the header of a BMP with bit fields; None for any other supported BMP.

    Raises UnsupportedType, UnreadableImage and TooManyPixels.
    """
    if len(data) < FILE_HEADER + CORE:
        raise UnreadableImage("the BMP file is cut short in its header", field="file")
    start, size = struct.unpack_from("<II", data, 10)
    if size not in HEADERS:
        raise UnsupportedType(f"a BMP with a header of {size} bytes is not supported", field="file")
    if len(data) < FILE_HEADER + size:
        raise UnreadableImage("the BMP file is cut short in its header", field="file")
    layout = "<HHHH" if size == CORE else "<iiHHI"
    width, height, _, bits, compression = (*struct.unpack_from(layout, data, 18), 0)[:5]
    _check_kind(size, bits, compression)
    if width <= 0 or not height:
        raise UnreadableImage("the BMP file is damaged: it has no width or no height", field="file")
    check_size(width, abs(height), limits)
    if not compression:
        return None
    masks = _masks(data, bits, has_alpha=compression == ALPHA_BIT_FIELDS or size >= WITH_ALPHA)
    return BitFields(width, abs(height), height < 0, bits, masks, start)


def _check_kind(size: int, bits: int, compression: int) -> None:
    """Check that a BMP is supported. size: of its header, bytes. bits: per pixel. Raises UnsupportedType."""
    if refused := (REFUSED_OS2 if size == OS2 else REFUSED).get(compression):
        raise UnsupportedType(f"a BMP with {refused} is not supported", field="file")
    if compression not in (0, BIT_FIELDS, ALPHA_BIT_FIELDS):
        raise UnsupportedType(f"a BMP with compression of type {compression} is not supported", field="file")
    if bits not in (DEFAULT_MASKS if compression else DEPTHS):
        kind = "bit fields and " if compression else ""
        raise UnsupportedType(f"a BMP with {kind}{bits} bits a pixel is not supported", field="file")


def with_valid_palette(data: bytes) -> bytes:
    """Return the BMP with no more palette colours than its pixels can index, as Pillow refuses larger palettes.

    data: a BMP for which `read_bit_fields` returned None.
    """
    size, bits = struct.unpack_from("<I", data, FILE_HEADER)[0], int.from_bytes(data[28:30], "little")
    if size == CORE or bits > 8 or struct.unpack_from("<I", data, COLORS_AT)[0] <= 1 << bits:
        return data
    return data[:COLORS_AT] + struct.pack("<I", 1 << bits) + data[COLORS_AT + 4 :]


def _masks(data: bytes, bits: int, *, has_alpha: bool) -> tuple[int, ...]:
    """Return the masks of red, green, blue and, if it is not 0, alpha. Raises UnreadableImage and UnsupportedType."""
    if len(data) < FILE_HEADER + INFO + 12 + 4 * has_alpha:
        raise UnreadableImage("the BMP file is cut short in its header", field="file")
    masks = struct.unpack_from("<IIII" if has_alpha else "<III", data, FILE_HEADER + INFO)
    if not any(masks):
        return DEFAULT_MASKS[bits]
    for mask in masks:
        lowest = mask & -mask
        if mask and (mask // lowest + 1) & (mask // lowest):
            raise UnsupportedType("a BMP with gaps in the bits of a channel is not supported", field="file")
    return masks if masks[3:] != (0,) else masks[:3]


def unpack(data: bytes, fields: BitFields) -> tuple[Bytes, Bytes | None]:
    """Return RGB, uint8 [H, W, 3], and alpha, uint8 [H, W] or None. Raises UnreadableImage."""
    stride = (fields.width * fields.bits + 31) // 32 * 4
    used = fields.width * fields.bits // 8
    # In some files, the last row has no padding.
    size = stride * (fields.height - 1) + used
    if len(data) < fields.start + size:
        raise UnreadableImage("the BMP file is cut short", field="file")
    stored = np.zeros(stride * fields.height, np.uint8)
    stored[:size] = np.frombuffer(data, np.uint8, size, fields.start)
    rows = stored.reshape(fields.height, stride)[:, :used].reshape(fields.height, fields.width, -1)
    rows = rows if fields.is_top_down else rows[::-1]
    pixels = np.zeros((fields.height, fields.width, 4), np.uint8)
    pixels[..., : rows.shape[2]] = rows
    words = pixels.view("<u4")[..., 0]
    channels = [_channel(words, mask) for mask in fields.masks]
    rgb = np.dstack(channels[:3])
    # Many writers define an alpha mask but leave alpha at 0, so an all-zero alpha is ignored.
    alpha = channels[3] if len(channels) == 4 and channels[3].any() else None
    return rgb, alpha


def _channel(words: NDArray[np.uint32], mask: int) -> Bytes:
    """Return the bits of a mask, uint8 [H, W], scaled to 0..255. words: pixels, uint32 [H, W]."""
    if not mask:
        return np.zeros(words.shape, np.uint8)
    shift = (mask & -mask).bit_length() - 1
    # Of a wider channel, the upper 16 bits are enough.
    shift += max(0, (mask >> shift).bit_length() - 16)
    most = mask >> shift
    levels = np.rint(np.arange(most + 1) * (255 / most)).astype(np.uint8)
    return np.asarray(levels[(words & mask) >> shift], np.uint8)
