"""The EXIF block of a coloured photo: what no longer holds is put right in place, everything else stays as it is.

The block is a small TIFF file. Its values are found by their offset from its first byte, and a camera's maker note
holds offsets that only the camera's maker knows; so nothing is ever moved, and what is added goes to the end.
"""

import struct
from contextlib import suppress
from dataclasses import dataclass

ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
# Bytes of one value of each type, TIFF 6.0, with BigTIFF's and EXIF 3.0's that may turn up.
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 129: 1}
ASCII, SHORT, LONG = 2, 3, 4
WIDTH, HEIGHT, ORIENTATION, SOFTWARE, SUB_IFDS = 0x100, 0x101, 0x112, 0x131, 0x14A
STRIPS, THUMBNAIL = 0x111, 0x201
EXIF_IFD, GPS_IFD, INTEROP_IFD = 0x8769, 0x8825, 0xA005
COLOR_SPACE, EXIF_WIDTH, EXIF_HEIGHT = 0xA001, 0xA002, 0xA003
SRGB = 1
# A directory of a camera has some sixty entries.
MAX_ENTRIES = 1000
# The largest block that fits into a JPEG: a segment less `Exif\0\0`.
MAX_JPEG_BYTES = 65_527


@dataclass(frozen=True, slots=True)
class _Entry:
    """A directory's entry, and where in the block it stands. `content` is its value, or the offset of a longer one."""

    at: int
    tag: int
    kind: int
    count: int
    content: int

    @property
    def size(self) -> int:
        """Bytes of the value; of an unknown type, the most that is possible."""
        return SIZES.get(self.kind, 2**32) * self.count


@dataclass(frozen=True, slots=True)
class _Directory:
    """A directory: where it begins and ends, its next one's offset (0: none), its entries."""

    start: int
    end: int
    following: int
    entries: list[_Entry]

    def find(self, tag: int) -> _Entry | None:
        """The first entry with the tag."""
        return next((entry for entry in self.entries if entry.tag == tag), None)


class _Damaged(ValueError):
    """The block's structure can't be read."""


def _directory(block: bytes | bytearray, order: str, start: int) -> _Directory:
    try:
        (count,) = struct.unpack_from(order + "H", block, start)
        if count > MAX_ENTRIES:
            raise _Damaged(f"{count} entries")
        places = range(start + 2, start + 2 + 12 * count, 12)
        entries = [_Entry(at, *struct.unpack_from(order + "HHII", block, at)) for at in places]
    except struct.error as error:
        raise _Damaged(str(error)) from error
    end = start + 2 + 12 * count
    # Some writers leave the last offset out.
    link = struct.unpack_from(order + "I", block, end)[0] if end + 4 <= len(block) else 0
    return _Directory(start, end + 4, link, entries)


def _below(block: bytes | bytearray, order: str, parent: _Directory, tag: int) -> _Directory | None:
    """The directory that an entry points to, if there is such an entry. Raises _Damaged."""
    entry = parent.find(tag)
    return None if entry is None else _directory(block, order, entry.content)


def _set_whole(block: bytearray, order: str, directory: _Directory | None, tag: int, value: int) -> None:
    """Gives entries of this tag a whole number, in the place and, where it fits, in the type that they have."""
    for entry in directory.entries if directory else ():
        if entry.tag == tag:
            if entry.kind != LONG and value <= 0xFFFF:
                struct.pack_into(order + "HHIHxx", block, entry.at, tag, SHORT, 1, value)
            else:
                struct.pack_into(order + "HHII", block, entry.at, tag, LONG, 1, value)


def corrected(block: bytes, width: int, height: int) -> bytes | None:
    """The TIFF block for an upright sRGB picture of this size, pixels, without its thumbnail; None if it is damaged.

    Orientation, pixel dimensions and colour space are set where they are present. Damage in any other directory than
    the first takes nothing from what that one says: a caption stays.
    """
    try:
        order, first = _first(block)
    except _Damaged:
        return None
    changed = bytearray(block)
    for tag, value in ((ORIENTATION, 1), (WIDTH, width), (HEIGHT, height)):
        _set_whole(changed, order, first, tag, value)
    with suppress(_Damaged):
        details = _below(block, order, first, EXIF_IFD)
        for tag, value in ((EXIF_WIDTH, width), (EXIF_HEIGHT, height), (COLOR_SPACE, SRGB)):
            _set_whole(changed, order, details, tag, value)
    if first.following:
        struct.pack_into(order + "I", changed, first.end - 4, 0)
        del changed[_thumbnail_start(block, order, first) :]
    return bytes(changed)


def _first(block: bytes) -> tuple[str, _Directory]:
    order = ORDERS.get(block[:4])
    if order is None or len(block) < 8:
        raise _Damaged("no TIFF header")
    return order, _directory(block, order, struct.unpack_from(order + "I", block, 4)[0])


def _thumbnail_start(block: bytes, order: str, first: _Directory) -> int:
    """Where nothing but the thumbnail and its directory follows; the block's length when that can't be told."""
    try:
        thumbnail = _directory(block, order, first.following)
        details = _below(block, order, first, EXIF_IFD)
        others = [details, _below(block, order, first, GPS_IFD)]
        if details is not None:
            others.append(_below(block, order, details, INTEROP_IFD))
    except _Damaged:
        return len(block)
    used = max(_end(directory) for directory in (first, *others) if directory is not None)
    own = [thumbnail.start]
    own += [entry.content for entry in thumbnail.entries if entry.size > 4 or entry.tag in (STRIPS, THUMBNAIL)]
    return min((start for start in own if start >= used), default=len(block))


def _end(directory: _Directory) -> int:
    """The end of a directory and of its values; beyond everything when it has parts that are not followed."""
    if directory.find(SUB_IFDS) is not None:
        return 2**64
    ends = (entry.content + entry.size for entry in directory.entries if entry.size > 4)
    return max(directory.end, *ends, 0)


def with_software(block: bytes | None, software: str) -> bytes:
    """The block with its Software named, where it names none; a new one where there is no block.

    block: one that `corrected` gave. It stays as it is where it would become too large for a JPEG.
    """
    value = (software.encode("ascii", "replace") + b"\0").ljust(6, b"\0")
    value += bytes(len(value) % 2)
    if block is None:
        return b"II*\0" + struct.pack("<IHHHIII", 8, 1, SOFTWARE, ASCII, len(value), 26, 0) + value
    order, first = _first(block)
    entry = first.find(SOFTWARE)
    if entry is not None and _text(block, entry).strip(b"\0 "):
        return block
    named = bytearray(block) + bytes(len(block) % 2)
    named += value
    place = struct.pack(order + "HHII", SOFTWARE, ASCII, len(value), len(named) - len(value))
    if entry is not None:
        named[entry.at : entry.at + 12] = place
    else:
        # Its directory has no room for one more entry, so it is written anew behind everything else.
        struct.pack_into(order + "I", named, 4, len(named))
        named += _directory_with(block, order, first, place)
    return bytes(named) if len(named) <= MAX_JPEG_BYTES else block


def _text(block: bytes, entry: _Entry) -> bytes:
    start = entry.content if entry.size > 4 else entry.at + 8
    return block[start : start + entry.size]


def _directory_with(block: bytes, order: str, directory: _Directory, software: bytes) -> bytes:
    """The directory, its entries as they are, with one more where its tag belongs; no other follows it."""
    before = [block[entry.at : entry.at + 12] for entry in directory.entries if entry.tag < SOFTWARE]
    behind = [block[entry.at : entry.at + 12] for entry in directory.entries if entry.tag > SOFTWARE]
    count = struct.pack(order + "H", len(directory.entries) + 1)
    return b"".join([count, *before, software, *behind, bytes(4)])
