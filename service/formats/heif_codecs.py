"""How much one coded picture of an AVIF or HEIC takes to decode: its own size and frames, whatever the boxes say.

Only the headers of the bit stream are read: ITU-T H.265, and the AV1 bit stream specification.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from service.formats.heif_boxes import Damaged, Excessive

# A slice or tile of a picture is a unit of its own; a photo has some hundred at most.
MAX_UNITS = 20_000
# Longer than any sequence header needs to be up to the picture's size.
HEADER_BYTES = 256
HEVC_SEQUENCE = 33
LAST_HEVC_SLICE = 31
AV1_SEQUENCE, AV1_FRAME_HEADER, AV1_FRAME = 1, 3, 6
# The sizes of units in a HEIC have this many bytes in practice, and libheif reads no others.
LENGTH_BYTES = 4


@dataclass(frozen=True, slots=True)
class CodedImage:
    """The largest width and height, pixels, that a bit stream has, and its number of frames."""

    width: int
    height: int
    frames: int


class _Bits:
    """Read a bit stream from its first bit on. Raises Damaged past its end."""

    def __init__(self, data: bytes) -> None:
        self.value = int.from_bytes(data)
        self.left = 8 * len(data)

    def number(self, bits: int) -> int:
        self.left -= bits
        if self.left < 0:
            raise Damaged("the header of its picture is cut short")
        return self.value >> self.left & (1 << bits) - 1

    def exponential(self) -> int:
        """Return a number in Exp-Golomb code: ue(v) of H.265, uvlc() of AV1."""
        zeros = 0
        while not self.number(1):
            zeros += 1
            if zeros > 32:
                raise Damaged("the header of its picture is damaged")
        return (1 << zeros) - 1 + self.number(zeros)


def measure_hevc(configuration: bytes, content: memoryview) -> CodedImage:
    """Return the size of an HEVC picture. configuration: content of its hvcC box. Raises Damaged and Excessive."""
    sizes: list[tuple[int, int]] = []
    frames = 0
    for unit in (*_configured(configuration), *_units(content)):
        # Of another layer, which decoders skip.
        if len(unit) < 3 or unit[0] & 1 or unit[1] >> 3:
            continue
        kind = unit[0] >> 1 & 0x3F
        if kind == HEVC_SEQUENCE:
            sizes.append(_hevc_size(bytes(unit[2:HEADER_BYTES]).replace(b"\0\0\3", b"\0\0")))
        frames += kind <= LAST_HEVC_SLICE and bool(unit[2] & 0x80)
    if not sizes:
        raise Damaged("its picture has no header")
    return CodedImage(max(width for width, _ in sizes), max(height for _, height in sizes), frames)


def _configured(configuration: bytes) -> Iterator[memoryview]:
    """Yield the units of an hvcC box."""
    view = memoryview(configuration)
    if len(view) < 23 or (view[21] & 3) + 1 != LENGTH_BYTES:
        raise Damaged("the header of its picture is damaged")
    at = 23
    for _ in range(view[22]):
        count = int.from_bytes(view[at + 1 : at + 3])
        at += 3
        for _ in range(count):
            if at + 2 > len(view):
                raise Damaged("the header of its picture is cut short")
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
            raise Damaged("its picture is cut short")
        yield content[at + LENGTH_BYTES : end]
        at = end
    raise Excessive(f"a picture is in more than {MAX_UNITS:,} parts")


def _hevc_size(header: bytes) -> tuple[int, int]:
    """Return width and height of a sequence parameter set, without its two first bytes."""
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
    """Return the size of an AV1 picture. Raises Damaged and Excessive."""
    sizes: list[tuple[int, int]] = []
    frames = 0
    for kind, unit in _obus(content):
        if kind == AV1_SEQUENCE:
            sizes.append(_av1_size(bytes(unit[:HEADER_BYTES])))
        frames += kind in (AV1_FRAME, AV1_FRAME_HEADER)
    if not sizes:
        raise Damaged("its picture has no header")
    return CodedImage(max(width for width, _ in sizes), max(height for _, height in sizes), frames)


def _obus(content: memoryview) -> Iterator[tuple[int, memoryview]]:
    at = 0
    for _ in range(MAX_UNITS):
        if at >= len(content):
            return
        head = content[at]
        # An extension has one more byte.
        at += 2 if head & 4 else 1
        size = len(content) - at
        if head & 2:
            size, at = _leb128(content, at)
        if at + size > len(content):
            raise Damaged("its picture is cut short")
        yield head >> 3 & 15, content[at : at + size]
        at += size
    raise Excessive(f"a picture is in more than {MAX_UNITS:,} parts")


def _leb128(content: memoryview, at: int) -> tuple[int, int]:
    """Return a number of up to eight bytes, and where it ends."""
    value = 0
    for place, byte in enumerate(content[at : at + 8]):
        value |= (byte & 0x7F) << 7 * place
        if not byte & 0x80:
            return value, at + place + 1
    raise Damaged("its picture is cut short")


def _av1_size(header: bytes) -> tuple[int, int]:
    """Return the largest width and height that frames of an AV1 sequence header may have."""
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
    """Return a side. A frame may state another of the same length in bits, which encoders keep as short as it can be.

    Where the length is that, a frame has less than twice the side.
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
