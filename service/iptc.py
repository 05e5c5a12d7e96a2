"""Photoshop's image resources: in one of them files keep IPTC-IIM, the captions of agencies and archives."""

import struct
from collections.abc import Iterator

KINDS = (b"8BIM", b"MeSa", b"AgHg", b"PHUT", b"DCSR")
IIM = 0x0404
IIM_START = b"\x1c"
# Two kinds of thumbnail; the profile; copies of EXIF and XMP, which nobody would put right.
STALE = frozenset({1033, 1036, 1039, 1058, 1059, 1060})
MAX_RESOURCES = 1000


def _resources(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Number of each, where it begins, and where its content begins and ends; up to the first damage."""
    position = 0
    for _ in range(MAX_RESOURCES):
        if data[position : position + 4] not in KINDS or position + 12 > len(data):
            return
        name_end = position + 7 + data[position + 6]
        name_end += name_end % 2 != position % 2
        if name_end + 4 > len(data):
            return
        (size,) = struct.unpack_from(">I", data, name_end)
        end = name_end + 4 + size
        if end > len(data):
            return
        yield int.from_bytes(data[position + 4 : position + 6]), position, name_end + 4, end
        position = end + size % 2


def kept(data: bytes) -> bytes | None:
    """The resources as they are, but for those that would no longer be true; up to the first damage."""
    found = _resources(data)
    whole = [data[at:end] + bytes((end - start) % 2) for number, at, start, end in found if number not in STALE]
    return b"".join(whole) or None


def iim_of(data: bytes) -> bytes | None:
    """IPTC-IIM alone, of resources that hold it."""
    return next((data[start:end] for number, _, start, end in _resources(data) if number == IIM), None)


def resource_of(iim: bytes) -> bytes:
    """IPTC-IIM as a resource."""
    return struct.pack(">4sHHI", b"8BIM", IIM, 0, len(iim)) + iim + bytes(len(iim) % 2)
