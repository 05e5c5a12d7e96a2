"""TIFF: its directories, the EXIF block in which it says what it says of a photo, and a picture with such a block.

An EXIF block is a small TIFF file, so what reads the one reads the other. Classic TIFF and BigTIFF, in both byte
orders. Only the first directory and the three that it leads to are followed, so that there is no way around in circles.
"""

import logging
import struct
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

log = logging.getLogger(__name__)

# Bytes of one value of each type: TIFF 6.0, BigTIFF, EXIF 3.0's UTF-8.
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8, 129: 1}
BYTE, ASCII, SHORT, LONG, RATIONAL, DOUBLE, UTF8 = 1, 2, 3, 4, 5, 12, 129
# Whole numbers, as which directories are pointed to.
WHOLE = {3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
# Bytes of what is turned around between byte orders: of rationals, each half. Other types have single bytes.
WIDTHS = {3: 2, 8: 2, 4: 4, 9: 4, 11: 4, 5: 4, 10: 4, 12: 8}

WIDTH, HEIGHT, BITS, DESCRIPTION, STRIPS, STRIP_SIZES = 0x100, 0x101, 0x102, 0x10E, 0x111, 0x117
ORIENTATION, X_RESOLUTION, Y_RESOLUTION, UNIT, SOFTWARE = 0x112, 0x11A, 0x11B, 0x128, 0x131
SAMPLES, SUB_IFDS, EXTRA_SAMPLES, THUMBNAIL = 0x115, 0x14A, 0x152, 0x201
XMP, IPTC, PHOTOSHOP, ICC = 0x2BC, 0x83BB, 0x8649, 0x8773
EXIF_IFD, GPS_IFD, INTEROP_IFD, MAKER_NOTE = 0x8769, 0x8825, 0xA005, 0x927C
UNASSOCIATED_ALPHA = 2
NO_UNIT, INCH, CENTIMETRE = 1, 2, 3
# What a first directory says of a photo. All else tells how pixels are stored, or is one program's own.
DESCRIPTIVE = frozenset(
    {
        # Names, dates, the scanner; page and position on it; resolution; Windows' rating, title, comment and keywords.
        *(0x10D, DESCRIPTION, 0x10F, 0x110, ORIENTATION, X_RESOLUTION, Y_RESOLUTION, 0x11D, 0x11E, 0x11F, UNIT),
        *(SOFTWARE, 0x132, 0x13B, 0x13C, 0x4746, 0x4749, 0x8298, *range(0x9C9B, 0x9CA0), 0xC4A5),
        # TIFF/EP's, which in EXIF stand in a directory of their own: exposure, lens, dates, history.
        *(0x829A, 0x829D, 0x8822, 0x8827, 0x882A, 0x9003, 0x9004, *range(0x9201, 0x920B), *range(0x9211, 0x9216)),
        *(0x9286, *range(0x9290, 0x9293)),
    }
)
# Of one tag, as many as are looked at.
MAX_NUMBERS = 16
# A directory of a camera has some sixty entries.
MAX_ENTRIES = 1000
MAX_BLOCK = 4 << 20
# The largest EXIF block that fits into a JPEG: a segment less `Exif\0\0`.
MAX_JPEG_BYTES = 65_527
# Of all values of a directory together.
MAX_VALUES = 16 << 20


@dataclass(frozen=True, slots=True)
class Layout:
    """How numbers stand in a file: `struct`'s byte order, and its letters for counts of entries and for offsets."""

    order: str
    count: str
    word: str

    @property
    def word_size(self) -> int:
        """Bytes of an offset, and of a value that stands in its entry."""
        return struct.calcsize("=" + self.word)


LAYOUTS = {
    b"II*\0": Layout("<", "H", "I"),
    b"MM\0*": Layout(">", "H", "I"),
    b"II+\0": Layout("<", "Q", "Q"),
    b"MM\0+": Layout(">", "Q", "Q"),
}
HEADS = {"<": b"II*\0", ">": b"MM\0*"}


@dataclass(frozen=True, slots=True)
class Entry:
    """A directory's entry, where it stands and where its value does. `content` is the value, or its offset."""

    at: int
    tag: int
    kind: int
    count: int
    content: int
    start: int

    @property
    def size(self) -> int:
        """Bytes of the value; of an unknown type, the most that is possible."""
        return SIZES.get(self.kind, 2**32) * self.count


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory: where it begins and ends, its next one's offset (0: none), its entries."""

    start: int
    end: int
    following: int
    entries: list[Entry]

    def find(self, tag: int) -> Entry | None:
        """The first entry with the tag."""
        return next((entry for entry in self.entries if entry.tag == tag), None)


@dataclass(frozen=True, slots=True)
class Field:
    """A tag with its value, as bytes of some order, and the offset at which it was found."""

    tag: int
    kind: int
    value: bytes
    place: int = 0


class Damaged(ValueError):
    """The structure can't be read."""


def header(data: bytes) -> tuple[Layout, Directory]:
    """How the file's numbers stand, and its first directory. Raises Damaged."""
    layout = LAYOUTS.get(data[:4])
    if layout is None or len(data) < 2 * layout.word_size:
        raise Damaged("no TIFF header")
    (start,) = struct.unpack_from(layout.order + layout.word, data, layout.word_size)
    return layout, directory(data, layout, start)


def directory(data: bytes, layout: Layout, start: int) -> Directory:
    """The directory at that offset. Raises Damaged."""
    word = layout.word_size
    count_size = struct.calcsize("=" + layout.count)
    if start + count_size > len(data):
        raise Damaged("a directory outside")
    (count,) = struct.unpack_from(layout.order + layout.count, data, start)
    step = 4 + 2 * word
    end = start + count_size + step * count
    if count > MAX_ENTRIES or end > len(data):
        raise Damaged(f"{count} entries")
    entries = []
    for at in range(start + count_size, end, step):
        tag, kind, number, content = struct.unpack_from(layout.order + "HH" + 2 * layout.word, data, at)
        is_apart = SIZES.get(kind, 2**32) * number > word
        entries.append(Entry(at, tag, kind, number, content, content if is_apart else at + 4 + word))
    # Some writers leave the last offset out.
    link = struct.unpack_from(layout.order + layout.word, data, end)[0] if end + word <= len(data) else 0
    return Directory(start, end + word, link, entries)


def below(data: bytes, layout: Layout, parent: Directory, tag: int) -> Directory | None:
    """The directory that an entry points to, if there is such an entry. Raises Damaged."""
    entry = parent.find(tag)
    if entry is None:
        return None
    if entry.kind not in WHOLE:
        raise Damaged(f"a pointer of type {entry.kind}")
    if entry.start + SIZES[entry.kind] > len(data):
        raise Damaged("a pointer outside")
    return directory(data, layout, struct.unpack_from(layout.order + WHOLE[entry.kind], data, entry.start)[0])


@dataclass(frozen=True, slots=True)
class Page:
    """A directory with a picture, for what it says in whole numbers."""

    data: bytes
    layout: Layout
    directory: Directory

    def count(self, tag: int) -> int:
        """How many values a tag has; 0 when it is not there."""
        entry = self.directory.find(tag)
        return 0 if entry is None else entry.count

    def numbers(self, tag: int) -> list[int]:
        """The first values of a tag; none when it is not there or can't be read."""
        entry = self.directory.find(tag)
        if entry is None or entry.kind not in WHOLE:
            return []
        kind = f"{self.layout.order}{min(entry.count, MAX_NUMBERS)}{WHOLE[entry.kind]}"
        is_inside = entry.start + struct.calcsize(kind) <= len(self.data)
        return list(struct.unpack_from(kind, self.data, entry.start)) if is_inside else []

    def number(self, tag: int, default: int) -> int:
        """The first value of a tag, or the default."""
        return next(iter(self.numbers(tag)), default)


def pages(data: bytes, most: int) -> Iterator[Page]:
    """The directories of a file, at most so many, up to the first that is damaged or was there already."""
    seen: set[int] = set()
    try:
        layout, page = header(data)
        yield Page(data, layout, page)
        while page.following and page.following not in seen and len(seen) + 1 < most:
            seen.add(page.following)
            page = directory(data, layout, page.following)
            yield Page(data, layout, page)
    except Damaged:
        return


def values(data: bytes, tags: Collection[int]) -> dict[int, bytes]:
    """The values of the first directory's entries with these tags, as they stand; of damaged or large ones, nothing."""
    try:
        _, first = header(data)
    except Damaged:
        return {}
    return {field.tag: field.value for field in _fields(data, first, tags)}


def _fields(data: bytes, source: Directory, tags: Collection[int] | None = None) -> list[Field]:
    """What the directory says, in the order of its entries; each tag once, and no more than is bounded."""
    found: dict[int, Field] = {}
    left = MAX_VALUES
    for entry in source.entries:
        wanted = entry.tag not in found and (tags is None or entry.tag in tags)
        if wanted and entry.kind in SIZES and entry.size <= left and entry.start + entry.size <= len(data):
            value = data[entry.start : entry.start + entry.size]
            found[entry.tag] = Field(entry.tag, entry.kind, value, entry.start)
            left -= entry.size
    return list(found.values())


def resolution(block: bytes) -> tuple[Fraction, Fraction, int] | None:
    """Pixels per unit across and down, and the unit as TIFF numbers it; None where neither is told."""
    try:
        layout, first = header(block)
    except Damaged:
        return None
    found = {field.tag: field for field in _fields(block, first, (X_RESOLUTION, Y_RESOLUTION, UNIT))}
    sides = [found.get(tag) for tag in (X_RESOLUTION, Y_RESOLUTION)]
    if any(side is None or side.kind != RATIONAL or not side.value for side in sides):
        return None
    numbers = [struct.unpack_from(layout.order + "II", side.value) for side in sides if side is not None]
    x, y = (Fraction(above, under or 1) for above, under in numbers)
    unit = found.get(UNIT, Field(UNIT, SHORT, b""))
    is_told = unit.kind == SHORT and bool(unit.value)
    return x, y, struct.unpack_from(layout.order + "H", unit.value)[0] if is_told else INCH


def compact(data: bytes, order: str | None = None, limit: int = MAX_BLOCK) -> bytes | None:
    """What a TIFF file, or a large EXIF block, says of a photo, as an EXIF block; None if that is nothing, or damaged.

    That is the descriptive part of the first directory, and those of EXIF, GPS and interoperability.
    order: `struct`'s byte order of the numbers; by default it stays as it is. limit: bytes; the largest values are
    left out where it would be passed. A maker note is not changed, and stays at its offset where there is room.
    """
    try:
        layout, found = _directories(data)
    except Damaged:
        return None
    order = order or layout.order
    said: dict[int, list[Field]] = {}
    for tag, source in found.items():
        fields = _fields(data, source, None if tag else DESCRIPTIVE)
        said[tag] = [_turned(field, layout.order, order) for field in fields if _is_plain(field)]
    if not any(said.values()):
        return None
    note = next((field for field in said.get(EXIF_IFD, ()) if field.tag == MAKER_NOTE), None)
    # BigTIFF is no camera's, and the offsets in a note are short.
    if note is not None and layout.word == "I" and 8 <= note.place <= min(limit, MAX_JPEG_BYTES) - len(note.value):
        block = _Block(order, note).written(said)
        if len(block) <= limit:
            return block
    return _Block(order, None).written(_fitting(said, limit))


def _directories(data: bytes) -> tuple[Layout, dict[int, Directory]]:
    """The directories that are there, by the tag of the pointer to each; the first has 0. Raises Damaged."""
    layout, first = header(data)
    found = {0: first}
    for tag, parent in ((EXIF_IFD, 0), (GPS_IFD, 0), (INTEROP_IFD, EXIF_IFD)):
        try:
            source = below(data, layout, found[parent], tag) if parent in found else None
        except Damaged:
            log.debug("a damaged directory, %#x, is left out", tag)
            continue
        if source is not None:
            found[tag] = source
    return layout, found


def _is_plain(field: Field) -> bool:
    """Whether it holds a value of EXIF, and no offset."""
    return field.tag != INTEROP_IFD and (field.kind <= DOUBLE or field.kind == UTF8)


def _turned(field: Field, order: str, wanted: str) -> Field:
    """The field with its value in the wanted byte order."""
    # IPTC-IIM is bytes, which are only said to be numbers.
    width = 1 if field.tag == IPTC else WIDTHS.get(field.kind, 1)
    if order == wanted or width == 1:
        return field
    turned = np.frombuffer(field.value, f"u{width}").byteswap().tobytes()
    return Field(field.tag, field.kind, turned, field.place)


def _fitting(said: dict[int, list[Field]], limit: int) -> dict[int, list[Field]]:
    """The same without the largest values, where the block would have more than `limit` bytes."""
    # The header, four directories without their entries, the three pointers to them; then entries and even values.
    left = limit - 8 - 4 * 8 - 3 * 12
    chosen: dict[int, list[Field]] = {tag: [] for tag in said}
    by_size = sorted(((tag, field) for tag, fields in said.items() for field in fields), key=lambda x: len(x[1].value))
    for tag, field in by_size:
        left -= 12 + len(field.value) + len(field.value) % 2
        if left < 0:
            log.debug("%d bytes of tag %#x have no room in an EXIF block", len(field.value), field.tag)
        else:
            chosen[tag].append(field)
    return chosen


class _Block:
    """An EXIF block that grows, around the place at which a maker note stays."""

    def __init__(self, order: str, note: Field | None) -> None:
        self.order = order
        self.note = note
        self.kept = range(0) if note is None else range(note.place, note.place + len(note.value))
        self.data = bytearray(HEADS[order] + bytes(4))

    def written(self, said: dict[int, list[Field]]) -> bytes:
        """The block with these directories, each by the tag of the pointer to it; the first has 0."""
        details = said.get(EXIF_IFD, []) + self._pointer(INTEROP_IFD, said.get(INTEROP_IFD, []))
        first = said[0] + self._pointer(EXIF_IFD, details) + self._pointer(GPS_IFD, said.get(GPS_IFD, []))
        struct.pack_into(self.order + "I", self.data, 4, self._add_directory(first))
        if self.note is not None:
            self.data += bytes(max(0, self.kept.stop - len(self.data)))
            self.data[self.kept.start : self.kept.stop] = self.note.value
        return bytes(self.data)

    def _pointer(self, tag: int, fields: list[Field]) -> list[Field]:
        if not fields:
            return []
        return [Field(tag, LONG, struct.pack(self.order + "I", self._add_directory(fields)))]

    def _add_directory(self, fields: list[Field]) -> int:
        return self._add(packed({field.tag: self._entry(field) for field in fields}, self.order))

    def _entry(self, field: Field) -> bytes:
        if len(field.value) <= 4:
            return packed_entry(field, field.value, self.order)
        start = self.kept.start if field is self.note else self._add(field.value)
        return packed_entry(field, struct.pack(self.order + "I", start), self.order)

    def _add(self, part: bytes) -> int:
        """Puts it where there is room, at an even offset, and tells where."""
        start = len(self.data) + len(self.data) % 2
        if start < self.kept.stop and start + len(part) > self.kept.start:
            start = self.kept.stop + self.kept.stop % 2
        self.data += bytes(start - len(self.data)) + part
        return start


def packed_entry(field: Field, content: bytes, order: str) -> bytes:
    """An entry of a classic directory. content: the value, or its offset."""
    count = len(field.value) // SIZES[field.kind]
    return struct.pack(order + "HHI", field.tag, field.kind, count) + content.ljust(4, b"\0")


def packed(entries: dict[int, bytes], order: str) -> bytes:
    """A classic directory of these entries, by tag; no other follows it."""
    return struct.pack(order + "H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries)) + bytes(4)


def tiff_with(encoded: bytes, block: bytes | None, fields: Iterable[Field]) -> bytes:
    """The TIFF, little-endian, from our encoder, with an EXIF block and fields, whose values are little-endian too.

    The file begins with the block: so all that the block points to, inside a maker note too, is where it was. Then
    come the strips as they are, and a directory of the picture's fields, the block's descriptive ones and these.
    """
    _, picture = header(encoded)
    own = {field.tag: field for field in _fields(encoded, picture)}
    if block is not None and block[:4] == HEADS[">"] and own[BITS].value[0] > 8:
        # Samples stand in the order of the file's numbers, and those of the picture are compressed already.
        block = compact(block, "<")
    elif block is not None and not _is_whole(block):
        # Behind its end there will be pixels.
        block = compact(block)
    order, entries, head = _head(block)
    offsets, sizes = (_whole(own[tag]) for tag in (STRIPS, STRIP_SIZES))
    start, end = int(offsets.min()), int((offsets + sizes).max())
    own[STRIPS] = Field(STRIPS, LONG, (offsets - start + len(head)).astype("<u4").tobytes())
    if own[SAMPLES].value[0] == 4:
        own[EXTRA_SAMPLES] = Field(EXTRA_SAMPLES, SHORT, struct.pack("<H", UNASSOCIATED_ALPHA))
    parts = [bytes((end - start) % 2)]
    at = len(head) + end - start + len(parts[0])
    for field in (*own.values(), *fields):
        content = value = _turned(field, "<", order).value
        if len(value) > 4:
            content = struct.pack(order + "I", at)
            parts.append(value + bytes(len(value) % 2))
            at += len(parts[-1])
        entries[field.tag] = packed_entry(field, content, order)
    struct.pack_into(order + "I", head, 4, at)
    return b"".join([head, memoryview(encoded)[start:end], *parts, packed(entries, order)])


def _is_whole(block: bytes) -> bool:
    """Whether it is a classic block, and every value lies inside it."""
    try:
        layout, found = _directories(block)
    except Damaged:
        return False
    return layout.word == "I" and all(
        entry.start + entry.size <= len(block) for source in found.values() for entry in source.entries
    )


def _head(block: bytes | None) -> tuple[str, dict[int, bytes], bytearray]:
    """What a TIFF with this block begins with: its byte order, entries for its first directory, its first bytes."""
    if block is None:
        return "<", {}, bytearray(HEADS["<"] + bytes(4))
    layout, found = _directories(block)
    taken = DESCRIPTIVE | (found.keys() - {0})
    entries = {entry.tag: block[entry.at : entry.at + 12] for entry in found[0].entries if entry.tag in taken}
    return layout.order, entries, bytearray(block + bytes(len(block) % 2))


def _whole(field: Field) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.frombuffer(field.value, "<u2" if field.kind == SHORT else "<u4").astype(np.int64)
