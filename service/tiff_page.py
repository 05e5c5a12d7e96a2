"""The photo of a TIFF file: its only page, and what is refused because it would be decoded wrongly or not at all."""

from service import tiff
from service.problems import UnreadableImage, UnsupportedType
from service.refusals import Limits, check_size

# A strip or tile is an entry in a table and a call of a decoder; three planes of 65,500 rows have so many.
MAX_STRIPS = 200_000
MAX_PAGES = 100
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
    check_size(first.number(WIDTH, 0), first.number(HEIGHT, 0), limits)
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
