"""Correct an EXIF block so that it is true of the output. Untrue values are changed in place or removed.

The block is a small TIFF file. Its values are addressed by their offset from the first byte. A maker note contains
offsets that only the maker of the camera knows. Therefore no value is moved, and new values are appended.
"""

import re
import struct
from collections.abc import Iterable, Iterator, Sequence

from service.formats import tiff_reader, tiff_tags, tiff_writer
from service.formats.geometry import Transform
from service.formats.tiff_reader import Damaged, Directory, Entry, Layout
from service.formats.tiff_writer import MAX_JPEG_BYTES, pack_directory, pack_entry

SRGB = 1
# Values of InteroperabilityIndex for sRGB and Adobe RGB.
SRGB_INDEX, ADOBE_INDEX = b"R98\0", b"R03"
FIRST_TAGS = tiff_tags.DESCRIPTIVE | {
    tiff_tags.IMAGE_WIDTH,
    tiff_tags.IMAGE_LENGTH,
    tiff_tags.EXIF_IFD,
    tiff_tags.GPS_IFD,
}
# The first tag of EXIF. Smaller tags describe the storage of pixels.
EXIF_TAGS_FROM = tiff_tags.EXPOSURE_TIME
# Tags of the EXIF directory that are untrue of the output: copies of other blocks, sample storage, gamma.
STORED_TAGS = frozenset(
    {
        tiff_tags.IPTC_NAA,
        tiff_tags.IMAGE_RESOURCES,
        tiff_tags.ICC_PROFILE,
        tiff_tags.COMPONENTS_CONFIGURATION,
        tiff_tags.COMPRESSED_BITS_PER_PIXEL,
        tiff_tags.GAMMA,
    }
)
# Private tags of single makers, such as the flag of a motion photo.
PRIVATE_TAGS = (range(0x8840, 0x8900), range(0x9999, 0x9B00))
# A user comment by which another maker marks a motion photo.
MOTION_COMMENT = re.compile(rb"(?:ASCII\0\0\0|\0{8})?oplus_\d", re.IGNORECASE)

Span = tuple[int, int]


def orientation(block: bytes) -> int | None:
    """Return the orientation in a block, 1 to 8; None without one."""
    try:
        layout, first = _read_header(block)
    except Damaged:
        return None
    if first.find(tiff_tags.ORIENTATION) is None:
        return None
    number = tiff_reader.Page(block, layout, first).number(tiff_tags.ORIENTATION, 1)
    return number if 1 <= number <= 8 else 1


def is_excessive(block: bytes) -> bool:
    """Return whether a reader that loads every value of a block would need too much time or memory.

    Such a block has more entries than any camera writes, or values that overlap.
    """
    layout = tiff_reader.LAYOUTS.get(block[:4])
    if layout is None or layout.word != "I" or len(block) < 10:
        return False
    (start,) = struct.unpack_from(layout.order + "I", block, 4)
    count = int.from_bytes(block[start : start + 2], "little" if layout.order == "<" else "big")
    body = block[start + 2 : start + 2 + 12 * min(count, tiff_reader.MAX_ENTRIES + 1)]
    whole = body[: len(body) - len(body) % 12]
    sizes = [
        tiff_tags.TYPE_SIZES.get(kind, 0) * number
        for _, kind, number, _ in struct.iter_unpack(layout.order + "HHII", whole)
    ]
    return len(sizes) > tiff_reader.MAX_ENTRIES or sum(size for size in sizes if size <= len(block)) > len(block) + 1000


def corrected(block: bytes, transform: Transform) -> bytes | None:
    """Return the block corrected for an upright sRGB output, without its thumbnail; None if it is damaged.

    Orientation, pixel dimensions and colour space are set if they are present. Horizontal and vertical resolutions are
    swapped if the orientation swaps the sides. Damage in another directory than the first does not affect the first, so
    a caption is kept.
    """
    try:
        changed = _changed(block, transform)
        # Changing one of two overlapping directories may damage the other.
        _read_header(changed)
    except Damaged:
        return None
    return changed


def _read_header(block: bytes) -> tuple[Layout, Directory]:
    layout, first = tiff_reader.header(block)
    if layout.word != "I":
        raise Damaged("a BigTIFF is not an EXIF block")
    return layout, first


def _changed(block: bytes, transform: Transform) -> bytes:
    _read_header(block)
    layout, found = tiff_reader.directories(block)
    changed = bytearray(block)
    _set_numbers(changed, layout.order, found, transform)
    kept: list[Span] = [(0, 8)]
    dropped: list[Span] = []
    for pointer, directory in found.items():
        kept_entries, dropped_entries = _split_entries(block, pointer, directory, transform)
        if dropped_entries or (pointer == 0 and directory.next_offset):
            _rewrite(changed, layout.order, directory, kept_entries)
        kept += [(directory.start, directory.end), *_value_spans(kept_entries)]
        dropped += _value_spans(dropped_entries)
    if found[0].next_offset:
        dropped += _thumbnail_spans(block, layout, found[0].next_offset)
    if all(pointer in found for pointer in (tiff_tags.EXIF_IFD, tiff_tags.GPS_IFD) if found[0].find(pointer)):
        _erase(changed, kept, dropped)
    return bytes(changed)


def _set_numbers(block: bytearray, order: str, found: dict[int, Directory], transform: Transform) -> None:
    first, details, interop = (
        found.get(pointer) for pointer in (0, tiff_tags.EXIF_IFD, tiff_tags.INTEROPERABILITY_IFD)
    )
    width, height = transform.width, transform.height
    for tag, value in ((tiff_tags.ORIENTATION, 1), (tiff_tags.IMAGE_WIDTH, width), (tiff_tags.IMAGE_LENGTH, height)):
        _set_integer(block, order, first, tag, value)
    for tag, value in (
        (tiff_tags.PIXEL_X_DIMENSION, width),
        (tiff_tags.PIXEL_Y_DIMENSION, height),
        (tiff_tags.COLOR_SPACE, SRGB),
    ):
        _set_integer(block, order, details, tag, value)
    for tag, value in ((tiff_tags.RELATED_IMAGE_WIDTH, width), (tiff_tags.RELATED_IMAGE_LENGTH, height)):
        _set_integer(block, order, interop, tag, value)
    index = interop.find(tiff_tags.INTEROPERABILITY_INDEX) if interop else None
    if index and _value_start(block, index).startswith(ADOBE_INDEX):
        entry = pack_entry(
            tiff_reader.Field(tiff_tags.INTEROPERABILITY_INDEX, tiff_tags.ASCII, SRGB_INDEX), SRGB_INDEX, order
        )
        block[index.offset : index.offset + 12] = entry
    if transform.swaps_sides:
        _swap(block, first, tiff_tags.X_RESOLUTION, tiff_tags.Y_RESOLUTION)
        _swap(block, details, tiff_tags.FOCAL_PLANE_X_RESOLUTION, tiff_tags.FOCAL_PLANE_Y_RESOLUTION)


def _set_integer(block: bytearray, order: str, directory: Directory | None, tag: int, value: int) -> None:
    """Set the entries of a tag to an integer, in place. The type is SHORT if the value fits, unless it was LONG."""
    for entry in directory.entries if directory else ():
        if entry.tag == tag:
            if entry.kind != tiff_tags.LONG and value <= 0xFFFF:
                struct.pack_into(order + "HHIHxx", block, entry.offset, tag, tiff_tags.SHORT, 1, value)
            else:
                struct.pack_into(order + "HHII", block, entry.offset, tag, tiff_tags.LONG, 1, value)


def _swap(block: bytearray, directory: Directory | None, one: int, other: int) -> None:
    """Swap the values of two tags if both are present."""
    entries = [directory.find(tag) for tag in (one, other)] if directory else []
    bodies = [slice(entry.offset + 2, entry.offset + 12) for entry in entries if entry]
    if len(bodies) == 2:
        block[bodies[0]], block[bodies[1]] = block[bodies[1]], block[bodies[0]]


def _split_entries(
    block: bytes, pointer: int, directory: Directory, transform: Transform
) -> tuple[list[Entry], list[Entry]]:
    """Return the entries of a directory that are kept, and those that are dropped."""
    kept_entries: list[Entry] = []
    dropped_entries: list[Entry] = []
    for entry in directory.entries:
        (kept_entries if _is_kept(block, pointer, entry, transform) else dropped_entries).append(entry)
    return kept_entries, dropped_entries


def _is_kept(block: bytes, pointer: int, entry: Entry, transform: Transform) -> bool:
    """Return whether an entry is kept. pointer: the tag that points to its directory; 0 for the first."""
    tag = entry.tag
    if pointer not in (0, tiff_tags.EXIF_IFD):
        return True
    if tag in (tiff_tags.SUBJECT_AREA, tiff_tags.SUBJECT_LOCATION):
        return transform.is_identity
    if tag == tiff_tags.USER_COMMENT:
        return MOTION_COMMENT.match(_value_start(block, entry)) is None
    if pointer == 0:
        return tag in FIRST_TAGS
    if tag in (
        tiff_tags.FOCAL_PLANE_X_RESOLUTION,
        tiff_tags.FOCAL_PLANE_Y_RESOLUTION,
        tiff_tags.FOCAL_PLANE_RESOLUTION_UNIT,
    ):
        # They count pixels of the picture per length on the sensor.
        return not transform.is_scaled
    is_private = any(tag in tags for tags in PRIVATE_TAGS)
    return (tag >= EXIF_TAGS_FROM or tag in tiff_tags.DESCRIPTIVE) and tag not in STORED_TAGS and not is_private


def _value_start(block: bytes | bytearray, entry: Entry) -> bytes:
    """Return the first bytes of a value, 1,000 at most."""
    return bytes(block[entry.value_offset : entry.value_offset + min(entry.size, 1000)])


def _rewrite(block: bytearray, order: str, directory: Directory, entries: Sequence[Entry]) -> None:
    """Rewrite a directory in place with these entries only, and without a next directory."""
    parts = [struct.pack(order + "H", len(entries)), *(bytes(block[e.offset : e.offset + 12]) for e in entries)]
    block[directory.start : directory.end] = b"".join(parts).ljust(directory.end - directory.start, b"\0")


def _value_spans(entries: Iterable[Entry]) -> list[Span]:
    """Return the spans of the values that are stored outside their entries."""
    return [(entry.value_offset, entry.value_offset + entry.size) for entry in entries if entry.size > 4]


def _thumbnail_spans(block: bytes, layout: Layout, start: int) -> list[Span]:
    """Return the spans of a thumbnail's directory, values and pixels; empty if the directory is damaged."""
    try:
        directory = tiff_reader.directory(block, layout, start)
    except Damaged:
        return []
    page = tiff_reader.Page(block, layout, directory)
    spans = [(directory.start, directory.end), *_value_spans(directory.entries)]
    for at, size in (
        (tiff_tags.JPEG_INTERCHANGE_FORMAT, tiff_tags.JPEG_INTERCHANGE_FORMAT_LENGTH),
        (tiff_tags.STRIP_OFFSETS, tiff_tags.STRIP_BYTE_COUNTS),
    ):
        pixels = page.number(at, 0)
        spans += [(pixels, pixels + page.number(size, 0))] if pixels else []
    return spans


def _erase(block: bytearray, kept: list[Span], dropped: list[Span]) -> None:
    """Overwrite the dropped spans with zeros, and cut them off at the end of the block."""
    before = bytes(block)
    # A value of an unknown type, or one beyond the end, has no known extent.
    dropped = [span for span in dropped if span[1] <= len(block)]
    for start, end in _merged(dropped):
        block[start:end] = bytes(end - start)
    used = 0
    for start, end in _merged(kept):
        block[start:end] = before[start:end]
        used = min(end, len(block))
    del block[min((start for start, _ in dropped if start >= used), default=len(block)) :]


def _merged(spans: list[Span]) -> Iterator[Span]:
    """Yield the spans sorted and without overlaps."""
    done = 0
    for start, end in sorted(spans):
        if end > max(start, done):
            yield max(start, done), end
            done = end


def with_software(block: bytes | None, software: str) -> bytes:
    """Return the block with the tag Software set, unless it is set already; a new block if there was none.

    block: a result of `corrected`. It is unchanged if the tag would make it too large for a JPEG.
    """
    field = tiff_reader.Field(tiff_tags.SOFTWARE, tiff_tags.ASCII, software.encode("ascii", "replace") + b"\0")
    if block is None:
        block = tiff_writer.HEADERS["<"] + struct.pack("<I", 8) + pack_directory({}, "<")
    layout, first = _read_header(block)
    entry = first.find(tiff_tags.SOFTWARE)
    if entry is not None and _value_start(block, entry).strip(b"\0 "):
        return block
    named = _with_entry(block, layout.order, first, field)
    return named if len(named) <= MAX_JPEG_BYTES or len(block) > MAX_JPEG_BYTES else block


def _with_entry(block: bytes, order: str, first: Directory, field: tiff_reader.Field) -> bytes:
    """Return the block with one more field in its first directory, and without a second directory.

    The value is appended. The directory is appended too if it has no entry of this tag, as it can't grow in place.
    """
    changed = bytearray(block) + bytes(len(block) % 2)
    content = field.value
    if len(content) > 4:
        content = struct.pack(order + "I", len(changed))
        changed += field.value + bytes(len(field.value) % 2)
    new = pack_entry(field, content, order)
    old = first.find(field.tag)
    if old is not None:
        changed[old.offset : old.offset + 12] = new
        return bytes(changed)
    entries = {entry.tag: block[entry.offset : entry.offset + 12] for entry in reversed(first.entries)}
    struct.pack_into(order + "I", changed, 4, len(changed))
    return bytes(changed) + pack_directory(entries | {field.tag: new}, order)


def without_orientation(block: bytes) -> bytes:
    """Return the block without the orientation entry. No value is moved. A damaged block is returned unchanged."""
    try:
        layout, first = _read_header(block)
    except Damaged:
        return block
    changed = bytearray(block)
    _rewrite(changed, layout.order, first, [entry for entry in first.entries if entry.tag != tiff_tags.ORIENTATION])
    return bytes(changed)
