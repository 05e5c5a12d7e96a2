"""Tests of the header and the scans of a JPEG, and of the copy that holds nothing but the image."""

import io

import numpy as np
import pytest
from PIL import Image

from service.errors import UnreadableImage
from service.formats import jpeg_structure
from tests.conftest import encoded

PICTURE = np.random.default_rng(0).integers(0, 256, (33, 47, 3), np.uint8)


@pytest.mark.parametrize(("mode", "space", "components"), [("L", "gray", 1), ("RGB", "YCbCr", 3), ("CMYK", "CMYK", 4)])
def test_a_header(mode: str, space: str, components: int) -> None:
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).convert(mode).save(buffer, "JPEG")
    header = jpeg_structure.header(buffer.getvalue())
    assert (header.frame.height, header.frame.width, len(header.frame.components)) == (33, 47, components)
    assert header.space == space


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}])
def test_a_plain_copy_has_the_same_pixels_and_no_metadata(options: dict[str, object]) -> None:
    data = encoded(PICTURE, "JPEG", comment=b"a secret", exif=b"Exif\0\0II*\0\x08\0\0\0" + bytes(6), **options)
    plain = jpeg_structure.plain(data + b"more data")
    copy = plain.file()
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(copy))), np.asarray(Image.open(io.BytesIO(data))))
    assert b"secret" not in copy
    assert b"Exif" not in copy
    assert all(scan.is_regular for scan in plain.scans)


def test_a_header_without_pixels_keeps_exif() -> None:
    exif = Image.Exif()
    exif[0x10E] = "a caption"
    header = jpeg_structure.header(encoded(PICTURE, "JPEG", exif=exif))
    image = Image.open(io.BytesIO(header.without_pixels()))
    assert (image.size, image.getexif()[0x10E]) == ((47, 33), "a caption")


def test_a_filling_of_zeros_is_removed() -> None:
    data = encoded(PICTURE, "JPEG").removesuffix(jpeg_structure.END)
    scan = jpeg_structure.plain(data).scans[0].data
    filled = jpeg_structure.plain(data + bytes(jpeg_structure.MIN_ZERO_FILLING)).scans[0].data
    assert filled == bytes(scan) + bytes(jpeg_structure.KEPT_ZEROS)


@pytest.mark.parametrize("data", [b"\xff\xd8", b"\xff\xd8\xff\xd9", encoded(PICTURE, "JPEG")[:30]])
def test_a_file_without_a_scan_is_damaged(data: bytes) -> None:
    with pytest.raises(UnreadableImage, match="no scan"):
        jpeg_structure.header(data)
