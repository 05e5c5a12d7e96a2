"""AVIF and HEIC files that are built box by box, sound ones and some that no encoder writes."""

import functools
import io
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pillow_heif
from PIL import Image

from service.formats import heif_boxes

ALPHA = b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0"


@dataclass(frozen=True)
class Item:
    """An item of a file: its type, content, properties and references."""

    kind: bytes
    content: bytes = b""
    properties: Sequence[tuple[bytes, bytes]] = ()
    references: Mapping[bytes, Sequence[int]] = field(default_factory=dict)
    is_hidden: bool = False


def box(kind: bytes, *parts: bytes) -> bytes:
    size = 8 + sum(map(len, parts))
    return b"".join([struct.pack(">I4s", size, kind), *parts])


def full(kind: bytes, *parts: bytes, version: int = 0, flags: int = 0) -> bytes:
    return box(kind, bytes([version]) + flags.to_bytes(3), *parts)


def heif(
    items: Mapping[int, Item],
    *,
    primary: int = 1,
    brands: bytes = b"heicmif1heic",
    before: bytes = b"",
    first: bytes = b"",
    last: bytes = b"",
    is_inside: bool = False,
    is_large: bool = False,
    has_parts: bool = False,
) -> bytes:
    """Return a file of these items.

    before: boxes before the list of items; first, last: boxes at the list's beginning and end. is_inside: contents are
    in the list of items; is_large: contents are in a box of 64-bit size, before the list; has_parts: in two parts each.
    """
    head = box(b"ftyp", brands[:4], bytes(4), brands[4:]) + before
    contents = b"".join(item.content for item in items.values())
    data = (
        struct.pack(">I4sQ", 1, b"mdat", 16 + len(contents))
        if is_large
        else struct.pack(">I4s", 8 + len(contents), b"mdat")
    )
    start = 0
    if is_large:
        start = len(head) + len(data)
    elif not is_inside:
        start = len(head) + len(_meta(items, primary, first, last, 0, is_inside, has_parts)) + len(data)
    meta = _meta(items, primary, first, last, start, is_inside, has_parts)
    if is_inside:
        return head + meta
    return head + data + contents + meta if is_large else head + meta + data + contents


def _meta(
    items: Mapping[int, Item], primary: int, first: bytes, last: bytes, start: int, is_inside: bool, has_parts: bool
) -> bytes:
    entries = [
        full(b"infe", struct.pack(">IH", number, 0), item.kind + b"\0", version=3, flags=item.is_hidden)
        for number, item in items.items()
    ]
    references = [
        box(kind, struct.pack(f">IH{len(targets)}I", number, len(targets), *targets))
        for number, item in items.items()
        for kind, targets in item.references.items()
    ]
    numbers: dict[tuple[bytes, bytes], int] = {}
    rows = [
        struct.pack(
            f">IB{len(item.properties)}H",
            number,
            len(item.properties),
            *(numbers.setdefault(one, len(numbers) + 1) for one in item.properties),
        )
        for number, item in items.items()
    ]
    return full(
        b"meta",
        first,
        full(b"hdlr", bytes(4), b"pict", bytes(13)),
        full(b"pitm", struct.pack(">I", primary), version=1),
        full(b"iinf", struct.pack(">I", len(items)), *entries, version=1),
        _places(items, start, is_inside, has_parts),
        *([full(b"iref", *references, version=1)] if references else []),
        box(
            b"iprp",
            box(b"ipco", *(box(kind, content) for kind, content in numbers)),
            full(b"ipma", struct.pack(">I", len(rows)), *rows, version=1, flags=1),
        ),
        *([box(b"idat", *(item.content for item in items.values()))] if is_inside else []),
        last,
    )


def _places(items: Mapping[int, Item], start: int, is_inside: bool, has_parts: bool) -> bytes:
    rows = []
    at = start
    for number, item in items.items():
        half = len(item.content) // 2 if has_parts else len(item.content)
        parts = [(0, half), (half, len(item.content) - half)] if has_parts else [(0, half)]
        rows.append(struct.pack(">IHHIH", number, int(is_inside), 0, at, len(parts)))
        rows += [struct.pack(">III", place, *part) for place, part in enumerate(parts)]
        at += len(item.content)
    # Version 2, with 32 bits each for offsets, lengths, bases and indices.
    return full(b"iloc", b"\x44\x44", struct.pack(">I", len(items)), *rows, version=2)


def size(width: int, height: int) -> tuple[bytes, bytes]:
    """Return the property with the size of an image."""
    return b"ispe", struct.pack(">III", 0, width, height)


def alpha_type() -> tuple[bytes, bytes]:
    """Return the property that marks an alpha."""
    return b"auxC", bytes(4) + ALPHA


def grid(rows: int, columns: int, width: int, height: int, tiles: Sequence[int], **changes: object) -> Item:
    """Return an image that consists of tiles."""
    layout = struct.pack(">BBBBII", 0, 1, rows - 1, columns - 1, width, height)
    item = {"properties": [size(width, height)], "references": {b"dimg": tiles}, **changes}
    return Item(b"grid", layout, **item)  # type: ignore[arg-type]


@functools.cache
def _encoded(pixels: bytes, shape: tuple[int, ...], codec: str) -> bytes:
    picture = Image.fromarray(np.frombuffer(pixels, np.uint8).reshape(shape))
    stream = io.BytesIO()
    if codec == "hvc1":
        pillow_heif.from_pillow(picture).save(stream, quality=90)
    else:
        picture.save(stream, "AVIF", quality=90, speed=10)
    return stream.getvalue()


def coded(pixels: np.ndarray, codec: str, *, is_hidden: bool = False) -> Item:
    """Return an item with these pixels, encoded by a library. codec: `hvc1` or `av01`."""
    found = heif_boxes.read(_encoded(pixels.tobytes(), pixels.shape, codec))
    item = found.items[found.primary]
    properties = [(kind, content) for kind, content, _ in found.properties_of(item)]
    content = b"".join(found.data[start:end] for start, end in item.spans or [])
    return Item(item.kind, content, properties, is_hidden=is_hidden)


class _Writer:
    """A writer of a bit stream."""

    def __init__(self) -> None:
        self.bits = ""

    def put(self, value: int, length: int) -> None:
        self.bits += f"{value:0{length}b}" if length else ""

    def exponential(self, value: int) -> None:
        digits = f"{value + 1:b}"
        self.bits += "0" * (len(digits) - 1) + digits

    def bytes(self) -> bytes:
        padded = self.bits + "1" + "0" * (-(len(self.bits) + 1) % 8)
        return int(padded, 2).to_bytes(len(padded) // 8)


def hevc_header(width: int, height: int) -> bytes:
    """Return a sequence parameter set of H.265 with this size."""
    bits = _Writer()
    bits.put(0, 4 + 3 + 1)
    # Profile and level, without a run of zeros that would need to be escaped.
    bits.put((1 << 96) - 1, 96)
    bits.exponential(0)
    bits.exponential(1)
    bits.exponential(width)
    bits.exponential(height)
    return b"\x42\x01" + bits.bytes().replace(b"\0\0\0", b"\0\0\3\0").replace(b"\0\0\1", b"\0\0\3\1")


def hevc(width: int, height: int, coded_width: int, coded_height: int, *, is_inside: bool = False) -> Item:
    """Return an HEVC image with one size in its boxes and another in its bit stream.

    is_inside: the stream has the header, instead of the configuration.
    """
    header = hevc_header(coded_width, coded_height)
    unit = b"\x26\x01\x80" + bytes(9)
    arrays = b"\0" if is_inside else b"\1\xa1\0\1" + struct.pack(">H", len(header)) + header
    units = [header, unit] if is_inside else [unit]
    content = b"".join(struct.pack(">I", len(one)) + one for one in units)
    return Item(b"hvc1", content, [size(width, height), (b"hvcC", b"\1" + bytes(20) + b"\x03" + arrays)])


def av1(width: int, height: int, coded_width: int, coded_height: int) -> Item:
    """Return an AV1 image with one size in its boxes and another in its bit stream."""
    bits = _Writer()
    bits.put(0b00011, 5)
    bits.put(8, 5)
    bits.put(15, 4)
    bits.put(15, 4)
    bits.put(coded_width - 1, 16)
    bits.put(coded_height - 1, 16)
    header = bits.bytes() + bytes(2)
    content = bytes([1 << 3 | 2, len(header)]) + header + bytes([6 << 3 | 2, 4]) + bytes(4)
    return Item(b"av01", content, [size(width, height), (b"av1C", b"\x81\0\x0c\0")])
