"""Write metadata into an encoded JPEG, PNG, WebP or TIFF. No pixels are encoded."""

import logging
import struct
import zlib
from collections.abc import Iterator

from service.formats import containers, tiff_reader, tiff_tags, tiff_writer
from service.formats.registry import Format
from service.metadata import exif, iptc, xmp
from service.metadata.reader import (
    APP1,
    APP13,
    COM,
    EXIF,
    JFIF,
    JFIF_UNITS,
    PHOTOSHOP,
    RAW_PROFILE,
    XMP,
    XMP_KEYWORD,
    Comment,
    Density,
    Metadata,
)

log = logging.getLogger(__name__)

PER_METRE = {"inch": 0.0254, "centimetre": 0.01, "metre": 1.0}
MAX_DENSITY = 65_535
TIFF_UNITS = {
    "shape": tiff_tags.NO_UNIT,
    "inch": tiff_tags.INCH,
    "centimetre": tiff_tags.CENTIMETRE,
    "metre": tiff_tags.CENTIMETRE,
}


def write(encoded: bytes, format_: Format, metadata: Metadata) -> bytes:
    """Return the encoded image with the metadata that its format can store. The pixels are unchanged.

    encoded: an image from one of our encoders, so without metadata. An AVIF is returned unchanged, because its encoder
    writes the metadata itself, from `avif_options`. The colour profile is never written.
    """
    match format_:
        case "jpeg":
            return containers.jpeg_with_segments(
                _with_jfif_density(encoded, metadata.density), _jpeg_segments(metadata)
            )
        case "png":
            return containers.png_with_chunks(encoded, _png_chunks(metadata))
        case "webp":
            if metadata.iptc or metadata.comments:
                log.debug("IPTC and comments are left out: a WebP can't store them")
            return containers.webp_with_metadata(encoded, metadata.exif, metadata.xmp)
        case "tiff":
            return tiff_writer.tiff_with_metadata(encoded, metadata.exif, _tiff_fields(metadata))
        case "avif":
            return encoded


def avif_options(metadata: Metadata) -> dict[str, bytes]:
    """Return the options with metadata for Pillow's AVIF encoder, which would rewrite EXIF with an orientation."""
    if metadata.iptc or metadata.comments:
        log.debug("IPTC and comments are left out: an AVIF can't store them")
    options = {"xmp": metadata.xmp, "exif": metadata.exif and exif.without_orientation(metadata.exif)}
    return {name: block for name, block in options.items() if block}


def _jpeg_segments(metadata: Metadata) -> Iterator[tuple[int, bytes]]:
    block = metadata.exif
    if block and len(block) > tiff_writer.MAX_JPEG_BYTES:
        block = tiff_writer.compact_exif(block, limit=tiff_writer.MAX_JPEG_BYTES)
    if block:
        yield APP1, EXIF + block
    if metadata.xmp:
        packets = (metadata.xmp, xmp.without_padding(metadata.xmp), metadata.spare_xmp or b"")
        limit = containers.SEGMENT_BYTES - len(XMP)
        packet = next((packet for packet in packets if len(packet) <= limit), b"")
        if packet:
            yield APP1, XMP + packet
        if packet is not packets[0]:
            log.debug("an XMP packet of %d bytes does not fit into a JPEG and is shortened", len(metadata.xmp))
    step = containers.SEGMENT_BYTES - len(PHOTOSHOP)
    resources = metadata.iptc or b""
    for start in range(0, len(resources), step):
        yield APP13, PHOTOSHOP + resources[start : start + step]
    for comment in metadata.comments:
        yield from _segment_if_it_fits(COM, _comment_bytes(comment))


def _comment_bytes(comment: Comment) -> bytes:
    """Return the bytes of a comment for a format without keywords."""
    text = comment.text if comment.keyword == "Comment" else f"{comment.keyword}: {comment.text}"
    return text.encode("utf-8", "surrogateescape")


def _segment_if_it_fits(marker: int, body: bytes) -> Iterator[tuple[int, bytes]]:
    if len(body) <= containers.SEGMENT_BYTES:
        yield marker, body
    else:
        log.debug("a comment of %d bytes does not fit into a segment of a JPEG and is left out", len(body))


def _with_jfif_density(encoded: bytes, density: Density | None) -> bytes:
    if density is None or encoded[6:11] != JFIF:
        return encoded
    unit, x, y = density.unit, density.x, density.y
    if unit == "metre":
        unit, x, y = "inch", round(x * PER_METRE["inch"]), round(y * PER_METRE["inch"])
    if not (1 <= x <= MAX_DENSITY and 1 <= y <= MAX_DENSITY):
        log.debug("the density is left out: a JPEG can't store it")
        return encoded
    return encoded[:13] + struct.pack(">BHH", JFIF_UNITS.index(unit), x, y) + encoded[18:]


def _png_chunks(metadata: Metadata) -> Iterator[tuple[bytes, bytes]]:
    density = metadata.density
    if density is not None:
        metre = PER_METRE.get(density.unit, 1.0)
        sides = (min(2**31 - 1, round(side / metre)) for side in (density.x, density.y))
        yield b"pHYs", struct.pack(">IIB", *sides, density.unit != "shape")
    if metadata.exif:
        yield b"eXIf", metadata.exif
    if metadata.xmp:
        yield b"iTXt", XMP_KEYWORD.encode() + b"\0\0\0\0\0" + metadata.xmp
    if metadata.iptc:
        yield b"zTXt", _iptc_as_text(metadata.iptc)
    for comment in metadata.comments:
        yield _png_text(comment)


def _iptc_as_text(resources: bytes) -> bytes:
    """Return the resources as a text of a PNG, which has no chunk for them. ImageMagick and ExifTool read this form."""
    lines = resources.hex(",", -36).replace(",", "\n")
    text = f"\niptc\n{len(resources):8}\n{lines}\n"
    return f"{RAW_PROFILE}iptc".encode() + b"\0\0" + zlib.compress(text.encode())


def _png_text(comment: Comment) -> tuple[bytes, bytes]:
    keyword = comment.keyword.encode("latin-1", "replace")
    # The encoding of a JPEG comment that is not UTF-8 is unknown. Latin-1 is the encoding of a PNG text.
    raw = comment.text.encode("utf-8", "surrogateescape")
    text = comment.text if _is_unicode(comment.text) else raw.decode("latin-1")
    text = text.rstrip("\0").replace("\0", " ")
    if comment.language or comment.translated or max(text, default="") > "\xff":
        middle = f"{comment.language}\0{comment.translated}\0".encode()
        return b"iTXt", keyword + b"\0\0\0" + middle + text.encode()
    return b"tEXt", keyword + b"\0" + text.encode("latin-1")


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _tiff_fields(metadata: Metadata) -> Iterator[tiff_reader.Field]:
    if metadata.xmp:
        yield tiff_reader.Field(tiff_tags.XMP, tiff_tags.BYTE, metadata.xmp)
    if metadata.iptc:
        yield tiff_reader.Field(tiff_tags.IMAGE_RESOURCES, tiff_tags.BYTE, metadata.iptc)
        iim = iptc.find_iim(metadata.iptc) or b""
        if iim:
            # Photoshop declares it as LONG, so every program reads that.
            yield tiff_reader.Field(tiff_tags.IPTC_NAA, tiff_tags.LONG, iim + bytes(-len(iim) % 4))
    block = metadata.exif or b""
    density = metadata.density
    if density is not None and tiff_reader.resolution(block) is None:
        under = 100 if density.unit == "metre" else 1
        for tag, side in ((tiff_tags.X_RESOLUTION, density.x), (tiff_tags.Y_RESOLUTION, density.y)):
            yield tiff_reader.Field(tag, tiff_tags.RATIONAL, struct.pack("<II", min(2**32 - 1, side), under))
        yield tiff_reader.Field(tiff_tags.RESOLUTION_UNIT, tiff_tags.SHORT, struct.pack("<H", TIFF_UNITS[density.unit]))
    yield from _tiff_description(metadata.comments, block)


def _tiff_description(comments: tuple[Comment, ...], block: bytes) -> Iterator[tiff_reader.Field]:
    """Yield the only comment as ImageDescription, unless the block has one. A TIFF has no tag for comments."""
    described = (
        tiff_reader.values(block, (tiff_tags.IMAGE_DESCRIPTION,)).get(tiff_tags.IMAGE_DESCRIPTION, b"").strip(b"\0 ")
    )
    if len(comments) == 1 and not described:
        yield tiff_reader.Field(
            tiff_tags.IMAGE_DESCRIPTION,
            tiff_tags.ASCII,
            _comment_bytes(comments[0]).rstrip(b"\0").replace(b"\0", b" ") + b"\0",
        )
    elif comments:
        log.debug("comments are left out: a TIFF can't store them")
