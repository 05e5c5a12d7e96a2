import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from service import codec, color, header, segments
from service.photo import Format, Photo, Pixels, Planes
from service.problems import (
    EmptyUpload,
    InvalidOption,
    Problem,
    TooManyPixels,
    TooManyScans,
    UnreadableImage,
    UnsupportedType,
)
from tests.conftest import decoded, encoded, luma

LIMITS = header.Limits(max_pixels=100_000_000, max_side=65_500)


def decode(data: bytes, limits: header.Limits = LIMITS, **options: object) -> Photo:
    return codec.decode(data, header.source_of(data), limits, **options)  # type: ignore[arg-type]


def png_header(width: int, height: int, depth: int = 8) -> bytes:
    """A PNG of some hundred bytes that claims any size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg_with_size(data: bytes, width: int, height: int) -> bytes:
    """A JPEG whose frame header claims another size."""
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
    exif[codec.ORIENTATION_TAG] = orientation
    options = {"quality": 95} if format_ == "JPEG" else {"lossless": True}
    data = encoded(gray, format_, exif=exif, **options)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("L"))
    photo = decode(data)
    np.testing.assert_allclose(photo.luma, expected, atol=1)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("value", [float("inf"), float("nan"), 9.0, -1.0])
def test_an_orientation_that_is_none(gray: np.ndarray, format_: str, value: float) -> None:
    entry = struct.pack("<HHIf", codec.ORIENTATION_TAG, 11, 1, value)
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


@pytest.mark.parametrize(("source", "expected"), [(40, 85), (85, 85), (97, 97), (None, 92)])
def test_default_quality_is_the_sources_own_but_never_poor(gray: np.ndarray, source: int | None, expected: int) -> None:
    data = encoded(gray, "JPEG", quality=source) if source else encoded(gray, "PNG")
    assert codec.default_quality(decode(data)) == expected


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
        decode(png_header(101, 100), header.Limits(max_pixels=10_000, max_side=65_500))
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
    """The JPEG with its last scan repeated."""
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
    def segments(body: bytes, count: int) -> bytes:
        return jpeg[:2] + (b"\xff\xe1" + struct.pack(">H", 2 + len(body)) + body) * count + jpeg[2:]

    with pytest.raises(UnreadableImage, match="segments"):
        decode(segments(b"Exif\0\0" + bytes(10), 17))
    with pytest.raises(UnreadableImage, match="segments"):
        decode(segments(b"more", 2000))
    assert decode(segments(b"http://ns.adobe.com/xap/1.0/\0", 500)).luma.shape == (333, 501)
    # Not hidden behind junk or fill bytes, and nothing behind the image's end is counted.
    for disguise in (b"junk", b"\xff" * 9):
        hidden = b"\xff\xe1\0\x06more" + disguise + segments(b"Exif\0\0" + bytes(10), 17)[2:]
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


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 2), (15, 17), (333, 501)])
def test_planes_come_back_as_they_went_in(gray: np.ndarray, shape: tuple[int, int]) -> None:
    source = encoded(gray[: shape[0], : shape[1]], "JPEG", quality=90)
    plane = decode(source).luma
    small = color.half(plane)
    data = codec.encode_planes(Planes(plane, np.full_like(small, 100), np.full_like(small, 160)), 90)
    assert decoded(data).shape == (*shape, 3)
    # Beyond the photo's edge, a JPEG's blocks are filled up: in a tiny one that weighs.
    assert np.abs(luma(data) - plane).mean() < (0.5 if min(shape) > 16 else 3)


@pytest.mark.parametrize("shape", [(1, 1), (333, 501), (336, 501), (333, 512), (336, 512)])
def test_nothing_from_beyond_the_planes_gets_into_the_file(gray: np.ndarray, shape: tuple[int, int]) -> None:
    plane = np.resize(gray, shape)
    half = color.half(plane)
    files = set()
    for filler in range(20):
        # The same planes, each time at the end of a memory block with other content behind them.
        block = np.full(plane.size + 4096, 12 * filler, np.uint8)
        inside = block[: plane.size].reshape(shape)
        inside[:] = plane
        files.add(codec.encode_planes(Planes(inside, half, half), 90))
    assert len(files) == 1


@pytest.mark.parametrize("format_", ["jpeg", "png", "webp"])
@pytest.mark.parametrize("with_alpha", [False, True])
def test_pixels_of_every_format(astronaut: np.ndarray, format_: str, with_alpha: bool) -> None:
    alpha = np.tile(np.arange(256, dtype=np.uint8), (512, 2)) if with_alpha and format_ != "jpeg" else None
    data = codec.encode_pixels(Pixels(astronaut, alpha), format_, 92)  # type: ignore[arg-type]
    image = Image.open(io.BytesIO(data))
    assert image.format == format_.upper()
    if alpha is not None:
        np.testing.assert_array_equal(np.asarray(image)[..., 3], alpha)
    else:
        assert np.abs(decoded(data).astype(int) - astronaut).mean() < 6


@pytest.mark.parametrize("format_", ["webp", "avif"])
def test_what_would_take_too_long_is_refused_or_no_default(format_: Format) -> None:
    codec.check_size(5000, 8000, format_)
    with pytest.raises(InvalidOption) as caught:
        codec.check_size(5001, 8000, format_)
    assert (caught.value.field, caught.value.limit) == ("format", 40_000_000)
    assert codec.default_format("webp", has_alpha=False, pixels=40_000_000) == "webp"
    assert codec.default_format("webp", has_alpha=True, pixels=40_000_001) == "png"


def test_a_webp_has_room_for_16383_pixels() -> None:
    codec.check_size(1, 16_383, "webp")
    with pytest.raises(InvalidOption) as caught:
        codec.check_size(1, 16_384, "webp")
    assert (caught.value.field, caught.value.limit) == ("format", 16_383)


def test_a_fitting_photo_keeps_its_shape_and_is_never_enlarged(gray: np.ndarray) -> None:
    photo = decode(encoded(gray, "PNG"))
    assert codec.fit(photo, "png", 100).size == (66, 100)
    assert codec.fit(photo, "png", 10_000).size == photo.size
    assert codec.fit(photo, "png", 1).size == (1, 1)


def test_a_jpeg_has_no_alpha_so_the_photo_is_laid_on_white() -> None:
    pixels = np.array([[[0, 0], [0, 255], [100, 128]]], np.uint8)
    photo = decode(encoded(pixels, "PNG"))
    flat = codec.fit(photo, "jpeg", None)
    assert flat.alpha is None
    assert flat.luma.tolist() == [[255, 0, 177]]
    rgb = codec.fit_pixels(codec.decode_pixels(encoded(pixels, "PNG"), "png", LIMITS), "jpeg", None).rgb
    assert rgb.tolist() == [[[255] * 3, [0] * 3, [177] * 3]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("format_", ["png", "jpeg", "webp"])
def test_what_lies_under_transparent_pixels_does_not_show_at_the_edges(dtype: type, format_: Format) -> None:
    down, across = np.indices((301, 301)) - 150
    disc = (np.hypot(down, across) < 100).astype(dtype) * np.iinfo(dtype).max
    colored = np.dstack([disc, disc // 2, disc // 4])
    gray = codec.fit(Photo(disc, disc), format_, 100)
    fitted = codec.fit_pixels(Pixels(colored, disc), format_, 100)
    most = np.iinfo(gray.luma.dtype).max
    if format_ == "jpeg":
        assert gray.alpha is None
        assert (gray.luma == most).all()
        return
    assert gray.alpha is not None
    assert set(np.unique(gray.luma)) <= {0, most}
    assert ((gray.alpha > 0) & (gray.alpha < most)).sum() > 100
    shown = gray.alpha > 0
    assert (gray.luma[shown] == most).all()
    assert np.abs(fitted.rgb[shown].astype(int) - (most, most // 2, most // 4)).max() <= 1


def test_fully_transparent_parts_keep_their_colors_and_opaque_ones_are_shrunk_by_area(astronaut: np.ndarray) -> None:
    by_area = codec.fit_pixels(Pixels(astronaut, None), "png", 128).rgb
    for level in (0, 1, 255):
        alpha = np.full(astronaut.shape[:2], level, np.uint8)
        fitted = codec.fit_pixels(Pixels(astronaut, alpha), "png", 128)
        assert np.abs(fitted.rgb.astype(int) - by_area).max() <= 1
        assert (fitted.alpha == level).all()


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("transfer", "counts"), [(None, True), (13, False), (1, True), (16, True)])
def test_a_cicp_of_srgb_counts_before_a_pngs_gamma(
    gray: np.ndarray, bits: int, transfer: int | None, counts: bool
) -> None:
    """Of other transfer characteristics, which are not applied, the gamma is what the writer gives in their place."""
    levels = gray if bits == 8 else gray.astype(np.uint16) * 257
    chunks = [(b"gAMA", struct.pack(">I", 100_000))]
    if transfer is not None:
        chunks.append((b"cICP", bytes([1, transfer, 0, 1])))
    found = decode(segments.png_with(encoded(levels, "PNG"), chunks)).luma
    assert found.dtype == levels.dtype
    assert np.array_equal(found, levels) == (not counts)
