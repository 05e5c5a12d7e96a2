"""Transfer the metadata of a photo from the upload to the output: keep, correct, drop and add.

The steps are `read` from the upload, `strip` if the request asks for it, `for_output`, and `write` into the output. A
caption and the name of a scanner are always kept. The output adds its own notes next to them.
"""

import logging
from dataclasses import replace

from service.formats.geometry import Transform
from service.metadata import exif, iptc, xmp
from service.metadata.reader import Comment, Density, Metadata, read
from service.metadata.writer import avif_options, write

__all__ = ["Comment", "Density", "Metadata", "avif_options", "for_output", "read", "strip", "write"]

log = logging.getLogger(__name__)


def for_output(  # noqa: PLR0913 - all but one are keywords, and their caller has them apart
    metadata: Metadata,
    *,
    width: int,
    height: int,
    model: str | None,
    version: str | None = None,
    upright: tuple[int, int] | None = None,
) -> Metadata:
    """Return the metadata corrected for an upright sRGB output of width x height pixels.

    model, version: of the model that coloured the output, for a note; without a model no note is added. upright: width
    and height of the upright photo before it was made smaller; by default those of the output.
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
    """Return the density and the note that a picture is synthetic, without everything else.

    Neither reveals anything about a person. Call it before `for_output`, whose additions don't come from the upload.
    """
    note = metadata.xmp and xmp.synthetic_note(metadata.xmp)
    return Metadata(xmp=note, density=metadata.density, orientation=metadata.orientation)


def _reoriented(density: Density | None, transform: Transform) -> Density | None:
    return replace(density, x=density.y, y=density.x) if density and transform.swaps_sides else density
