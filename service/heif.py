"""What an AVIF or HEIC says of its primary picture: EXIF, XMP, colour profile; and pixels of HEIC.

The boxes are read here: pi-heif dies of a damaged item of metadata, with the whole process, and Pillow moves what an
AVIF's EXIF holds where its orientation is not the one that the file's transformations tell.
"""

from dataclasses import dataclass

import _pi_heif
from pi_heif.heif import BaseImage

from service import boxes

DECODER_THREADS = 1
MAX_EXTENTS = 100
MAX_BLOCK = 4 << 20
XMP_TYPE = b"application/rdf+xml"


@dataclass(frozen=True, slots=True)
class Blocks:
    """EXIF as a TIFF block, XMP as a packet, an ICC profile; None where there is none."""

    exif: bytes | None = None
    xmp: bytes | None = None
    icc: bytes | None = None


def read(data: bytes) -> Blocks:
    """Return what is said of the primary picture. Never raises: what can't be read is left out."""
    try:
        found = boxes.read(data)
    except boxes.Damaged:
        return Blocks()
    told: dict[bytes, boxes.Item] = {}
    for item in found.items.values():
        if item.kind in (b"Exif", XMP_TYPE) and found.primary in item.references.get(b"cdsc", [found.primary]):
            told.setdefault(item.kind, item)
    exif, xmp = (_content(data, told[kind]) if kind in told else b"" for kind in (b"Exif", XMP_TYPE))
    return Blocks(_tiff_block(exif), xmp or None, _profile(found))


def picture(data: bytes) -> BaseImage:
    """Return the picture of a HEIC, upright already: its `size` and `mode`; `numpy.asarray` of it decodes it.

    data: as `still.still` returns it, since libheif does not bound its work. `mode` is of 8 bits a channel, or ends in
    `;16` for more. Raises ValueError, EOFError, SyntaxError, RuntimeError or OSError when the file is damaged.
    """
    # Not its public `open_heif`, which looks at the metadata, too.
    images = _pi_heif.load_file(data, DECODER_THREADS, False, False, True, True, "", False)
    if len(images) != 1 or images[0] is None:
        raise ValueError("it has no picture that can be decoded")
    return BaseImage(images[0])


def _content(data: bytes, item: boxes.Item) -> bytes:
    """Return what an item of metadata holds; nothing where it is too long or not all there."""
    spans = item.spans or []
    size = sum(end - start for start, end in spans)
    if len(spans) > MAX_EXTENTS or size > MAX_BLOCK or any(end > len(data) for _, end in spans):
        return b""
    return b"".join(data[start:end] for start, end in spans)


def _tiff_block(content: bytes) -> bytes | None:
    """The block of an item of EXIF, which begins with how far away it is."""
    return content[4 + int.from_bytes(content[:4]) :].removeprefix(b"Exif\0\0") or None


def _profile(found: boxes.Items) -> bytes | None:
    """Return the colour profile among the properties of the primary picture."""
    primary = found.items.get(found.primary)
    for kind, content, _ in found.properties_of(primary) if primary else ():
        if kind == b"colr" and content[:4] in (b"prof", b"rICC") and len(content) <= MAX_BLOCK:
            return content[4:]
    return None
