"""Profiles without which the stored pixels mean nothing: their grays are no grays."""

import zlib

import numpy as np
import pytest

from service.formats import decoding_limits
from service.imaging import color, decoding, icc_profiles, identification
from service.metadata import transfer
from tests.conftest import encoded
from tests.unit.imaging.test_icc_profiles import (
    ADOBE_ICC,
    MODERN_SCANNER_ICC,
    PRESS_ICC,
    SCANNER_ICC,
    SRGB,
    gamma,
    gray,
    matrix,
    table,
    with_table,
)
from tests.unit.imaging.test_kinds_of_files import deep_png

LIMITS = decoding_limits.Limits(max_pixels=100_000_000, max_side=65_500)


def negative(points: np.ndarray) -> np.ndarray:
    """XYZ, relative to D50, of sRGB 0..1 that is stored upside down."""
    upright = 1 - points
    light = np.where(upright <= 0.04045, upright / 12.92, ((upright + 0.055) / 1.055) ** 2.4)
    return light @ SRGB.T


NEGATIVE_ICC = with_table(b"RGB ", table(3, 17, negative))


def test_a_table_whose_grays_are_no_grays_is_applied_to_colours() -> None:
    rgb = np.random.default_rng(3).integers(0, 256, (40, 50, 3), np.uint8)
    assert icc_profiles.needs_conversion(NEGATIVE_ICC)
    conversion = icc_profiles.conversion_of(NEGATIVE_ICC, channels=3)
    assert conversion is not None
    assert np.abs(conversion.apply(255 - rgb).astype(int) - rgb).mean() < 2.5


def test_other_profiles_leave_grays_gray() -> None:
    for profile in (None, b"", ADOBE_ICC, SCANNER_ICC, MODERN_SCANNER_ICC, gray(gamma(1.8)), PRESS_ICC):
        assert not icc_profiles.needs_conversion(profile)


@pytest.mark.parametrize("order", [(1, 2, 0), (2, 0, 1), (1, 0, 2), (0, 2, 1)])
def test_swapped_primaries_are_put_back(order: tuple[int, int, int]) -> None:
    rgb = smooth()
    profile = matrix(SRGB[:, list(order)], gamma(563 / 256))
    data = encoded(rgb[..., list(order)], "JPEG", icc_profile=profile, quality=100, subsampling=0)
    luma = decoding.decode(identification.identify(data, LIMITS), icc=transfer.read(data, "jpeg").icc).luma
    assert np.abs(luma.astype(int) - color.luma_of_rgb(rgb)).mean() < 3


def test_a_table_of_noise_is_ignored() -> None:
    noise = np.random.default_rng(4)
    profile = with_table(b"RGB ", table(3, 9, lambda points: noise.random(points.shape)))
    assert icc_profiles.conversion_of(profile, channels=3) is None
    assert not icc_profiles.needs_conversion(profile)


def smooth() -> np.ndarray:
    y, x = np.mgrid[:64, :80]
    return np.clip(np.dstack([128 + 90 * np.sin(x / 9), 2 * y + x, 250 - 3 * y]), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("format_", ["JPEG", "JPEG in RGB", "PNG", "TIFF", "deep PNG"])
def test_a_profile_without_which_the_pixels_mean_nothing(format_: str) -> None:
    rgb = smooth()
    options: dict[str, object] = {"icc_profile": NEGATIVE_ICC}
    if format_.startswith("JPEG"):
        options |= {"quality": 100, "subsampling": 0, "keep_rgb": format_ == "JPEG in RGB"}
    if format_ == "deep PNG":
        packed = b"negative\0\0" + zlib.compress(NEGATIVE_ICC)
        data = deep_png((255 - rgb).astype(np.uint16) * 257, 2, {b"iCCP": packed})
    else:
        data = encoded(255 - rgb, format_.split()[0], **options)
    icc = transfer.read(data, identification.source_of(data)).icc
    assert icc == NEGATIVE_ICC
    luma = decoding.decode(identification.identify(data, LIMITS), icc=icc).luma
    off = luma / (257 if format_ == "deep PNG" else 1) - color.luma_of_rgb(rgb)
    assert np.abs(off).mean() < 2.5


@pytest.mark.parametrize("profile", [SCANNER_ICC, matrix(SRGB, gamma(2.2))], ids=["table", "matrix"])
def test_a_profile_that_is_cut_short_never_fails_a_photo(profile: bytes) -> None:
    for size in (*range(1, 300), len(profile) - 1):
        cut = profile[:size]
        icc_profiles.needs_conversion(cut)
        for channels in (1, 3):
            icc_profiles.curve_of(cut, channels=channels)
        for channels in (3, 4):
            icc_profiles.conversion_of(cut, channels=channels)


def test_a_jpeg_with_a_profile_of_few_bytes_is_decoded() -> None:
    """Found by `make fuzz` with the seed 20261202: a profile of 76 bytes ended in struct.error."""
    jpeg = encoded(np.full((16, 16, 3), 90, np.uint8), "JPEG", icc_profile=SCANNER_ICC[:76])
    luma = decoding.decode(identification.identify(jpeg, LIMITS), icc=transfer.read(jpeg, "jpeg").icc).luma
    assert abs(luma.astype(int) - 90).max() <= 1
