"""What a photo says beside its pixels: what of it is kept, dropped and added.

The way of one photo: `read` from the upload, `strip` where that is asked for, `for_answer`, `write` into the answer.
A person's caption and a scanner's name always come through; what the answer adds stands beside them.
"""

import logging
from dataclasses import replace

from service import exif, xmp
from service.embedded import Comment, Density, Metadata, read
from service.embedding import avif_options, write

__all__ = ["Comment", "Density", "Metadata", "avif_options", "for_answer", "read", "strip", "write"]

log = logging.getLogger(__name__)


def for_answer(
    metadata: Metadata,
    *,
    width: int,
    height: int,
    model: str | None,
    version: str | None = None,
) -> Metadata:
    """The metadata of an upright sRGB answer, width x height pixels, whose colours are a model's.

    Without a model the answer was not coloured, and there is no note.
    """
    density = _upright_density(metadata)
    block = exif.corrected(metadata.exif, width, height) if metadata.exif else None
    if metadata.exif and block is None:
        log.debug("a damaged EXIF block is left out")
    packet = xmp.corrected(metadata.xmp, width, height, model, version) if metadata.xmp else None
    if metadata.xmp and packet is None:
        log.debug("an XMP packet that is not well-formed is left out")
    if model is None:
        return replace(metadata, exif=block, xmp=packet, density=density, icc=None)
    note = xmp.fresh(model, version or "")
    block = exif.with_software(block, f"tomau, synthetic colours by {model} {version or ''}".rstrip())
    return replace(metadata, exif=block, xmp=packet or note, spare_xmp=note, density=density, icc=None)


def strip(metadata: Metadata) -> Metadata:
    """Nothing but the density, and that the picture is synthetic, where it says so: neither tells of a person.

    Called before `for_answer`: what that adds is said by the answer, not by the upload, and so is there all the same.
    """
    return Metadata(xmp=metadata.xmp and xmp.note_of(metadata.xmp), density=_upright_density(metadata))


def _upright_density(metadata: Metadata) -> Density | None:
    """The density of the upright picture, by the orientation in EXIF alone."""
    density = metadata.density
    if density is None or metadata.exif is None or not exif.is_turned(metadata.exif):
        return density
    return replace(density, x=density.y, y=density.x)
