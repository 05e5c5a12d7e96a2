"""Tables for docs/formats.md and `tomau formats`: what each upload format may contain, and what each output can store.

Tests compare them with the decoders and the encoders.
"""

from dataclasses import dataclass

from service.formats import decoding_cost
from service.formats.registry import (
    ALPHA_FORMATS,
    DEEP_FORMATS,
    FORMATS,
    MEDIA_TYPES,
    PIXEL_LIMITS,
    SIDE_LIMITS,
    Format,
    Source,
    default_format,
)

ANIMATED = "animated files"
DERIVED = "overlays, images derived from derived ones, more than 5,000 items or 900 tiles"


@dataclass(frozen=True, slots=True)
class UploadSupport:
    """The support of an upload format: accepted files, refused files, kept metadata, and notes below the table."""

    accepted: str
    refused: str
    kept: str
    notes: tuple[str, ...] = ()


UPLOADS: dict[Source, UploadSupport] = {
    "jpeg": UploadSupport(
        "baseline and progressive; gray, YCbCr of any subsampling, RGB, CMYK and YCCK; the first image of an MPO",
        "12 bits a channel, lossless, JPEG-LS, hierarchical; more than 100 scans; 2 components; sampling factors such"
        " as 2 of 3 for the luma; arithmetic coding without an end marker",
        "EXIF, XMP, IPTC with Photoshop's resources, comments, density",
        (
            "A file with complete scans is accepted if its header is odd, its end marker is missing, or more data"
            " follows.",
        ),
    ),
    "png": UploadSupport(
        "1 to 16 bits, gray, RGB, palette, alpha, one transparent colour, interlaced",
        ANIMATED + "; files with unknown critical chunks, such as Apple's CgBI",
        "EXIF, XMP, IPTC as ImageMagick writes it, texts, density",
        (
            "gAMA is used only if there is no profile, no sRGB, and no cICP with the transfer of sRGB.",
            "Other transfers in cICP, such as those of HDR, are not applied.",
        ),
    ),
    "webp": UploadSupport("lossy and lossless, alpha", ANIMATED, "EXIF, XMP"),
    "tiff": UploadSupport(
        "1 to 16 bits; gray, RGB, palette and CMYK, with or without alpha; strips, tiles, planes; uncompressed, LZW,"
        " Deflate, PackBits, LZMA, Zstandard; YCbCr and JPEG in 8 bits, fax in 1 bit; BigTIFF",
        "several pages, floating-point and signed values, more than 16 bits, CIE Lab, old-style JPEG, JPEG 2000, WebP;"
        " more than 16 channels or 200,000 strips or tiles, overlapping or missing ones; a camera's raw data",
        "EXIF, XMP, IPTC with Photoshop's resources, density",
        (
            "0 may mean black or white. Alpha may be premultiplied. Palettes and CMYK are decoded to 8 bits.",
            "Extra channels that are not declared as alpha, such as infrared, are left out.",
            "A thumbnail behind the photo is left out.",
        ),
    ),
    "avif": UploadSupport(
        "8 to 12 bits, alpha, tiles; the main image of several",
        f"{ANIMATED}, {DERIVED}",
        "EXIF, XMP",
        ("The upper 8 bits are used.",),
    ),
    "heic": UploadSupport(
        "8 to 12 bits, alpha, tiles; a photo with a thumbnail, depth map or gain map",
        f"{ANIMATED}, several images in one file, {DERIVED}, other codecs than HEVC and AV1",
        "EXIF, XMP",
        ("More than 8 bits are kept in a PNG or TIFF output, which then has 16 bits.",),
    ),
    "bmp": UploadSupport(
        "1, 4, 8, 16, 24 and 32 bits a pixel, bit fields of any widths, alpha",
        "2 and 64 bits a pixel, run-length and fax compression, a JPEG or PNG inside, masks with gaps, OS/2's arrays"
        " and headers of 16 bytes",
        "density",
    ),
    "gif": UploadSupport("a single image, transparency", ANIMATED, "comments"),
}
OUTPUTS: dict[Format, str] = {
    "jpeg": "4:2:0; its luma plane is the photo's own; `quality`; transparent parts become white",
    "png": "lossless",
    "webp": "lossy; `quality`",
    "tiff": "lossless (LZW)",
    "avif": "lossy, alpha too; `quality`; takes ten times as long as a JPEG, so it is never a default",
}


def table() -> str:
    """Return the tables of uploads, of outputs and of decoding costs, as Markdown."""
    return "\n".join([_uploads(), _notes(), _outputs(), decoding_cost.table()])


def _uploads() -> str:
    lines = [
        "| upload | accepted | refused, with the reason | metadata kept | default output |",
        "| --- | --- | --- | --- | --- |",
    ]
    for source, support in UPLOADS.items():
        opaque, transparent = (default_format(source, has_alpha=has_alpha) for has_alpha in (False, True))
        output = opaque if opaque == transparent else f"{opaque}; {transparent} if there is alpha"
        lines.append(f"| {source} | {support.accepted} | {support.refused} | {support.kept} | {output} |")
    return "\n".join(lines) + "\n"


def _notes() -> str:
    lines = [f"- *{source}:* {note}" for source, support in UPLOADS.items() for note in support.notes]
    return "\n".join(lines) + "\n"


def _outputs() -> str:
    lines = [
        "| output | type | bits | alpha | longest side | megapixels | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for format_ in FORMATS:
        bits = "8; 16 for a 16-bit photo" if format_ in DEEP_FORMATS else "8"
        alpha = "yes" if format_ in ALPHA_FORMATS else "no"
        side = f"{SIDE_LIMITS[format_]:,}" if format_ in ("jpeg", "webp", "avif") else ""
        most = f"{PIXEL_LIMITS[format_] / 1e6:.0f}" if format_ in PIXEL_LIMITS else ""
        what = f"`{MEDIA_TYPES[format_]}` | {bits} | {alpha} | {side} | {most} | {OUTPUTS[format_]}"
        lines.append(f"| {format_} | {what} |")
    return "\n".join(lines) + "\n"
