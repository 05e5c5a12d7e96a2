"""Tests that a file with too few bytes for its pixels is refused before memory is allocated, and even images pass."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from service.errors import UnreadableImage
from service.formats import decoding_limits, tiff_tags
from service.imaging import decoding, identification
from tests.conftest import encoded

LIMITS = decoding_limits.Limits(max_pixels=100_000_000, max_side=65_500)
SIDE = 9000


def saved(image: Image.Image, format_: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format_, **options)
    return stream.getvalue()


def stating(format_: str, **options: object) -> bytes:
    """Return a small file that declares SIDE pixels a side."""
    data = bytearray(encoded(np.zeros((16, 16), np.uint8), format_, **options))
    sides = struct.pack(">HH", SIDE, SIDE)
    match format_:
        case "JPEG":
            frame = next(place for kind in (0xC0, 0xC2) if (place := data.find(bytes([0xFF, kind]))) > 0)
            data[frame + 5 : frame + 9] = sides
        case "PNG":
            data[16:24] = struct.pack(">II", SIDE, SIDE)
            data[29:33] = zlib.crc32(data[12:29]).to_bytes(4)
        case "BMP":
            data[18:26] = struct.pack("<ii", SIDE, SIDE)
        case "GIF":
            data[6:10] = struct.pack("<HH", SIDE, SIDE)
        case "TIFF":
            data = bytearray(saved(Image.new("L", (SIDE, SIDE)), "TIFF", **options))
            place = (
                data.index(struct.pack("<HHI", tiff_tags.STRIP_BYTE_COUNTS, 4, 1)) + 8
                if b"\x17\x01\x04\x00\x01" in data
                else 0
            )
            assert place
            data[place : place + 4] = struct.pack("<I", 9)
    return bytes(data)


@pytest.mark.parametrize(
    ("format_", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("BMP", {}),
        ("GIF", {}),
        ("TIFF", {"compression": "tiff_adobe_deflate", "tiffinfo": {tiff_tags.ROWS_PER_STRIP: SIDE}}),
        ("TIFF", {"compression": "tiff_lzw", "tiffinfo": {tiff_tags.ROWS_PER_STRIP: SIDE}}),
    ],
)
def test_too_few_bytes_take_no_memory(format_: str, options: dict[str, object]) -> None:
    data = stating(format_, **options)
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableImage, match="cut short"):
            decoding.decode(identification.identify(data, LIMITS))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < SIDE * SIDE // 4


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
@pytest.mark.parametrize(
    ("format_", "options"),
    [
        ("JPEG", {"quality": 1, "optimize": True, "subsampling": 2}),
        ("JPEG", {"quality": 1, "progressive": True}),
        ("PNG", {"compress_level": 9}),
        ("BMP", {}),
        ("GIF", {}),
        ("TIFF", {"compression": "tiff_adobe_deflate", "tiffinfo": {tiff_tags.ROWS_PER_STRIP: 3000}}),
        ("TIFF", {"compression": "tiff_lzw", "tiffinfo": {tiff_tags.ROWS_PER_STRIP: 3000}}),
        ("TIFF", {"compression": "packbits", "tiffinfo": {tiff_tags.ROWS_PER_STRIP: 3000}}),
    ],
)
def test_the_most_even_pictures_have_bytes_enough(mode: str, format_: str, options: dict[str, object]) -> None:
    data = saved(Image.new(mode, (3000, 3000)), format_, **options)
    photo = decoding.decode(identification.identify(data, LIMITS))
    assert photo.size == (3000, 3000)
    assert photo.luma.max() == photo.luma.min()
