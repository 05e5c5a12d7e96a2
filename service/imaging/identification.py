"""Identify an upload by its first bytes and its structure, and check all that can be refused without its pixels."""

import io
import warnings
from dataclasses import dataclass, replace

from pi_heif.heif import BaseImage
from PIL import Image, PngImagePlugin

from service.errors import EmptyUpload, TooManyPixels, TooManyScans, UnreadableImage, UnsupportedType
from service.formats import (
    containers,
    declared_size,
    decoding_cost,
    heif_boxes,
    heif_reader,
    heif_still,
    jpeg_structure,
    png_structure,
)
from service.formats.containers import MAX_SEGMENTS, START_OF_SCAN, jpeg_bodies, jpeg_segments, jpeg_without_segments
from service.formats.decoding_limits import ANIMATED, MAX_SCANNED_PIXELS, Limits, check_size, library_call
from service.formats.registry import Source
from service.imaging import icc_profiles
from service.imaging.decoders import bmp, tiff
from service.metadata.exif import is_excessive

# Pillow warns of large pictures. Here this is an error, because the size was checked before.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
BOMBS = (Image.DecompressionBombWarning, Image.DecompressionBombError)
# Pillow counts a profile as text, and CMYK profiles have up to 3 MB.
PngImagePlugin.MAX_TEXT_CHUNK = icc_profiles.MAX_PROFILE

# Pillow warns of each odd value of EXIF. Python would write each text to standard error, and keep it for ever.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")

APP1, EXIF = 0xE1, b"Exif\0\0"
MAX_SCANS = 100
# Bytes between a JPEG's segments, where none belong. Pillow skips them one by one.
MAX_GAPS = 64 * 1024
# Pillow joins EXIF segments in quadratic time.
MAX_EXIF_SEGMENTS = 16
# Frame markers that libjpeg decodes: baseline, extended, progressive, and the last two with arithmetic coding.
FRAMES = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)
PROGRESSIVE, ARITHMETIC = 0xC2, (0xC9, 0xCA)
OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7)
# Brands of ISO 23008-12 and of AVIF. A file may list several.
BRANDS: dict[bytes, Source] = dict.fromkeys((b"avif", b"avis"), "avif")
BRANDS |= dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "heic")
SUPPORTED = "JPEG, PNG, WebP, TIFF, AVIF, HEIC, BMP or GIF"


@dataclass(frozen=True, slots=True)
class JpegFile:
    """The header of a JPEG: as parsed here, and as opened by Pillow, which gives EXIF and quantization tables."""

    header: jpeg_structure.Header
    image: Image.Image


@dataclass(frozen=True, slots=True)
class IdentifiedFile:
    """An upload that passed every check that needs no pixels.

    data: the bytes that pixels are decoded from; not always the upload's, since needless parts are left out. size:
    stored width and height, pixels, before the orientation is applied. structure: what the format's decoder needs.
    Pillow and pi-heif keep the pixels that they decode in it, so release the file once its pixels are taken.
    """

    data: bytes
    source: Source
    size: tuple[int, int]
    structure: JpegFile | tiff.TiffFile | bmp.BitFields | Image.Image | BaseImage


def source_of(data: bytes) -> Source:
    """Return the format of a file by its first bytes. Raises EmptyUpload, and UnsupportedType for other formats."""
    signatures: tuple[tuple[bytes, Source], ...] = (
        (b"\xff\xd8\xff", "jpeg"),
        (b"\x89PNG\r\n\x1a\n", "png"),
        (b"II*\0", "tiff"),
        (b"MM\0*", "tiff"),
        (b"II+\0", "tiff"),
        (b"MM\0+", "tiff"),
        (b"GIF87a", "gif"),
        (b"GIF89a", "gif"),
        (b"BM", "bmp"),
    )
    for signature, source in signatures:
        if data.startswith(signature):
            return source
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:8] == b"ftyp" and (kind := _source_of_brands(data)):
        return kind
    if not data:
        raise EmptyUpload("the file is empty; send a photo", field="file")
    raise UnsupportedType(f"the file is not a {SUPPORTED} image", field="file")


def _source_of_brands(data: bytes) -> Source | None:
    """Return the format by the major brand or the first known compatible one, AVIF first: `mif1` fits both formats."""
    size = min(int.from_bytes(data[:4]), 256)
    brands = [data[8:12], *(data[at : at + 4] for at in range(16, size, 4))]
    found = {BRANDS[brand] for brand in brands if brand in BRANDS}
    if b"avif" in brands or b"avis" in brands:
        return "avif"
    return next(iter(found), None)


def identify(data: bytes, limits: Limits) -> IdentifiedFile:
    """Return an upload whose header is read and checked. No pixel is decoded yet.

    Raises EmptyUpload, UnsupportedType, UnreadableImage, TooManyPixels, TooManyBytes and TooManyScans.
    """
    source = source_of(data)
    match source:
        case "jpeg":
            return _identify_jpeg(data, limits)
        case "avif" | "heic":
            return _identify_heif(data, source, limits)
        case "tiff":
            page = tiff.read(data, limits)
            return IdentifiedFile(data, source, page.size, page)
        case "bmp":
            if fields := bmp.read_bit_fields(data, limits):
                return IdentifiedFile(data, source, (fields.width, fields.height), fields)
            data = bmp.with_valid_palette(data)
        case "png":
            data = png_structure.plain(data)
        case "webp":
            data = containers.webp_still(data)
    _check_declared(data, source, _declared(data, source), limits)
    if source == "gif":
        # Pillow would read all blocks, and keep all comments.
        data = containers.gif_still(data)
    image = _open(data, source, limits)
    if source == "png" and data[png_structure.DEPTH] in (2, 4) and image.mode == "L" and "transparency" in image.info:
        # Pillow scales the pixels to 8 bits, but not the transparent level.
        image.info["transparency"] *= 255 // (2 ** data[png_structure.DEPTH] - 1)
    return IdentifiedFile(data, source, image.size, image)


def _identify_jpeg(data: bytes, limits: Limits) -> IdentifiedFile:
    """Return a JPEG whose header was parsed, then opened by Pillow."""
    scans = _count_scans(data)
    declared = _declared(data, "jpeg")
    header: jpeg_structure.Header | None = None
    if not declared.height:
        # The frame header may leave the height to a DNL segment after the first scan.
        header = jpeg_structure.header(data)
        declared = replace(declared, height=header.frame.height)
    _check_declared(data, "jpeg", declared, limits, scans)
    header = header or jpeg_structure.header(data)
    # Pillow reads a header alone, in plain form, so that no oddity of the file can stop it.
    image = _open(_without_excessive_exif(header.without_pixels()), "jpeg", limits)
    return IdentifiedFile(data, "jpeg", image.size, JpegFile(header, image))


def _identify_heif(data: bytes, source: Source, limits: Limits) -> IdentifiedFile:
    """Return an AVIF, opened by Pillow, or a HEIC, opened by pi-heif."""
    try:
        photo = heif_still.extract_still(data, limits)
    except heif_boxes.Excessive as error:
        raise UnsupportedType(f"the {source.upper()} file is not supported: {error}", field="file") from error
    except heif_boxes.Damaged as error:
        raise UnreadableImage(f"the {source.upper()} file is damaged or cut short: {error}", field="file") from error
    if photo.codec == "av01":
        image = _open(photo.data, "avif", limits)
        return IdentifiedFile(photo.data, source, image.size, image)
    with library_call(source):
        picture = heif_reader.decode(photo.data)
    width, height = picture.size
    check_size(width, height, limits)
    return IdentifiedFile(photo.data, source, (width, height), picture)


def _open(data: bytes, source: Source, limits: Limits) -> Image.Image:
    """Return a file opened by Pillow. Its declared size was checked before; Pillow's own limit is a second guard."""
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, limits.max_pixels)
    with library_call(source):
        try:
            image = Image.open(io.BytesIO(data), formats=(source.upper(),))
        except BOMBS as error:
            raise TooManyPixels(
                f"the file has more than {limits.max_pixels:,} pixels", field="file", limit=limits.max_pixels
            ) from error
    check_size(*image.size, limits)
    # Not for a GIF, which was cut to its first frame: Pillow would search for more of them.
    if image.format in ("PNG", "WEBP", "AVIF") and getattr(image, "is_animated", False):
        raise UnsupportedType(ANIMATED, field="file")
    return image


def _declared(data: bytes, source: declared_size.SizedFormat) -> declared_size.DeclaredSize:
    """Return the size and frames that a header declares, before any library sees the file. Raises UnreadableImage."""
    try:
        return declared_size.read(data, source)
    except containers.TooManyBlocks as error:
        raise UnreadableImage(f"the {source.upper()} can't be read: {error}", field="file") from error


def _check_declared(
    data: bytes, source: declared_size.SizedFormat, declared: declared_size.DeclaredSize, limits: Limits, scans: int = 0
) -> None:
    """Check the size and frames that a header declares, and the estimated cost of decoding. scans: of a JPEG."""
    width, height = declared.width, declared.height
    check_size(width, height, limits)
    if declared.frames > 1:
        raise UnsupportedType(ANIMATED, field="file")
    pixels = width * height
    if scans * pixels > MAX_SCANNED_PIXELS:
        most = MAX_SCANNED_PIXELS // pixels
        raise TooManyScans(
            f"the JPEG has {scans} scans; a JPEG of its size may have at most {most}", field="file", limit=most
        )
    if len(data) < declared_size.min_bytes(data, source, width, height):
        detail = f"the {source.upper()} file is cut short: it has too few bytes for {width} x {height} pixels"
        raise UnreadableImage(detail, field="file")
    kind: decoding_cost.Kind = _jpeg_kind(data) if source == "jpeg" else source
    decoding_cost.check(kind, len(data), max(scans, 1) * pixels, limits)


def _jpeg_kind(data: bytes) -> decoding_cost.Kind:
    """Return how a JPEG is coded, by its first frame."""
    marker = declared_size.jpeg_frame(data)
    if marker in ARITHMETIC:
        return "arithmetic"
    return "progressive" if marker == PROGRESSIVE else "jpeg"


def _without_excessive_exif(data: bytes) -> bytes:
    """Return the JPEG without EXIF if that is excessive, because Pillow would read all its values."""
    bodies = (body for _, body in jpeg_bodies(data, (APP1,)) if body.startswith(EXIF))
    block = b"".join(body[len(EXIF) :] for body in bodies)
    return jpeg_without_segments(data, APP1, EXIF) if is_excessive(block) else data


def _count_scans(data: bytes) -> int:
    """Return the number of scans of a JPEG.

    Raises UnsupportedType for what libjpeg can't decode, and UnreadableImage or TooManyScans for excessive structures.
    """
    exif_segments = scans = gaps = 0
    end = 2
    components = b""
    for number, (marker, start) in enumerate(jpeg_segments(data)):
        if not scans:
            gaps += start - 2 - end
            end = start + int.from_bytes(data[start : start + 2])
        if marker in FRAMES and not scans:
            components = data[start + 8 : start + 8 + 3 * data[start + 7] : 3] if len(data) > start + 7 else b""
        # After an image without an end marker there may be other data, such as a video, that resembles scans.
        scans += marker == START_OF_SCAN and _is_scan(data, start, components)
        exif_segments += data[start + 2 : start + 8] == EXIF
        if scans > MAX_SCANS:
            raise TooManyScans(f"the JPEG has more than {MAX_SCANS} scans", field="file", limit=MAX_SCANS)
        if number > MAX_SEGMENTS or exif_segments > MAX_EXIF_SEGMENTS:
            raise UnreadableImage("the JPEG has too many segments; save it again", field="file", limit=MAX_SEGMENTS)
        if marker in FRAMES and not scans and data[start + 2 : start + 3] not in (b"\x08", b""):
            raise UnsupportedType(f"the JPEG has {data[start + 2]} bits a channel; save it with 8 bits", field="file")
        if marker in OTHER_FRAMES and not scans:
            raise UnsupportedType("the JPEG is lossless or hierarchical; save it as a baseline JPEG", field="file")
        if gaps > MAX_GAPS:
            detail = "the JPEG has too much data between its segments; save it again"
            raise UnreadableImage(detail, field="file", limit=MAX_GAPS)
    return scans


def _is_scan(data: bytes, start: int, components: bytes) -> bool:
    """Return whether a scan header is valid for a frame with these component identifiers."""
    count = data[start + 2] if len(data) > start + 2 else 0
    ids = data[start + 3 : start + 3 + 2 * count : 2]
    return 1 <= count <= 4 and int.from_bytes(data[start : start + 2]) == 6 + 2 * count and set(ids) <= set(components)
