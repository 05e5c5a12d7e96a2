"""A writer of TIFFs of every layout, sound or damaged, because no library writes all of them."""

import io
import lzma
import struct
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from service.formats import tiff_tags

LETTERS = {
    **dict.fromkeys((tiff_tags.BYTE, tiff_tags.ASCII, tiff_tags.UNDEFINED), "B"),
    **dict.fromkeys((tiff_tags.LONG, tiff_tags.RATIONAL), "I"),
    tiff_tags.SHORT: "H",
    tiff_tags.LONG8: "Q",
}
# A tag's type and values, or None to leave it out.
Tags = dict[int, tuple[int, Sequence[int]] | None]


def by_pillow(compression: str) -> Callable[[bytes], bytes]:
    """Return a function in which Pillow compresses bytes, as a gray picture of one row."""

    def compressed(data: bytes) -> bytes:
        stream = io.BytesIO()
        Image.frombytes("L", (len(data), 1), data).save(stream, "TIFF", compression=compression)
        with Image.open(stream) as image:
            (start,), (size,) = image.tag_v2[tiff_tags.STRIP_OFFSETS], image.tag_v2[tiff_tags.STRIP_BYTE_COUNTS]
        return stream.getvalue()[start : start + size]

    return compressed


def packbits(data: bytes) -> bytes:
    return b"".join(bytes([len(part) - 1]) + part for part in (data[n : n + 128] for n in range(0, len(data), 128)))


COMPRESSORS: dict[int, Callable[[bytes], bytes]] = {
    1: bytes,
    5: by_pillow("tiff_lzw"),
    8: zlib.compress,
    32773: packbits,
    32946: zlib.compress,
    34925: lzma.compress,
    50000: by_pillow("zstd"),
}


def packed(samples: np.ndarray, bits: int, order: str) -> bytes:
    """Return the bytes of samples, [rows, columns]. Each row begins at a byte."""
    if bits == 16:
        return samples.astype(order + "u2").tobytes()
    if bits == 8:
        return samples.astype(np.uint8).tobytes()
    single = (samples[..., np.newaxis] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(single.reshape(len(samples), -1).astype(np.uint8), axis=1).tobytes()


def differences(samples: np.ndarray) -> np.ndarray:
    """Return the differences of samples, [rows, width, channels], from their left neighbours."""
    return np.diff(samples, axis=1, prepend=samples.dtype.type(0))


def chunks(
    samples: np.ndarray, bits: int, order: str, predictor: int, rows: int, tile: tuple[int, int] | None
) -> list[bytes]:
    """Return the bytes of the strips or tiles of samples, [H, W, channels]."""
    height, width, _ = samples.shape
    if tile is None:
        parts = [samples[top : top + rows] for top in range(0, height, rows)]
    else:
        across, down = tile
        filled = np.pad(samples, ((0, -height % down), (0, -width % across), (0, 0)), mode="edge")
        tops, lefts = range(0, height, down), range(0, width, across)
        parts = [filled[top : top + down, left : left + across] for top in tops for left in lefts]
    parts = [differences(part) if predictor == 2 else part for part in parts]
    return [packed(part.reshape(len(part), -1), bits, order) for part in parts]


def tiff(
    samples: np.ndarray,
    *,
    bits: int | None = None,
    kind: int | None = 1,
    compression: int = 1,
    predictor: int = 1,
    rows: int | None = None,
    tile: tuple[int, int] | None = None,
    is_planar: bool = False,
    is_reversed: bool = False,
    extras: Sequence[int] = (),
    order: str = "<",
    big: bool = False,
    tags: Tags | None = None,
) -> bytes:
    """Return a TIFF of samples, [H, W] or [H, W, channels], in their stored form."""
    samples = samples[..., np.newaxis] if samples.ndim == 2 else samples
    height, width, channels = samples.shape
    bits = bits or 8 * samples.dtype.itemsize
    rows = rows or height
    planes = [samples[..., number : number + 1] for number in range(channels)] if is_planar else [samples]
    stored = [part for plane in planes for part in chunks(plane, bits, order, predictor, rows, tile)]
    contents = [COMPRESSORS[compression](part) for part in stored]
    found: Tags = {
        tiff_tags.IMAGE_WIDTH: (tiff_tags.LONG, [width]),
        tiff_tags.IMAGE_LENGTH: (tiff_tags.LONG, [height]),
        tiff_tags.BITS_PER_SAMPLE: (tiff_tags.SHORT, [bits] * channels),
        tiff_tags.COMPRESSION: (tiff_tags.SHORT, [compression]),
        tiff_tags.PHOTOMETRIC_INTERPRETATION: None if kind is None else (tiff_tags.SHORT, [kind]),
        tiff_tags.FILL_ORDER: (tiff_tags.SHORT, [2]) if is_reversed else None,
        tiff_tags.SAMPLES_PER_PIXEL: (tiff_tags.SHORT, [channels]),
        tiff_tags.PLANAR_CONFIGURATION: (tiff_tags.SHORT, [2 if is_planar else 1]),
        tiff_tags.PREDICTOR: (tiff_tags.SHORT, [predictor]) if predictor != 1 else None,
        tiff_tags.EXTRA_SAMPLES: (tiff_tags.SHORT, extras) if extras else None,
    }
    if tile:
        found |= {tiff_tags.TILE_WIDTH: (tiff_tags.LONG, [tile[0]]), tiff_tags.TILE_LENGTH: (tiff_tags.LONG, [tile[1]])}
    else:
        found[tiff_tags.ROWS_PER_STRIP] = (tiff_tags.LONG, [rows])
    if is_reversed:
        contents = [bytes(int(f"{value:08b}"[::-1], 2) for value in content) for content in contents]
    return assembled(contents, found, tags or {}, order=order, big=big, is_tiled=tile is not None)


def assembled(
    contents: Sequence[bytes],
    found: Tags,
    changes: Tags,
    *,
    order: str = "<",
    big: bool = False,
    is_tiled: bool = False,
) -> bytes:
    """Return a TIFF of chunks and tags. `changes` are applied last."""
    word, size = ("Q", 8) if big else ("I", 4)
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42)
    head += struct.pack(order + "HH", 8, 0) if big else b""
    begin = len(head) + size
    lengths = [len(content) for content in contents]
    starts = [begin + sum(lengths[:number]) for number in range(len(lengths))] if len(lengths) < 1000 else None
    starts = starts or list(begin + np.cumsum([0, *lengths[:-1]]))
    offset_type = tiff_tags.LONG8 if big else tiff_tags.LONG
    found = found | {
        tiff_tags.TILE_OFFSETS if is_tiled else tiff_tags.STRIP_OFFSETS: (offset_type, starts),
        tiff_tags.TILE_BYTE_COUNTS if is_tiled else tiff_tags.STRIP_BYTE_COUNTS: (offset_type, lengths),
    }
    values = {tag: value for tag, value in sorted((found | changes).items()) if value is not None}
    data = b"".join(contents)
    entries = b""
    for tag, (kind, numbers) in values.items():
        content = struct.pack(f"{order}{len(numbers)}{LETTERS[kind]}", *numbers)
        count = len(numbers) // 2 if kind == tiff_tags.RATIONAL else len(numbers)
        place = content.ljust(size, b"\0")
        if len(content) > size:
            place = struct.pack(order + word, begin + len(data))
            data += content
        entries += struct.pack(order + "HH" + word, tag, kind, count) + place
    count = struct.pack(order + ("Q" if big else "H"), len(values))
    return head + struct.pack(order + word, begin + len(data)) + data + count + entries + bytes(size)
