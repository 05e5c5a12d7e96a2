"""The colours and alpha of TIFF samples: palettes, CMYK, YCbCr and premultiplied alpha."""

from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from service.errors import UnreadableImage, UnsupportedType
from service.formats import tiff_tags
from service.imaging import color
from tests.samples import tiffs
from tests.samples.tiffs import tiff
from tests.unit.imaging.decoders.test_tiff import LAYOUTS, check, noise, photo, pixels


@pytest.mark.parametrize("extras", [(), (0,), (0, 0)])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("compression", [1, 5])
def test_channels_that_nobody_calls_alpha_are_dropped(
    layout: str, bits: int, compression: int, extras: Sequence[int]
) -> None:
    options = LAYOUTS[layout] | {"compression": compression, "extras": extras}
    for more in range(max(1, len(extras)), 4):
        samples = noise(3 + more, bits)
        check(tiff(samples, kind=2, **options), samples[..., :3])  # type: ignore[arg-type]
        samples = noise(1 + more, bits)
        check(tiff(samples, kind=1, **options), samples[..., 0])  # type: ignore[arg-type]
        check(tiff(samples, kind=0, **options), color.max_level(samples) - samples[..., 0])  # type: ignore[arg-type]


def test_alpha_behind_another_channel() -> None:
    samples = noise(6)
    check(tiff(samples, kind=2, extras=(0, 2, 2)), samples[..., :3], samples[..., 4])


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("is_planar", [False, True])
def test_colours_that_were_multiplied_with_alpha(bits: int, kind: int, is_planar: bool) -> None:
    largest = 2**bits - 1
    channels = 3 if kind == 2 else 1
    colors, alpha = noise(channels, bits), noise(1, bits, seed=1) // 2 + largest // 2
    alpha[0] = 0
    multiplied = np.rint(colors.astype(float) * alpha / largest).astype(colors.dtype)
    data = tiff(np.dstack([multiplied, alpha]), kind=kind, extras=(1,), is_planar=is_planar)
    found = pixels(data)
    np.testing.assert_array_equal(found.alpha, alpha[..., 0])
    expected = largest - colors.astype(int) if kind == 0 else colors.astype(int)
    assert np.abs(found.rgb[1:].astype(int) - expected[1:]).max() <= 1


def test_white_may_be_zero_beside_alpha() -> None:
    samples = noise(2)
    check(tiff(samples, kind=0, extras=(2,)), 255 - samples[..., 0], samples[..., 1])


@pytest.mark.parametrize("largest", [255, 65_535])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", [3, None])
def test_a_palette(bits: int, largest: int, kind: int | None) -> None:
    palette = np.random.default_rng(1).integers(0, largest + 1, (3, 2**bits))
    palette[:, 0] = largest
    samples = noise(2, bits)
    options = {"bits": bits, "kind": kind, "tags": {tiff_tags.COLOR_MAP: (tiff_tags.SHORT, palette.ravel().tolist())}}
    rgb = (palette if largest == 255 else palette >> 8).astype(np.uint8).T[samples[..., 0]]
    check(tiff(samples[..., :1], **options), rgb)  # type: ignore[arg-type]
    if bits == 8:
        check(tiff(samples, extras=(2,), **options), rgb, samples[..., 1])  # type: ignore[arg-type]


def test_a_palette_that_is_not_all_there() -> None:
    for tags in ({}, {tiff_tags.COLOR_MAP: (tiff_tags.SHORT, [0] * 700)}):
        with pytest.raises(UnreadableImage, match="palette"):
            photo(tiff(noise(1), kind=3, tags=tags))


@pytest.mark.parametrize("bits", [8, 16])
def test_the_kind_of_colours_is_guessed_where_it_is_missing(bits: int) -> None:
    samples = noise(4, bits)
    check(tiff(samples[..., :1], kind=None), samples[..., 0])
    check(tiff(samples[..., :2], kind=None, extras=(2,)), samples[..., 0], samples[..., 1])
    check(tiff(samples[..., :2], kind=None), samples[..., 0])
    check(tiff(samples[..., :3], kind=None), samples[..., :3])
    check(tiff(samples[..., :3], kind=None, extras=(0, 0)), samples[..., 0])
    check(tiff(samples, kind=None, extras=(2,)), samples[..., :3], samples[..., 3])
    with pytest.raises(UnsupportedType, match="does not declare the colours of its 4 channels"):
        photo(tiff(samples, kind=None))


def test_inks_and_palettes_of_sixteen_bits_are_answered_in_eight() -> None:
    samples = noise(5, 16)
    image = Image.fromarray(np.ascontiguousarray((samples[..., :4] >> 8).astype(np.uint8)), "CMYK")
    alpha = (samples[..., 4] >> 8).astype(np.uint8)
    check(tiff(samples, kind=5, extras=(2,)), np.asarray(image.convert("RGB")), alpha)
    palette = np.random.default_rng(1).integers(0, 65_536, (3, 65_536))
    tags: tiffs.Tags = {tiff_tags.COLOR_MAP: (tiff_tags.SHORT, palette.ravel().tolist())}
    check(tiff(samples[..., :1], kind=3, tags=tags), (palette >> 8).astype(np.uint8).T[samples[..., 0]])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("compression", [1, 5])
def test_inks(layout: str, compression: int) -> None:
    samples = noise(6)
    image = Image.fromarray(np.ascontiguousarray(samples[..., :4]), "CMYK")
    options = LAYOUTS[layout] | {"kind": 5, "compression": compression}
    check(tiff(samples[..., :4], **options), np.asarray(image.convert("RGB")))  # type: ignore[arg-type]
    check(tiff(samples[..., :5], **options), np.asarray(image.convert("RGB")))  # type: ignore[arg-type]
    data = tiff(samples, extras=(0, 2), **options)  # type: ignore[arg-type]
    check(data, np.asarray(image.convert("RGB")), samples[..., 5])


def ycbcr(subsampling: tuple[int, int], changes: tiffs.Tags, compression: int, rows: int, rgb: np.ndarray) -> bytes:
    """Return a TIFF of YCbCr without JPEG: units of luma, then a pair of chroma values."""
    across, down = subsampling
    image = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    height, width = image.shape[:2]
    contents = []
    for top in range(0, height, rows):
        part = image[top : top + rows]
        part = np.pad(part, ((0, -len(part) % down), (0, -width % across), (0, 0)), mode="edge")
        lines, columns = len(part) // down, part.shape[1] // across
        units = part.reshape(lines, down, columns, across, 3).transpose(0, 2, 1, 3, 4)
        lumas = units[..., 0].reshape(lines, columns, -1)
        chroma = units[..., 1:].reshape(lines, columns, -1, 2).mean(axis=2).round().astype(np.uint8)
        contents.append(tiffs.COMPRESSORS[compression](np.dstack([lumas, chroma]).tobytes()))
    tags: tiffs.Tags = {
        tiff_tags.IMAGE_WIDTH: (4, [width]),
        tiff_tags.IMAGE_LENGTH: (4, [height]),
        tiff_tags.BITS_PER_SAMPLE: (3, [8] * 3),
        tiff_tags.COMPRESSION: (3, [compression]),
        tiff_tags.PHOTOMETRIC_INTERPRETATION: (3, [6]),
        tiff_tags.SAMPLES_PER_PIXEL: (3, [3]),
        tiff_tags.ROWS_PER_STRIP: (4, [rows]),
        tiff_tags.YCBCR_SUB_SAMPLING: (3, list(subsampling)),
    }
    return tiffs.assembled(contents, tags, changes)


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 2), (2, 1), (4, 4), (4, 1)])
@pytest.mark.parametrize("compression", [1, 5])
@pytest.mark.parametrize("rows", [8, 37])
def test_ycbcr(astronaut: np.ndarray, subsampling: tuple[int, int], compression: int, rows: int) -> None:
    rgb = astronaut[:37, :53].copy()
    changes: tiffs.Tags = {tiff_tags.YCBCR_SUB_SAMPLING: None} if subsampling == (2, 2) else {}
    found = pixels(ycbcr(subsampling, changes, compression, rows, rgb))
    error = np.abs(found.rgb.astype(int) - rgb)
    assert error.max() <= 4 if subsampling == (1, 1) else error.mean() < 12
    luma = np.asarray(Image.fromarray(rgb).convert("YCbCr"))[..., 0].astype(int)
    assert np.abs(color.luma_of_rgb(found.rgb).astype(int) - luma).mean() < 1


def test_ycbcr_of_a_narrow_range(astronaut: np.ndarray) -> None:
    """Black is 16, and white 235, as in a video."""
    gray = np.dstack([np.linspace(16, 235, 53).round().astype(np.uint8)[np.newaxis].repeat(37, axis=0)] * 3)
    changes: tiffs.Tags = {tiff_tags.REFERENCE_BLACK_WHITE: (5, [16, 1, 235, 1, 128, 1, 240, 1, 128, 1, 240, 1])}
    found = pixels(ycbcr((1, 1), changes, 1, 37, gray))
    expected = (gray.astype(float) - 16) * 255 / 219
    assert np.abs(found.rgb - expected).max() < 2
