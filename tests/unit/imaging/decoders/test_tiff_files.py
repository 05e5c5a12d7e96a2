"""TIFF files as tifffile and Pillow write them: decoded, or refused with the reason."""

import io
import struct
from collections.abc import Callable

import numpy as np
import pytest
import tifffile
from PIL import Image

from service.errors import Problem, TooManyPixels, UnreadableImage, UnsupportedType
from service.imaging import color
from tests.conftest import encoded
from tests.unit.imaging.test_kinds_of_files import check, decode, tiff


def tiff_with_mask(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as file:
        file.write(pixels, photometric="rgb")
        file.write(pixels[..., 0] > 0, photometric="mask", subfiletype=4)
    return stream.getvalue()


TIFFS: dict[str, dict[str, object]] = {
    "plain": {},
    "big": {"bigtiff": True},
    "a strip a row": {"rowsperstrip": 1},
    "tiles": {"tile": (64, 64)},
    "deflate": {"compression": "zlib", "predictor": True},
}


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", TIFFS)
def test_tiff(picture: np.ndarray, deep: np.ndarray, bits: int, order: str, kind: str) -> None:
    options = {"byteorder": order, **TIFFS[kind]}
    rgb = picture if bits == 8 else deep
    gray = color.luma_of_rgb(rgb)
    check(decode(tiff(rgb, photometric="rgb", **options)), gray)
    check(decode(tiff(gray, photometric="minisblack", **options)), gray)
    layers = np.dstack([rgb, gray[::-1]])
    check(decode(tiff(layers, photometric="rgb", extrasamples=["unassalpha"], **options)), gray, gray[::-1])
    check(decode(tiff(layers, photometric="rgb", extrasamples=["unspecified"], **options)), gray)


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_whose_zero_is_white(picture: np.ndarray, deep: np.ndarray, order: str) -> None:
    for rgb in (picture, deep):
        gray = color.luma_of_rgb(rgb)
        data = tiff(gray, photometric="miniswhite", byteorder=order)
        check(decode(data), color.max_level(gray) - gray)


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_adobe_deflate", "zstd", "lzma"])
def test_tiff_compressions(picture: np.ndarray, compression: str) -> None:
    check(decode(encoded(picture, "TIFF", compression=compression)), color.luma_of_rgb(picture))


@pytest.mark.parametrize("compression", ["group3", "group4"])
def test_a_fax(gray: np.ndarray, compression: str) -> None:
    image = Image.fromarray(gray).convert("1")
    stream = io.BytesIO()
    image.save(stream, "TIFF", compression=compression)
    check(decode(stream.getvalue()), np.asarray(image.convert("L")))


@pytest.mark.parametrize("mode", ["P", "CMYK", "LA"])
def test_other_tiffs(picture: np.ndarray, mode: str) -> None:
    stream = io.BytesIO()
    image = Image.fromarray(picture).convert(mode)
    image.save(stream, "TIFF")
    expected = color.luma_of_rgb(np.asarray(image.convert("RGB")))
    assert np.abs(decode(stream.getvalue()).luma.astype(int) - expected).max() <= 1


def test_a_tiff_that_was_compressed_as_jpeg(picture: np.ndarray) -> None:
    photo = decode(encoded(picture, "TIFF", compression="jpeg", quality=95))
    assert np.abs(photo.luma.astype(int) - color.luma_of_rgb(picture)).mean() < 2


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda rgb: tiff(rgb.astype(np.float32), photometric="rgb"), "floating"),
        (lambda rgb: tiff(rgb[..., 0].astype(np.int16)), "signed"),
        (lambda rgb: tiff(rgb[..., 0].astype(np.uint32)), "32 bits"),
        (lambda rgb: tiff(np.stack([rgb[..., 0]] * 3), photometric="minisblack"), "several pages"),
        (lambda rgb: tiff_with_mask(rgb), "mask"),
        (lambda rgb: tiff(rgb[..., 0].copy(), extratags=[(50706, 1, 4, b"\1\4\0\0", True)]), "raw"),
        (lambda rgb: tiff(rgb, photometric="cielab"), r"space \(8, CIE"),
    ],
)
def test_tiffs_that_are_refused_with_the_reason(
    picture: np.ndarray, make: Callable[[np.ndarray], bytes], reason: str
) -> None:
    with pytest.raises(UnsupportedType, match=reason):
        decode(make(picture))


def patched(data: bytes, tag: int, value: int) -> bytes:
    """Return the little-endian TIFF with another short value of a tag."""
    start = struct.unpack_from("<I", data, 4)[0]
    for at in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", data, start)[0], 12):
        if struct.unpack_from("<H", data, at)[0] == tag:
            return data[: at + 8] + struct.pack("<HH", value, 0) + data[at + 12 :]
    raise AssertionError(tag)


@pytest.mark.parametrize(("bits", "compression"), [(8, 34887), (8, 50001), (16, 7)])
def test_compressions_that_can_not_be_read_are_named(
    picture: np.ndarray, deep: np.ndarray, bits: int, compression: int
) -> None:
    data = tiff(picture if bits == 8 else deep, photometric="rgb")
    with pytest.raises(UnsupportedType, match=rf"\({compression}\b"):
        decode(patched(data, 259, compression))


def test_alpha_that_gray_was_multiplied_with(picture: np.ndarray) -> None:
    alpha = np.full(picture.shape[:2], 128, np.uint8)
    gray = color.luma_of_rgb(picture) // 2
    data = tiff(np.dstack([gray, alpha]), photometric="minisblack", extrasamples=["assocalpha"], planarconfig="contig")
    photo = decode(data)
    assert np.abs(photo.luma.astype(int) - color.luma_of_rgb(picture)).max() <= 3
    np.testing.assert_array_equal(photo.alpha, alpha)


def test_a_thumbnail_in_front_is_no_photo(picture: np.ndarray) -> None:
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        writer.write(picture[::8, ::8].copy(), photometric="rgb", subfiletype=1)
        writer.write(picture, photometric="rgb")
    with pytest.raises(UnsupportedType, match="thumbnail"):
        decode(stream.getvalue())


def test_a_tiff_with_a_thumbnail_has_one_page(picture: np.ndarray) -> None:
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        writer.write(picture, photometric="rgb")
        writer.write(picture[::8, ::8].copy(), photometric="rgb", subfiletype=1)
    check(decode(stream.getvalue()), color.luma_of_rgb(picture))


def hollow_tiff(**tags: tuple[int, int, int]) -> bytes:
    """Return a TIFF of one directory without pixels. tags: type, count and value of each tag."""
    entries = sorted((int(name[1:]), *entry) for name, entry in tags.items())
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + bytes(4)


def test_bombs_of_tiff() -> None:
    sides = {"_256": (4, 1, 60_000), "_257": (4, 1, 60_000), "_258": (3, 1, 8)}
    with pytest.raises(TooManyPixels):
        decode(hollow_tiff(**sides))
    few = {"_256": (4, 1, 100), "_257": (4, 1, 100), "_258": (3, 1, 8)}
    with pytest.raises(UnreadableImage, match="strips"):
        decode(hollow_tiff(**few, _273=(4, 1_000_000, 8)))
    with pytest.raises(UnreadableImage):
        decode(hollow_tiff(**few, _273=(4, 2**32 - 1, 8)))
    with pytest.raises(UnreadableImage):
        decode(hollow_tiff(**few))
    # A directory whose next one is itself.
    data = hollow_tiff(**few)
    with pytest.raises(Problem):
        decode(data[:-4] + struct.pack("<I", 8))
