"""Write an AVIF or HEIC file from items (ISO/IEC 23008-12)."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Property:
    """One property of an item. is_essential: a reader that does not know it must not show the item."""

    kind: bytes
    content: bytes
    is_essential: bool


@dataclass(frozen=True, slots=True)
class NewItem:
    """One item to write. content: None for an item without any. references: kind and places in the list of parts."""

    kind: bytes
    content: memoryview | None
    properties: list[Property]
    references: list[tuple[bytes, list[int]]] = field(default_factory=list)


def write(parts: Sequence[NewItem], brands: Sequence[bytes]) -> bytes:
    """Return a file whose photo is the first part; the others are hidden. brands: the main one, then all of them.

    Contents that are the same object are written once.
    """
    head = _box(b"ftyp", brands[0], bytes(4), *brands[1:])
    lists = [
        _full(b"hdlr", bytes(4), b"pict", bytes(13)),
        _full(b"pitm", struct.pack(">H", 1)),
        _entries(parts),
        *_references(parts),
        _properties(parts),
    ]
    contents = list({id(part.content): part.content for part in parts if part.content is not None}.values())
    # The offsets have the same length whatever they are.
    start = len(head) + len(_full(b"meta", *lists, _places(parts, contents, 0))) + 8
    meta = _full(b"meta", *lists, _places(parts, contents, start))
    return b"".join([head, meta, struct.pack(">I4s", 8 + sum(map(len, contents)), b"mdat"), *contents])


def _entries(parts: Sequence[NewItem]) -> bytes:
    entries = (
        _full(b"infe", struct.pack(">HH", number, 0), part.kind + b"\0", version=2, flags=number > 1)
        for number, part in enumerate(parts, 1)
    )
    return _full(b"iinf", struct.pack(">H", len(parts)), *entries)


def _references(parts: Sequence[NewItem]) -> list[bytes]:
    """Return the box of all references; nothing when there are none."""
    found = [
        _box(kind, struct.pack(f">HH{len(targets)}H", number, len(targets), *(target + 1 for target in targets)))
        for number, part in enumerate(parts, 1)
        for kind, targets in part.references
    ]
    return [_full(b"iref", *found)] if found else []


def _properties(parts: Sequence[NewItem]) -> bytes:
    """Return the boxes of all properties, equal ones once, and of which item has which."""
    numbers: dict[tuple[bytes, bytes], int] = {}
    rows: list[bytes] = []
    for number, part in enumerate(parts, 1):
        own = [
            numbers.setdefault((one.kind, one.content), len(numbers) + 1) | one.is_essential << 15
            for one in part.properties
        ]
        rows.append(struct.pack(f">HB{len(own)}H", number, len(own), *own))
    container = _box(b"ipco", *(_box(kind, content) for kind, content in numbers))
    return _box(b"iprp", container, _full(b"ipma", struct.pack(">I", len(rows)), *rows, flags=1))


def _places(parts: Sequence[NewItem], contents: list[memoryview], start: int) -> bytes:
    """Return the box of where the contents are, the first of them at `start`."""
    places: dict[int, int] = {}
    for content in contents:
        places[id(content)] = start
        start += len(content)
    rows = [
        struct.pack(">HHHII", number, 0, 1, places[id(part.content)], len(part.content))
        for number, part in enumerate(parts, 1)
        if part.content is not None
    ]
    return _full(b"iloc", b"\x44\0", struct.pack(">H", len(rows)), *rows)


def _box(kind: bytes, *parts: bytes) -> bytes:
    return struct.pack(">I4s", 8 + sum(map(len, parts)), kind) + b"".join(parts)


def _full(kind: bytes, *parts: bytes, version: int = 0, flags: int = 0) -> bytes:
    return _box(kind, bytes([version]) + flags.to_bytes(3), *parts)
