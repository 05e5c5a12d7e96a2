"""Read the directories of TIFF files and EXIF blocks, and the values in them.

An EXIF block is a small TIFF file. Classic TIFF and BigTIFF are supported, in both byte orders. Of EXIF, only the first
directory and the three that it leads to are followed, so that no cycle is possible.
"""

import logging
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from service.formats import tiff_tags

log = logging.getLogger(__name__)

# `struct` letters of the types that may point to a directory, and NumPy types of all types for whole numbers.
WHOLE = {tiff_tags.SHORT: "H", tiff_tags.LONG: "I", tiff_tags.IFD: "I", tiff_tags.LONG8: "Q", tiff_tags.IFD8: "Q"}
NUMBERS = {
    tiff_tags.BYTE: "u1",
    tiff_tags.SHORT: "u2",
    tiff_tags.LONG: "u4",
    tiff_tags.IFD: "u4",
    tiff_tags.LONG8: "u8",
    tiff_tags.IFD8: "u8",
}

# Values that are read of a tag by default.
MAX_NUMBERS = 16
MAX_NUMBER = np.uint64(2**63 - 1)
# A camera writes about 60 entries into a directory.
MAX_ENTRIES = 1000
# Bytes of all values of a directory together.
MAX_VALUES = 16 << 20


@dataclass(frozen=True, slots=True)
class Layout:
    """The layout of numbers in a file: `struct` byte order, and letters for entry counts (count) and offsets (word)."""

    order: str
    count: str
    word: str

    @property
    def word_size(self) -> int:
        """Bytes of an offset, and of the longest value that is stored in its entry."""
        return struct.calcsize("=" + self.word)


LAYOUTS = {
    b"II*\0": Layout("<", "H", "I"),
    b"MM\0*": Layout(">", "H", "I"),
    b"II+\0": Layout("<", "Q", "Q"),
    b"MM\0+": Layout(">", "Q", "Q"),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a directory.

    offset: of the entry itself. kind: field type. content: the number in the entry, which is the value or its offset.
    value_offset: of the value.
    """

    offset: int
    tag: int
    kind: int
    count: int
    content: int
    value_offset: int

    @property
    def size(self) -> int:
        """Bytes of the value; for an unknown type, the most that is possible."""
        return tiff_tags.TYPE_SIZES.get(self.kind, 2**32) * self.count


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory: its start and end, the offset of the next one (0: none), and its entries."""

    start: int
    end: int
    next_offset: int
    entries: list[Entry]

    def find(self, tag: int) -> Entry | None:
        """Return the first entry with the tag."""
        return next((entry for entry in self.entries if entry.tag == tag), None)


@dataclass(frozen=True, slots=True)
class Field:
    """A tag with its field type and its value as bytes. offset: where the value was in the file."""

    tag: int
    kind: int
    value: bytes
    offset: int = 0


class Damaged(ValueError):
    """Raised when the structure can't be read."""


def header(data: bytes) -> tuple[Layout, Directory]:
    """Return the layout of a file and its first directory. Raises Damaged."""
    layout = LAYOUTS.get(data[:4])
    if layout is None or len(data) < 2 * layout.word_size:
        raise Damaged("the TIFF header is missing")
    (start,) = struct.unpack_from(layout.order + layout.word, data, layout.word_size)
    return layout, directory(data, layout, start)


def directory(data: bytes, layout: Layout, start: int) -> Directory:
    """Return the directory at an offset. Raises Damaged."""
    word = layout.word_size
    count_size = struct.calcsize("=" + layout.count)
    if start + count_size > len(data):
        raise Damaged("a directory is outside the file")
    (count,) = struct.unpack_from(layout.order + layout.count, data, start)
    step = 4 + 2 * word
    end = start + count_size + step * count
    if count > MAX_ENTRIES or end > len(data):
        raise Damaged(f"a directory has {count} entries")
    entries = []
    for at in range(start + count_size, end, step):
        tag, kind, number, content = struct.unpack_from(layout.order + "HH" + 2 * layout.word, data, at)
        is_apart = tiff_tags.TYPE_SIZES.get(kind, 2**32) * number > word
        entries.append(Entry(at, tag, kind, number, content, content if is_apart else at + 4 + word))
    # Some writers omit the offset of the next directory.
    link = struct.unpack_from(layout.order + layout.word, data, end)[0] if end + word <= len(data) else 0
    return Directory(start, end + word, link, entries)


def subdirectory(data: bytes, layout: Layout, parent: Directory, tag: int) -> Directory | None:
    """Return the directory to which an entry of a parent points; None without that entry. Raises Damaged."""
    entry = parent.find(tag)
    if entry is None:
        return None
    if entry.kind not in WHOLE:
        raise Damaged(f"a pointer has the type {entry.kind}")
    if entry.value_offset + tiff_tags.TYPE_SIZES[entry.kind] > len(data):
        raise Damaged("a pointer is outside the file")
    return directory(data, layout, struct.unpack_from(layout.order + WHOLE[entry.kind], data, entry.value_offset)[0])


@dataclass(frozen=True, slots=True)
class Page:
    """A directory of an image, with methods that read its values."""

    data: bytes
    layout: Layout
    directory: Directory

    def count(self, tag: int) -> int:
        """Return the number of values of a tag; 0 if it is missing."""
        entry = self.directory.find(tag)
        return 0 if entry is None else entry.count

    def numbers(self, tag: int) -> list[int]:
        """Return the first MAX_NUMBERS values of a tag; empty if it is missing or unreadable."""
        return [int(number) for number in self.array(tag, MAX_NUMBERS)]

    def array(self, tag: int, limit: int) -> NDArray[np.int64]:
        """Return at most `limit` first values of a tag, int64; empty if it is missing or unreadable."""
        entry = self.directory.find(tag)
        count = 0 if entry is None else min(entry.count, limit)
        if (
            entry is None
            or entry.kind not in NUMBERS
            or entry.value_offset + tiff_tags.TYPE_SIZES[entry.kind] * count > len(self.data)
        ):
            return np.empty(0, np.int64)
        kind = np.dtype(self.layout.order + NUMBERS[entry.kind])
        values = np.frombuffer(self.data, kind, count, entry.value_offset)
        # Values of 64 bits that are too large for int64 become the largest int64.
        return np.minimum(values.astype(np.uint64), MAX_NUMBER).astype(np.int64)

    def content(self, tag: int) -> bytes:
        """Return the bytes of a tag's value; empty if it is missing or outside the file."""
        entry = self.directory.find(tag)
        is_inside = entry is not None and entry.value_offset + entry.size <= len(self.data)
        return (
            self.data[entry.value_offset : entry.value_offset + entry.size] if entry is not None and is_inside else b""
        )

    def number(self, tag: int, default: int) -> int:
        """Return the first value of a tag, or the default."""
        return next(iter(self.numbers(tag)), default)


def pages(data: bytes, limit: int) -> Iterator[Page]:
    """Yield at most `limit` directories of a file, up to the first one that is damaged or repeated."""
    try:
        layout, page = header(data)
        seen = {page.start}
        yield Page(data, layout, page)
        while page.next_offset and page.next_offset not in seen and len(seen) < limit:
            seen.add(page.next_offset)
            page = directory(data, layout, page.next_offset)
            yield Page(data, layout, page)
    except Damaged:
        return


def values(data: bytes, tags: Collection[int]) -> dict[int, bytes]:
    """Return the stored values of these tags in the first directory; damaged or too large ones are left out."""
    try:
        _, first = header(data)
    except Damaged:
        return {}
    return {field.tag: field.value for field in fields(data, first, tags)}


def fields(data: bytes, source: Directory, tags: Collection[int] | None = None) -> list[Field]:
    """Return the fields of a directory in the order of its entries, each tag once, MAX_VALUES bytes at most."""
    found: dict[int, Field] = {}
    # Values may overlap; in sound files too, a few short ones do.
    left = min(MAX_VALUES, len(data) + 1000)
    for entry in source.entries:
        wanted = entry.tag not in found and (tags is None or entry.tag in tags)
        if (
            wanted
            and entry.kind in tiff_tags.TYPE_SIZES
            and entry.size <= left
            and entry.value_offset + entry.size <= len(data)
        ):
            value = data[entry.value_offset : entry.value_offset + entry.size]
            found[entry.tag] = Field(entry.tag, entry.kind, value, entry.value_offset)
            left -= entry.size
    return list(found.values())


def resolution(block: bytes) -> tuple[Fraction, Fraction, int] | None:
    """Return pixels per unit (horizontal, vertical) and the TIFF number of the unit; None if the file has neither."""
    try:
        layout, first = header(block)
    except Damaged:
        return None
    found = {
        field.tag: field
        for field in fields(block, first, (tiff_tags.X_RESOLUTION, tiff_tags.Y_RESOLUTION, tiff_tags.RESOLUTION_UNIT))
    }
    sides = [found.get(tag) for tag in (tiff_tags.X_RESOLUTION, tiff_tags.Y_RESOLUTION)]
    if any(side is None or side.kind != tiff_tags.RATIONAL or not side.value for side in sides):
        return None
    numbers = [struct.unpack_from(layout.order + "II", side.value) for side in sides if side is not None]
    x, y = (Fraction(above, under or 1) for above, under in numbers)
    unit = found.get(tiff_tags.RESOLUTION_UNIT, Field(tiff_tags.RESOLUTION_UNIT, tiff_tags.SHORT, b""))
    has_unit = unit.kind == tiff_tags.SHORT and bool(unit.value)
    return x, y, struct.unpack_from(layout.order + "H", unit.value)[0] if has_unit else tiff_tags.INCH


def directories(data: bytes) -> tuple[Layout, dict[int, Directory]]:
    """Return the layout and the directories that are present, by the tag of the pointer to each; 0 is the first.

    Raises Damaged if the first directory is damaged. Other damaged directories are left out.
    """
    layout, first = header(data)
    found = {0: first}
    for tag, parent in (
        (tiff_tags.EXIF_IFD, 0),
        (tiff_tags.GPS_IFD, 0),
        (tiff_tags.INTEROPERABILITY_IFD, tiff_tags.EXIF_IFD),
    ):
        try:
            source = subdirectory(data, layout, found[parent], tag) if parent in found else None
        except Damaged:
            log.debug("the damaged directory of tag %#x is left out", tag)
            continue
        if source is not None:
            found[tag] = source
    return layout, found
