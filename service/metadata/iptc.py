"""Read and correct Photoshop's image resources. One of them contains IPTC-IIM, the captions of agencies and archives.

Sources: Adobe Photoshop File Formats Specification; IPTC-NAA Information Interchange Model 4.2.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from service.formats.geometry import Transform

SIGNATURES = (b"8BIM", b"MeSa", b"AgHg", b"PHUT", b"DCSR")
IIM, IIM_DIGEST = 0x0404, 0x0425
IIM_START = b"\x1c"
# Resources that are untrue of every output: settings for storage, display, printing and editing; names of channels;
# halftones and transfer curves; thumbnails; copies of EXIF, XMP and the profile.
STALE = frozenset(
    {
        *(*range(1000, 1005), *range(1006, 1025), 1026, 1027, *range(1030, 1034), 1036, 1037, 1039),
        *(*range(1041, 1051), 1053, *range(1057, 1061), 1062, 1063, *range(1065, 1100)),
    }
)
# Resources about positions in the picture: density, paths, the proportions of pixels.
POSITIONAL = frozenset({1005, 1025, 1064, *range(2000, 3000)})
MAX_RESOURCES = 1000
# Datasets that are read of an IPTC-IIM. A photo of an agency has about a hundred.
MAX_DATASETS = 10_000
# Dataset 2:130, the number of colours, and record 3, the digital newsphoto, which describes the storage of pixels.
IMAGE_TYPE, NEWSPHOTO = b"\x1c\x02\x82", b"\x1c\x03"


@dataclass(frozen=True, slots=True)
class _Resource:
    """A resource: its number, the bytes before its length, and its content."""

    number: int
    header: bytes
    content: bytes

    def pack(self) -> bytes:
        return self.header + struct.pack(">I", len(self.content)) + self.content + bytes(len(self.content) % 2)


def _resources(data: bytes) -> Iterator[_Resource]:
    """Yield the resources up to the first damaged one."""
    position = 0
    for _ in range(MAX_RESOURCES):
        if data[position : position + 4] not in SIGNATURES or position + 12 > len(data):
            return
        name_end = position + 7 + data[position + 6]
        name_end += name_end % 2 != position % 2
        if name_end + 4 > len(data):
            return
        (size,) = struct.unpack_from(">I", data, name_end)
        start, end = name_end + 4, name_end + 4 + size
        if end > len(data):
            return
        number = int.from_bytes(data[position + 4 : position + 6])
        yield _Resource(number, data[position:name_end], data[start:end])
        position = end + size % 2


def _joined(resources: Iterable[_Resource]) -> bytes | None:
    return b"".join(resource.pack() for resource in resources) or None


def without_stale(data: bytes) -> bytes | None:
    """Return the resources without the stale ones, up to the first damage; None if none are left."""
    return _joined(found for found in _resources(data) if found.number not in STALE)


def corrected(data: bytes, transform: Transform) -> bytes | None:
    """Return the resources corrected for an output; None if none are left.

    Resources about positions are dropped if the orientation changes. Paths are shares of the sides, so they stay true
    when the picture is scaled.
    """
    old = [found for found in _resources(data) if not (transform.is_reoriented and found.number in POSITIONAL)]
    new = [replace(found, content=_corrected_iim(found.content)) if found.number == IIM else found for found in old]
    if new != old:
        # Readers take a correct digest as proof that the captions were not changed.
        new = [found for found in new if found.number != IIM_DIGEST]
    return _joined(new)


def _corrected_iim(iim: bytes) -> bytes:
    """Return the IPTC-IIM without datasets that say that the picture is gray, or how its pixels are stored."""
    if IMAGE_TYPE not in iim and NEWSPHOTO not in iim:
        return iim
    parts = []
    position = 0
    for start, end in _datasets(iim):
        content = iim[start + 5 : end]
        if (iim.startswith(IMAGE_TYPE, start) and content[:1] == b"1") or iim.startswith(NEWSPHOTO, start):
            parts.append(iim[position:start])
            position = end
    return b"".join([*parts, iim[position:]])


def _datasets(iim: bytes) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each dataset, up to the first damage."""
    position = 0
    for _ in range(MAX_DATASETS):
        if iim[position : position + 1] != IIM_START or position + 5 > len(iim):
            return
        size = int.from_bytes(iim[position + 3 : position + 5])
        # The top bit marks an extended dataset, whose size follows. None of those are changed here.
        end = position + 5 + size
        if size & 0x8000 or end > len(iim):
            return
        yield position, end
        position = end


def find_iim(data: bytes) -> bytes | None:
    """Return the IPTC-IIM in the resources; None without one."""
    return next((found.content for found in _resources(data) if found.number == IIM), None)


def iim_resource(iim: bytes) -> bytes:
    """Return a resource with an IPTC-IIM as its content."""
    return struct.pack(">4sHHI", b"8BIM", IIM, 0, len(iim)) + iim + bytes(len(iim) % 2)
