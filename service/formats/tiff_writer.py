"""Write EXIF blocks, and TIFF images that contain such a block."""

import logging
import struct
from collections.abc import Iterable

import numpy as np

from service.formats import tiff_reader, tiff_tags
from service.formats.tiff_reader import Damaged, Field

log = logging.getLogger(__name__)

# Bytes of the numbers that a value consists of, for swapping the byte order. A rational has two numbers.
WIDTHS = {
    **dict.fromkeys((tiff_tags.SHORT, tiff_tags.SSHORT), 2),
    **dict.fromkeys((tiff_tags.LONG, tiff_tags.SLONG, tiff_tags.FLOAT, tiff_tags.RATIONAL, tiff_tags.SRATIONAL), 4),
    tiff_tags.DOUBLE: 8,
}
UNASSOCIATED_ALPHA = 2
MAX_BLOCK = 4 << 20
# The largest EXIF block that fits into a JPEG segment, behind `Exif\0\0`.
MAX_JPEG_BYTES = 65_527
HEADERS = {"<": b"II*\0", ">": b"MM\0*"}


def compact_exif(data: bytes, order: str | None = None, limit: int = MAX_BLOCK) -> bytes | None:
    """Return the descriptive fields of a TIFF file or EXIF block as a new EXIF block; None if there are none.

    These are the descriptive tags of the first directory, and the directories of EXIF, GPS and interoperability.
    Returns None for a damaged file too. A maker note is not changed. It keeps its offset if that is possible.

    order: `struct` byte order of the numbers, by default that of the file. limit: bytes of the block; the largest
    values are left out to keep it.
    """
    try:
        layout, found = tiff_reader.directories(data)
    except Damaged:
        return None
    order = order or layout.order
    # Values may overlap in a file, but not in the block. Without overlaps, this limit always suffices.
    limit = min(limit, len(data) + 1000)
    contents: dict[int, list[Field]] = {}
    for tag, source in found.items():
        fields = tiff_reader.fields(data, source, None if tag else tiff_tags.DESCRIPTIVE)
        contents[tag] = [_in_byte_order(field, layout.order, order) for field in fields if _is_portable(field)]
    if not any(contents.values()):
        return None
    note = next((field for field in contents.get(tiff_tags.EXIF_IFD, ()) if field.tag == tiff_tags.MAKER_NOTE), None)
    # No camera writes BigTIFF, and the offsets in a maker note have 32 bits.
    if note is not None and layout.word == "I" and 8 <= note.offset <= min(limit, MAX_JPEG_BYTES) - len(note.value):
        block = _BlockWriter(order, note).write(contents)
        if len(block) <= limit:
            return block
    return _BlockWriter(order, None).write(_within_limit(contents, limit))


def _is_portable(field: Field) -> bool:
    """Return whether the field has a type of EXIF and holds no offset."""
    return field.tag != tiff_tags.INTEROPERABILITY_IFD and (
        field.kind <= tiff_tags.DOUBLE or field.kind == tiff_tags.UTF8
    )


def _in_byte_order(field: Field, order: str, wanted: str) -> Field:
    """Return the field with its value in the wanted byte order."""
    # IPTC-IIM consists of bytes, although writers declare them as numbers.
    width = 1 if field.tag == tiff_tags.IPTC_NAA else WIDTHS.get(field.kind, 1)
    if order == wanted or width == 1:
        return field
    swapped = np.frombuffer(field.value, f"u{width}").byteswap().tobytes()
    return Field(field.tag, field.kind, swapped, field.offset)


def _within_limit(contents: dict[int, list[Field]], limit: int) -> dict[int, list[Field]]:
    """Return the fields without the largest values, so that the block has at most `limit` bytes."""
    # Subtract the header, four directories without entries, and three pointers. Values have an even length.
    left = limit - 8 - 4 * 8 - 3 * 12
    chosen: dict[int, list[Field]] = {tag: [] for tag in contents}
    by_size = sorted(
        ((tag, field) for tag, fields in contents.items() for field in fields), key=lambda x: len(x[1].value)
    )
    for tag, field in by_size:
        left -= 12 + len(field.value) + len(field.value) % 2
        if left < 0:
            log.debug("%d bytes of tag %#x do not fit into an EXIF block", len(field.value), field.tag)
        else:
            chosen[tag].append(field)
    return chosen


class _BlockWriter:
    """A writer of an EXIF block. It appends values, and leaves the offset of a maker note free."""

    def __init__(self, order: str, note: Field | None) -> None:
        self.order = order
        self.note = note
        self.kept = range(0) if note is None else range(note.offset, note.offset + len(note.value))
        self.data = bytearray(HEADERS[order] + bytes(4))

    def write(self, contents: dict[int, list[Field]]) -> bytes:
        """Return the block with these directories, by the tag of the pointer to each; 0 is the first."""
        details = contents.get(tiff_tags.EXIF_IFD, []) + self._pointer(
            tiff_tags.INTEROPERABILITY_IFD, contents.get(tiff_tags.INTEROPERABILITY_IFD, [])
        )
        first = (
            contents[0]
            + self._pointer(tiff_tags.EXIF_IFD, details)
            + self._pointer(tiff_tags.GPS_IFD, contents.get(tiff_tags.GPS_IFD, []))
        )
        struct.pack_into(self.order + "I", self.data, 4, self._add_directory(first))
        if self.note is not None:
            self.data += bytes(max(0, self.kept.stop - len(self.data)))
            self.data[self.kept.start : self.kept.stop] = self.note.value
        return bytes(self.data)

    def _pointer(self, tag: int, fields: list[Field]) -> list[Field]:
        if not fields:
            return []
        return [Field(tag, tiff_tags.LONG, struct.pack(self.order + "I", self._add_directory(fields)))]

    def _add_directory(self, fields: list[Field]) -> int:
        return self._add(pack_directory({field.tag: self._entry(field) for field in fields}, self.order))

    def _entry(self, field: Field) -> bytes:
        if len(field.value) <= 4:
            return pack_entry(field, field.value, self.order)
        start = self.kept.start if field is self.note else self._add(field.value)
        return pack_entry(field, struct.pack(self.order + "I", start), self.order)

    def _add(self, part: bytes) -> int:
        """Append a part at an even offset, behind the maker note if it would overlap it, and return the offset."""
        start = len(self.data) + len(self.data) % 2
        if start < self.kept.stop and start + len(part) > self.kept.start:
            start = self.kept.stop + self.kept.stop % 2
        self.data += bytes(start - len(self.data)) + part
        return start


def pack_entry(field: Field, content: bytes, order: str) -> bytes:
    """Return an entry of a classic directory. content: the value, or its offset."""
    count = len(field.value) // tiff_tags.TYPE_SIZES[field.kind]
    return struct.pack(order + "HHI", field.tag, field.kind, count) + content.ljust(4, b"\0")


def pack_directory(entries: dict[int, bytes], order: str) -> bytes:
    """Return a classic directory with these entries, by tag, and without a next directory."""
    return struct.pack(order + "H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries)) + bytes(4)


def tiff_with_metadata(encoded: bytes, block: bytes | None, fields: Iterable[Field]) -> bytes:
    """Return a TIFF from our encoder with an EXIF block and fields added. encoded, fields: little-endian.

    The file begins with the block, so every offset in the block stays valid, inside a maker note too. The unchanged
    strips follow, then a directory. It has the fields of the image, the descriptive ones of the block, and these.
    """
    _, picture = tiff_reader.header(encoded)
    own = {field.tag: field for field in tiff_reader.fields(encoded, picture)}
    if block is not None and block[:4] == HEADERS[">"] and own[tiff_tags.BITS_PER_SAMPLE].value[0] > 8:
        # Samples have the byte order of the file, and the compressed samples are little-endian.
        block = compact_exif(block, "<")
    elif block is not None and not _is_complete(block):
        # A value behind the end of the block would point into the pixels.
        block = compact_exif(block)
    order, entries, head = _start_of_file(block)
    offsets, sizes = (_integers(own[tag]) for tag in (tiff_tags.STRIP_OFFSETS, tiff_tags.STRIP_BYTE_COUNTS))
    start, end = int(offsets.min()), int((offsets + sizes).max())
    own[tiff_tags.STRIP_OFFSETS] = Field(
        tiff_tags.STRIP_OFFSETS, tiff_tags.LONG, (offsets - start + len(head)).astype("<u4").tobytes()
    )
    if own[tiff_tags.SAMPLES_PER_PIXEL].value[0] == 4:
        own[tiff_tags.EXTRA_SAMPLES] = Field(
            tiff_tags.EXTRA_SAMPLES, tiff_tags.SHORT, struct.pack("<H", UNASSOCIATED_ALPHA)
        )
    parts = [bytes((end - start) % 2)]
    at = len(head) + end - start + len(parts[0])
    for field in (*own.values(), *fields):
        content = value = _in_byte_order(field, "<", order).value
        if len(value) > 4:
            content = struct.pack(order + "I", at)
            parts.append(value + bytes(len(value) % 2))
            at += len(parts[-1])
        entries[field.tag] = pack_entry(field, content, order)
    struct.pack_into(order + "I", head, 4, at)
    return b"".join([head, memoryview(encoded)[start:end], *parts, pack_directory(entries, order)])


def _is_complete(block: bytes) -> bool:
    """Return whether the block is classic TIFF and contains all its values."""
    try:
        layout, found = tiff_reader.directories(block)
    except Damaged:
        return False
    return layout.word == "I" and all(
        entry.value_offset + entry.size <= len(block) for source in found.values() for entry in source.entries
    )


def _start_of_file(block: bytes | None) -> tuple[str, dict[int, bytes], bytearray]:
    """Return the byte order, the entries for the first directory, and the first bytes of a TIFF with this block."""
    if block is None:
        return "<", {}, bytearray(HEADERS["<"] + bytes(4))
    layout, found = tiff_reader.directories(block)
    taken = tiff_tags.DESCRIPTIVE | (found.keys() - {0})
    entries = {entry.tag: block[entry.offset : entry.offset + 12] for entry in found[0].entries if entry.tag in taken}
    return layout.order, entries, bytearray(block + bytes(len(block) % 2))


def _integers(field: Field) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.frombuffer(field.value, "<u2" if field.kind == tiff_tags.SHORT else "<u4").astype(np.int64)
