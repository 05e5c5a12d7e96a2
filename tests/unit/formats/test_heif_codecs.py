"""Tests of the sizes that are read from the bit streams of HEVC and AV1."""

import numpy as np
import pytest

from service.formats.decoding_limits import Limits
from service.imaging import decoding, identification
from tests.samples.heif_attacks import BRANDS
from tests.samples.heif_files import coded, heif


@pytest.mark.parametrize("bits", [10, 12])
def test_many_sizes_of_headers(bits: int) -> None:
    """A wrong size would refuse photos near the limit, or accept larger ones."""
    for width, height in [(2**bits, 16), (2**bits - 2, 64), (2**bits + 2, 18)]:
        for codec in ("hvc1", "av01"):
            picture = coded(np.full((height, width, 3), 128, np.uint8), codec)
            exact = Limits(width * height, 65_500)
            data = heif({1: picture}, brands=BRANDS[codec])
            assert decoding.decode(identification.identify(data, exact)).size == (height, width)
