"""Find the photo of a TIFF file: its only page that is a photo."""

from service.errors import UnreadableImage, UnsupportedType
from service.formats import tiff_reader, tiff_tags
from service.formats.decoding_limits import Limits, check_size

MAX_PAGES = 100
# Bits of NewSubfileType, and the value of SubfileType.
REDUCED, MASK = 1, 4
OLD_REDUCED = 2


def tiff_page(data: bytes, limits: Limits) -> tiff_reader.Page:
    """Return the only page of a TIFF that is a photo.

    Raises UnreadableImage, UnsupportedType and TooManyPixels.
    """
    pages = list(tiff_reader.pages(data, MAX_PAGES))
    if not pages:
        raise UnreadableImage("the TIFF's first directory is damaged", field="file")
    first = pages[0]
    # Some writers add a directory without a picture.
    pictures = [page for page in pages if _width(page) and _height(page)]
    photos = [page for page in pictures if not _is_reduced(page)]
    if first.count(tiff_tags.DNG_VERSION) or (_is_reduced(first) and first.count(tiff_tags.SUB_IFDS)):
        raise UnsupportedType("the file is a camera's raw data; convert it to JPEG or TIFF first", field="file")
    if first not in pictures:
        raise UnreadableImage("the TIFF is damaged: it declares no width or no height", field="file")
    if photos and first not in photos:
        raise UnsupportedType(
            "the TIFF begins with a thumbnail; save it with its photo as the first page", field="file"
        )
    if any(page.number(tiff_tags.NEW_SUBFILE_TYPE, 0) & MASK for page in pictures):
        raise UnsupportedType("the TIFF has a mask as a separate page; save it with an alpha channel", field="file")
    if len(photos) > 1:
        raise UnsupportedType("the TIFF has several pages; send each page as a separate file", field="file", limit=1)
    check_size(_width(first), _height(first), limits)
    return first


def _width(page: tiff_reader.Page) -> int:
    return page.number(tiff_tags.IMAGE_WIDTH, 0)


def _height(page: tiff_reader.Page) -> int:
    return page.number(tiff_tags.IMAGE_LENGTH, 0)


def _is_reduced(page: tiff_reader.Page) -> bool:
    return (
        bool(page.number(tiff_tags.NEW_SUBFILE_TYPE, 0) & REDUCED)
        or page.number(tiff_tags.SUBFILE_TYPE, 0) == OLD_REDUCED
    )
