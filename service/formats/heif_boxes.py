"""Parse the boxes of an AVIF or HEIC file (ISO/IEC 14496-12 and 23008-12): its items and their locations.

No pixels are decoded. Every count is bounded, and the time is linear in the number of bytes read.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

# A photo of 100 megapixels in tiles of 512 pixels has about 400 items.
MAX_ITEMS = 5000
MAX_BOXES = 5000
# Limits for all items of a file together.
MAX_EXTENTS = 20_000
MAX_ASSOCIATIONS = 50_000
MAX_REFERENCES = 50_000

Span = tuple[int, int]


class Damaged(ValueError):
    """Raised when boxes contradict each other or are cut short."""


class Excessive(Damaged):
    """Raised when a file has more boxes, items or extents than a photo needs."""


class Cursor:
    """A reader of successive numbers in a span of bytes. Its methods raise Damaged behind the end."""

    def __init__(self, data: bytes, span: Span) -> None:
        self.data = data
        self.at, self.end = span[0], min(span[1], len(data))

    def number(self, size: int) -> int:
        """Return the next unsigned number of `size` bytes."""
        return int.from_bytes(self.raw(size))

    def raw(self, size: int) -> bytes:
        """Return the next `size` bytes."""
        self.at += size
        if self.at > self.end:
            raise Damaged("a box is cut short")
        return self.data[self.at - size : self.at]

    def numbers(self, count: int, size: int) -> list[int]:
        """Return the next `count` unsigned numbers of 1, 2 or 4 bytes each."""
        return list(struct.unpack(f">{count}{' BH I'[size]}", self.raw(count * size)))

    def version(self, most: int) -> tuple[int, int]:
        """Return the version and the flags of a full box. Raises Damaged for versions above `most`."""
        version, flags = self.number(1), self.number(3)
        if version > most:
            raise Damaged(f"a box has an unknown version, {version}")
        return version, flags


@dataclass(slots=True)
class Item:
    """An item of a file.

    kind: its four-letter type, or its media type if the type is `mime`. spans: start and end of each extent of its
    content; None if the content is not in this file. properties: pairs of an index into `Items.properties`, from 1, and
    whether a reader must support the property. references: the numbers of the items that it refers to, by kind of
    reference.
    """

    kind: bytes
    is_hidden: bool
    spans: list[Span] | None = None
    properties: list[tuple[int, bool]] = field(default_factory=list)
    references: dict[bytes, list[int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Items:
    """The items of a file. properties: kind and content of each property box, to which items refer."""

    data: bytes
    items: dict[int, Item]
    primary: int
    properties: list[tuple[bytes, bytes]]
    has_movie: bool  # if true, `items` is empty

    def properties_of(self, item: Item) -> Iterator[tuple[bytes, bytes, bool]]:
        """Yield kind, content, and whether a reader must support it, of each property of an item."""
        for number, is_essential in item.properties:
            if 1 <= number <= len(self.properties):
                yield *self.properties[number - 1], is_essential

    def property_of(self, item: Item, kind: bytes) -> bytes | None:
        """Return the content of the item's first property of a kind; None without one."""
        return next((content for found, content, _ in self.properties_of(item) if found == kind), None)


def boxes(data: bytes, span: Span) -> Iterator[tuple[bytes, Span]]:
    """Yield the kind and the span of the content of each box in a span. Stop at an invalid size.

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
        # The last box may be cut short. Its reader finds out whether that matters.
        yield kind, (start + head, min(start + size, end))
        start += size
    if start + 8 <= end:
        raise Excessive(f"a box has more than {MAX_BOXES:,} boxes inside")


def _first_of_each(found: Iterator[tuple[bytes, Span]]) -> dict[bytes, Span]:
    kinds: dict[bytes, Span] = {}
    for kind, span in found:
        kinds.setdefault(kind, span)
    return kinds


def read(data: bytes) -> Items:
    """Return the items of a file. Raises Damaged and Excessive."""
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
    """Return the items by number. The count in the box is only checked against the limit."""
    cursor = Cursor(data, span)
    # The standard has no version 2. Early writers use it and mean version 1.
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
    """Set the spans of the items, from the iloc box. item_data: start of the content of the idat box."""
    version, _ = cursor.version(2)
    sizes = cursor.number(2)
    offset, length, base, index = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    index = index if version else 0
    entries = cursor.number(2 if version < 2 else 4)
    if entries > MAX_ITEMS:
        raise Excessive(f"it has the locations of more than {MAX_ITEMS:,} items")
    left = MAX_EXTENTS
    for _ in range(entries):
        item = items.get(cursor.number(2 if version < 2 else 4))
        method = cursor.number(2) & 15 if version else 0
        is_elsewhere = cursor.number(2) != 0 or method > 1
        start = cursor.number(base) + (item_data if method == 1 else 0)
        count = cursor.number(2)
        left -= count
        if left < 0:
            raise Excessive(f"its items have more than {MAX_EXTENTS:,} extents")
        spans = []
        for _ in range(count):
            cursor.number(index)
            at = start + cursor.number(offset)
            spans.append((at, at + cursor.number(length)))
        if item is not None and item.spans is None and not is_elsewhere:
            item.spans = spans


def _refer(data: bytes, span: Span, items: dict[int, Item]) -> None:
    """Set the references of the items, from the iref box."""
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
    """Return kind and content of all property boxes, and set the properties of the items."""
    properties: list[tuple[bytes, bytes]] = []
    left = MAX_ASSOCIATIONS
    for kind, inner in boxes(data, span):
        if kind == b"ipco" and not properties:
            properties = [(name, data[start:end]) for name, (start, end) in boxes(data, inner)]
        if kind == b"ipma":
            left = _associate(Cursor(data, inner), items, left)
    return properties


def _associate(cursor: Cursor, items: dict[int, Item], left: int) -> int:
    """Set the properties of the items from one ipma box, and return how many associations are left of `left`."""
    version, flags = cursor.version(1)
    size = 2 if flags & 1 else 1
    # The first bit is set if a reader must support the property.
    must = 0x8000 if size == 2 else 0x80
    for _ in range(cursor.number(4)):
        item = items.get(cursor.number(2 if version == 0 else 4))
        count = cursor.number(1)
        # An entry without associations costs time too.
        left -= count + 1
        if left < 0:
            raise Excessive(f"its items have more than {MAX_ASSOCIATIONS:,} properties")
        numbers = cursor.numbers(count, size)
        if item is not None and not item.properties:
            item.properties = [(number & ~must, bool(number & must)) for number in numbers]
    return left
