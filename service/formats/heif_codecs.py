"""Measure the size and the number of frames of a coded image in an AVIF or HEIC file, from its bit stream.

The boxes of the file may state another size. Only the headers of the bit stream are read. Sources: ITU-T H.265, and
the AV1 Bitstream & Decoding Process Specification.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from service.formats.heif_boxes import Damaged, Excessive

# Each slice or tile of an image is a unit. A photo has a few hundred at most.
MAX_UNITS = 20_000
# A sequence header has the image's size within these first bytes.
HEADER_BYTES = 256
HEVC_SEQUENCE = 33
LAST_HEVC_SLICE = 31
AV1_SEQUENCE, AV1_FRAME_HEADER, AV1_FRAME = 1, 3, 6
# The size of a unit in a HEIC has this many bytes in practice. libheif supports no other length.
LENGTH_BYTES = 4


@dataclass(frozen=True, slots=True)
class CodedImage:
    """The largest width and height (pixels) in a bit stream, and its number of frames."""

    width: int
    height: int
    frames: int


class _Bits:
    """A reader of a bit stream, the highest bit first. Its methods raise Damaged behind the end."""

    def __init__(self, data: bytes) -> None:
        self.value = int.from_bytes(data)
        self.left = 8 * len(data)

    def number(self, bits: int) -> int:
        self.left -= bits
        if self.left < 0:
            raise Damaged("the header of its image is cut short")
        return self.value >> self.left & (1 << bits) - 1

    def exponential(self) -> int:
        """Return the next number in Exp-Golomb code: ue(v) of H.265, uvlc() of AV1."""
        zeros = 0
        while not self.number(1):
            zeros += 1
            if zeros > 32:
                raise Damaged("the header of its image is damaged")
        return (1 << zeros) - 1 + self.number(zeros)


def measure_hevc(configuration: bytes, content: memoryview) -> CodedImage:
    """Return the size of an HEVC image. configuration: content of its hvcC box. Raises Damaged and Excessive."""
    sizes: list[tuple[int, int]] = []
    frames = 0
    for unit in (*_configured(configuration), *_units(content)):
        # Decoders skip units of other layers.
        if len(unit) < 3 or unit[0] & 1 or unit[1] >> 3:
            continue
        kind = unit[0] >> 1 & 0x3F
        if kind == HEVC_SEQUENCE:
            sizes.append(_hevc_size(bytes(unit[2:HEADER_BYTES]).replace(b"\0\0\3", b"\0\0")))
        frames += kind <= LAST_HEVC_SLICE and bool(unit[2] & 0x80)
    if not sizes:
        raise Damaged("its image has no header")
    return CodedImage(max(width for width, _ in sizes), max(height for _, height in sizes), frames)


def _configured(configuration: bytes) -> Iterator[memoryview]:
    """Yield the units in the content of an hvcC box."""
    view = memoryview(configuration)
    if len(view) < 23 or (view[21] & 3) + 1 != LENGTH_BYTES:
        raise Damaged("the header of its image is damaged")
    at = 23
    for _ in range(view[22]):
        count = int.from_bytes(view[at + 1 : at + 3])
        at += 3
        for _ in range(count):
            if at + 2 > len(view):
                raise Damaged("the header of its image is cut short")
            end = at + 2 + int.from_bytes(view[at : at + 2])
            yield view[at + 2 : end]
            at = end


def _units(content: memoryview) -> Iterator[memoryview]:
    at = 0
    for _ in range(MAX_UNITS):
        if at >= len(content):
            return
        end = at + LENGTH_BYTES + int.from_bytes(content[at : at + LENGTH_BYTES])
        if end > len(content):
            raise Damaged("its image is cut short")
        yield content[at + LENGTH_BYTES : end]
        at = end
    raise Excessive(f"an image has more than {MAX_UNITS:,} units")


def _hevc_size(header: bytes) -> tuple[int, int]:
    """Return the width and height in a sequence parameter set. header: without its first two bytes."""
    bits = _Bits(header)
    bits.number(4)
    layers = bits.number(3)
    bits.number(1 + 96)
    present = [(bits.number(1), bits.number(1)) for _ in range(layers)]
    bits.number(2 * (8 - layers) if layers else 0)
    for has_profile, has_level in present:
        bits.number(88 * has_profile + 8 * has_level)
    bits.exponential()
    if bits.exponential() == 3:
        bits.number(1)
    return bits.exponential(), bits.exponential()


def measure_av1(content: memoryview) -> CodedImage:
    """Return the size of an AV1 image. Raises Damaged and Excessive."""
    sizes: list[tuple[int, int]] = []
    frames = 0
    for kind, unit in _obus(content):
        if kind == AV1_SEQUENCE:
            sizes.append(_av1_size(bytes(unit[:HEADER_BYTES])))
        frames += kind in (AV1_FRAME, AV1_FRAME_HEADER)
    if not sizes:
        raise Damaged("its image has no header")
    return CodedImage(max(width for width, _ in sizes), max(height for _, height in sizes), frames)


def _obus(content: memoryview) -> Iterator[tuple[int, memoryview]]:
    at = 0
    for _ in range(MAX_UNITS):
        if at >= len(content):
            return
        head = content[at]
        # A header with an extension has one more byte.
        at += 2 if head & 4 else 1
        size = len(content) - at
        if head & 2:
            size, at = _leb128(content, at)
        if at + size > len(content):
            raise Damaged("its image is cut short")
        yield head >> 3 & 15, content[at : at + size]
        at += size
    raise Excessive(f"an image has more than {MAX_UNITS:,} units")


def _leb128(content: memoryview, at: int) -> tuple[int, int]:
    """Return a LEB128 number of up to eight bytes, and the offset behind it."""
    value = 0
    for index, byte in enumerate(content[at : at + 8]):
        value |= (byte & 0x7F) << 7 * index
        if not byte & 0x80:
            return value, at + index + 1
    raise Damaged("its image is cut short")


def _av1_size(header: bytes) -> tuple[int, int]:
    """Return the largest width and height of frames that an AV1 sequence header allows."""
    bits = _Bits(header)
    bits.number(3 + 1)
    if bits.number(1):
        bits.number(5)
    else:
        _skip_operating_points(bits)
    lengths = bits.number(4) + 1, bits.number(4) + 1
    width, height = (_largest(bits, length) for length in lengths)
    return width, height


def _largest(bits: _Bits, length: int) -> int:
    """Return the longest side that a frame may have. length: bits that a frame has for its side.

    A frame may have another side than the sequence header. Most encoders use as few bits as the side needs, and then a
    frame has less than twice the side. With more bits, the side is bounded by them only.
    """
    side = bits.number(length)
    return side + 1 if length <= max(1, side.bit_length()) else 1 << length


def _skip_operating_points(bits: _Bits) -> None:
    delay_length = 0
    has_model = False
    if bits.number(1):
        bits.number(64)
        if bits.number(1):
            bits.exponential()
        has_model = bool(bits.number(1))
        if has_model:
            delay_length = bits.number(5) + 1
            bits.number(32 + 5 + 5)
    has_delay = bits.number(1)
    for _ in range(bits.number(5) + 1):
        bits.number(12)
        if bits.number(5) > 7:
            bits.number(1)
        if has_model and bits.number(1):
            bits.number(2 * delay_length + 1)
        if has_delay and bits.number(1):
            bits.number(4)
