"""The boxes of an AVIF or HEIC file (ISO/IEC 14496-12 and 23008-12): which items it has and where they are.

Nothing is decoded and no pixel is looked at. Every count is bounded, and the time is linear in what is read.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

# A photo of 100 megapixels in tiles of 512 pixels has some four hundred items.
MAX_ITEMS = 5000
MAX_BOXES = 5000
# All items together may have so many of each.
MAX_EXTENTS = 20_000
MAX_ASSOCIATIONS = 50_000
MAX_REFERENCES = 50_000

Span = tuple[int, int]


class Damaged(ValueError):
    """The boxes contradict each other or are cut short."""


class Excessive(Damaged):
    """There are more boxes, items or parts than a photo needs."""


class Cursor:
    """Read numbers one after another from a span of bytes. Raises Damaged past the end."""

    def __init__(self, data: bytes, span: Span) -> None:
        self.data = data
        self.at, self.end = span[0], min(span[1], len(data))

    def number(self, size: int) -> int:
        """Return the next unsigned number of that many bytes."""
        return int.from_bytes(self.raw(size))

    def raw(self, size: int) -> bytes:
        """Return the next bytes."""
        self.at += size
        if self.at > self.end:
            raise Damaged("a box is cut short")
        return self.data[self.at - size : self.at]

    def numbers(self, count: int, size: int) -> list[int]:
        """Return that many numbers of 1, 2 or 4 bytes each."""
        return list(struct.unpack(f">{count}{' BH I'[size]}", self.raw(count * size)))

    def version(self, most: int) -> tuple[int, int]:
        """Return the version and the flags of a full box. Raises Damaged for a version that does not exist."""
        version, flags = self.number(1), self.number(3)
        if version > most:
            raise Damaged(f"a box is of an unknown version, {version}")
        return version, flags


@dataclass(slots=True)
class Item:
    """One item of a file.

    kind: its four-letter type, or its media type where the type is `mime`. spans: where its content is in the file;
    None where that can't be told. properties: numbers into `Items.properties`, from 1, each with whether a reader must
    understand it. references: the items that it refers to, by the kind of reference.
    """

    kind: bytes
    is_hidden: bool
    spans: list[Span] | None = None
    properties: list[tuple[int, bool]] = field(default_factory=list)
    references: dict[bytes, list[int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Items:
    """What a file consists of. properties: kind and content of each box that items may have as a property."""

    data: bytes
    items: dict[int, Item]
    primary: int
    properties: list[tuple[bytes, bytes]]
    has_movie: bool  # then its items are left out

    def properties_of(self, item: Item) -> Iterator[tuple[bytes, bytes, bool]]:
        """Yield kind, content, and whether a reader must understand it, of each property of an item."""
        for number, is_essential in item.properties:
            if 1 <= number <= len(self.properties):
                yield *self.properties[number - 1], is_essential

    def property_of(self, item: Item, kind: bytes) -> bytes | None:
        """Return the content of the item's first property of a kind."""
        return next((content for found, content, _ in self.properties_of(item) if found == kind), None)


def boxes(data: bytes, span: Span) -> Iterator[tuple[bytes, Span]]:
    """Yield kind and content of the boxes in a span; stop where they can't be followed.

    Raises Excessive after MAX_BOXES.
    """
    start, end = span[0], min(span[1], len(data))
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
        if size < head:
            return
        # The last box may be cut short; its content shows whether that matters.
        yield kind, (start + head, min(start + size, end))
        start += size
    if start + 8 <= end:
        raise Excessive(f"there are more than {MAX_BOXES:,} boxes in one")


def _first_of_each(found: Iterator[tuple[bytes, Span]]) -> dict[bytes, Span]:
    kinds: dict[bytes, Span] = {}
    for kind, span in found:
        kinds.setdefault(kind, span)
    return kinds


def read(data: bytes) -> Items:
    """Return the items of a file. Raises Damaged, and Excessive where there is more than a photo needs."""
    top = _first_of_each(boxes(data, (0, len(data))))
    if b"moov" in top:
        return Items(data, {}, 0, [], has_movie=True)
    if b"meta" not in top:
        raise Damaged("it has no list of items")
    start, end = top[b"meta"]
    Cursor(data, top[b"meta"]).version(0)
    found = _first_of_each(boxes(data, (start + 4, end)))
    for kind in (b"pitm", b"iinf", b"iloc"):
        if kind not in found:
            raise Damaged(f"its {kind.decode()} box is missing")
    items = _items(data, found[b"iinf"])
    _locate(Cursor(data, found[b"iloc"]), items, found.get(b"idat", (0, 0))[0])
    if b"iref" in found:
        _refer(data, found[b"iref"], items)
    properties = _properties(data, found[b"iprp"], items) if b"iprp" in found else []
    return Items(data, items, _primary(Cursor(data, found[b"pitm"])), properties, has_movie=False)


def _primary(cursor: Cursor) -> int:
    version, _ = cursor.version(1)
    return cursor.number(2 if version == 0 else 4)


def _items(data: bytes, span: Span) -> dict[int, Item]:
    """Return the items by number. The count that the file states does not matter."""
    cursor = Cursor(data, span)
    # The standard has no version 2. Files of early writers do, and mean version 1.
    version, _ = cursor.version(2)
    if cursor.number(2 if version == 0 else 4) > MAX_ITEMS:
        raise Excessive(f"it has more than {MAX_ITEMS:,} items")
    items: dict[int, Item] = {}
    for kind, inner in boxes(data, (cursor.at, span[1])):
        entry = Cursor(data, inner)
        version, flags = entry.version(255)
        if kind != b"infe" or version not in (2, 3):
            continue
        number = entry.number(2 if version == 2 else 4)
        entry.number(2)
        item_kind = entry.raw(4)
        if item_kind == b"mime":
            _name, item_kind, *_ = (*data[entry.at : inner[1]].split(b"\0", 2), b"", b"")
        items.setdefault(number, Item(item_kind, is_hidden=bool(flags & 1)))
    return items


def _locate(cursor: Cursor, items: dict[int, Item], item_data: int) -> None:
    """Fill in where the contents of the items are. item_data: where the content of the idat box begins."""
    version, _ = cursor.version(2)
    sizes = cursor.number(2)
    offset, length, base, index = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    index = index if version else 0
    entries = cursor.number(2 if version < 2 else 4)
    if entries > MAX_ITEMS:
        raise Excessive(f"it tells the places of more than {MAX_ITEMS:,} items")
    left = MAX_EXTENTS
    for _ in range(entries):
        item = items.get(cursor.number(2 if version < 2 else 4))
        method = cursor.number(2) & 15 if version else 0
        is_elsewhere = cursor.number(2) != 0 or method > 1
        start = cursor.number(base) + (item_data if method == 1 else 0)
        count = cursor.number(2)
        left -= count
        if left < 0:
            raise Excessive(f"its items are in more than {MAX_EXTENTS:,} parts")
        spans = []
        for _ in range(count):
            cursor.number(index)
            at = start + cursor.number(offset)
            spans.append((at, at + cursor.number(length)))
        if item is not None and item.spans is None and not is_elsewhere:
            item.spans = spans


def _refer(data: bytes, span: Span, items: dict[int, Item]) -> None:
    """Fill in to which others the items refer."""
    version, _ = Cursor(data, span).version(1)
    size = 2 if version == 0 else 4
    left = MAX_REFERENCES
    for kind, inner in boxes(data, (span[0] + 4, span[1])):
        cursor = Cursor(data, inner)
        item, count = cursor.number(size), cursor.number(2)
        left -= count
        if left < 0:
            raise Excessive(f"its items have more than {MAX_REFERENCES:,} references")
        targets = cursor.numbers(count, size)
        if item in items:
            items[item].references.setdefault(kind, targets)


def _properties(data: bytes, span: Span, items: dict[int, Item]) -> list[tuple[bytes, bytes]]:
    """Return the boxes of all properties, and fill in which of them the items have."""
    properties: list[tuple[bytes, bytes]] = []
    left = MAX_ASSOCIATIONS
    for kind, inner in boxes(data, span):
        if kind == b"ipco" and not properties:
            properties = [(name, data[start:end]) for name, (start, end) in boxes(data, inner)]
        if kind == b"ipma":
            left = _associate(Cursor(data, inner), items, left)
    return properties


def _associate(cursor: Cursor, items: dict[int, Item], left: int) -> int:
    """Read one ipma box, which may have so many associations, and return how many are left."""
    version, flags = cursor.version(1)
    size = 2 if flags & 1 else 1
    # The first bit tells whether a reader must understand the property.
    must = 0x8000 if size == 2 else 0x80
    for _ in range(cursor.number(4)):
        item = items.get(cursor.number(2 if version == 0 else 4))
        count = cursor.number(1)
        # An entry without associations takes time, too.
        left -= count + 1
        if left < 0:
            raise Excessive(f"its items have more than {MAX_ASSOCIATIONS:,} properties")
        numbers = cursor.numbers(count, size)
        if item is not None and not item.properties:
            item.properties = [(number & ~must, bool(number & must)) for number in numbers]
    return left
