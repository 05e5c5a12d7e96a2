"""Decode the JPEGs inside a TIFF: each strip or tile is one, and they may share separate tables.

libtiff fills missing parts of such a JPEG, and only warns. So they are decoded as strictly as JPEG files.
"""

from dataclasses import replace

from service.errors import UnreadableImage
from service.formats import jpeg_structure, tiff_reader, tiff_tags
from service.imaging.color import Bytes
from service.imaging.decoders.jpeg import Decoder, Kind

MAX_TABLES = 64 << 10
# Pixels by which a JPEG may exceed its strip or tile, because encoders pad it to whole blocks.
MAX_OVERHANG = 64
KINDS: dict[int, Kind] = {1: "GRAY", 3: "RGB", 4: "CMYK"}


def tables_of(page: tiff_reader.Page) -> bytes:
    """Return the tables that the JPEGs of a page share, as segments. Raises UnreadableImage if they are too large."""
    tables = page.content(tiff_tags.JPEG_TABLES)
    if len(tables) > MAX_TABLES:
        raise UnreadableImage("the TIFF's JPEG tables are too large", field="file", limit=MAX_TABLES)
    return tables.removeprefix(jpeg_structure.START).removesuffix(jpeg_structure.END)


def pixels(content: bytes, tables: bytes, channels: int, size: tuple[int, int], *, is_ycbcr: bool) -> Bytes:
    """Return the samples of a strip or tile, uint8 [height, width, channels]; YCbCr is converted to RGB.

    tables: as returned by `tables_of`. channels: 1, 3 or 4. size: width and height, pixels. JFIF and Adobe markers are
    ignored, because a TIFF's own tags define the colour space. Raises UnreadableImage and UnsupportedType.
    """
    width, height = size
    joined = jpeg_structure.START + tables + content.removeprefix(jpeg_structure.START)
    plain = jpeg_structure.plain(joined)
    frame = plain.header.frame
    if len(frame.components) != channels:
        raise _damaged(f"has {len(frame.components)} channels instead of {channels}")
    if not (width <= frame.width <= width + MAX_OVERHANG and height <= frame.height <= height + MAX_OVERHANG):
        raise _damaged(f"has {frame.width} x {frame.height} pixels instead of {width} x {height}")
    transform = None if channels == 1 else int(is_ycbcr)
    file = replace(plain, header=replace(plain.header, has_jfif=False, transform=transform)).file()
    return Decoder(file).pixels(KINDS[channels])[:height, :width]


def _damaged(what: str) -> UnreadableImage:
    return UnreadableImage(f"the TIFF is damaged: a JPEG in it {what}", field="file")
