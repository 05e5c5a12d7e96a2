"""Format tables for docs/formats.md: what each upload format may hold, and what each answer format can store.

A test compares them with the decoders and encoders.
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
    """Which files of a format can be uploaded, which are refused though they are such files, and what is kept."""

    supported: str
    refused: str
    kept: str


UPLOADS: dict[Source, UploadSupport] = {
    "jpeg": UploadSupport(
        "baseline and progressive; gray, YCbCr of any subsampling, RGB, CMYK and YCCK; the first image of an MPO; files"
        " with an odd header, without an end marker, or with more data behind it, if their scans are whole",
        "12 bits a channel, lossless, JPEG-LS, hierarchical; more than 100 scans; 2 components; sampling factors such"
        " as 2 of 3 for the luma; arithmetic coding without an end marker",
        "EXIF, XMP, IPTC with Photoshop's resources, comments, density",
    ),
    "png": UploadSupport(
        "1 to 16 bits, gray, RGB, palette, alpha, one transparent colour, interlaced; gAMA counts where there is no"
        " profile, sRGB, or cICP of sRGB's transfer; cICP's other transfers, as of HDR, are not applied",
        ANIMATED + "; files with unknown critical chunks, such as Apple's CgBI",
        "EXIF, XMP, IPTC as ImageMagick writes it, texts, density",
    ),
    "webp": UploadSupport("lossy and lossless, alpha", ANIMATED, "EXIF, XMP"),
    "tiff": UploadSupport(
        "1 to 16 bits; gray (either end may be white), RGB, palette and CMYK (both in 8 bits), alpha, multiplied with"
        " the colours or not; strips, tiles, planes; without compression, LZW, Deflate, PackBits, LZMA, Zstandard; of 8"
        " bits also YCbCr and JPEG, of 1 bit fax; channels that are not called alpha, such as infrared, are left out; a"
        " thumbnail behind the photo; BigTIFF",
        "several pages, floating-point and signed values, more than 16 bits, CIE Lab, old-style JPEG, JPEG 2000, WebP;"
        " more than 16 channels or 200,000 strips or tiles, overlapping or missing ones; a camera's raw data",
        "EXIF, XMP, IPTC with Photoshop's resources, density",
    ),
    "avif": UploadSupport(
        "8 to 12 bits (of which the upper 8 are used), alpha, tiles; the main image of several",
        f"{ANIMATED}, {DERIVED}",
        "EXIF, XMP",
    ),
    "heic": UploadSupport(
        "8 to 12 bits (as PNG or TIFF in 16), alpha, tiles; the photo beside its thumbnail, depth and gain map",
        f"{ANIMATED}, several images in one file, {DERIVED}, other codecs than HEVC and AV1",
        "EXIF, XMP",
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
    """Return the tables of uploads, of answers and of what decoding may cost, as Markdown."""
    return _uploads() + "\n" + _outputs() + "\n" + decoding_cost.table()


def _uploads() -> str:
    lines = [
        "| upload | taken | refused, with the reason | kept beside the pixels | answered as |",
        "| --- | --- | --- | --- | --- |",
    ]
    for source, support in UPLOADS.items():
        opaque, transparent = (default_format(source, has_alpha=has_alpha) for has_alpha in (False, True))
        answered = opaque if opaque == transparent else f"{opaque}; {transparent} where there is alpha"
        lines.append(f"| {source} | {support.supported} | {support.refused} | {support.kept} | {answered} |")
    return "\n".join(lines) + "\n"


def _outputs() -> str:
    lines = [
        "| answer | type | bits | alpha | longest side | megapixels | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for format_ in FORMATS:
        bits = "8, 16 of a 16-bit photo" if format_ in DEEP_FORMATS else "8"
        alpha = "yes" if format_ in ALPHA_FORMATS else "no"
        side = f"{SIDE_LIMITS[format_]:,}" if format_ in ("jpeg", "webp", "avif") else ""
        most = f"{PIXEL_LIMITS[format_] / 1e6:.0f}" if format_ in PIXEL_LIMITS else ""
        what = f"`{MEDIA_TYPES[format_]}` | {bits} | {alpha} | {side} | {most} | {OUTPUTS[format_]}"
        lines.append(f"| {format_} | {what} |")
    return "\n".join(lines) + "\n"
