"""Every kind of file that may be uploaded: decoded right, or refused with the reason."""

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pillow_heif
import pytest
import tifffile
from PIL import Image, ImageOps

from service.errors import UnreadableImage, UnsupportedType
from service.formats import decoding_limits, registry
from service.formats.registry import FORMATS, Format
from service.imaging import color, decoding, encoding, identification, resizing
from service.imaging.photo import Photo, Pixels
from service.metadata import transfer
from tests.conftest import encoded

LIMITS = decoding_limits.Limits(max_pixels=100_000_000, max_side=65_500)
ORIENTATION = 274


def decode(data: bytes, **options: object) -> Photo:
    return decoding.decode(identification.identify(data, LIMITS), **options)  # type: ignore[arg-type]


def tiff(pixels: np.ndarray, **options: object) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels, **options)  # type: ignore[arg-type]
    return stream.getvalue()


ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def deep_png(
    pixels: np.ndarray, color_type: int, chunks: dict[bytes, bytes] | None = None, *, interlaced: bool = False
) -> bytes:
    """Return a PNG of 16 bits, written by hand because Pillow writes only gray ones."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width = pixels.shape[:2]
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    rows = [row for left, top, across, down in passes for row in pixels.astype(">u2")[top::down, left::across]]
    parts = {b"IHDR": struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, interlaced), **(chunks or {})}
    parts |= {b"IDAT": zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, body) for kind, body in parts.items())


def heic(pixels: np.ndarray, **options: object) -> bytes:
    stream = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(stream, quality=95, **options)
    return stream.getvalue()


def check(photo: Photo, luma: np.ndarray, alpha: np.ndarray | None = None) -> None:
    assert photo.luma.dtype == luma.dtype
    np.testing.assert_array_equal(photo.luma, luma)
    assert (photo.alpha is None) == (alpha is None)
    if alpha is not None:
        np.testing.assert_array_equal(photo.alpha, alpha)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_tiff_and_deep_png(picture: np.ndarray, deep: np.ndarray, bits: int, orientation: int) -> None:
    gray = color.luma_of_rgb(picture if bits == 8 else deep)
    image = Image.fromarray(gray)
    image.getexif()[ORIENTATION] = orientation
    upright = np.asarray(ImageOps.exif_transpose(image))
    check(decode(tiff(gray, extratags=[(ORIENTATION, 3, 1, orientation, True)])), upright)
    block = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHxxI", ORIENTATION, 3, 1, orientation, 0)
    if bits == 16:
        check(decode(deep_png(gray, 0, {b"eXIf": block})), upright)


def test_run_lengths_of_bmp_are_refused() -> None:
    header = (
        b"BM" + struct.pack("<IHHI", 1100, 0, 0, 1078) + struct.pack("<IiiHHIIiiII", 40, 9, 9, 1, 8, 1, 0, 0, 0, 0, 0)
    )
    with pytest.raises(UnsupportedType, match="run-length"):
        decode(header + bytes(1024) + b"\0\1")


@pytest.mark.parametrize("bits", [2, 4])
def test_the_clear_value_of_a_png_of_few_bits(bits: int) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    row = {2: bytes([0b00011011]), 4: bytes([0x02, 0x5F])}[bits]
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 4, 1, bits, 0, 0, 0, 0)), (b"tRNS", struct.pack(">H", 2))]
    parts += [(b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    photo = decode(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    assert photo.alpha is not None
    assert photo.alpha.tolist() == {2: [[255, 255, 0, 255]], 4: [[255, 0, 255, 255]]}[bits]


def test_pixels_of_heic_are_the_photos_own() -> None:
    """Once, pixels were read from memory that was freed with the file, so from another photo or from nowhere."""
    shades = [np.full((1200, 1600, 3), shade, np.uint8) for shade in (20, 90, 160, 230)]
    files = [heic(shade) for shade in shades]
    with ThreadPoolExecutor(8) as pool:
        lumas = list(pool.map(lambda number: decode(files[number % 4]).luma, range(64)))
    for number, luma in enumerate(lumas):
        assert np.abs(luma.astype(int) - shades[number % 4][..., 0]).max() <= 2


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_cut_short(picture: np.ndarray, deep: np.ndarray, share: float) -> None:
    files = [
        tiff(picture, photometric="rgb"),
        tiff(deep, photometric="rgb"),
        tiff(deep, photometric="rgb", compression="zlib"),
        deep_png(deep, 2),
        encoded(picture, "AVIF"),
        heic(picture),
        encoded(picture, "BMP"),
    ]
    for data in files:
        with pytest.raises(UnreadableImage):
            decode(data[: int(len(data) * share)])


@pytest.mark.parametrize("interlaced", [False, True])
def test_a_deep_png(deep: np.ndarray, interlaced: bool) -> None:
    gray = color.luma_of_rgb(deep)
    other = gray[::-1]
    check(decode(deep_png(gray, 0, interlaced=interlaced)), gray)
    check(decode(deep_png(deep, 2, interlaced=interlaced)), gray)
    check(decode(deep_png(np.dstack([gray, other]), 4, interlaced=interlaced)), gray, other)
    check(decode(deep_png(np.dstack([deep, other]), 6, interlaced=interlaced)), gray, other)


def test_one_clear_value_of_a_deep_png(deep: np.ndarray) -> None:
    gray = color.luma_of_rgb(deep)
    photo = decode(deep_png(gray, 0, {b"tRNS": struct.pack(">H", int(gray[5, 7]))}))
    check(photo, gray, np.where(gray == gray[5, 7], 0, 65_535).astype(np.uint16))
    clear = decode(deep_png(deep, 2, {b"tRNS": struct.pack(">HHH", *map(int, deep[5, 7]))})).alpha
    assert clear is not None
    assert (clear[5, 7], clear[6, 7]) == (0, 65_535)


def test_damage_of_a_deep_png_is_found(deep: np.ndarray) -> None:
    data = deep_png(deep, 2)
    start = data.index(b"IDAT") + 10
    for position in np.linspace(start, len(data) - 20, 20).astype(int):
        broken = bytearray(data)
        broken[position] ^= 0x55
        with pytest.raises(UnreadableImage):
            decode(bytes(broken))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("source", ["avif", "heic"])
def test_avif_and_heic_are_upright(picture: np.ndarray, source: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = Image.fromarray(picture)
    image.getexif()[ORIENTATION] = orientation
    upright = color.luma_of_rgb(np.asarray(ImageOps.exif_transpose(image)))
    stream = io.BytesIO()
    if source == "avif":
        image.save(stream, "AVIF", quality=95, exif=exif.tobytes())
    else:
        pillow_heif.register_heif_opener()
        image.save(stream, "HEIF", quality=95, exif=exif.tobytes())
    data = stream.getvalue()
    assert identification.source_of(data) == source
    found = decode(data).luma
    assert found.shape == upright.shape
    assert np.abs(found.astype(int) - upright).mean() < 1.5


@pytest.mark.parametrize("source", ["avif", "heic"])
def test_alpha_and_gray_of_avif_and_heic(picture: np.ndarray, source: str) -> None:
    def made(pixels: np.ndarray) -> bytes:
        return encoded(pixels, "AVIF", quality=95) if source == "avif" else heic(pixels)

    gray = color.luma_of_rgb(picture)
    photo = decode(made(np.dstack([picture, gray])))
    assert photo.alpha is not None
    assert np.abs(photo.alpha.astype(int) - gray).mean() < 1.5
    plain = decode(made(gray), detect_tone=True)
    assert (plain.tone, plain.alpha) == ("gray", None)
    assert np.abs(plain.luma.astype(int) - gray).mean() < 1.5


def test_several_images_in_one_file_are_refused(picture: np.ndarray) -> None:
    first, second = Image.fromarray(picture), Image.fromarray(picture[::-1].copy())
    files = []
    for format_ in ("GIF", "PNG", "WEBP", "AVIF"):
        stream = io.BytesIO()
        first.save(stream, format_, save_all=True, append_images=[second], duration=100)
        files.append(stream.getvalue())
    for data in files:
        with pytest.raises(UnsupportedType, match="animated"):
            decode(data)
    both = pillow_heif.from_pillow(first)
    both.add_from_pillow(second)
    stream = io.BytesIO()
    both.save(stream)
    with pytest.raises(UnsupportedType, match="several"):
        decode(stream.getvalue())


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
@pytest.mark.parametrize("format_", ["BMP", "GIF"])
def test_bmp_and_gif(picture: np.ndarray, mode: str, format_: str) -> None:
    stream = io.BytesIO()
    Image.fromarray(picture).convert(mode).save(stream, format_)
    data = stream.getvalue()
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.abs(decode(data).luma.astype(int) - color.luma_of_rgb(expected)).max() <= 1


def test_a_frame_without_pixels_makes_no_gif_animated(picture: np.ndarray) -> None:
    data = encoded(picture[..., 0], "GIF")
    image = data.rindex(b"\x2c\0\0\0\0" + data[6:10])
    empty = b"\x2c" + bytes(9) + b"\x02\0"
    np.testing.assert_array_equal(decode(data[:image] + empty + data[image:]).luma, decode(data).luma)


def test_a_transparent_gif(picture: np.ndarray) -> None:
    alpha = np.zeros(picture.shape[:2], np.uint8)
    alpha[50:] = 255
    photo = decode(encoded(np.dstack([picture, alpha]), "GIF"))
    np.testing.assert_array_equal(photo.alpha, alpha)


def frame(data: bytes, marker: int, bits: int = 8) -> bytes:
    """Return the JPEG with another frame marker."""
    start = data.index(b"\xff\xc0")
    return data[: start + 1] + bytes([marker]) + data[start + 2 : start + 4] + bytes([bits]) + data[start + 5 :]


def test_jpegs_that_are_refused_with_the_reason(jpeg: bytes) -> None:
    with pytest.raises(UnsupportedType, match="12 bits"):
        decode(frame(jpeg, 0xC1, 12))
    for marker in (0xC3, 0xC7, 0xF7):
        with pytest.raises(UnsupportedType, match="lossless"):
            decode(frame(jpeg, marker))


def test_the_quality_of_a_cmyk_jpeg_is_its_own(picture: np.ndarray) -> None:
    stream = io.BytesIO()
    Image.fromarray(picture).convert("CMYK").save(stream, "JPEG", quality=97)
    assert decode(stream.getvalue()).quality == 97


def test_cmyk_with_and_without_adobes_marker(picture: np.ndarray) -> None:
    stream = io.BytesIO()
    Image.fromarray(picture).convert("CMYK").save(stream, "JPEG", quality=95)
    data = stream.getvalue()
    start = data.index(b"\xff\xee\x00\x0eAdobe")
    # Inks are stored the other way round, as Adobe does it, by all that still write such files.
    for file in (data, data[:start] + data[start + 16 :]):
        assert np.abs(decode(file).luma.astype(int) - color.luma_of_rgb(picture)).mean() < 3


@pytest.mark.parametrize(
    ("source", "with_alpha", "answer"),
    [
        ("jpeg", False, "jpeg"),
        ("png", True, "png"),
        ("webp", False, "webp"),
        ("tiff", True, "tiff"),
        ("avif", False, "jpeg"),
        ("avif", True, "png"),
        ("heic", False, "jpeg"),
        ("bmp", False, "jpeg"),
        ("gif", True, "png"),
    ],
)
def test_what_an_upload_is_answered_in(source: str, with_alpha: bool, answer: str) -> None:
    assert registry.default_format(source, has_alpha=with_alpha) == answer  # type: ignore[arg-type]


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("with_alpha", [False, True])
def test_a_picture_in_every_format_is_what_it_was(
    picture: np.ndarray, deep: np.ndarray, format_: Format, bits: int, with_alpha: bool
) -> None:
    rgb = picture if bits == 8 else deep
    alpha = color.luma_of_rgb(rgb)[::-1].copy() if with_alpha and format_ != "jpeg" else None
    fitted = resizing.fit_pixels(Pixels(rgb, alpha), format_, None)
    assert fitted.rgb.dtype == (np.uint16 if bits == 16 and format_ in ("png", "tiff") else np.uint8)
    # What says that a fourth channel is alpha is written with the metadata.
    data = transfer.write(encoding.encode_pixels(fitted, format_, 95), format_, transfer.Metadata())
    found = decoding.decode_pixels(identification.identify(data, LIMITS))
    assert found.rgb.dtype == fitted.rgb.dtype
    if format_ in ("png", "tiff"):
        np.testing.assert_array_equal(found.rgb, rgb)
    else:
        assert np.abs(found.rgb.astype(int) - picture).mean() < 4
    assert (found.alpha is None) == (alpha is None)


def test_sixteen_bits_become_eight_by_rounding() -> None:
    levels = np.array([[0, 128, 129, 385, 386, 65_406, 65_407, 65_535]], np.uint16)
    assert resizing.fit(Photo(levels, None), "webp", None).luma.tolist() == [[0, 0, 1, 1, 2, 254, 255, 255]]


@pytest.mark.parametrize("subsampling", [0, 2])
def test_the_tone_of_a_jpeg(astronaut: np.ndarray, subsampling: int) -> None:
    assert decode(encoded(astronaut, "JPEG", subsampling=subsampling), detect_tone=True).tone == "color"
    gray = cv2.cvtColor(astronaut, cv2.COLOR_RGB2GRAY)
    assert decode(encoded(np.dstack([gray] * 3), "JPEG", subsampling=subsampling), detect_tone=True).tone == "gray"
    sepia = np.clip(gray[..., np.newaxis] * np.array([1.1, 0.98, 0.76]), 0, 255).astype(np.uint8)
    assert decode(encoded(sepia, "JPEG", subsampling=subsampling), detect_tone=True).tone == "toned"
    assert decode(encoded(gray, "JPEG"), detect_tone=True).tone == "gray"
    assert decode(encoded(astronaut, "JPEG")).tone is None
