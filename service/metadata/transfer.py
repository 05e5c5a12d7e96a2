"""The metadata of a photo: what of it is kept, put right, dropped and added.

The steps of one photo are `read` from the upload, `strip` where that is asked for, `for_output`, and `write` into the
answer. A person's caption and a scanner's name always come through. What the answer adds stands beside them.
"""

import logging
from dataclasses import replace

from service.formats.geometry import Transform
from service.metadata import exif, iptc, xmp
from service.metadata.reader import Comment, Density, Metadata, read
from service.metadata.writer import avif_options, write

__all__ = ["Comment", "Density", "Metadata", "avif_options", "for_output", "read", "strip", "write"]

log = logging.getLogger(__name__)


def for_output(
    metadata: Metadata,
    *,
    width: int,
    height: int,
    model: str | None,
    version: str | None = None,
    upright: tuple[int, int] | None = None,
) -> Metadata:
    """Return the metadata of an upright sRGB answer, width x height pixels, whose colours are a model's.

    upright: width and height of the photo, upright, before it was made smaller; by default the answer's. Without a
    model the answer was not coloured, and there is no note.
    """
    transform = Transform(width, height, metadata.orientation, upright)
    block = exif.corrected(metadata.exif, transform) if metadata.exif else None
    if metadata.exif and block is None:
        log.debug("a damaged EXIF block is left out")
    packet = xmp.corrected(metadata.xmp, transform, model, version) if metadata.xmp else None
    if metadata.xmp and packet is None:
        log.debug("an XMP packet that is not well-formed is left out")
    corrected = replace(
        metadata,
        exif=block,
        xmp=packet,
        iptc=iptc.corrected(metadata.iptc, transform) if metadata.iptc else None,
        density=_reoriented(metadata.density, transform),
        icc=None,
        orientation=1,
    )
    if model is None:
        return corrected
    note = xmp.new_packet(model, version or "")
    software = exif.with_software(block, f"tomau, synthetic colours by {model} {version or ''}".rstrip())
    return replace(corrected, exif=software, xmp=packet or note, spare_xmp=note)


def strip(metadata: Metadata) -> Metadata:
    """Return nothing but the density, and that the picture is synthetic, where it says so: neither tells of a person.

    It is called before `for_output`. What that adds is said by the answer and not by the upload, so it stays.
    """
    note = metadata.xmp and xmp.synthetic_note(metadata.xmp)
    return Metadata(xmp=note, density=metadata.density, orientation=metadata.orientation)


def _reoriented(density: Density | None, transform: Transform) -> Density | None:
    return replace(density, x=density.y, y=density.x) if density and transform.swaps_sides else density
