"""What a file is, from its first bytes and its structure: everything that is refused before any pixel is decoded."""

import io
import warnings

from pi_heif.heif import BaseImage
from PIL import Image, PngImagePlugin

from service import heif, jpeg_file, profiles, tiff_page
from service.exif import is_excessive
from service.photo import Source
from service.problems import EmptyUpload, TooManyScans, UnreadableImage, UnsupportedType
from service.refusals import Limits, check_size, library_call
from service.segments import MAX_SEGMENTS, START_OF_SCAN, jpeg_bodies, jpeg_segments, jpeg_without

# Our own limit, from the settings, is checked instead.
Image.MAX_IMAGE_PIXELS = None
# A profile, too, is a text to Pillow: those for inks have up to three megabytes.
PngImagePlugin.MAX_TEXT_CHUNK = profiles.MAX_PROFILE

# Pillow warns of each odd value of EXIF, and each text would be written to standard error and kept for ever.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")

APP1, EXIF = 0xE1, b"Exif\0\0"
MAX_SCANS = 100
# Of all scans together: each takes time for every pixel, were it empty. Twenty scans of the largest photo.
MAX_SCANNED_PIXELS = 2_000_000_000
# Between a JPEG's segments, where nothing should be: Pillow goes over it byte by byte.
MAX_GAPS = 64 * 1024
# Pillow joins them in quadratic time.
MAX_EXIF_SEGMENTS = 16
# Frames that libjpeg decodes: baseline, extended, progressive, and the last two with arithmetic coding.
FRAMES = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)
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
    if data[:4] == b"MM\0+":
        raise UnsupportedType("BigTIFF in Motorola's byte order can't be read", field="file")
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

    Raises UnreadableImage, UnsupportedType, TooManyPixels and TooManyScans.
    """
    scans = 0
    if source == "jpeg":
        scans = _count_scans(data)
        # Pillow reads the header alone, in plain form, and stumbles over none of its oddities.
        data = _without_excessive_exif(jpeg_file.head(data).alone())
    elif source == "tiff":
        tiff_page.tiff_page(data, limits)
    with library_call(source):
        image = Image.open(io.BytesIO(data), formats=(source.upper(),))
        is_animated = image.format not in ("MPO", "TIFF") and getattr(image, "is_animated", False)
    check_size(*image.size, limits)
    if scans * image.width * image.height > MAX_SCANNED_PIXELS:
        most = MAX_SCANNED_PIXELS // (image.width * image.height)
        raise TooManyScans(f"a JPEG of this size may have {most} scans, not {scans}", field="file", limit=most)
    if is_animated:
        raise UnsupportedType("the file is animated; single, still photos can be coloured", field="file")
    return image


def _without_excessive_exif(data: bytes) -> bytes:
    """Return the JPEG as Pillow may see it, which reads all values of EXIF at once, of several segments together."""
    bodies = (body for _, body in jpeg_bodies(data, (APP1,)) if body.startswith(EXIF))
    block = b"".join(body[len(EXIF) :] for body in bodies)
    return jpeg_without(data, APP1, EXIF) if is_excessive(block) else data


def opened_heic(data: bytes, limits: Limits) -> BaseImage:
    """A HEIC, its header read and checked. Raises as `opened` does."""
    with library_call("heic"):
        pictures = heif.pictures(data)
    if not pictures:
        raise UnreadableImage("the HEIC file has no picture", field="file")
    if len(pictures) > 1:
        raise UnsupportedType("the file holds several images; single, still photos can be coloured", field="file")
    width, height = pictures[0].size
    check_size(width, height, limits)
    return pictures[0]


def _count_scans(data: bytes) -> int:
    """How many scans a JPEG has. Refuses what libjpeg can't decode, and segments that would keep a decoder busy."""
    exif_segments = scans = gaps = 0
    end = 2
    for number, (marker, start) in enumerate(jpeg_segments(data)):
        if not scans:
            gaps += start - 2 - end
            end = start + int.from_bytes(data[start : start + 2])
        scans += marker == START_OF_SCAN
        exif_segments += data[start + 2 : start + 8] == EXIF
        if scans > MAX_SCANS:
            raise TooManyScans(f"the JPEG has more than {MAX_SCANS} scans", field="file", limit=MAX_SCANS)
        if number > MAX_SEGMENTS or exif_segments > MAX_EXIF_SEGMENTS:
            raise UnreadableImage("the JPEG has too many segments", field="file", limit=MAX_SEGMENTS)
        if marker in FRAMES and data[start + 2 : start + 3] not in (b"\x08", b""):
            raise UnsupportedType(f"the JPEG has {data[start + 2]} bits a channel; 8 are supported", field="file")
        if marker in OTHER_FRAMES and not scans:
            raise UnsupportedType("the JPEG is lossless or hierarchical, which no browser reads either", field="file")
        if gaps > MAX_GAPS:
            raise UnreadableImage("the JPEG has too much between its segments", field="file", limit=MAX_GAPS)
    return scans
