"""The directories of a TIFF file (TIFF 6.0, and BigTIFF), which say what it holds; no pixel is read."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

# Byte order, format of a directory's count, and of an offset, by a file's first four bytes.
KINDS = {b"II*\0": ("<", "H", "I"), b"MM\0*": (">", "H", "I"), b"II+\0": ("<", "Q", "Q"), b"MM\0+": (">", "Q", "Q")}
WHOLE = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}
MAX_ENTRIES = 1000
MAX_NUMBERS = 16


@dataclass(frozen=True, slots=True)
class Page:
    """One directory: the type, count and place of each tag's values."""

    data: bytes
    order: str
    entries: dict[int, tuple[int, int, int]]

    def count(self, tag: int) -> int:
        """How many values a tag has; 0 when it is not there."""
        return self.entries.get(tag, (0, 0, 0))[1]

    def numbers(self, tag: int) -> list[int]:
        """The first whole numbers of a tag; none when it is not there or can't be read."""
        kind, count, place = self.entries.get(tag, (0, 0, 0))
        if kind not in WHOLE:
            return []
        try:
            return list(struct.unpack_from(f"{self.order}{min(count, MAX_NUMBERS)}{WHOLE[kind]}", self.data, place))
        except struct.error:
            return []

    def number(self, tag: int, default: int) -> int:
        """The first whole number of a tag, or the default."""
        return next(iter(self.numbers(tag)), default)


def pages(data: bytes, most: int) -> Iterator[Page]:
    """The directories of a file, at most so many, up to the first that can't be read or was there already."""
    if data[:4] not in KINDS:
        return
    order, count, offset = KINDS[data[:4]]
    is_big = offset == "Q"
    head, entry = (16, 20) if is_big else (8, 12)
    if len(data) < head:
        return
    (start,) = struct.unpack_from(order + offset, data, head - struct.calcsize(offset))
    seen: set[int] = set()
    while start and start not in seen and len(seen) < most:
        seen.add(start)
        first = start + struct.calcsize(count)
        if first > len(data):
            return
        (entries,) = struct.unpack_from(order + count, data, start)
        end = first + entry * entries
        if entries > MAX_ENTRIES or end + struct.calcsize(offset) > len(data):
            return
        yield Page(data, order, dict(_entries(data, order, offset, range(first, end, entry))))
        (start,) = struct.unpack_from(order + offset, data, end)


def _entries(data: bytes, order: str, offset: str, places: range) -> Iterator[tuple[int, tuple[int, int, int]]]:
    """Tag, and the type, count and place of its values: in the entry itself where they fit."""
    room = struct.calcsize(offset)
    for place in places:
        tag, kind, count = struct.unpack_from(f"{order}HH{offset}", data, place)
        inside = place + 4 + room
        if struct.calcsize(f"={WHOLE.get(kind, 'B')}") * count <= room:
            yield tag, (kind, count, inside)
        else:
            yield tag, (kind, count, struct.unpack_from(order + offset, data, inside)[0])
