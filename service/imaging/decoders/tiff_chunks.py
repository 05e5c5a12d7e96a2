"""Locate the strips or tiles of a TIFF page, called chunks, and limit the cost of decoding them.

Time and memory are proportional to three figures, and each has a limit here:

- the bytes that the chunks decode to (MAX_BYTES_PER_PIXEL),
- the bytes that they are decoded from (the size of the file, where chunks that overlap count in full),
- the number of chunks (MAX_CHUNKS).

The scans of chunks that are JPEGs have a limit, too.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.errors import TooManyPixels, TooManyScans, UnreadableImage, UnsupportedType
from service.formats import tiff_reader, tiff_tags
from service.formats.containers import MAX_SEGMENTS, START_OF_SCAN, jpeg_segments
from service.formats.decoding_limits import MAX_SCANNED_PIXELS, Limits
from service.imaging.decoders.tiff_samples import JPEG, NONE, PACKBITS, Kind, Picture

SUBSAMPLINGS = (1, 2, 4)
# Three planes of 65,500 rows with one strip a row have nearly as many.
MAX_CHUNKS = 200_000
# A limit of its own, because each JPEG has a header to parse. Strips of JPEGs have 8 rows at least.
MAX_JPEGS = 20_000
# Four channels of 16 bits, for each pixel that a photo may have. Small pictures may have this much padding, in bytes.
MAX_BYTES_PER_PIXEL = 8
MAX_PADDING = 16 << 20
# Pixels by which a tile may exceed the picture. A tile is decoded as a whole, even if little of it is inside.
MAX_OVERHANG = 4096
# A chunk's bytes are read up to this multiple of its decoded size, and this overhead. Noise grows when it is
# compressed: by fax compression to 4.5 times its size.
MAX_STORED_GROWTH = 8
MAX_OVERHEAD = 64 << 10
# The largest ratio of decoded to stored bytes, by compression: none, PackBits, LZW, Deflate (two numbers).
MAX_EXPANSION = {NONE: 1, PACKBITS: 64, 5: 1400, 8: 1032, 32946: 1032}
# Frame markers of a JPEG in a TIFF: baseline, extended and progressive. libjpeg decodes these quickly.
FRAMES = (0xC0, 0xC1, 0xC2)
OTHER_FRAMES = (0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
# All values of a byte with their bits in reverse order.
REVERSED_BITS = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


@dataclass(frozen=True, slots=True)
class Chunks:
    """The chunks of the planes that are decoded. A plane has `down` rows of `across` chunks.

    width, height: pixels of a chunk. The last strip of a plane may have fewer rows; tiles are padded. row_bytes: bytes
    of a decoded row of a chunk, which has `unit` rows of pixels if chroma is subsampled, else one. starts, sizes:
    position and number of the bytes to read of each chunk. All chunks lie inside `data`.
    """

    data: bytes
    picture: Picture
    is_tiled: bool
    width: int
    height: int
    across: int
    down: int
    subsampling: tuple[int, int]
    row_bytes: int
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]

    @property
    def sides(self) -> tuple[int, int]:
        """The height and width of a chunk, pixels."""
        return self.height, self.width

    @property
    def unit(self) -> int:
        """The number of pixel rows that are stored together: more than one if chroma is subsampled."""
        return self.subsampling[1]

    def rows(self, first: int, count: int) -> int:
        """Return the pixel rows of `count` rows of chunks. For strips, they end at the picture's last row."""
        if self.is_tiled:
            return self.height * count
        return min(self.height * count, self.picture.height - self.height * first)

    def contents(self, plane: int, first: int, count: int) -> list[bytes]:
        """Return the bytes of each chunk in `count` rows of a plane's chunks, with the highest bit first.

        plane: index into `Picture.planes`. first: number of the first row of chunks. Raises UnsupportedType,
        UnreadableImage and TooManyScans for JPEGs that are excessively complex.
        """
        begin = (plane * self.down + first) * self.across
        places = zip(self.starts[begin : begin + count * self.across], self.sizes[begin:], strict=False)
        contents = [self.data[start : start + size] for start, size in places]
        if self.picture.is_reversed:
            return [content.translate(REVERSED_BITS) for content in contents]
        if self.picture.compression == JPEG:
            self._check_scans(contents)
        return contents

    def _check_scans(self, contents: list[bytes]) -> None:
        most = MAX_SCANNED_PIXELS // (self.width * self.height * self.across * self.down)
        for content in contents:
            if _scans(content) > most:
                raise TooManyScans(f"a JPEG in the TIFF has more than {most} scans", field="file", limit=most)


def _scans(jpeg: bytes) -> int:
    """Return the number of scans of a JPEG in a TIFF. Raises UnsupportedType and UnreadableImage."""
    scans = 0
    for number, (marker, _) in enumerate(jpeg_segments(jpeg)):
        scans += marker == START_OF_SCAN
        if marker in OTHER_FRAMES and not scans:
            raise UnsupportedType(
                "the TIFF holds a JPEG that is lossless, hierarchical or arithmetic-coded", field="file"
            )
        if number > MAX_SEGMENTS:
            raise UnreadableImage("a JPEG in the TIFF has too many segments", field="file", limit=MAX_SEGMENTS)
    return scans


def chunks_of(page: tiff_reader.Page, picture: Picture, limits: Limits) -> Chunks:
    """Return the chunks of the page. Raises UnreadableImage, UnsupportedType and TooManyPixels."""
    is_tiled = bool(page.count(tiff_tags.TILE_WIDTH))
    width, height = _sides(page, picture, is_tiled)
    across, down = -(-picture.width // width), -(-picture.height // height)
    subsampling = _subsampling(page, picture)
    if down > 1 and height % subsampling[1]:
        raise UnsupportedType(
            f"the TIFF's strips or tiles, of {height} rows, divide subsampled chroma; save it as RGB", field="file"
        )
    row_bytes = _row_bytes(picture, width, subsampling, is_tiled)
    number = across * down * (picture.channels if picture.is_planar else 1)
    most = MAX_JPEGS if picture.compression == JPEG else MAX_CHUNKS
    if number > most:
        what = "tiles" if is_tiled else "strips"
        raise UnsupportedType(f"the TIFF has {number:,} {what}; {most:,} are supported", field="file", limit=most)
    chunk_bytes = row_bytes * -(-height // subsampling[1])
    if chunk_bytes * number > MAX_BYTES_PER_PIXEL * limits.max_pixels + MAX_PADDING:
        raise TooManyPixels(
            f"{picture.width} x {picture.height} pixels of {picture.channels} channels, in chunks of"
            f" {width} x {height}, take more than {MAX_BYTES_PER_PIXEL} bytes for each of {limits.max_pixels:,} pixels",
            field="file",
            limit=limits.max_pixels,
        )
    decoded = np.full((len(picture.planes), down * across), chunk_bytes, np.int64)
    if not is_tiled:
        last = picture.height - height * (down - 1)
        decoded[:, -1] = row_bytes * -(-last // subsampling[1])
    starts, sizes = _locate_chunks(page, picture, decoded)
    return Chunks(page.data, picture, is_tiled, width, height, across, down, subsampling, row_bytes, starts, sizes)


def _sides(page: tiff_reader.Page, picture: Picture, is_tiled: bool) -> tuple[int, int]:
    """Return the width and height of a chunk, pixels. Raises UnreadableImage and UnsupportedType."""
    if is_tiled:
        width, height = page.number(tiff_tags.TILE_WIDTH, 0), page.number(tiff_tags.TILE_LENGTH, 0)
        if not (width and height):
            raise UnreadableImage("the TIFF is damaged: its tiles have no width or no height", field="file")
        if width > picture.width + MAX_OVERHANG or height > picture.height + MAX_OVERHANG:
            raise UnsupportedType(
                f"the TIFF's tiles, of {width} x {height} pixels, are much larger than its picture; save it in strips",
                field="file",
            )
        return width, height
    rows = page.number(tiff_tags.ROWS_PER_STRIP, picture.height)
    planes = picture.channels if picture.is_planar else 1
    if rows == 0 and page.count(tiff_tags.STRIP_OFFSETS) > planes:
        raise UnreadableImage("the TIFF is damaged: its strips have no rows", field="file")
    return picture.width, min(rows or picture.height, picture.height)


def _subsampling(page: tiff_reader.Page, picture: Picture) -> tuple[int, int]:
    """Return how many pixels across and down share a pair of chroma values. Raises UnreadableImage."""
    if picture.kind != Kind.YCBCR or picture.compression == JPEG:
        return 1, 1
    across, down = (
        (*page.numbers(tiff_tags.YCBCR_SUB_SAMPLING), 2, 2)[:2] if page.count(tiff_tags.YCBCR_SUB_SAMPLING) else (2, 2)
    )
    if across not in SUBSAMPLINGS or down not in SUBSAMPLINGS:
        raise UnreadableImage(f"the TIFF's chroma is subsampled {across} x {down}, which is impossible", field="file")
    return across, down


def _row_bytes(picture: Picture, width: int, subsampling: tuple[int, int], is_tiled: bool) -> int:
    """Return the bytes of a decoded row of a chunk. Raises UnsupportedType for tiles of partial bytes."""
    if picture.kind == Kind.YCBCR and picture.compression != JPEG:
        return -(-width // subsampling[0]) * (subsampling[0] * subsampling[1] + 2)
    bits = width * picture.bits * (1 if picture.is_planar else picture.channels)
    if is_tiled and bits % 8:
        raise UnsupportedType(f"the TIFF's tiles are {width} pixels wide, which is not a multiple of 16", field="file")
    return -(-bits // 8)


def _locate_chunks(
    page: tiff_reader.Page, picture: Picture, decoded: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the position of each chunk, and the number of its bytes to read. Raises UnreadableImage, UnsupportedType.

    decoded: bytes of each decoded chunk, int64 [decoded planes, chunks of a plane].
    """
    end = len(page.data)
    # libtiff, too, takes the tags of strips for those of tiles.
    starts = _values_of_planes(page, picture, (tiff_tags.TILE_OFFSETS, tiff_tags.STRIP_OFFSETS), decoded)
    is_declared = page.count(tiff_tags.TILE_BYTE_COUNTS) or page.count(tiff_tags.STRIP_BYTE_COUNTS)
    declared = (
        _values_of_planes(page, picture, (tiff_tags.TILE_BYTE_COUNTS, tiff_tags.STRIP_BYTE_COUNTS), decoded)
        if is_declared
        else np.zeros_like(decoded)
    )
    if np.any((starts == 0) & (declared == 0)):
        raise UnsupportedType("the TIFF omits strips or tiles (sparse); save it with all pixels", field="file")
    sizes = np.where(declared > 0, declared, _estimate_sizes(picture, starts, decoded, end))
    if picture.compression == NONE and decoded.shape[1] == 1:
        # Some writers declare too many bytes for a single strip.
        sizes = np.minimum(sizes, decoded)
    if np.minimum(sizes, end + 1).sum() > end:
        raise UnreadableImage(
            "the TIFF's strips or tiles have more bytes together than the file: they overlap, or the file is cut short",
            field="file",
            limit=end,
        )
    is_short = bool(np.any(sizes * MAX_EXPANSION.get(picture.compression, decoded.max() + 1) < decoded))
    if is_short or np.any(starts + sizes > end):
        raise UnreadableImage("the TIFF is damaged or cut short: strips or tiles are missing", field="file")
    most = decoded if picture.compression == NONE else MAX_STORED_GROWTH * decoded + MAX_OVERHEAD
    return starts.ravel(), np.minimum(sizes, most).ravel()


def _values_of_planes(
    page: tiff_reader.Page, picture: Picture, tags: tuple[int, int], decoded: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the values of the first present tag for the chunks to decode, int64 [decoded planes, chunks of a plane].

    Raises UnreadableImage if it has too few values.
    """
    planes = picture.channels if picture.is_planar else 1
    number = planes * decoded.shape[1]
    values = page.array(tags[0] if page.count(tags[0]) else tags[1], number)
    if len(values) < number:
        raise UnreadableImage(
            f"the TIFF is damaged or cut short: it has {number:,} strips or tiles, but lists fewer", field="file"
        )
    # All positions after the end of the file are equally wrong. The limit keeps sums small.
    return np.minimum(values.reshape(planes, -1)[picture.planes], len(page.data) + 1)


def _estimate_sizes(
    picture: Picture, starts: NDArray[np.int64], decoded: NDArray[np.int64], end: int
) -> NDArray[np.int64]:
    """Return sizes for chunks without a declared size: up to the start of the next chunk or the end of the file."""
    if picture.compression == NONE:
        return decoded
    begins = np.append(np.unique(starts), end)
    return np.maximum(begins[np.searchsorted(begins[:-1], starts, side="right")] - starts, 0)
