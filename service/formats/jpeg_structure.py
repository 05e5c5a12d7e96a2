"""Parse the header and the scans of a JPEG, and make a copy that holds nothing but the image.

libjpeg warns about oddities of the header and about damaged scans alike, and only its first warning can be read.
In a copy with a plain header, every warning is about the scans.
"""

import re
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from math import ceil
from typing import Literal

from service.errors import UnreadableImage, UnsupportedType
from service.formats.containers import END_OF_IMAGE, MARKER, MAX_SEGMENTS, START_OF_SCAN

Space = Literal["gray", "YCbCr", "RGB", "CMYK"]

START, END = b"\xff\xd8", b"\xff\xd9"
QUANTIZATION, HUFFMAN, ARITHMETIC, INTERVAL, LINES = 0xDB, 0xC4, 0xCC, 0xDD, 0xDC
APP0, APP1, APP14 = 0xE0, 0xE1, 0xEE
TABLES = (QUANTIZATION, HUFFMAN, ARITHMETIC)
FRAMES = frozenset(range(0xC0, 0xD0)) - {HUFFMAN, 0xC8, ARITHMETIC}
PROGRESSIVE, ARITHMETIC_CODED = (0xC2, 0xCA), (0xC9, 0xCA)
JFIF_NAME, ADOBE_NAME = b"JFIF\0", b"Adobe"
# Version 1.01, without a density. libjpeg uses it only to decide that three components are YCbCr.
JFIF = JFIF_NAME + b"\1\1\0\0\1\0\1\0\0"
# Version 100, without flags. The transform follows: 0 means none, 1 YCbCr, 2 YCCK.
ADOBE = ADOBE_NAME + b"\0\x64\0\0\0\0"
EXIF, XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
# The known transforms by the number of components. libjpeg uses the first one for an unknown transform.
TRANSFORMS = {1: (0,), 3: (1, 0), 4: (2, 0)}
RGB_IDS = [ord("R"), ord("G"), ord("B")]
# A marker inside the data of a scan. A zero after 0xFF is data.
SCAN_MARKER = re.compile(rb"\xff+([^\x00\xff])")
FIRST_RESTART, LAST_RESTART = 0xD0, 0xD7
# Coefficients of a block, and the lowest bit of a coefficient before any scan has sent it.
COEFFICIENTS, UNSENT = 64, 255
# An interrupted download or a recovered file may be filled up with zeros. A decoder would read them as pixels. Without
# an end marker, this many zeros at the end of the data are such a filling, and all but KEPT_ZEROS are removed.
MIN_ZERO_FILLING, KEPT_ZEROS = 512, 8
SEQUENTIAL = bytes([0, COEFFICIENTS - 1, 0])


@dataclass(frozen=True, slots=True)
class Component:
    """A component of a frame: identifier, horizontal and vertical sampling factors, quantization table."""

    id: int
    across: int
    down: int
    table: int


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame header: marker, height and width in pixels, components."""

    marker: int
    height: int
    width: int
    components: tuple[Component, ...]

    @property
    def most(self) -> tuple[int, int]:
        """The largest sampling factors, horizontal and vertical."""
        return max(one.across for one in self.components), max(one.down for one in self.components)

    def is_whole(self, component: Component) -> bool:
        """Return whether each sample of a component covers a whole number of pixels, in both directions."""
        across, down = self.most
        return across % component.across == 0 and down % component.down == 0

    def units(self, ids: Collection[int]) -> int:
        """Return the number of units (MCUs) in a scan of the components with these identifiers."""
        across, down = self.most
        if len(ids) > 1:
            return ceil(self.width / (8 * across)) * ceil(self.height / (8 * down))
        # A scan of one component has one block of that component as its unit.
        only = next(one for one in self.components if one.id in ids)
        return ceil(self.width * only.across / (8 * across)) * ceil(self.height * only.down / (8 * down))

    def segment(self) -> bytes:
        """Return the frame header as a segment."""
        parts = (bytes([one.id, one.across << 4 | one.down, one.table]) for one in self.components)
        fixed = struct.pack(">BHHB", 8, self.height, self.width, len(self.components))
        return _segment(self.marker, fixed + b"".join(parts))


@dataclass(frozen=True, slots=True)
class Header:
    """Everything before the first scan.

    space: the colour space that libjpeg assumes for the components. tables: segments. interval: units between restart
    markers, 0 for none. scan: offset of the length of the first scan header. transform: the value in Adobe's segment.
    exif, xmp: content of the first segment of the kind, empty without one.
    """

    frame: Frame
    space: Space
    tables: tuple[bytes, ...]
    interval: int
    scan: int
    has_jfif: bool
    transform: int | None
    exif: bytes
    xmp: bytes

    def segments(self) -> bytes:
        """Return the start of a JPEG with the same image, up to its first scan, without odd or unneeded segments."""
        parts = [START]
        if self.has_jfif:
            parts.append(_segment(APP0, JFIF))
        if self.transform is not None:
            parts.append(_segment(APP14, ADOBE + bytes([self.transform])))
        if self.interval:
            parts.append(_segment(INTERVAL, struct.pack(">H", self.interval)))
        return b"".join([*parts, *self.tables, self.frame.segment()])

    def without_pixels(self) -> bytes:
        """Return a JPEG without pixels but with EXIF and XMP, for a library that reads the header."""
        blocks = (_segment(APP1, block) for block in (self.exif, self.xmp) if block)
        return b"".join([START, *blocks, self.segments()[len(START) :], _segment(START_OF_SCAN, b"")])


@dataclass(frozen=True, slots=True)
class Scan:
    """A scan: its header, with the tables before it, and its data.

    is_regular: whether the data has exactly the required restart markers, in order.
    """

    header: bytes
    data: memoryview
    is_regular: bool


@dataclass(frozen=True, slots=True)
class PlainJpeg:
    """A JPEG with nothing but its image. All its scans are present, even if the file has no end marker."""

    header: Header
    scans: tuple[Scan, ...]

    def file(self, tail: bytes = b"") -> bytes:
        """Return the bytes of the file. tail: bytes to add to the data of the last scan."""
        parts: list[bytes | memoryview] = [self.header.segments()]
        for scan in self.scans:
            parts += [scan.header, scan.data]
        return b"".join([*parts, tail, END])


def header(data: bytes) -> Header:
    """Return the header of a JPEG. Raises UnreadableImage and UnsupportedType."""
    frame: Frame | None = None
    interval = 0
    tables: list[bytes] = []
    others: dict[bytes, bytes] = {}
    for marker, start, body in _segments(data, len(START)):
        if marker == START_OF_SCAN and frame is not None:
            frame = frame if frame.height else replace(frame, height=_lines(data, start + 2 + len(body)))
            _check(frame)
            return _header(frame, tables, interval, start, others)
        if marker in TABLES:
            tables.append(_segment(marker, body))
        elif marker in FRAMES:
            frame = frame or _frame(marker, body)
        elif marker == INTERVAL:
            interval = int.from_bytes(body[:2])
        else:
            for kind, name, least in ((APP0, JFIF_NAME, 14), (APP14, ADOBE_NAME, 12), (APP1, EXIF, 0), (APP1, XMP, 0)):
                # libjpeg uses the last of several Adobe segments, and the first of the others.
                if marker == kind and body.startswith(name) and len(body) >= least:
                    others[name] = body if kind == APP14 else others.get(name, body)
    raise UnreadableImage("the JPEG is damaged or cut short: it has no scan", field="file")


def _header(frame: Frame, tables: list[bytes], interval: int, start: int, others: dict[bytes, bytes]) -> Header:
    transform = others[ADOBE_NAME][len(ADOBE)] if ADOBE_NAME in others else None
    known = TRANSFORMS[len(frame.components)]
    if transform is not None and transform not in known:
        transform = known[0]
    has_jfif = JFIF_NAME in others
    space = _space(frame, has_jfif, transform)
    exif, xmp = others.get(EXIF, b""), others.get(XMP, b"")
    return Header(frame, space, tuple(tables), interval, start, has_jfif, transform, exif, xmp)


def plain(data: bytes) -> PlainJpeg:
    """Return a JPEG with nothing but its image, without the data after its last scan.

    Only decoding shows whether the data of a scan is complete. Raises UnreadableImage if a scan is missing, and
    UnsupportedType.
    """
    start_of_file = header(data)
    frame, interval = start_of_file.frame, start_of_file.interval
    lowest = {one.id: [UNSENT] * COEFFICIENTS for one in frame.components}
    scans: list[Scan] = []
    tables = b""
    position = start_of_file.scan - 2
    while (found := next(_segments(data, position), None)) and len(scans) < MAX_SEGMENTS:
        marker, start, body = found
        position = start + 2 + len(body)
        if marker == START_OF_SCAN:
            ids = _scan(frame, body, lowest)
            restarts = (frame.units(ids) - 1) // interval if interval else 0
            end, is_regular = _end_of_scan(data, position, restarts)
            settings = body[-3:] if frame.marker in PROGRESSIVE else SEQUENTIAL
            scan_header = tables + _segment(marker, body[:-3] + settings)
            scans.append(Scan(scan_header, memoryview(data)[position:end], is_regular))
            tables, position = b"", end
            if not any(map(any, lowest.values())):
                break
        elif marker in TABLES:
            tables += _segment(marker, body)
        elif marker == INTERVAL:
            interval = int.from_bytes(body[:2])
            tables += _segment(marker, body[:2])
    if not _check_end(data, position, frame, lowest):
        scans[-1] = replace(scans[-1], data=_without_zero_filling(scans[-1].data))
    return PlainJpeg(start_of_file, tuple(scans))


def _without_zero_filling(data: memoryview) -> memoryview:
    """Return the data of a scan without a filling of zeros; unchanged if it ends with less than MIN_ZERO_FILLING."""
    real = len(bytes(data).rstrip(b"\0"))
    return data[: real + KEPT_ZEROS] if len(data) - real >= MIN_ZERO_FILLING else data


def _segments(data: bytes, position: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield marker, offset of the length, and content of each segment from a position to the end of the image."""
    for _ in range(MAX_SEGMENTS):
        match = MARKER.search(data, position)
        if match is None or data[match.end() - 1] == END_OF_IMAGE:
            return
        start = match.end()
        length = int.from_bytes(data[start : start + 2])
        yield data[start - 1], start, data[start + 2 : start + length]
        position = start + max(2, length)


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _frame(marker: int, body: bytes) -> Frame:
    if len(body) < 6 or len(body) < 6 + 3 * body[5]:
        raise UnreadableImage("the JPEG is damaged: its frame header is too short", field="file")
    _, height, width, count = struct.unpack_from(">BHHB", body)
    parts = (body[at : at + 3] for at in range(6, 6 + 3 * count, 3))
    return Frame(
        marker, height, width, tuple(Component(id_, both >> 4, both & 15, table) for id_, both, table in parts)
    )


def _check(frame: Frame) -> None:
    if not frame.width or not frame.height:
        raise UnreadableImage("the JPEG is damaged: it has no width or no height", field="file")
    if len(frame.components) not in TRANSFORMS:
        text = f"the JPEG has {len(frame.components)} components; 1, 3 and 4 are supported"
        raise UnsupportedType(text, field="file")
    if any(not 1 <= factor <= 4 for one in frame.components for factor in (one.across, one.down)):
        raise UnreadableImage("the JPEG is damaged: a sampling factor is not between 1 and 4", field="file")


def _lines(data: bytes, position: int) -> int:
    """Return the height in the DNL segment behind the first scan; 0 without one."""
    for match in SCAN_MARKER.finditer(data, position):
        if match[1][0] == LINES:
            return int.from_bytes(data[match.end() + 2 : match.end() + 4])
        if not FIRST_RESTART <= match[1][0] <= LAST_RESTART:
            break
    return 0


def _space(frame: Frame, has_jfif: bool, transform: int | None) -> Space:
    if len(frame.components) != 3:
        return "gray" if len(frame.components) == 1 else "CMYK"
    ids = [one.id for one in frame.components]
    is_rgb = not has_jfif and (ids == RGB_IDS if transform is None else transform == 0)
    return "RGB" if is_rgb else "YCbCr"


def _scan(frame: Frame, body: bytes, lowest: dict[int, list[int]]) -> set[int]:
    """Return the identifiers of a scan's components, and set in `lowest` the bits that the scan sends."""
    ids = set(body[1 : 1 + 2 * body[0] : 2]) if body else set()
    if len(body) != 4 + 2 * len(ids) or not ids or not ids <= lowest.keys():
        raise UnreadableImage("the JPEG is damaged: the header of a scan is invalid", field="file")
    first, last, bits = body[-3:] if frame.marker in PROGRESSIVE else SEQUENTIAL
    for id_ in ids:
        lowest[id_][first : last + 1] = [bits & 15] * len(lowest[id_][first : last + 1])
    return ids


def _end_of_scan(data: bytes, start: int, restarts: int) -> tuple[int, bool]:
    """Return the end of a scan's data, and whether its restart markers are regular.

    They are regular if their number is `restarts`, they are in order, and data follows each of them.
    """
    seen, is_regular, begin = 0, True, start
    for match in SCAN_MARKER.finditer(data, start):
        marker = match[1][0]
        is_regular = is_regular and match.start() > begin
        if seen == restarts or not FIRST_RESTART <= marker <= LAST_RESTART:
            return match.start(), is_regular and seen == restarts
        is_regular = is_regular and marker == FIRST_RESTART + seen % 8
        seen += 1
        begin = match.end()
    return len(data), is_regular and seen == restarts and begin < len(data)


def _check_end(data: bytes, position: int, frame: Frame, lowest: dict[int, list[int]]) -> bool:
    """Return whether an end marker follows. Raises UnreadableImage if scans are missing.

    A progressive file with an end marker may leave out the scans of fine details.
    """
    following = SCAN_MARKER.search(data, position)
    has_end = following is not None and following[1][0] == END_OF_IMAGE
    if not has_end and frame.marker in ARITHMETIC_CODED:
        # Arithmetic-coded data may end anywhere: a decoder reads missing data as zeros, without a warning.
        raise UnreadableImage("the JPEG may be cut short: it is arithmetic-coded and has no end marker", field="file")
    missing = UNSENT if has_end else 1
    if any(bits[0] >= missing or (not has_end and any(bits)) for bits in lowest.values()):
        raise UnreadableImage("the JPEG is cut short: scans are missing", field="file")
    return has_end
