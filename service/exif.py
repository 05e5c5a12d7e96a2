"""The EXIF block of a coloured photo: what no longer holds is put right in place, everything else stays as it is.

The block is a small TIFF file. Its values are found by their offset from its first byte, and a camera's maker note
holds offsets that only the camera's maker knows; so nothing is ever moved, and what is added goes to the end.
"""

import struct
from contextlib import suppress

from service import tiff
from service.tiff import Damaged, Directory, Layout
from service.tiff_writing import MAX_JPEG_BYTES, packed

COLOR_SPACE, EXIF_WIDTH, EXIF_HEIGHT = 0xA001, 0xA002, 0xA003
FOCAL_PLANE_X, FOCAL_PLANE_Y = 0xA20E, 0xA20F
SRGB = 1
# Orientations that lay a picture on its side.
TURNED = range(5, 9)


def _set_whole(block: bytearray, order: str, directory: Directory | None, tag: int, value: int) -> None:
    """Gives entries of this tag a whole number, in the place and, where it fits, in the type that they have."""
    for entry in directory.entries if directory else ():
        if entry.tag == tag:
            if entry.kind != tiff.LONG and value <= 0xFFFF:
                struct.pack_into(order + "HHIHxx", block, entry.at, tag, tiff.SHORT, 1, value)
            else:
                struct.pack_into(order + "HHII", block, entry.at, tag, tiff.LONG, 1, value)


def _swap(block: bytearray, directory: Directory | None, one: int, other: int) -> None:
    """Gives each of two tags the value of the other, where both are there."""
    entries = [directory.find(tag) for tag in (one, other)] if directory else []
    places = [slice(entry.at + 2, entry.at + 12) for entry in entries if entry]
    if len(places) == 2:
        block[places[0]], block[places[1]] = block[places[1]], block[places[0]]


def is_turned(block: bytes) -> bool:
    """Whether an upright picture has the sides of the stored one exchanged, as the block says it."""
    try:
        return tiff.Page(block, *_first(block)).number(tiff.ORIENTATION, 1) in TURNED
    except Damaged:
        return False


def corrected(block: bytes, width: int, height: int) -> bytes | None:
    """The TIFF block for an upright sRGB picture of this size, pixels, without its thumbnail; None if it is damaged.

    Orientation, pixel dimensions and colour space are set where they are present, and resolutions across and down
    are exchanged where the orientation did so with the sides. Damage in any other directory than
    the first takes nothing from what that one says: a caption stays.
    """
    try:
        changed = _changed(block, width, height)
        # Directories that overlap one another may be spoiled by it.
        _first(changed)
    except Damaged:
        return None
    return changed


def _changed(block: bytes, width: int, height: int) -> bytes:
    layout, first = _first(block)
    order = layout.order
    changed = bytearray(block)
    for tag, value in ((tiff.ORIENTATION, 1), (tiff.WIDTH, width), (tiff.HEIGHT, height)):
        _set_whole(changed, order, first, tag, value)
    turned = is_turned(block)
    if turned:
        _swap(changed, first, tiff.X_RESOLUTION, tiff.Y_RESOLUTION)
    with suppress(Damaged):
        details = tiff.below(block, layout, first, tiff.EXIF_IFD)
        if turned:
            _swap(changed, details, FOCAL_PLANE_X, FOCAL_PLANE_Y)
        for tag, value in ((EXIF_WIDTH, width), (EXIF_HEIGHT, height), (COLOR_SPACE, SRGB)):
            _set_whole(changed, order, details, tag, value)
    if first.following:
        struct.pack_into(order + "I", changed, first.end - 4, 0)
        del changed[_thumbnail_start(block, layout, first) :]
    return bytes(changed)


def _first(block: bytes) -> tuple[Layout, Directory]:
    layout, first = tiff.header(block)
    if layout.word != "I":
        raise Damaged("a BigTIFF is no EXIF block")
    return layout, first


def _thumbnail_start(block: bytes, layout: Layout, first: Directory) -> int:
    """Where nothing but the thumbnail and its directory follows; the block's length when that can't be told."""
    try:
        thumbnail = tiff.directory(block, layout, first.following)
        details = tiff.below(block, layout, first, tiff.EXIF_IFD)
        others = [details, tiff.below(block, layout, first, tiff.GPS_IFD)]
        if details is not None:
            others.append(tiff.below(block, layout, details, tiff.INTEROP_IFD))
    except Damaged:
        return len(block)
    used = max(_end(directory) for directory in (first, *others) if directory is not None)
    own = [thumbnail.start]
    pointers = (tiff.STRIPS, tiff.THUMBNAIL)
    own += [entry.content for entry in thumbnail.entries if entry.size > 4 or entry.tag in pointers]
    return min((start for start in own if start >= used), default=len(block))


def _end(directory: Directory) -> int:
    """The end of a directory and of its values; beyond everything when it has parts that are not followed."""
    if directory.find(tiff.SUB_IFDS) is not None:
        return 2**64
    ends = (entry.content + entry.size for entry in directory.entries if entry.size > 4)
    return max(directory.end, *ends, 0)


def with_software(block: bytes | None, software: str) -> bytes:
    """The block with its Software named, where it names none; a new one where there is no block.

    block: one that `corrected` gave. It stays as it is where it fits into a JPEG and would not any more.
    """
    value = (software.encode("ascii", "replace") + b"\0").ljust(6, b"\0")
    value += bytes(len(value) % 2)
    if block is None:
        return b"II*\0" + struct.pack("<IHHHIII", 8, 1, tiff.SOFTWARE, tiff.ASCII, len(value), 26, 0) + value
    layout, first = _first(block)
    order = layout.order
    entry = first.find(tiff.SOFTWARE)
    if entry is not None and _text(block, entry).strip(b"\0 "):
        return block
    named = bytearray(block) + bytes(len(block) % 2)
    named += value
    place = struct.pack(order + "HHII", tiff.SOFTWARE, tiff.ASCII, len(value), len(named) - len(value))
    if entry is not None:
        named[entry.at : entry.at + 12] = place
    else:
        # Its directory has no room for one more entry, so it is written anew behind everything else.
        struct.pack_into(order + "I", named, 4, len(named))
        named += _directory_with(block, order, first, place)
    return bytes(named) if len(named) <= MAX_JPEG_BYTES or len(block) > MAX_JPEG_BYTES else block


def _text(block: bytes, entry: tiff.Entry) -> bytes:
    return block[entry.start : entry.start + entry.size]


def _directory_with(block: bytes, order: str, directory: Directory, software: bytes) -> bytes:
    """The directory, its entries as they are, with one more where its tag belongs; no other follows it."""
    before = [block[entry.at : entry.at + 12] for entry in directory.entries if entry.tag < tiff.SOFTWARE]
    behind = [block[entry.at : entry.at + 12] for entry in directory.entries if entry.tag > tiff.SOFTWARE]
    count = struct.pack(order + "H", len(directory.entries) + 1)
    return b"".join([count, *before, software, *behind, bytes(4)])


def without_orientation(block: bytes) -> bytes:
    """The block without that entry; those behind it move up, but no value is moved. As it is if it is damaged."""
    try:
        layout, first = _first(block)
    except Damaged:
        return block
    kept = {entry.tag: block[entry.at : entry.at + 12] for entry in first.entries if entry.tag != tiff.ORIENTATION}
    shorter = packed(kept, layout.order)[:-4] + struct.pack(layout.order + "I", first.following)
    return block[: first.start] + shorter.ljust(first.end - first.start, b"\0") + block[first.end :]
