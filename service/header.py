"""What a file is, from its first bytes and its structure: everything that is refused before any pixel is decoded."""

import io
import struct
from dataclasses import dataclass

from pi_heif.heif import BaseImage
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from service import heif, profiles, tiff
from service.photo import Source
from service.problems import EmptyUpload, TooManyPixels, TooManyScans, UnreadableImage, UnsupportedType
from service.segments import MAX_CHUNKS, MAX_SEGMENTS, START_OF_SCAN, jpeg_segments

# What decoders raise at damage, Pillow's in Python not always on purpose.
BROKEN = (
    *(OSError, EOFError, RuntimeError, SyntaxError, TypeError, ValueError, LookupError, struct.error),
    *(AssertionError, AttributeError, OverflowError),
)
# Our own limit, from the settings, is checked instead.
Image.MAX_IMAGE_PIXELS = None
# A profile, too, is a text to Pillow: those for inks have up to three megabytes.
PngImagePlugin.MAX_TEXT_CHUNK = profiles.MAX_PROFILE

MAX_SCANS = 100
# Of all scans together: each takes time for every pixel, were it empty. Twenty scans of the largest photo.
MAX_SCANNED_PIXELS = 2_000_000_000
# Between a JPEG's segments, where nothing should be: Pillow goes over it byte by byte.
MAX_GAPS = 64 * 1024
# What libjpeg and Pillow say when it is not the file's fault.
SHORT_OF_MEMORY = ("Insufficient memory", "out of memory")
# Pillow joins them in quadratic time.
MAX_EXIF_SEGMENTS = 16
# A strip or tile is an entry in a table and a call of a decoder; three planes of 65,500 rows have so many.
MAX_STRIPS = 200_000
MAX_PAGES = 100
# BMP: two kinds of run-length compression, and a header that is too old for them.
RUN_LENGTHS = (b"\1\0\0\0", b"\2\0\0\0")
OS2_HEADER = b"\x0c\0\0\0"
# Frames that libjpeg decodes: baseline, extended, progressive, and the last two with arithmetic coding.
FRAMES = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)
OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7)
# ISO 23008-12 and AV1's: a file is of every brand that it lists.
BRANDS: dict[bytes, Source] = dict.fromkeys((b"avif", b"avis"), "avif")
BRANDS |= dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "heic")
SUPPORTED = "JPEG, PNG, WebP, TIFF, AVIF, HEIC, BMP or GIF"

# TIFF 6.0, and what cameras made of it.
SUBFILE, WIDTH, HEIGHT, BITS, PHOTOMETRIC = 254, 256, 257, 258, 262
FILL_ORDER, STRIPS, SAMPLES, LAYOUT = 266, 273, 277, 284
TILE_WIDTH, TILE_HEIGHT, TILES, SUB_IFDS = 322, 323, 324, 330
EXTRA_SAMPLES, SAMPLE_FORMAT, DNG_VERSION = 338, 339, 50706
REDUCED = 1
MASK = 4
UNSIGNED = 1
CHUNKY = 1
PREMULTIPLIED = 1
REVERSED = 2
# None, LZW, Deflate twice, PackBits; of 8 bits and less also what faxes have, JPEG, LZMA and Zstandard.
COMPRESSION = 259
DEEP_COMPRESSIONS = (1, 5, 8, 32946, 32773)
COMPRESSIONS = (*DEEP_COMPRESSIONS, 2, 3, 4, 7, 34925, 50000)
# A tile is decoded as a whole, however little of it is inside the picture.
MOST_BEYOND = 1024
# Gray (0: black has the greatest value), RGB, palette, CMYK, YCbCr; and the first three at 16 bits.
INVERTED_GRAY, CMYK = 0, 5
PHOTOMETRICS = (INVERTED_GRAY, 1, 2, 3, 5, 6)
DEEP_PHOTOMETRICS = (INVERTED_GRAY, 1, 2)


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest photo that is decoded: pixels in all and on a side."""

    max_pixels: int
    max_side: int


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
    """A file that Pillow reads, its header read and checked. Its pixels are still as they came.

    Raises UnreadableImage, UnsupportedType, TooManyPixels and TooManyScans.
    """
    scans = 0
    if source == "jpeg":
        scans = _count_scans(data)
    elif source == "tiff":
        tiff_page(data, limits)
    elif source == "png":
        _check_png(data)
    elif source == "bmp" and data[30:34] in RUN_LENGTHS and data[14:18] != OS2_HEADER:
        # Pillow decodes them in Python, for seconds, and nothing else goes on meanwhile.
        raise UnsupportedType("a BMP with run-length compression can't be read", field="file")
    try:
        image = Image.open(io.BytesIO(data), formats=(source.upper(),))
        is_animated = image.format not in ("MPO", "TIFF") and getattr(image, "is_animated", False)
    except UnidentifiedImageError:
        raise UnreadableImage(f"the header of the {source.upper()} file is damaged", field="file") from None
    except BROKEN as error:
        raise unreadable(source, error) from error
    _check_size(*image.size, limits)
    if scans * image.width * image.height > MAX_SCANNED_PIXELS:
        most = MAX_SCANNED_PIXELS // (image.width * image.height)
        raise TooManyScans(f"a JPEG of this size may have {most} scans, not {scans}", field="file", limit=most)
    if is_animated:
        raise UnsupportedType("the file is animated; single, still photos can be coloured", field="file")
    return image


def opened_heic(data: bytes, limits: Limits) -> BaseImage:
    """A HEIC, its header read and checked. Raises as `opened` does."""
    try:
        pictures = heif.pictures(data)
    except BROKEN as error:
        raise unreadable("heic", error) from error
    if not pictures:
        raise UnreadableImage("the HEIC file has no picture", field="file")
    if len(pictures) > 1:
        raise UnsupportedType("the file holds several images; single, still photos can be coloured", field="file")
    width, height = pictures[0].size
    _check_size(width, height, limits)
    return pictures[0]


def unreadable(source: Source, error: Exception) -> UnreadableImage:
    """The refusal of a file whose decoder raised an error. Raises MemoryError when that was for want of memory."""
    if any(words in str(error) for words in SHORT_OF_MEMORY):
        raise MemoryError(str(error)) from error
    return UnreadableImage(f"the {source.upper()} file is damaged or cut short ({error})", field="file")


def _check_size(width: int, height: int, limits: Limits) -> None:
    if width * height > limits.max_pixels:
        raise TooManyPixels(
            f"{width} x {height} pixels are more than {limits.max_pixels:,}", field="file", limit=limits.max_pixels
        )
    if max(width, height) > limits.max_side:
        raise TooManyPixels(
            f"a side of {max(width, height)} pixels is longer than {limits.max_side:,}",
            field="file",
            limit=limits.max_side,
        )


def _check_png(data: bytes) -> None:
    """Refuses what Pillow would read chunk after chunk for many seconds."""
    if data[12:16] != b"IHDR":
        raise UnreadableImage("the PNG does not begin with its header", field="file")
    position = 8
    for _ in range(MAX_CHUNKS):
        if position >= len(data):
            return
        position += 12 + int.from_bytes(data[position : position + 4])
    raise UnreadableImage("the PNG has too many chunks", field="file", limit=MAX_CHUNKS)


def _count_scans(data: bytes) -> int:
    """How many scans a JPEG has. Refuses what libjpeg can't decode, and segments that would keep a decoder busy."""
    exif_segments = scans = gaps = 0
    end = 2
    for number, (marker, start) in enumerate(jpeg_segments(data)):
        if not scans:
            gaps += start - 2 - end
            end = start + int.from_bytes(data[start : start + 2])
        scans += marker == START_OF_SCAN
        exif_segments += data[start + 2 : start + 8] == b"Exif\0\0"
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


def tiff_page(data: bytes, limits: Limits) -> tiff.Page:
    """The only page of a TIFF. Refuses what would be coloured wrongly, in part, or slowly.

    Raises UnreadableImage, UnsupportedType and TooManyPixels.
    """
    pages = list(tiff.pages(data, MAX_PAGES))
    if not pages:
        raise UnreadableImage("the TIFF's first directory is damaged", field="file")
    first = pages[0]
    photos = [page for page in pages if not page.number(SUBFILE, 0) & REDUCED]
    if first.count(DNG_VERSION) or (first not in photos and first.count(SUB_IFDS)):
        raise UnsupportedType("the file is a camera's raw data; develop it first", field="file")
    if photos and first not in photos:
        raise UnsupportedType("the TIFF begins with a thumbnail; its photo has to come first", field="file")
    if any(page.number(SUBFILE, 0) & MASK for page in pages):
        raise UnsupportedType("the TIFF has a mask as a page of its own; save it with an alpha channel", field="file")
    if len(photos) > 1:
        raise UnsupportedType("the TIFF has several pages; send each as a file of its own", field="file", limit=1)
    _check_size(first.number(WIDTH, 0), first.number(HEIGHT, 0), limits)
    if max(first.count(STRIPS), first.count(TILES)) > MAX_STRIPS:
        raise UnreadableImage("the TIFF has too many strips", field="file", limit=MAX_STRIPS)
    for tile, side in ((TILE_WIDTH, WIDTH), (TILE_HEIGHT, HEIGHT)):
        if first.number(tile, 0) > first.number(side, 0) + MOST_BEYOND:
            raise UnreadableImage("the TIFF's tiles are much larger than its picture", field="file")
    _check_samples(first)
    return first


def _check_samples(page: tiff.Page) -> None:
    objections = _objections(page)
    if is_deep(page):
        objections |= _deep_objections(page)
    for objection, is_so in objections.items():
        if is_so:
            raise UnsupportedType(f"the TIFF {objection}", field="file")


def _objections(page: tiff.Page) -> dict[str, bool]:
    """What would be decoded wrongly or not at all, and whether this page is such."""
    bits, kind = page.numbers(BITS) or [1], page.number(PHOTOMETRIC, 1)
    samples, compression = page.number(SAMPLES, 1), page.number(COMPRESSION, 1)
    is_planar = page.number(LAYOUT, CHUNKY) != CHUNKY
    return {
        "holds signed or floating-point values": bool(set(page.numbers(SAMPLE_FORMAT)) - {UNSIGNED}),
        f"has {'/'.join(map(str, bits[:5]))} bits a channel": len(set(bits)) > 1 or bits[0] not in (1, 2, 4, 8, 16),
        f"has colours of a kind ({kind}) that is not supported": kind not in PHOTOMETRICS,
        f"is compressed in a way ({compression}) that can't be read": compression not in COMPRESSIONS,
        "has its bits in reverse order": bits[0] >= 8 and page.number(FILL_ORDER, 1) == REVERSED,
        "has alpha, and zero means white": kind == INVERTED_GRAY and samples > 1,
        "has alpha, and holds its channels one after another": is_planar and samples > 3 and kind != CMYK,
    }


def _deep_objections(page: tiff.Page) -> dict[str, bool]:
    """The same for 16 bits."""
    kind, samples, compression = page.number(PHOTOMETRIC, 1), page.number(SAMPLES, 1), page.number(COMPRESSION, 1)
    is_planar = page.number(LAYOUT, CHUNKY) != CHUNKY
    return {
        "has 16 bits, and is neither gray nor RGB": kind not in DEEP_PHOTOMETRICS or samples not in (1, 3, 4),
        "has 16 bits, and holds its channels one after another": is_planar and samples > 1,
        "has 16 bits, and colours that are multiplied with alpha": page.number(EXTRA_SAMPLES, 0) == PREMULTIPLIED,
        f"has 16 bits, and is compressed in a way ({compression}) that can't be read": compression
        not in DEEP_COMPRESSIONS,
    }


def is_deep(page: tiff.Page) -> bool:
    """Whether a channel has 16 bits."""
    return page.number(BITS, 1) == 16
