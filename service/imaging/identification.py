"""What a file is, from its first bytes and its structure: everything that is refused before any pixel is decoded."""

import io
import warnings

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
)
from service.formats.containers import MAX_SEGMENTS, START_OF_SCAN, jpeg_bodies, jpeg_segments, jpeg_without_segments
from service.formats.decoding_limits import ANIMATED, MAX_SCANNED_PIXELS, Limits, check_size, library_call
from service.formats.registry import Source
from service.imaging import icc_profiles
from service.metadata.exif import is_excessive

# Pillow warns of more pixels than are expected. Here they are never right: the size was checked before.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
BOMBS = (Image.DecompressionBombWarning, Image.DecompressionBombError)
# A profile, too, is a text to Pillow: those for inks have up to three megabytes.
PngImagePlugin.MAX_TEXT_CHUNK = icc_profiles.MAX_PROFILE

# Pillow warns of each odd value of EXIF, and each text would be written to standard error and kept for ever.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")

APP1, EXIF = 0xE1, b"Exif\0\0"
MAX_SCANS = 100
# Between a JPEG's segments, where nothing should be: Pillow goes over it byte by byte.
MAX_GAPS = 64 * 1024
# Pillow joins them in quadratic time.
MAX_EXIF_SEGMENTS = 16
# Frames that libjpeg decodes: baseline, extended, progressive, and the last two with arithmetic coding.
FRAMES = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)
PROGRESSIVE, ARITHMETIC = 0xC2, (0xC9, 0xCA)
OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7)
# ISO 23008-12 and AV1's: a file is of every brand that it lists.
BRANDS: dict[bytes, Source] = dict.fromkeys((b"avif", b"avis"), "avif")
BRANDS |= dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "heic")
SUPPORTED = "JPEG, PNG, WebP, TIFF, AVIF, HEIC, BMP or GIF"


def source_of(data: bytes) -> Source:
    """The format of a file. Raises EmptyUpload, and UnsupportedType for anything but a picture that can be decoded."""
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
    if data[4:8] == b"ftyp" and (kind := _of_brands(data)):
        return kind
    if not data:
        raise EmptyUpload("there is nothing in it", field="file")
    raise UnsupportedType(f"the file is not a {SUPPORTED} image", field="file")


def _of_brands(data: bytes) -> Source | None:
    """By its main brand, or by the first known one that it is compatible with: `mif1` alone may be either."""
    size = min(int.from_bytes(data[:4]), 256)
    brands = [data[8:12], *(data[at : at + 4] for at in range(16, size, 4))]
    found = {BRANDS[brand] for brand in brands if brand in BRANDS}
    if b"avif" in brands or b"avis" in brands:
        return "avif"
    return next(iter(found), None)


def opened(data: bytes, source: Source, limits: Limits) -> Image.Image:
    """A file that Pillow reads, its header read and checked. No pixel is decoded yet, and of a JPEG none can be.

    Raises UnreadableImage, UnsupportedType, TooManyPixels, TooManyBytes and TooManyScans.
    """
    scans = 0
    if source == "jpeg":
        scans = _count_scans(data)
    if source in ("jpeg", "png", "webp", "bmp", "gif"):
        _check_stated(data, source, limits, scans)
    if source == "jpeg":
        # Pillow reads the header alone, in plain form, and stumbles over none of its oddities.
        data = _without_excessive_exif(jpeg_structure.header(data).without_pixels())
    elif source == "gif":
        # Pillow would go through all of its blocks, and keep all of its comments.
        data = containers.gif_still(data)
    return _opened(data, source, limits)


def opened_heif(data: bytes, source: Source, limits: Limits) -> Image.Image | BaseImage:
    """An AVIF, opened by Pillow, or a HEIC, opened by pi-heif. Raises as `opened` does."""
    try:
        photo = heif_still.extract_still(data, limits)
    except heif_boxes.Excessive as error:
        raise UnsupportedType(f"the {source.upper()} file is not supported: {error}", field="file") from error
    except heif_boxes.Damaged as error:
        raise UnreadableImage(f"the {source.upper()} file is damaged or cut short: {error}", field="file") from error
    if photo.codec == "av01":
        return _opened(photo.data, "avif", limits)
    with library_call(source):
        picture = heif_reader.decode(photo.data)
    width, height = picture.size
    check_size(width, height, limits)
    return picture


def _opened(data: bytes, source: Source, limits: Limits) -> Image.Image:
    """A file whose size was checked already. Pillow's own guard, which has no part in that, stands behind it."""
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, limits.max_pixels)
    with library_call(source):
        try:
            image = Image.open(io.BytesIO(data), formats=(source.upper(),))
        except BOMBS as error:
            raise TooManyPixels(
                f"the file has more than {limits.max_pixels:,} pixels", field="file", limit=limits.max_pixels
            ) from error
    check_size(*image.size, limits)
    # A GIF, of which there is only the first frame here, must not be asked: Pillow would look for more of them.
    if image.format in ("PNG", "WEBP", "AVIF") and getattr(image, "is_animated", False):
        raise UnsupportedType(ANIMATED, field="file")
    return image


def _check_stated(data: bytes, source: declared_size.SizedFormat, limits: Limits, scans: int) -> None:
    """Check what the header states before any library sees the file."""
    try:
        stated = declared_size.read(data, source)
    except containers.TooManyBlocks as error:
        raise UnreadableImage(f"the {source.upper()} can't be read: {error}", field="file") from error
    # The frame header of a JPEG may leave the height to a segment behind the first scan.
    height = stated.height or (jpeg_structure.header(data).frame.height if source == "jpeg" else 0)
    check_size(stated.width, height, limits)
    if stated.frames > 1:
        raise UnsupportedType(ANIMATED, field="file")
    pixels = stated.width * height
    if scans * pixels > MAX_SCANNED_PIXELS:
        most = MAX_SCANNED_PIXELS // pixels
        raise TooManyScans(f"a JPEG of this size may have {most} scans, not {scans}", field="file", limit=most)
    if len(data) < declared_size.min_bytes(data, source, stated.width, height):
        detail = f"the {source.upper()} file is cut short: it has too few bytes for {stated.width} x {height} pixels"
        raise UnreadableImage(detail, field="file")
    kind: decoding_cost.Kind = _jpeg_kind(data) if source == "jpeg" else source
    decoding_cost.check(kind, len(data), max(scans, 1) * pixels, limits)


def _jpeg_kind(data: bytes) -> decoding_cost.Kind:
    """How a JPEG is coded, by its first frame."""
    marker = declared_size.jpeg_frame(data)
    if marker in ARITHMETIC:
        return "arithmetic"
    return "progressive" if marker == PROGRESSIVE else "jpeg"


def _without_excessive_exif(data: bytes) -> bytes:
    """Return the JPEG as Pillow may see it, which reads all values of EXIF at once, of several segments together."""
    bodies = (body for _, body in jpeg_bodies(data, (APP1,)) if body.startswith(EXIF))
    block = b"".join(body[len(EXIF) :] for body in bodies)
    return jpeg_without_segments(data, APP1, EXIF) if is_excessive(block) else data


def _count_scans(data: bytes) -> int:
    """How many scans a JPEG has. Refuses what libjpeg can't decode, and segments that would keep a decoder busy."""
    exif_segments = scans = gaps = 0
    end = 2
    components = b""
    for number, (marker, start) in enumerate(jpeg_segments(data)):
        if not scans:
            gaps += start - 2 - end
            end = start + int.from_bytes(data[start : start + 2])
        if marker in FRAMES and not scans:
            components = data[start + 8 : start + 8 + 3 * data[start + 7] : 3] if len(data) > start + 7 else b""
        # Behind an image without an end marker there may be anything, a video for example.
        scans += marker == START_OF_SCAN and _is_scan(data, start, components)
        exif_segments += data[start + 2 : start + 8] == EXIF
        if scans > MAX_SCANS:
            raise TooManyScans(f"the JPEG has more than {MAX_SCANS} scans", field="file", limit=MAX_SCANS)
        if number > MAX_SEGMENTS or exif_segments > MAX_EXIF_SEGMENTS:
            raise UnreadableImage("the JPEG has too many segments", field="file", limit=MAX_SEGMENTS)
        if marker in FRAMES and not scans and data[start + 2 : start + 3] not in (b"\x08", b""):
            raise UnsupportedType(f"the JPEG has {data[start + 2]} bits a channel; 8 are supported", field="file")
        if marker in OTHER_FRAMES and not scans:
            raise UnsupportedType("the JPEG is lossless or hierarchical, which no browser reads either", field="file")
        if gaps > MAX_GAPS:
            raise UnreadableImage("the JPEG has too much between its segments", field="file", limit=MAX_GAPS)
    return scans


def _is_scan(data: bytes, start: int, components: bytes) -> bool:
    """Return whether the header of a scan makes sense for a frame of these components, given by their identifiers."""
    count = data[start + 2] if len(data) > start + 2 else 0
    ids = data[start + 3 : start + 3 + 2 * count : 2]
    return 1 <= count <= 4 and int.from_bytes(data[start : start + 2]) == 6 + 2 * count and set(ids) <= set(components)
