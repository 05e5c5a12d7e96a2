"""Read EXIF, XMP and the colour profile of the primary image of an AVIF or HEIC, and decode the pixels of a HEIC.

The boxes are parsed here and not in a library. pi-heif crashes the process if a metadata item is damaged. Pillow
rewrites the EXIF of an AVIF if its orientation differs from the transformations of the file.
"""

from dataclasses import dataclass

import _pi_heif
from pi_heif.heif import BaseImage

from service.formats import heif_boxes
from service.formats.geometry import compose

DECODER_THREADS = 1
MAX_EXTENTS = 100
MAX_BLOCK = 4 << 20
XMP_TYPE = b"application/rdf+xml"
# EXIF orientations of 0 to 3 quarter turns to the left, and of swapping top and bottom, or left and right.
ROTATIONS = (1, 8, 3, 6)
MIRRORS = (4, 2)


@dataclass(frozen=True, slots=True)
class HeifMetadata:
    """The metadata of the primary image: EXIF as a TIFF block, an XMP packet, an ICC profile; None if missing.

    orientation: the EXIF orientation that is equal to the transformations of the file; 0 if they also crop.
    """

    exif: bytes | None = None
    xmp: bytes | None = None
    icc: bytes | None = None
    orientation: int = 1


def read(data: bytes) -> HeifMetadata:
    """Return the metadata of the primary image. Unreadable parts are left out; nothing is raised."""
    try:
        found = heif_boxes.read(data)
    except heif_boxes.Damaged:
        return HeifMetadata()
    blocks: dict[bytes, heif_boxes.Item] = {}
    for item in found.items.values():
        if item.kind in (b"Exif", XMP_TYPE) and found.primary in item.references.get(b"cdsc", [found.primary]):
            blocks.setdefault(item.kind, item)
    exif, xmp = (_content(data, blocks[kind]) if kind in blocks else b"" for kind in (b"Exif", XMP_TYPE))
    primary = found.items.get(found.primary)
    properties = [(kind, content) for kind, content, _ in found.properties_of(primary)] if primary else []
    return HeifMetadata(_tiff_block(exif), xmp or None, _profile(properties), _orientation(properties))


def decode(data: bytes) -> BaseImage:
    """Return the image of a HEIC, already upright. It has a `size` and a `mode`, and `numpy.asarray` decodes it.

    data: a file from `heif_still.extract_still`, because libheif does not bound its work. The `mode` has 8 bits a
    channel, or more if it ends in `;16`. Raises ValueError, EOFError, SyntaxError, RuntimeError or OSError if the file
    is damaged.
    """
    # The public `open_heif` would also parse the metadata. The arguments have no keywords. They are: data, threads, HDR
    # to 8 bits, BGR, remove the stride, HDR to 16 bits, the preferred decoder, disable security limits.
    images = _pi_heif.load_file(data, DECODER_THREADS, False, False, True, True, "", False)  # noqa: FBT003
    if len(images) != 1 or images[0] is None:
        raise ValueError("it has no image that can be decoded")
    return BaseImage(images[0])


def _content(data: bytes, item: heif_boxes.Item) -> bytes:
    """Return the content of a metadata item; empty if it is too long or incomplete."""
    spans = item.spans or []
    size = sum(end - start for start, end in spans)
    if len(spans) > MAX_EXTENTS or size > min(MAX_BLOCK, len(data)) or any(end > len(data) for _, end in spans):
        return b""
    return b"".join(data[start:end] for start, end in spans)


def _tiff_block(content: bytes) -> bytes | None:
    """Return the TIFF block of an EXIF item. The item begins with the offset of the block, in 4 bytes."""
    return content[4 + int.from_bytes(content[:4]) :].removeprefix(b"Exif\0\0") or None


def _profile(properties: list[tuple[bytes, bytes]]) -> bytes | None:
    for kind, content in properties:
        if kind == b"colr" and content[:4] in (b"prof", b"rICC") and len(content) <= MAX_BLOCK:
            return content[4:]
    return None


def _orientation(properties: list[tuple[bytes, bytes]]) -> int:
    """Return the EXIF orientation that is equal to the transformations; 0 if one of them crops."""
    turn = 1
    for kind, content in properties:
        number = int.from_bytes(content[:1])
        if kind == b"irot":
            turn = compose(turn, ROTATIONS[number & 3])
        elif kind == b"imir":
            turn = compose(turn, MIRRORS[number & 1])
        elif kind == b"clap":
            return 0
    return turn
