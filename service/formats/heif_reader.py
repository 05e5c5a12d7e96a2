"""What an AVIF or HEIC says of its primary picture: EXIF, XMP, colour profile; and pixels of HEIC.

The boxes are read here: pi-heif dies of a damaged item of metadata, with the whole process, and Pillow moves what an
AVIF's EXIF holds where its orientation is not the one that the file's transformations tell.
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
# EXIF's numbers of quarter turns to the left, and of what exchanges top and bottom, or left and right.
ROTATIONS = (1, 8, 3, 6)
MIRRORS = (4, 2)


@dataclass(frozen=True, slots=True)
class HeifMetadata:
    """EXIF as a TIFF block, XMP as a packet, an ICC profile; None where there is none.

    orientation: the turn that the file's transformations make, as EXIF numbers it; 0 where they do more than that.
    """

    exif: bytes | None = None
    xmp: bytes | None = None
    icc: bytes | None = None
    orientation: int = 1


def read(data: bytes) -> HeifMetadata:
    """Return what is said of the primary picture. Never raises: what can't be read is left out."""
    try:
        found = heif_boxes.read(data)
    except heif_boxes.Damaged:
        return HeifMetadata()
    told: dict[bytes, heif_boxes.Item] = {}
    for item in found.items.values():
        if item.kind in (b"Exif", XMP_TYPE) and found.primary in item.references.get(b"cdsc", [found.primary]):
            told.setdefault(item.kind, item)
    exif, xmp = (_content(data, told[kind]) if kind in told else b"" for kind in (b"Exif", XMP_TYPE))
    primary = found.items.get(found.primary)
    properties = [(kind, content) for kind, content, _ in found.properties_of(primary)] if primary else []
    return HeifMetadata(_tiff_block(exif), xmp or None, _profile(properties), _orientation(properties))


def decode(data: bytes) -> BaseImage:
    """Return the picture of a HEIC, upright already: its `size` and `mode`; `numpy.asarray` of it decodes it.

    data: as `still.still` returns it, since libheif does not bound its work. `mode` is of 8 bits a channel, or ends in
    `;16` for more. Raises ValueError, EOFError, SyntaxError, RuntimeError or OSError when the file is damaged.
    """
    # Not its public `open_heif`, which looks at the metadata, too.
    images = _pi_heif.load_file(data, DECODER_THREADS, False, False, True, True, "", False)
    if len(images) != 1 or images[0] is None:
        raise ValueError("it has no picture that can be decoded")
    return BaseImage(images[0])


def _content(data: bytes, item: heif_boxes.Item) -> bytes:
    """Return what an item of metadata holds; nothing where it is too long or not all there."""
    spans = item.spans or []
    size = sum(end - start for start, end in spans)
    if len(spans) > MAX_EXTENTS or size > min(MAX_BLOCK, len(data)) or any(end > len(data) for _, end in spans):
        return b""
    return b"".join(data[start:end] for start, end in spans)


def _tiff_block(content: bytes) -> bytes | None:
    """The block of an item of EXIF, which begins with how far away it is."""
    return content[4 + int.from_bytes(content[:4]) :].removeprefix(b"Exif\0\0") or None


def _profile(properties: list[tuple[bytes, bytes]]) -> bytes | None:
    for kind, content in properties:
        if kind == b"colr" and content[:4] in (b"prof", b"rICC") and len(content) <= MAX_BLOCK:
            return content[4:]
    return None


def _orientation(properties: list[tuple[bytes, bytes]]) -> int:
    """Return the turn that the transformations make; 0 where one of them crops."""
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
