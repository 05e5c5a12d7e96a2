"""Every layout of a TIFF's samples is decoded correctly, or refused with a true reason."""

import contextlib
import io
from collections.abc import Sequence

import numpy as np
import pytest
import tifffile
from PIL import Image

from service.errors import Problem, TooManyPixels, TooManyScans, UnreadableImage, UnsupportedType
from service.formats import decoding_limits, tiff_tags
from service.imaging import color, decoding, identification
from service.imaging.photo import Photo, Pixels
from tests.samples import tiffs
from tests.samples.tiffs import tiff

LIMITS = decoding_limits.Limits(max_pixels=100_000_000, max_side=65_500)
SIDES = (37, 53)


def photo(data: bytes) -> Photo:
    return decoding.decode(identification.identify(data, LIMITS))


def pixels(data: bytes) -> Pixels:
    return decoding.decode_pixels(identification.identify(data, LIMITS))


def noise(channels: int, bits: int = 8, seed: int = 0) -> np.ndarray:
    dtype = np.uint16 if bits == 16 else np.uint8
    return np.random.default_rng(seed).integers(0, 2**bits, (*SIDES, channels), dtype)


def check(data: bytes, expected: np.ndarray, alpha: np.ndarray | None = None) -> None:
    """Check that the file has these pixels, gray or RGB, and this alpha."""
    found = photo(data)
    luma = expected if expected.ndim == 2 else color.luma_of_rgb(np.ascontiguousarray(expected))
    assert found.luma.dtype == expected.dtype
    np.testing.assert_array_equal(found.luma, luma)
    rgb = expected if expected.ndim == 3 else np.dstack([expected] * 3)
    np.testing.assert_array_equal(pixels(data).rgb, rgb)
    assert (found.alpha is None) == (alpha is None)
    if alpha is not None:
        np.testing.assert_array_equal(found.alpha, alpha)


def fax_of(contents: Sequence[bytes], number: int, tile: tuple[int, int] | None = None) -> bytes:
    """Return a TIFF of 512 x 512 pixels with fax compression."""
    tags: tiffs.Tags = {
        tiff_tags.IMAGE_WIDTH: (4, [512]),
        tiff_tags.IMAGE_LENGTH: (4, [512]),
        tiff_tags.COMPRESSION: (3, [number]),
        tiff_tags.PHOTOMETRIC_INTERPRETATION: (3, [0]),
        tiff_tags.ROWS_PER_STRIP: (4, [512 // len(contents)]),
    }
    tags |= {tiff_tags.TILE_WIDTH: (4, [tile[0]]), tiff_tags.TILE_LENGTH: (4, [tile[1]])} if tile else {}
    return tiffs.assembled(contents, tags, {}, is_tiled=tile is not None)


LAYOUTS: dict[str, dict[str, object]] = {
    "one strip": {},
    "strips": {"rows": 5},
    "tiles": {"tile": (16, 32)},
    "planes": {"is_planar": True},
    "planes in strips": {"is_planar": True, "rows": 5},
    "planes in tiles": {"is_planar": True, "tile": (32, 16)},
}
MOTOROLA = {"order": ">"}
WAYS: dict[str, dict[str, object]] = {
    "none": {},
    "motorola": MOTOROLA,
    "big": {"big": True},
    "big motorola": {"big": True, **MOTOROLA},
    "reversed": {"is_reversed": True},
    "lzw": {"compression": 5},
    "lzw with predictor": {"compression": 5, "predictor": 2, **MOTOROLA},
    "deflate": {"compression": 8, **MOTOROLA},
    "deflate with predictor": {"compression": 8, "predictor": 2},
    "reversed deflate": {"compression": 32946, "is_reversed": True},
    "packbits": {"compression": 32773},
    "lzma with predictor": {"compression": 34925, "predictor": 2},
    "zstandard": {"compression": 50000, **MOTOROLA},
}


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(layout: str, way: str, bits: int) -> None:
    options = LAYOUTS[layout] | WAYS[way]
    for channels, extras, kind in ((1, (), 1), (2, (2,), 1), (3, (), 2), (4, (2,), 2), (5, (0, 2), 2)):
        samples = noise(channels, bits)
        data = tiff(samples, kind=kind, extras=extras, **options)  # type: ignore[arg-type]
        if way not in ("lzw", "lzw with predictor", "packbits", "zstandard", "reversed", "reversed deflate"):
            # An independent decoder, which has no such codec without a library of them, agrees on what was written.
            whole = tifffile.imread(io.BytesIO(data))
            whole = np.moveaxis(whole, 0, -1) if options.get("is_planar") and channels > 1 else whole
            np.testing.assert_array_equal(whole.reshape(samples.shape), samples)
        expected = samples[..., 0] if kind == 1 else samples[..., :3]
        check(data, expected, samples[..., channels - 1] if extras else None)


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("layout", ["one strip", "strips", "tiles"])
@pytest.mark.parametrize("compression", [1, 5, 32773])
def test_gray_of_few_bits(bits: int, kind: int, layout: str, compression: int) -> None:
    samples = noise(1, bits)
    gray = samples[..., 0] * np.uint8(255 // (2**bits - 1))
    for is_reversed in (False, True):
        data = tiff(samples, bits=bits, kind=kind, compression=compression, is_reversed=is_reversed, **LAYOUTS[layout])  # type: ignore[arg-type]
        check(data, 255 - gray if kind == 0 else gray)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rgb_of_four_bits(layout: str) -> None:
    samples = noise(4, 4)
    data = tiff(samples, bits=4, kind=2, extras=(2,), **LAYOUTS[layout])  # type: ignore[arg-type]
    check(data, samples[..., :3] * np.uint8(17), samples[..., 3] * np.uint8(17))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("told", [(4,), (1,), (4, 4, 4), (0,)])
def test_samples_that_are_not_told_to_be_unsigned(bits: int, told: Sequence[int]) -> None:
    samples = noise(3, bits)
    check(tiff(samples, kind=2, tags={tiff_tags.SAMPLE_FORMAT: (tiff_tags.SHORT, told)}), samples)


def test_tags_that_writers_leave_out() -> None:
    samples = noise(3)
    check(tiff(samples, kind=2, tags={tiff_tags.SAMPLES_PER_PIXEL: None}), samples)
    check(tiff(samples, kind=2, tags={tiff_tags.BITS_PER_SAMPLE: (tiff_tags.SHORT, [8])}), samples)
    check(
        tiff(
            samples,
            kind=2,
            tags={tiff_tags.COMPRESSION: None, tiff_tags.ROWS_PER_STRIP: None, tiff_tags.PLANAR_CONFIGURATION: None},
        ),
        samples,
    )
    line = noise(1, 1)
    check(tiff(line, bits=1, tags={tiff_tags.BITS_PER_SAMPLE: None}), line[..., 0] * np.uint8(255))
    # ExtraSamples in single bytes.
    check(tiff(noise(4), kind=2, tags={tiff_tags.EXTRA_SAMPLES: (1, [2])}), noise(4)[..., :3], noise(4)[..., 3])


@pytest.mark.parametrize("compression", [1, 5, 8])
@pytest.mark.parametrize("rows", [[0], [2**32 - 1], [37], [100_000]])
def test_rows_of_a_single_strip(rows: Sequence[int], compression: int) -> None:
    samples = noise(3)
    check(
        tiff(samples, kind=2, compression=compression, tags={tiff_tags.ROWS_PER_STRIP: (tiff_tags.LONG, rows)}), samples
    )


@pytest.mark.parametrize("compression", [1, 5, 8, 32773, 50000])
@pytest.mark.parametrize("options", [{}, {"rows": 5}, {"rows": 5, "is_planar": True}, {"tile": (16, 16)}])
def test_sizes_that_are_missing_are_worked_out(compression: int, options: dict[str, object]) -> None:
    samples = noise(3)
    made = {"kind": 2, "compression": compression, **options}
    tag = tiff_tags.TILE_BYTE_COUNTS if "tile" in options else tiff_tags.STRIP_BYTE_COUNTS
    whole = tiff(samples, **made)  # type: ignore[arg-type]
    with tifffile.TiffFile(io.BytesIO(whole)) as file:
        number = len(file.pages[0].dataoffsets)
    check(tiff(samples, tags={tag: None}, **made), samples)  # type: ignore[arg-type]
    check(tiff(samples, tags={tag: (tiff_tags.LONG, [0] * number)}, **made), samples)  # type: ignore[arg-type]
    if number > 1:
        with pytest.raises(UnreadableImage, match="cut short"):
            photo(tiff(samples, tags={tag: (tiff_tags.LONG, [9] * (number - 1))}, **made))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tags", "kind", "reason"),
    [
        ({tiff_tags.STRIP_OFFSETS: (4, [2**32 - 1])}, UnreadableImage, "cut short"),
        ({tiff_tags.STRIP_OFFSETS: None}, UnreadableImage, "cut short"),
        ({tiff_tags.STRIP_BYTE_COUNTS: (4, [17])}, UnreadableImage, "cut short"),
        ({tiff_tags.STRIP_OFFSETS: (4, [0]), tiff_tags.STRIP_BYTE_COUNTS: (4, [0])}, UnsupportedType, "sparse"),
        ({tiff_tags.IMAGE_WIDTH: (4, [0])}, UnreadableImage, "no width or no height"),
        ({tiff_tags.IMAGE_LENGTH: (4, [0])}, UnreadableImage, "no width or no height"),
        ({tiff_tags.IMAGE_WIDTH: None}, UnreadableImage, "no width or no height"),
        ({tiff_tags.IMAGE_WIDTH: (4, [2**32 - 1])}, TooManyPixels, "pixels"),
        ({tiff_tags.SAMPLES_PER_PIXEL: (3, [65_535])}, UnsupportedType, "65535 channels"),
        ({tiff_tags.SAMPLES_PER_PIXEL: (3, [0])}, UnsupportedType, "0 channels"),
        ({tiff_tags.SAMPLES_PER_PIXEL: (3, [2])}, UnreadableImage, "RGB colours, but has 2 channels"),
        ({tiff_tags.TILE_WIDTH: (4, [16]), tiff_tags.TILE_LENGTH: (4, [0])}, UnreadableImage, "no width or no height"),
        ({tiff_tags.TILE_WIDTH: (4, [2**31]), tiff_tags.TILE_LENGTH: (4, [16])}, UnsupportedType, "much larger"),
        ({tiff_tags.BITS_PER_SAMPLE: (3, [8, 8, 16])}, UnsupportedType, "8/8/16 bits"),
        ({tiff_tags.BITS_PER_SAMPLE: (3, [0] * 3)}, UnsupportedType, "0/0/0 bits"),
        ({tiff_tags.BITS_PER_SAMPLE: (3, [32] * 3)}, UnsupportedType, "32/32/32 bits"),
        ({tiff_tags.SAMPLE_FORMAT: (3, [2] * 3)}, UnsupportedType, "signed"),
        ({tiff_tags.SAMPLE_FORMAT: (3, [3] * 3)}, UnsupportedType, "floating-point"),
        ({tiff_tags.COMPRESSION: (3, [6])}, UnsupportedType, r"6, old-style JPEG"),
        ({tiff_tags.COMPRESSION: (3, [34712])}, UnsupportedType, r"34712, JPEG 2000"),
        ({tiff_tags.COMPRESSION: (3, [4])}, UnsupportedType, "fax"),
        ({tiff_tags.COMPRESSION: (3, [5]), tiff_tags.PREDICTOR: (3, [3])}, UnsupportedType, "predictor"),
        ({tiff_tags.PHOTOMETRIC_INTERPRETATION: (3, [8])}, UnsupportedType, r"8, CIE L\*a\*b\*"),
        ({tiff_tags.PHOTOMETRIC_INTERPRETATION: (3, [32803])}, UnsupportedType, "raw data"),
    ],
)
def test_what_is_refused_is_told_truly(tags: tiffs.Tags, kind: type[Problem], reason: str) -> None:
    with pytest.raises(kind, match=reason) as refused:
        photo(tiff(noise(3), kind=2, tags=tags))
    if kind is UnsupportedType:
        assert "damaged" not in refused.value.detail


def test_ycbcr_of_sixteen_bits_is_refused() -> None:
    with pytest.raises(UnsupportedType, match="YCbCr colours in 16 bits"):
        photo(tiff(noise(3, 16), kind=6))


@pytest.mark.parametrize("bits", range(1, 16))
@pytest.mark.parametrize("layout", ["one strip", "strips", "tiles", "planes"])
def test_any_number_of_bits(bits: int, layout: str) -> None:
    largest, dtype = (255, np.uint8) if bits <= 8 else (65_535, np.uint16)
    samples = np.random.default_rng(bits).integers(0, 2**bits, (*SIDES, 4), np.uint16)
    scaled = np.rint(samples * (largest / (2**bits - 1))).astype(dtype)
    options = {"bits": bits, "extras": (2,), **LAYOUTS[layout]}
    check(tiff(samples, kind=2, **options), scaled[..., :3], scaled[..., 3])  # type: ignore[arg-type]
    check(tiff(samples[..., :1], bits=bits, kind=0), largest - scaled[..., 0])


def test_a_single_strip_of_which_too_much_is_told() -> None:
    samples = noise(3)
    check(tiff(samples, kind=2, tags={tiff_tags.STRIP_BYTE_COUNTS: (4, [2**32 - 1])}), samples)
    with pytest.raises(UnreadableImage, match="more bytes together"):
        photo(tiff(samples, kind=2, compression=5, tags={tiff_tags.STRIP_BYTE_COUNTS: (4, [2**32 - 1])}))


def test_a_plane_that_means_nothing_may_be_missing() -> None:
    samples = noise(2)
    sizes = samples[..., 0].size
    data = tiff(
        samples,
        is_planar=True,
        tags={tiff_tags.STRIP_OFFSETS: (4, [8, 0]), tiff_tags.STRIP_BYTE_COUNTS: (4, [sizes, 0])},
    )
    check(data, samples[..., 0])


def test_directories_that_are_followed_by_themselves() -> None:
    samples = noise(1)
    data = tiff(samples)
    start = data[4:8]
    check(data[:-4] + start, samples[..., 0])


def test_a_directory_without_a_picture_is_no_page() -> None:
    samples = noise(1)
    data = tiff(samples)
    empty = b"\1\0" + b"\x31\1\2\0\4\0\0\0abc\0" + bytes(4)
    check(data[:-4] + len(data).to_bytes(4, "little") + empty, samples[..., 0])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation: int) -> None:
    for bits in (8, 16):
        samples = noise(2, bits)
        data = tiff(samples, kind=1, extras=(2,), tags={tiff_tags.ORIENTATION: (3, [orientation])})
        turned = {
            1: lambda x: x,
            2: np.fliplr,
            3: lambda x: np.rot90(x, 2),
            4: np.flipud,
            5: np.transpose,
            6: lambda x: np.rot90(x, -1),
            7: lambda x: np.rot90(x, 2).T,
            8: np.rot90,
        }[orientation]
        check(data, turned(samples[..., 0]), turned(samples[..., 1]))


def test_a_large_picture_is_decoded_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.imaging.decoders.tiff.BAND_BYTES", 1000)
    monkeypatch.setattr("service.imaging.decoders.tiff.COPY_BYTES", 300)
    for layout in LAYOUTS.values():
        for options in ({}, {"compression": 8, "predictor": 2}):
            samples = noise(4, 16)
            made = layout | options
            check(tiff(samples, kind=2, extras=(2,), **made), samples[..., :3], samples[..., 3])  # type: ignore[arg-type]


def test_bytes_do_not_count_as_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    monkeypatch.setattr("service.imaging.decoders.tiff.COPY_BYTES", 300)
    samples = noise(3, 16)
    check(tiff(samples, kind=2, compression=8), samples)


@pytest.mark.parametrize("compression", [1, 5, 8, 32773, 34925, 50000])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_cut_short(compression: int, bits: int, layout: str) -> None:
    samples = noise(3, bits)
    whole = tiff(samples, kind=2, compression=compression, **LAYOUTS[layout])  # type: ignore[arg-type]
    # The directory stands at the end: cut the last chunk, and keep what is said of it.
    with tifffile.TiffFile(io.BytesIO(whole)) as file:
        page = file.pages[0]
        start, size = page.dataoffsets[-1], page.databytecounts[-1]
    if compression in (8, 34925):
        with pytest.raises(UnreadableImage):
            photo(whole[:start] + bytes(size) + whole[start + size :])
    sizes = (*page.databytecounts[:-1], size // 2)
    tag = tiff_tags.TILE_BYTE_COUNTS if "tile" in LAYOUTS[layout] else tiff_tags.STRIP_BYTE_COUNTS
    with pytest.raises(UnreadableImage):
        photo(tiff(samples, kind=2, compression=compression, tags={tag: (4, sizes)}, **LAYOUTS[layout]))  # type: ignore[arg-type]


def test_no_mutation_is_a_fault_of_ours() -> None:
    """Whatever a directory contains, the file is decoded or refused."""
    random = np.random.default_rng(11)
    seeds = [
        tiff(noise(4), kind=2, extras=(2,), compression=8, predictor=2, rows=5),
        tiff(noise(3, 16), kind=2, compression=5, tile=(16, 16), is_planar=True, order=">"),
        tiff(noise(2), compression=32773, extras=(1,), big=True),
        tiff(noise(4), kind=5, tile=(32, 16)),
        fax_of([bytes(100)], 3),
    ]
    numbers = [*range(9), 16, 255, 32_773, 65_535]
    for _ in range(1500):
        data = bytearray(seeds[random.integers(len(seeds))])
        # The directory is the last thing in the file.
        start = len(data) - 300
        for _ in range(random.integers(1, 5)):
            place = int(random.integers(start, len(data) - 2))
            data[place : place + 2] = int(random.choice(numbers)).to_bytes(2, "little")
        with contextlib.suppress(UnreadableImage, UnsupportedType, TooManyPixels, TooManyScans):
            decoding.decode(identification.identify(bytes(data), decoding_limits.Limits(4_000_000, 65_500)))
