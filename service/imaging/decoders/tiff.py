"""The pixels of a TIFF.

Pillow and OpenCV each decode some layouts of a TIFF's samples, reject sound ones, and take a few for others. So the
work is divided. libtiff, called through Pillow, only decompresses: it is given files written here, which hold a few
strips or tiles as one row of bytes after another. What the bytes mean is worked out here, the same for every
compression. No directory of an upload ever reaches libtiff. Chunks are decoded in bands, so that little more memory is
taken than for the pixels themselves and one chunk.
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
from service.imaging.color import Bytes, Levels, white
from service.imaging.decoders import libtiff, tiff_jpeg
from service.imaging.decoders.tiff_chunks import (
    Chunks,
    chunks_of,
)
from service.imaging.decoders.tiff_page import tiff_page
from service.imaging.decoders.tiff_samples import (
    FAXES,
    JPEG,
    NONE,
    Kind,
    Picture,
    picture_of,
)

# Bytes of samples that are worked on at once, and of rows that are copied out of Pillow's memory at once.
BAND = 16 << 20
COPIED = 4 << 20
# Bits of the options: two dimensions, uncompressed parts, fill bits.
FAX_OPTIONS = 0b111
MAX_TABLES = 64 << 10
# ITU-R BT.601's, and the range of a JPEG: what is meant when a file tells neither.
BT_601 = (0.299, 0.587, 0.114)
FULL_RANGE = (0.0, 255.0, 128.0, 255.0, 128.0, 255.0)


@dataclass(frozen=True, slots=True)
class Decoded:
    """A page's pixels, not upright yet.

    picture: uint8 or uint16, [H, W] gray, [H, W, 3] RGB, or [H, W, 4] CMYK. alpha: [H, W] likewise, if there is any.
    orientation: 1..8 as EXIF has it; other values mean nothing.
    """

    picture: Levels
    alpha: Levels | None
    orientation: int


def decode(data: bytes, limits: Limits) -> Decoded:
    """Return the pixels of a TIFF's photo. Raises UnreadableImage, UnsupportedType, TooManyPixels and TooManyScans."""
    page = tiff_page(data, limits)
    picture = picture_of(page)
    chunks = chunks_of(page, picture, limits)
    colors = _Colors(page, picture)
    whole: list[Levels] = []
    for top, samples in _bands(page, chunks):
        for number, part in enumerate(colors.levels(samples)):
            if top == 0:
                # The first band may be all of it.
                is_all = len(part) == picture.height
                whole.append(part if is_all else np.empty((picture.height, *part.shape[1:]), part.dtype))
            if whole[number] is not part:
                whole[number][top : top + len(part)] = part
    pixels = [np.ascontiguousarray(part) for part in whole]
    alpha = pixels[1] if len(pixels) > 1 else None
    return Decoded(pixels[0], alpha, page.number(tiff_tags.ORIENTATION, 1))


def _bands(page: tiff_reader.Page, chunks: Chunks) -> Iterator[tuple[int, Levels]]:
    """Yield the page's samples, [rows, W, channels], a band at a time, each with its first row."""
    picture = chunks.picture
    decompressor = _Decompressor(page, chunks)
    row_bytes = chunks.width * chunks.across * picture.channels * (2 if picture.bits > 8 else 1)
    step = max(1, BAND // (row_bytes * chunks.height))
    for first in range(0, chunks.down, step):
        count = min(step, chunks.down - first)
        top = first * chunks.height
        parts = [decompressor.samples(plane, first, count) for plane in range(len(picture.planes))]
        samples = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)
        yield top, samples[: picture.height - top, : picture.width]


class _Rows(TiffImagePlugin.TiffImageFile):
    """A file written here, opened without Pillow's limit of pixels, since a pixel of a photo has several bytes."""

    def load_prepare(self) -> None:
        """Make room for the picture. TIFF's own method would count its pixels first."""
        ImageFile.ImageFile.load_prepare(self)


class _Decompressor:
    """Takes bands of chunks to samples, by the page's compression and the size of its samples."""

    def __init__(self, page: tiff_reader.Page, chunks: Chunks) -> None:
        self._chunks = chunks
        self._picture = chunks.picture
        self._order = page.layout.order
        self._fields = _codec_fields(page, chunks.picture)
        self._tables = tiff_jpeg.tables_of(page)

    def samples(self, plane: int, first: int, count: int) -> Levels:
        """Return so many rows of chunks as samples, [rows, across * chunk's width or less, channels]."""
        picture, chunks = self._picture, self._chunks
        rows, mixed = chunks.rows(first, count), 1 if picture.is_planar else picture.channels
        contents = chunks.contents(plane, first, count)
        width = chunks.width * chunks.across
        if picture.compression == JPEG:
            return self._jpegs(contents, rows, mixed)
        lines = -(-rows // chunks.unit)
        if picture.compression == NONE:
            stored = _joined(contents, chunks, lines)
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
            part = tiff_jpeg.pixels(content, self._tables, mixed, chunks.width, height, is_ycbcr=is_ycbcr)
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
        return _summed(samples, chunks.across) if picture.has_predictor else samples

    def _pillow(self, contents: list[bytes], width: int, height: int, chunk_width: int, chunk_height: int) -> Bytes:
        """Return what libtiff makes of a picture of these chunks, [height, width] or [height, width, channels]."""
        file = self._file(contents, width, height, chunk_width, chunk_height)
        with library_call("tiff"):
            image = _Rows(io.BytesIO(file))
            image.load()
        return _copied(image)

    def _fax(self, contents: list[bytes], width: int, height: int) -> Bytes:
        """Return the rows of a fax, packed, [height, bytes of a row]. Raises UnreadableImage."""
        chunks = self._chunks
        file = self._file(contents, width, height, chunks.width, chunks.height)
        try:
            rows = libtiff.read_fax(file, width, height, (chunks.width, chunks.height) if chunks.is_tiled else None)
        except libtiff.DamagedFax as error:
            raise UnreadableImage(
                "the fax in the TIFF is damaged: too many rows make no sense", field="file"
            ) from error
        if rows is not None:
            return rows
        return np.packbits(self._pillow(contents, width, height, chunks.width, chunks.height), axis=1)

    def _file(self, contents: list[bytes], width: int, height: int, chunk_width: int, chunk_height: int) -> bytes:
        sides = {tiff_tags.IMAGE_WIDTH: width, tiff_tags.IMAGE_LENGTH: height}
        if self._chunks.is_tiled:
            sides |= {tiff_tags.TILE_WIDTH: chunk_width, tiff_tags.TILE_LENGTH: chunk_height}
        else:
            sides |= {tiff_tags.ROWS_PER_STRIP: min(chunk_height, height)}
        return _tiff_of(contents, self._fields | {tag: _long(value) for tag, value in sides.items()})


def _codec_fields(page: tiff_reader.Page, picture: Picture) -> dict[int, tiff_reader.Field]:
    """Return the fields, for libtiff, that tell how chunks are compressed. It gives one sample after another."""
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


def _tiff_of(contents: list[bytes], fields: dict[int, tiff_reader.Field]) -> bytes:
    """Return a little-endian TIFF of these fields, by tag, and chunks."""
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


def _copied(image: Image.Image) -> Bytes:
    """Return Pillow's pixels as an array. NumPy alone would take them to bytes first, and twice, whole."""
    width, height = image.size
    bands = len(image.getbands())
    pixels = np.empty((height, width, bands) if bands > 1 else (height, width), np.uint8)
    step = max(1, COPIED // (width * bands))
    for top in range(0, height, step):
        bottom = min(top + step, height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, width, bottom)))
    return pixels


def _joined(contents: list[bytes], chunks: Chunks, lines: int) -> Bytes:
    """Return uncompressed chunks as rows of bytes."""
    stored = np.frombuffer(b"".join(contents) if len(contents) > 1 else contents[0], np.uint8)
    if not chunks.is_tiled:
        return stored.reshape(lines, chunks.row_bytes)
    down = len(contents) // chunks.across
    tiles = stored.reshape(down, chunks.across, lines // down, chunks.row_bytes)
    return tiles.transpose(0, 2, 1, 3).reshape(lines, chunks.across * chunks.row_bytes)


def _unpacked(stored: Bytes, bits: int) -> Levels:
    """Return the samples, of any number of bits, that rows of bytes hold, the highest bit first."""
    single = np.unpackbits(stored, axis=1)
    width = single.shape[1] // bits
    samples: Levels = np.zeros((len(stored), width), np.uint8 if bits <= 8 else np.uint16)
    for number in range(bits):
        samples <<= 1
        samples |= single[:, number : width * bits : bits]
    return samples


def _summed(samples: Levels, across: int) -> Levels:
    """Return the sums of differences from left neighbours; each of the `across` chunks of a row begins anew."""
    rows, width, channels = samples.shape
    pieces = samples.reshape(rows, across, width // across, channels)
    sums = np.empty_like(pieces)
    step = max(1, COPIED // max(1, samples[:1].nbytes))
    for top in range(0, rows, step):
        np.cumsum(pieces[top : top + step], axis=2, dtype=samples.dtype, out=sums[top : top + step])
    return sums.reshape(samples.shape)


def _ycbcr_samples(stored: Bytes, chunks: Chunks) -> Bytes:
    """Return Y, Cb and Cr of each pixel, [rows, width, 3], of subsampled units."""
    across, down = chunks.subsampling
    units = stored.reshape(len(stored), -1, across * down + 2)
    height, width = len(stored) * down, units.shape[1] * across
    samples = np.empty((height, width, 3), np.uint8)
    lumas = units[..., :-2].reshape(len(stored), -1, down, across)
    samples[..., 0] = lumas.transpose(0, 2, 1, 3).reshape(height, width)
    for number in (1, 2):
        samples[..., number] = units[..., number - 3].repeat(down, axis=0).repeat(across, axis=1)
    # A chunk is filled up to whole units.
    filled = units.shape[1] // chunks.across * across
    tiles = samples.reshape(height, chunks.across, filled, 3)[:, :, : chunks.width]
    return tiles.reshape(height, -1, 3)


class _Colors:
    """Takes samples to colours and alpha, as the page describes them. Raises UnreadableImage for a missing palette."""

    def __init__(self, page: tiff_reader.Page, picture: Picture) -> None:
        self._picture = picture
        self._palette = _palette(page, picture.bits) if picture.kind == Kind.PALETTE else None
        self._scale = _scale_of(picture.bits)
        self._is_ycbcr = picture.kind == Kind.YCBCR and picture.compression != JPEG
        self._coefficients = _fractions(page, tiff_tags.YCBCR_COEFFICIENTS, BT_601)
        self._reference = _fractions(page, tiff_tags.REFERENCE_BLACK_WHITE, FULL_RANGE)

    def levels(self, samples: Levels) -> list[Levels]:
        """Return a band's colours, [rows, W] or [rows, W, 3 or 4], and its alpha, [rows, W], if it has any."""
        picture = self._picture
        if self._is_ycbcr:
            return [_rgb_of_ycbcr(samples, self._coefficients, self._reference)]
        colors = samples[..., 0] if picture.colors == 1 else samples[..., : picture.colors]
        # Planes that mean nothing are not there.
        alpha = None if picture.alpha is None else samples[..., -1 if picture.is_planar else picture.alpha]
        if self._scale is not None:
            alpha = None if alpha is None else self._scale[alpha]
            colors = colors if self._palette is not None else self._scale[colors]
        if self._palette is None and alpha is not None and picture.is_premultiplied:
            colors = _divided(colors, alpha)
        if picture.kind == Kind.WHITE_IS_ZERO:
            colors = white(colors) - colors
        if self._palette is not None or picture.kind == Kind.INKS:
            # Of these, answers have 8 bits.
            colors = _upper(colors) if self._palette is None else self._palette[colors]
            alpha = None if alpha is None else _upper(alpha)
        return [colors] if alpha is None else [colors, alpha]


def _scale_of(bits: int) -> Levels | None:
    """Return what each value is in 8 or 16 bits; None where it is what it is."""
    if bits in (8, 16):
        return None
    dtype = np.uint8 if bits < 8 else np.uint16
    largest: int = np.iinfo(dtype).max
    scale: Levels = np.rint(np.arange(2**bits) * (largest / (2**bits - 1))).astype(dtype)
    return scale


def _upper(levels: Levels) -> Bytes:
    return (levels >> 8).astype(np.uint8) if levels.dtype == np.uint16 else np.asarray(levels, np.uint8)


def _palette(page: tiff_reader.Page, bits: int) -> Bytes:
    """Return the colours of all values, [2 ** bits, 3]."""
    values = page.array(tiff_tags.COLOR_MAP, 3 * 2**bits)
    if len(values) < 3 * 2**bits:
        raise UnreadableImage("the TIFF's palette is missing or cut short", field="file")
    # They are told in 16 bits, but some writers tell them in 8.
    values = values >> 8 if values.max() > 255 else values
    return np.ascontiguousarray(np.minimum(values, 255).astype(np.uint8).reshape(3, -1).T)


def _divided(colors: Levels, alpha: Levels) -> Levels:
    """Return colours that were multiplied with alpha as they were; where alpha is 0, as they are."""
    over = alpha.astype(np.uint32) if colors.ndim == 2 else alpha.astype(np.uint32)[..., np.newaxis]
    largest = white(colors)
    divided = (colors.astype(np.uint32) * largest + over // 2) // np.maximum(over, 1)
    return np.where(over == 0, colors, np.minimum(divided, largest)).astype(colors.dtype)


def _fractions(page: tiff_reader.Page, tag: int, default: tuple[float, ...]) -> tuple[float, ...]:
    """Return a tag's fractions; the default where they are missing or make no sense."""
    entry = page.directory.find(tag)
    value = page.content(tag)
    if entry is None or entry.kind != tiff_tags.RATIONAL or len(value) < 8 * len(default):
        return default
    numbers = struct.unpack_from(f"{page.layout.order}{2 * len(default)}I", value)
    return tuple(above / (under or 1) for above, under in zip(numbers[::2], numbers[1::2], strict=True))


def _rgb_of_ycbcr(samples: Levels, coefficients: tuple[float, ...], reference: tuple[float, ...]) -> Bytes:
    """Return RGB, [rows, W, 3], of Y, Cb and Cr, as section 21 of TIFF 6.0 has it."""
    red, green, blue = coefficients
    planes = []
    for number, reach in enumerate((255.0, 127.0, 127.0)):
        black, light = reference[2 * number : 2 * number + 2]
        planes.append((samples[..., number].astype(np.float32) - black) * (reach / ((light - black) or 1.0)))
    luma, cb, cr = planes
    r = cr * (2 - 2 * red) + luma
    b = cb * (2 - 2 * blue) + luma
    g = (luma - blue * b - red * r) / (green or 1.0)
    rgb: Bytes = np.clip(np.rint(np.dstack([r, g, b])), 0, 255).astype(np.uint8)
    return rgb
