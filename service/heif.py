"""What an AVIF or HEIC says of its primary picture: EXIF, XMP, colour profile; and pixels of HEIC.

The boxes are read here: pi-heif dies of a damaged item of metadata, with the whole process, and Pillow moves what an
AVIF's EXIF holds where its orientation is not the one that the file's transformations tell.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import _pi_heif
from pi_heif.heif import BaseImage

from service.geometry import combined

DECODER_THREADS = 1
# A photo of a hundred megapixels has some four hundred tiles, each an item with its boxes.
MAX_BOXES = 5000
MAX_ITEMS = 5000
MAX_EXTENTS = 100
MAX_REFERENCES = 100
MAX_BLOCK = 4 << 20
XMP_TYPE = b"application/rdf+xml"
# EXIF's numbers of quarter turns to the left, and of what exchanges top and bottom, or left and right.
ROTATIONS = (1, 8, 3, 6)
MIRRORS = (4, 2)

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Blocks:
    """EXIF as a TIFF block, XMP as a packet, an ICC profile; None where there is none.

    orientation: the turn that the file's transformations make, as EXIF numbers it; 0 where they do more than that.
    """

    exif: bytes | None = None
    xmp: bytes | None = None
    icc: bytes | None = None
    orientation: int = 1


class _Cursor:
    """Reads numbers one behind another. Raises ValueError past the end."""

    def __init__(self, data: bytes, span: Span) -> None:
        self.data = data
        self.at, self.end = span

    def number(self, size: int) -> int:
        return int.from_bytes(self.raw(size))

    def raw(self, size: int) -> bytes:
        self.at += size
        if self.at > self.end:
            raise ValueError("a box that is cut short")
        return self.data[self.at - size : self.at]

    def version(self) -> tuple[int, int]:
        """The version and the flags, with which many boxes begin."""
        return self.number(1), self.number(3)


def read(data: bytes) -> Blocks:
    """What is said of the primary picture. Never raises: what can't be read is left out."""
    meta = dict(_boxes(data, (0, len(data)))).get(b"meta")
    if meta is None:
        return Blocks()
    found = dict(_boxes(data, (meta[0] + 4, meta[1])))
    try:
        primary = _primary(_Cursor(data, found[b"pitm"]))
        items = dict(_items(data, found[b"iinf"]))
        described = _described(data, found[b"iref"]) if b"iref" in found else {}
        told = {item: kind for item, kind in items.items() if kind in (b"Exif", XMP_TYPE)}
        own = {kind: item for item, kind in reversed(told.items()) if primary in described.get(item, [primary])}
        places = _places(_Cursor(data, found[b"iloc"]), set(own.values()), found.get(b"idat", (0, 0))[0])
    except (KeyError, ValueError):
        return Blocks()
    contents = {kind: b"".join(data[start:end] for start, end in places.get(item, [])) for kind, item in own.items()}
    properties = _properties(data, found, primary)
    return Blocks(
        _tiff_block(contents.get(b"Exif", b"")),
        contents.get(XMP_TYPE) or None,
        _profile(data, properties),
        _orientation(data, properties),
    )


def pictures(data: bytes) -> list[BaseImage]:
    """The pictures of a HEIC, upright already: their `size` and `mode`; `numpy.asarray` of one decodes it.

    `mode` is of 8 bits a channel, or ends in `;16` for more. Raises ValueError, EOFError, SyntaxError, RuntimeError or
    OSError when the file is damaged.
    """
    # Not its public `open_heif`, which looks at the metadata, too.
    images = _pi_heif.load_file(data, DECODER_THREADS, False, False, True, True, "", False)
    return [BaseImage(image) for image in images if image is not None]


def _boxes(data: bytes, span: Span) -> Iterator[tuple[bytes, Span]]:
    """Kind of the boxes there, and where their content is; the last of a kind counts."""
    start, end = span
    for _ in range(MAX_BOXES):
        if start + 8 > end:
            return
        size, kind = struct.unpack_from(">I4s", data, start)
        head = 8
        if size == 1 and start + 16 <= end:
            (size,) = struct.unpack_from(">Q", data, start + 8)
            head = 16
        elif size == 0:
            size = end - start
        if not head <= size <= end - start:
            return
        yield kind, (start + head, start + size)
        start += size


def _primary(cursor: _Cursor) -> int:
    version, _ = cursor.version()
    return cursor.number(2 if version == 0 else 4)


def _items(data: bytes, span: Span) -> Iterator[tuple[int, bytes]]:
    """The items by number, with their kinds; of those with a media type, this."""
    cursor = _Cursor(data, span)
    version, _ = cursor.version()
    cursor.number(2 if version == 0 else 4)
    for kind, inner in _boxes(data, (cursor.at, span[1])):
        entry = _Cursor(data, inner)
        version, _ = entry.version()
        if kind != b"infe" or version < 2:
            continue
        number = entry.number(2 if version == 2 else 4)
        entry.number(2)
        item_kind = entry.raw(4)
        if item_kind == b"mime":
            _name, item_kind, *_ = (*data[entry.at : inner[1]].split(b"\0", 2), b"", b"")
        yield number, item_kind


def _described(data: bytes, span: Span) -> dict[int, list[int]]:
    """Which items each item of metadata describes."""
    version, _ = _Cursor(data, span).version()
    size = 2 if version == 0 else 4
    described = {}
    for kind, inner in _boxes(data, (span[0] + 4, span[1])):
        if kind == b"cdsc":
            cursor = _Cursor(data, inner)
            item = cursor.number(size)
            described[item] = [cursor.number(size) for _ in range(min(MAX_REFERENCES, cursor.number(2)))]
    return described


def _places(cursor: _Cursor, wanted: set[int], item_data: int) -> dict[int, list[Span]]:
    """Where the contents of the wanted items are, `MAX_BLOCK` bytes of each at most."""
    version, _ = cursor.version()
    sizes = cursor.number(2)
    offset, length, base, index = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    index = index if version else 0
    found = {}
    for _ in range(min(MAX_ITEMS, cursor.number(2 if version < 2 else 4))):
        item = cursor.number(2 if version < 2 else 4)
        method = cursor.number(2) & 15 if version else 0
        cursor.number(2)
        start = cursor.number(base) + (item_data if method == 1 else 0)
        count = cursor.number(2)
        extents = _Cursor(cursor.data, (cursor.at, cursor.end))
        cursor.at += count * (index + offset + length)
        if item not in wanted or method > 1 or count > MAX_EXTENTS:
            continue
        spans = []
        # Of one file, extents may lie over one another.
        left = min(MAX_BLOCK, len(cursor.data))
        for _ in range(count):
            extents.number(index)
            at = start + extents.number(offset)
            size = extents.number(length)
            if size > left or at + size > len(cursor.data):
                break
            spans.append((at, at + size))
            left -= size
        else:
            found[item] = spans
    return found


def _tiff_block(content: bytes) -> bytes | None:
    """The block of an item of EXIF, which begins with how far away it is."""
    return content[4 + int.from_bytes(content[:4]) :].removeprefix(b"Exif\0\0") or None


def _properties(data: bytes, found: dict[bytes, Span], primary: int) -> list[tuple[bytes, Span]]:
    """Return the properties of the primary picture in their order: the kind of each, and where its content is."""
    if b"iprp" not in found:
        return []
    boxes = dict(_boxes(data, found[b"iprp"]))
    try:
        numbers = _associated(_Cursor(data, boxes[b"ipma"]), primary)
        spans = list(_boxes(data, boxes[b"ipco"]))
    except (KeyError, ValueError):
        return []
    return [spans[number - 1] for number in numbers if 1 <= number <= len(spans)]


def _profile(data: bytes, properties: list[tuple[bytes, Span]]) -> bytes | None:
    for kind, (start, end) in properties:
        if kind == b"colr" and data[start : start + 4] in (b"prof", b"rICC") and end - start <= MAX_BLOCK:
            return data[start + 4 : end]
    return None


def _orientation(data: bytes, properties: list[tuple[bytes, Span]]) -> int:
    """Return the turn that the transformations make; 0 where one of them crops."""
    turn = 1
    for kind, (start, end) in properties:
        number = data[start] if start < end else 0
        if kind == b"irot":
            turn = combined(turn, ROTATIONS[number & 3])
        elif kind == b"imir":
            turn = combined(turn, MIRRORS[number & 1])
        elif kind == b"clap":
            return 0
    return turn


def _associated(cursor: _Cursor, primary: int) -> list[int]:
    """The numbers of the properties that the primary picture has."""
    version, flags = cursor.version()
    size = 2 if flags & 1 else 1
    for _ in range(min(MAX_ITEMS, cursor.number(4))):
        item = cursor.number(2 if version == 0 else 4)
        count = cursor.number(1)
        if item == primary:
            # The first bit tells whether a reader must know the property.
            return [cursor.number(size) & (0x7FFF if size == 2 else 0x7F) for _ in range(count)]
        cursor.raw(count * size)
    return []
