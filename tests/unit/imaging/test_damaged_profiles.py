"""Damaged and cut colour profiles never fail a photo."""

import numpy as np

from service.imaging import icc_profiles
from tests.unit.imaging.test_icc_profiles import ADOBE_ICC, CURVED, MODERN_SCANNER_ICC, PRESS_ICC, SCANNER_ICC


def test_damaged_profiles_never_fail_a_photo() -> None:
    chance = np.random.default_rng(5)
    whole = [ADOBE_ICC, SCANNER_ICC, MODERN_SCANNER_ICC, CURVED["gray L*"][0], CURVED["ProPhoto"][0], PRESS_ICC]
    pixels = np.zeros((2, 2, 4), np.uint8)
    for number in range(200):
        profile = bytearray(whole[number % len(whole)])
        for place in chance.integers(0, 132 + 12 * 9, 3):
            profile[place] = chance.integers(0, 256)
        damaged = bytes(profile[: len(profile) if number % 3 else chance.integers(len(profile))])
        icc_profiles.needs_conversion(damaged)
        icc_profiles.curve_of(damaged, channels=1)
        icc_profiles.curve_of(damaged, channels=3, bits=16)
        for channels in (3, 4):
            conversion = icc_profiles.conversion_of(damaged, channels=channels)  # type: ignore[arg-type]
            assert conversion is None or conversion.apply(pixels[..., :channels]).shape == (2, 2, 3)
