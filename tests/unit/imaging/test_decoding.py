import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from service.errors import EmptyUpload, Problem, TooManyPixels, TooManyScans, UnreadableImage, UnsupportedType
from service.formats import containers, decoding_limits, tiff_tags
from service.imaging import color, decoding, identification
from service.imaging.photo import Photo
from tests.conftest import encoded

LIMITS = decoding_limits.Limits(max_pixels=100_000_000, max_side=65_500)


def decode(data: bytes, limits: decoding_limits.Limits = LIMITS, **options: object) -> Photo:
    return decoding.decode(identification.identify(data, limits), **options)  # type: ignore[arg-type]


def png_header(width: int, height: int, depth: int = 8) -> bytes:
    """Return a PNG of some hundred bytes that declares any size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg_with_size(data: bytes, width: int, height: int) -> bytes:
    """Return the JPEG with another size in its frame header."""
    start = data.index(b"\xff\xc0")
    return data[: start + 5] + struct.pack(">HH", height, width) + data[start + 9 :]


def test_luma_of_a_gray_jpeg_is_its_only_plane(jpeg: bytes) -> None:
    photo = decode(jpeg)
    np.testing.assert_array_equal(photo.luma, np.asarray(Image.open(io.BytesIO(jpeg))))
    assert photo.alpha is None


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_luma_of_a_color_jpeg_is_its_y_plane(astronaut: np.ndarray, subsampling: int, progressive: bool) -> None:
    data = encoded(astronaut, "JPEG", quality=90, subsampling=subsampling, progressive=progressive)
    image = Image.open(io.BytesIO(data))
    image.draft("L", image.size)
    np.testing.assert_allclose(decode(data).luma, np.asarray(image), atol=1)


def test_luma_of_a_cmyk_jpeg(astronaut: np.ndarray) -> None:
    buffer = io.BytesIO()
    Image.fromarray(astronaut).convert("CMYK").save(buffer, "JPEG", quality=95)
    expected = color.luma_of_rgb(astronaut).astype(int)
    assert np.abs(decode(buffer.getvalue()).luma - expected).mean() < 3


def test_luma_of_an_rgb_jpeg(astronaut: np.ndarray) -> None:
    data = encoded(astronaut, "JPEG", quality=95, keep_rgb=True)
    expected = color.luma_of_rgb(astronaut).astype(int)
    assert np.abs(decode(data).luma - expected).mean() < 2


@pytest.mark.parametrize("format_", ["PNG", "WEBP"])
def test_lossless_pixels_become_luma(astronaut: np.ndarray, format_: str) -> None:
    data = encoded(astronaut, format_, lossless=True)
    np.testing.assert_array_equal(decode(data).luma, color.luma_of_rgb(astronaut))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_png_modes(astronaut: np.ndarray, mode: str) -> None:
    image = Image.fromarray(astronaut).convert("RGBA" if mode in ("LA", "RGBA") else "RGB")
    if image.mode == "RGBA":
        image.putalpha(Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (512, 2))))
    image = image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    photo = decode(buffer.getvalue())
    expected = np.asarray(image.convert("RGB").convert("L")).astype(int)
    assert np.abs(photo.luma - expected).max() <= 1
    assert (photo.alpha is not None) == (mode in ("LA", "RGBA"))
    if photo.alpha is not None:
        np.testing.assert_array_equal(photo.alpha, np.asarray(image)[..., -1])


@pytest.mark.parametrize("mode", ["P", "L", "1", "RGB"])
def test_one_transparent_colour_is_kept(mode: str) -> None:
    image = Image.new(mode, (4, 4), "white" if mode != "P" else 1)
    if mode == "P":
        image.putpalette([0, 0, 0, 255, 255, 255])
    nothing = (0, 0, 0) if mode == "RGB" else 0
    image.putpixel((0, 0), nothing)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=nothing)
    photo = decode(buffer.getvalue())
    assert photo.alpha is not None
    assert photo.alpha[0, 0] == 0
    assert photo.alpha[1, 1] == 255


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(gray: np.ndarray, format_: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[tiff_tags.ORIENTATION] = orientation
    options = {"quality": 95} if format_ == "JPEG" else {"lossless": True}
    data = encoded(gray, format_, exif=exif, **options)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("L"))
    photo = decode(data)
    np.testing.assert_allclose(photo.luma, expected, atol=1)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("value", [float("inf"), float("nan"), 9.0, -1.0])
def test_an_orientation_that_is_none(gray: np.ndarray, format_: str, value: float) -> None:
    entry = struct.pack("<HHIf", tiff_tags.ORIENTATION, 11, 1, value)
    block = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry + bytes(4)
    assert decode(encoded(gray, format_, exif=block)).luma.shape == gray.shape


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_block_is_no_orientation(gray: np.ndarray) -> None:
    data = encoded(gray, "JPEG", exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff\x12")
    assert decode(data).luma.shape == gray.shape


@pytest.mark.parametrize("quality", [1, 10, 25, 49, 50, 51, 75, 85, 90, 95, 99, 100])
def test_a_jpegs_quality_is_found_again(gray: np.ndarray, quality: int) -> None:
    found = decode(encoded(gray, "JPEG", quality=quality)).quality
    assert found is not None
    assert abs(found - quality) <= 1


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", EmptyUpload),
        (b"these are words, not a picture", UnsupportedType),
        (b"GIF89a\x01\x00\x01\x00\x00\x00\x00;", UnreadableImage),
        (b"\xff\xd8\xff\xe0", UnreadableImage),
        (b"\x89PNG\r\n\x1a\n", UnreadableImage),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), UnreadableImage),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", UnreadableImage),
        (png_header(60_000, 60_000), TooManyPixels),
        (png_header(1, 65_501), TooManyPixels),
        (png_header(100, 100, depth=16), UnreadableImage),
        (png_header(100, 100), UnreadableImage),
    ],
)
def test_bad_input_has_its_problem(data: bytes, problem: type[Problem]) -> None:
    with pytest.raises(problem) as caught:
        decode(data)
    assert caught.value.field == "file"
    assert str(caught.value)


def test_limits_name_themselves() -> None:
    with pytest.raises(TooManyPixels) as caught:
        decode(png_header(101, 100), decoding_limits.Limits(max_pixels=10_000, max_side=65_500))
    assert caught.value.limit == 10_000


def test_a_jpeg_that_lies_about_its_size(jpeg: bytes) -> None:
    with pytest.raises(TooManyPixels):
        decode(jpeg_with_size(jpeg, 60_000, 60_000))
    with pytest.raises(UnreadableImage):
        decode(jpeg_with_size(jpeg, 2000, 2000))


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.95])
def test_a_truncated_file_is_unreadable(gray: np.ndarray, format_: str, share: float) -> None:
    data = encoded(gray, format_)
    with pytest.raises(UnreadableImage):
        decode(data[: int(len(data) * share)])


def test_a_damaged_png_is_never_answered_with_wrong_pixels(gray: np.ndarray) -> None:
    data = encoded(gray, "PNG")
    start = data.index(b"IDAT") + 10
    for position in np.linspace(start, len(data) - 40, 25).astype(int):
        broken = bytearray(data)
        broken[position] ^= 0x55
        try:
            found = decode(bytes(broken)).luma
        except UnreadableImage:
            continue
        np.testing.assert_array_equal(found, gray)


def test_a_png_whose_header_is_not_first(gray: np.ndarray) -> None:
    data = encoded(gray, "PNG")
    private = struct.pack(">I", 0) + b"prVt" + struct.pack(">I", zlib.crc32(b"prVt"))
    with pytest.raises(UnreadableImage):
        decode(data[:8] + private + data[8:])


def scans(data: bytes, count: int) -> bytes:
    """Return the JPEG with its last scan repeated."""
    start = data.rindex(b"\xff\xda")
    return data[:-2] + data[start:-2] * count + data[-2:]


def test_scans_are_counted_before_decoding(gray: np.ndarray) -> None:
    data = encoded(gray, "JPEG", progressive=True)
    own = data.count(b"\xff\xda")
    assert decode(data).luma.shape == gray.shape
    with pytest.raises(TooManyScans) as caught:
        decode(scans(data, 101 - own))
    assert caught.value.limit == 100


def test_segments_are_counted_before_they_are_joined(jpeg: bytes) -> None:
    def with_segments(body: bytes, count: int) -> bytes:
        return jpeg[:2] + (b"\xff\xe1" + struct.pack(">H", 2 + len(body)) + body) * count + jpeg[2:]

    with pytest.raises(UnreadableImage, match="segments"):
        decode(with_segments(b"Exif\0\0" + bytes(10), 17))
    with pytest.raises(UnreadableImage, match="segments"):
        decode(with_segments(b"more", 2000))
    assert decode(with_segments(b"http://ns.adobe.com/xap/1.0/\0", 500)).luma.shape == (333, 501)
    # Not hidden behind junk or fill bytes, and nothing behind the image's end is counted.
    for disguise in (b"junk", b"\xff" * 9):
        hidden = b"\xff\xe1\0\x06more" + disguise + with_segments(b"Exif\0\0" + bytes(10), 17)[2:]
        with pytest.raises(UnreadableImage, match="segments"):
            decode(jpeg[:2] + hidden)
    assert decode(jpeg + b"\xff\xda\xff\xe1Exif\0\0" * 500).luma.shape == (333, 501)


def test_a_jpeg_that_is_only_slightly_off_is_taken(jpeg: bytes) -> None:
    whole = decode(jpeg).luma
    with_junk = jpeg[:-2] + b"junk!" + jpeg[-2:]
    np.testing.assert_array_equal(decode(with_junk).luma, whole)
    np.testing.assert_array_equal(decode(jpeg + b"more behind its end").luma, whole)


def test_an_animation_is_refused() -> None:
    frames = [Image.new("RGB", (8, 8), shade) for shade in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:])
    with pytest.raises(UnsupportedType, match="animated"):
        decode(buffer.getvalue())


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("transfer", "counts"), [(None, True), (13, False), (1, True), (16, True)])
def test_a_cicp_of_srgb_counts_before_a_pngs_gamma(
    gray: np.ndarray, bits: int, transfer: int | None, counts: bool
) -> None:
    """Other transfer characteristics in cICP are not applied. The writer's gamma is used instead."""
    levels = gray if bits == 8 else gray.astype(np.uint16) * 257
    chunks = [(b"gAMA", struct.pack(">I", 100_000))]
    if transfer is not None:
        chunks.append((b"cICP", bytes([1, transfer, 0, 1])))
    found = decode(containers.png_with_chunks(encoded(levels, "PNG"), chunks)).luma
    assert found.dtype == levels.dtype
    assert np.array_equal(found, levels) == (not counts)
