"""Decode the pixels of a TIFF.

Pillow and OpenCV each support only some layouts of a TIFF's samples, reject valid ones, and misread a few. So the work
is divided. libtiff, called through Pillow, only decompresses. It gets files written here, which hold a few strips or
tiles as rows of bytes. This module interprets the bytes, in the same way for every compression. No directory of an
upload ever reaches libtiff.

Strips or tiles, called chunks, are decoded in bands. So the memory needed is little more than that of the pixels and of
one chunk.
"""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin

from service.errors import UnreadableImage
from service.formats import tiff_reader, tiff_tags
from service.formats.decoding_limits import Limits, library_call
from service.formats.tiff_writer import HEADERS, pack_directory, pack_entry
from service.imaging.color import Bytes, Levels
from service.imaging.decoders import libtiff, tiff_jpeg
from service.imaging.decoders.tiff_chunks import Chunks, chunks_of
from service.imaging.decoders.tiff_colors import Colors
from service.imaging.decoders.tiff_page import tiff_page
from service.imaging.decoders.tiff_samples import FAXES, JPEG, NONE, Kind, Picture, picture_of

# Size of a band of samples, and of the parts in which rows are copied from Pillow's memory.
BAND_BYTES = 16 << 20
COPY_BYTES = 4 << 20
# Valid bits of the fax options: two dimensions, uncompressed parts, fill bits.
FAX_OPTIONS = 0b111


@dataclass(frozen=True, slots=True)
class TiffFile:
    """The structure of a TIFF: the page that is its photo, and the strips or tiles of that page."""

    page: tiff_reader.Page
    chunks: Chunks

    @property
    def size(self) -> tuple[int, int]:
        """Stored width and height, pixels."""
        return self.chunks.picture.width, self.chunks.picture.height


@dataclass(frozen=True, slots=True)
class Decoded:
    """A page's pixels before its orientation is applied.

    picture: uint8 or uint16, [H, W] gray, [H, W, 3] RGB, or uint8 [H, W, 4] CMYK. alpha: uint8 or uint16 [H, W], or
    None. orientation: 1..8 as in EXIF; other values have no effect.
    """

    picture: Levels
    alpha: Levels | None
    orientation: int


def read(data: bytes, limits: Limits) -> TiffFile:
    """Return the structure of a TIFF. Raises UnreadableImage, UnsupportedType and TooManyPixels."""
    page = tiff_page(data, limits)
    return TiffFile(page, chunks_of(page, picture_of(page), limits))


def decode(file: TiffFile) -> Decoded:
    """Return the pixels of a TIFF's photo. Raises UnreadableImage, UnsupportedType and TooManyScans."""
    page, chunks = file.page, file.chunks
    picture = chunks.picture
    colors = Colors(page, picture)
    whole: list[Levels] = []
    for top, samples in _bands(page, chunks):
        for number, part in enumerate(colors.levels(samples)):
            if top == 0:
                # If the first band is the whole picture, it is not copied.
                is_all = len(part) == picture.height
                whole.append(part if is_all else np.empty((picture.height, *part.shape[1:]), part.dtype))
            if whole[number] is not part:
                whole[number][top : top + len(part)] = part
    pixels = [np.ascontiguousarray(part) for part in whole]
    alpha = pixels[1] if len(pixels) > 1 else None
    return Decoded(pixels[0], alpha, page.number(tiff_tags.ORIENTATION, 1))


def _bands(page: tiff_reader.Page, chunks: Chunks) -> Iterator[tuple[int, Levels]]:
    """Yield the page's samples band by band: the number of the first row, and uint8 or uint16 [rows, W, channels]."""
    picture = chunks.picture
    decompressor = _Decompressor(page, chunks)
    row_bytes = chunks.width * chunks.across * picture.channels * (2 if picture.bits > 8 else 1)
    step = max(1, BAND_BYTES // (row_bytes * chunks.height))
    for first in range(0, chunks.down, step):
        count = min(step, chunks.down - first)
        top = first * chunks.height
        parts = [decompressor.samples(plane, first, count) for plane in range(len(picture.planes))]
        samples = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)
        yield top, samples[: picture.height - top, : picture.width]


class _RowsImage(TiffImagePlugin.TiffImageFile):
    """A TIFF of rows of bytes, opened without Pillow's limit of pixels, since one photo pixel has several bytes."""

    def load_prepare(self) -> None:
        """Allocate the picture. The overridden method would check the number of pixels first."""
        ImageFile.ImageFile.load_prepare(self)


class _Decompressor:
    """A converter from bands of chunks to samples, by the page's compression and sample size."""

    def __init__(self, page: tiff_reader.Page, chunks: Chunks) -> None:
        self._chunks = chunks
        self._picture = chunks.picture
        self._order = page.layout.order
        self._fields = _codec_fields(page, chunks.picture)
        self._tables = tiff_jpeg.tables_of(page)

    def samples(self, plane: int, first: int, count: int) -> Levels:
        """Return `count` rows of chunks as samples, [rows, across * width of a chunk or less, channels].

        plane: index into `Picture.planes`. first: number of the first row of chunks.
        """
        picture, chunks = self._picture, self._chunks
        rows, mixed = chunks.rows(first, count), 1 if picture.is_planar else picture.channels
        contents = chunks.contents(plane, first, count)
        width = chunks.width * chunks.across
        if picture.compression == JPEG:
            return self._jpegs(contents, rows, mixed)
        lines = -(-rows // chunks.unit)
        if picture.compression == NONE:
            stored = _join_chunks(contents, chunks, lines)
        elif picture.compression in FAXES:
            stored = self._fax(contents, width, rows)
        else:
            height = -(-chunks.height // chunks.unit)
            stored = self._pillow(contents, chunks.row_bytes * chunks.across, lines, chunks.row_bytes, height)
        if picture.kind == Kind.YCBCR:
            return _ycbcr_samples(stored, chunks)[:rows]
        return self._of_bytes(stored, mixed)

    def _jpegs(self, contents: list[bytes], rows: int, mixed: int) -> Levels:
        chunks, is_ycbcr = self._chunks, self._picture.kind == Kind.YCBCR
        samples: Levels = np.empty((rows, chunks.width * chunks.across, mixed), np.uint8)
        for number, content in enumerate(contents):
            top, left = (n * side for n, side in zip(divmod(number, chunks.across), chunks.sides, strict=True))
            height = min(chunks.height, rows - top)
            part = tiff_jpeg.pixels(content, self._tables, mixed, (chunks.width, height), is_ycbcr=is_ycbcr)
            samples[top : top + height, left : left + chunks.width] = part
        return samples

    def _of_bytes(self, stored: Bytes, mixed: int) -> Levels:
        picture, chunks = self._picture, self._chunks
        samples: Levels = stored
        if picture.bits == 16:
            words = stored.view(np.dtype(self._order + "u2"))
            samples = words.astype(np.uint16, copy=False)
        elif picture.bits != 8:
            samples = _unpacked(stored, picture.bits)
        rows = len(stored)
        width = samples.shape[1] // mixed
        samples = samples[:, : width * mixed].reshape(rows, width, mixed)
        return _undo_predictor(samples, chunks.across) if picture.has_predictor else samples

    def _pillow(self, contents: list[bytes], width: int, height: int, chunk_width: int, chunk_height: int) -> Bytes:
        """Return these chunks as decompressed by libtiff, uint8 [height, width] or [height, width, channels]."""
        file = self._file(contents, width, height, chunk_width, chunk_height)
        with library_call("tiff"):
            image = _RowsImage(io.BytesIO(file))
            image.load()
        return _array_of(image)

    def _fax(self, contents: list[bytes], width: int, height: int) -> Bytes:
        """Return the rows of a fax, packed, uint8 [height, bytes of a row]. Raises UnreadableImage."""
        chunks = self._chunks
        file = self._file(contents, width, height, chunks.width, chunks.height)
        try:
            rows = libtiff.read_fax(file, width, height, (chunks.width, chunks.height) if chunks.is_tiled else None)
        except libtiff.DamagedFax as error:
            raise UnreadableImage("the fax in the TIFF is damaged: too many rows are invalid", field="file") from error
        if rows is not None:
            return rows
        return np.packbits(self._pillow(contents, width, height, chunks.width, chunks.height), axis=1)

    def _file(self, contents: list[bytes], width: int, height: int, chunk_width: int, chunk_height: int) -> bytes:
        sides = {tiff_tags.IMAGE_WIDTH: width, tiff_tags.IMAGE_LENGTH: height}
        if self._chunks.is_tiled:
            sides |= {tiff_tags.TILE_WIDTH: chunk_width, tiff_tags.TILE_LENGTH: chunk_height}
        else:
            sides |= {tiff_tags.ROWS_PER_STRIP: min(chunk_height, height)}
        return _build_tiff(contents, self._fields | {tag: _long(value) for tag, value in sides.items()})


def _codec_fields(page: tiff_reader.Page, picture: Picture) -> dict[int, tiff_reader.Field]:
    """Return the fields that tell libtiff the compression of chunks. To libtiff, all samples are one channel."""
    bits = 1 if picture.compression in FAXES else 8
    fields: dict[int, tiff_reader.Field] = {}
    options = {tag: page.number(tag, 0) for tag in (tiff_tags.T4_OPTIONS, tiff_tags.T6_OPTIONS)}
    fields |= {tag: _long(option & FAX_OPTIONS) for tag, option in options.items() if option}
    fields |= {tiff_tags.BITS_PER_SAMPLE: _shorts(bits), tiff_tags.COMPRESSION: _shorts(picture.compression)}
    return fields | {
        tiff_tags.PHOTOMETRIC_INTERPRETATION: _shorts(Kind.BLACK_IS_ZERO),
        tiff_tags.SAMPLES_PER_PIXEL: _shorts(1),
    }


def _shorts(*values: int) -> tiff_reader.Field:
    return tiff_reader.Field(0, tiff_tags.SHORT, struct.pack(f"<{len(values)}H", *values))


def _long(value: int) -> tiff_reader.Field:
    return tiff_reader.Field(0, tiff_tags.LONG, struct.pack("<I", value))


def _build_tiff(contents: list[bytes], fields: dict[int, tiff_reader.Field]) -> bytes:
    """Return a little-endian TIFF with these fields, by tag, and these chunks."""
    sizes = np.array([len(content) for content in contents], np.uint32)
    starts = 8 + np.cumsum(sizes, dtype=np.uint32) - sizes
    starts_tag, sizes_tag = (
        (tiff_tags.TILE_OFFSETS, tiff_tags.TILE_BYTE_COUNTS)
        if tiff_tags.TILE_WIDTH in fields
        else (tiff_tags.STRIP_OFFSETS, tiff_tags.STRIP_BYTE_COUNTS)
    )
    fields = fields | {
        starts_tag: tiff_reader.Field(0, tiff_tags.LONG, starts.astype("<u4").tobytes()),
        sizes_tag: tiff_reader.Field(0, tiff_tags.LONG, sizes.astype("<u4").tobytes()),
    }
    pieces = [b"", *contents]
    end = 8 + int(sizes.sum())
    entries = {}
    for tag, field in fields.items():
        value = content = field.value
        if len(value) > 4:
            content = struct.pack("<I", end)
            pieces.append(value)
            end += len(value)
        entries[tag] = pack_entry(tiff_reader.Field(tag, field.kind, value), content, "<")
    pieces[0] = HEADERS["<"] + struct.pack("<I", end)
    return b"".join([*pieces, pack_directory(entries, "<")])


def _array_of(image: Image.Image) -> Bytes:
    """Return Pillow's pixels as an array, uint8 [H, W] or [H, W, bands]. NumPy alone would copy the whole twice."""
    width, height = image.size
    bands = len(image.getbands())
    pixels = np.empty((height, width, bands) if bands > 1 else (height, width), np.uint8)
    step = max(1, COPY_BYTES // (width * bands))
    for top in range(0, height, step):
        bottom = min(top + step, height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, width, bottom)))
    return pixels


def _join_chunks(contents: list[bytes], chunks: Chunks, lines: int) -> Bytes:
    """Return uncompressed chunks as rows of bytes, uint8 [lines, bytes of a row]."""
    stored = np.frombuffer(b"".join(contents) if len(contents) > 1 else contents[0], np.uint8)
    if not chunks.is_tiled:
        return stored.reshape(lines, chunks.row_bytes)
    down = len(contents) // chunks.across
    tiles = stored.reshape(down, chunks.across, lines // down, chunks.row_bytes)
    return tiles.transpose(0, 2, 1, 3).reshape(lines, chunks.across * chunks.row_bytes)


def _unpacked(stored: Bytes, bits: int) -> Levels:
    """Return the samples of `bits` bits each in rows of bytes, highest bit first: uint8 or uint16 [rows, samples]."""
    single = np.unpackbits(stored, axis=1)
    width = single.shape[1] // bits
    samples: Levels = np.zeros((len(stored), width), np.uint8 if bits <= 8 else np.uint16)
    for number in range(bits):
        samples <<= 1
        samples |= single[:, number : width * bits : bits]
    return samples


def _undo_predictor(samples: Levels, across: int) -> Levels:
    """Return the cumulative sums of differences from the left neighbour (TIFF 6.0, section 14).

    samples: [rows, W, channels]. The sums restart at each of the `across` chunks of a row.
    """
    rows, width, channels = samples.shape
    pieces = samples.reshape(rows, across, width // across, channels)
    sums = np.empty_like(pieces)
    step = max(1, COPY_BYTES // max(1, samples[:1].nbytes))
    for top in range(0, rows, step):
        np.cumsum(pieces[top : top + step], axis=2, dtype=samples.dtype, out=sums[top : top + step])
    return sums.reshape(samples.shape)


def _ycbcr_samples(stored: Bytes, chunks: Chunks) -> Bytes:
    """Return Y, Cb and Cr of each pixel, uint8 [rows, width, 3], of subsampled units (TIFF 6.0, section 21)."""
    across, down = chunks.subsampling
    units = stored.reshape(len(stored), -1, across * down + 2)
    height, width = len(stored) * down, units.shape[1] * across
    samples = np.empty((height, width, 3), np.uint8)
    lumas = units[..., :-2].reshape(len(stored), -1, down, across)
    samples[..., 0] = lumas.transpose(0, 2, 1, 3).reshape(height, width)
    for number in (1, 2):
        samples[..., number] = units[..., number - 3].repeat(down, axis=0).repeat(across, axis=1)
    # A chunk is padded to whole units.
    filled = units.shape[1] // chunks.across * across
    tiles = samples.reshape(height, chunks.across, filled, 3)[:, :, : chunks.width]
    return tiles.reshape(height, -1, 3)
