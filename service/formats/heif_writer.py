"""Write an AVIF or HEIC file that consists of given items (ISO/IEC 23008-12)."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Property:
    """A property of an item. is_essential: a reader that does not support it must not show the item."""

    kind: bytes
    content: bytes
    is_essential: bool


@dataclass(frozen=True, slots=True)
class NewItem:
    """An item to write. content: None for a derived item. references: kind, and indices in the list of items."""

    kind: bytes
    content: memoryview | None
    properties: list[Property]
    references: list[tuple[bytes, list[int]]] = field(default_factory=list)


def write(items: Sequence[NewItem], brands: Sequence[bytes]) -> bytes:
    """Return a file whose photo is the first item; the others are hidden.

    brands: the main one, then all compatible ones. Contents that are the same object are written once.
    """
    head = _box(b"ftyp", brands[0], bytes(4), *brands[1:])
    lists = [
        _full(b"hdlr", bytes(4), b"pict", bytes(13)),
        _full(b"pitm", struct.pack(">H", 1)),
        _entries(items),
        *_references(items),
        _properties(items),
    ]
    contents = list({id(item.content): item.content for item in items if item.content is not None}.values())
    # The length of the iloc box does not depend on the offsets in it.
    start = len(head) + len(_full(b"meta", *lists, _locations(items, contents, 0))) + 8
    meta = _full(b"meta", *lists, _locations(items, contents, start))
    return b"".join([head, meta, struct.pack(">I4s", 8 + sum(map(len, contents)), b"mdat"), *contents])


def _entries(items: Sequence[NewItem]) -> bytes:
    entries = (
        _full(b"infe", struct.pack(">HH", number, 0), item.kind + b"\0", version=2, flags=number > 1)
        for number, item in enumerate(items, 1)
    )
    return _full(b"iinf", struct.pack(">H", len(items)), *entries)


def _references(items: Sequence[NewItem]) -> list[bytes]:
    """Return the iref box, in a list; an empty list if no item has references."""
    found = [
        _box(kind, struct.pack(f">HH{len(targets)}H", number, len(targets), *(target + 1 for target in targets)))
        for number, item in enumerate(items, 1)
        for kind, targets in item.references
    ]
    return [_full(b"iref", *found)] if found else []


def _properties(items: Sequence[NewItem]) -> bytes:
    """Return the iprp box: all properties, equal ones once, and their association with the items."""
    numbers: dict[tuple[bytes, bytes], int] = {}
    rows: list[bytes] = []
    for number, item in enumerate(items, 1):
        own = [
            numbers.setdefault((one.kind, one.content), len(numbers) + 1) | one.is_essential << 15
            for one in item.properties
        ]
        rows.append(struct.pack(f">HB{len(own)}H", number, len(own), *own))
    container = _box(b"ipco", *(_box(kind, content) for kind, content in numbers))
    return _box(b"iprp", container, _full(b"ipma", struct.pack(">I", len(rows)), *rows, flags=1))


def _locations(items: Sequence[NewItem], contents: list[memoryview], start: int) -> bytes:
    """Return the iloc box, for contents of which the first is at `start`."""
    offsets: dict[int, int] = {}
    for content in contents:
        offsets[id(content)] = start
        start += len(content)
    rows = [
        struct.pack(">HHHII", number, 0, 1, offsets[id(item.content)], len(item.content))
        for number, item in enumerate(items, 1)
        if item.content is not None
    ]
    return _full(b"iloc", b"\x44\0", struct.pack(">H", len(rows)), *rows)


def _box(kind: bytes, *parts: bytes) -> bytes:
    return struct.pack(">I4s", 8 + sum(map(len, parts)), kind) + b"".join(parts)


def _full(kind: bytes, *parts: bytes, version: int = 0, flags: int = 0) -> bytes:
    return _box(kind, bytes([version]) + flags.to_bytes(3), *parts)
