import io

import numpy as np
import pytest
from PIL import Image

from service.errors import InvalidOption
from service.formats import registry
from service.formats.registry import Format
from service.imaging import color, encoding
from service.imaging.photo import Pixels, Planes
from tests.conftest import decoded, encoded, luma
from tests.unit.imaging.test_decoding import decode


@pytest.mark.parametrize(("source", "expected"), [(40, 85), (85, 85), (97, 97), (None, 92)])
def test_default_quality_is_the_sources_own_but_never_poor(gray: np.ndarray, source: int | None, expected: int) -> None:
    data = encoded(gray, "JPEG", quality=source) if source else encoded(gray, "PNG")
    assert encoding.default_quality(decode(data)) == expected


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 2), (15, 17), (333, 501)])
def test_planes_come_back_as_they_went_in(gray: np.ndarray, shape: tuple[int, int]) -> None:
    source = encoded(gray[: shape[0], : shape[1]], "JPEG", quality=90)
    plane = decode(source).luma
    small = color.half(plane)
    data = encoding.encode_planes(Planes(plane, np.full_like(small, 100), np.full_like(small, 160)), 90)
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
        files.add(encoding.encode_planes(Planes(inside, half, half), 90))
    assert len(files) == 1


@pytest.mark.parametrize("format_", ["jpeg", "png", "webp"])
@pytest.mark.parametrize("with_alpha", [False, True])
def test_pixels_of_every_format(astronaut: np.ndarray, format_: str, with_alpha: bool) -> None:
    alpha = np.tile(np.arange(256, dtype=np.uint8), (512, 2)) if with_alpha and format_ != "jpeg" else None
    data = encoding.encode_pixels(Pixels(astronaut, alpha), format_, 92)  # type: ignore[arg-type]
    image = Image.open(io.BytesIO(data))
    assert image.format == format_.upper()
    if alpha is not None:
        np.testing.assert_array_equal(np.asarray(image)[..., 3], alpha)
    else:
        assert np.abs(decoded(data).astype(int) - astronaut).mean() < 6


@pytest.mark.parametrize("format_", ["webp", "avif"])
def test_what_would_take_too_long_is_refused_or_no_default(format_: Format) -> None:
    registry.check_size(5000, 8000, format_)
    with pytest.raises(InvalidOption) as caught:
        registry.check_size(5001, 8000, format_)
    assert (caught.value.field, caught.value.limit) == ("format", 40_000_000)
    assert registry.default_format("webp", has_alpha=False, pixels=40_000_000) == "webp"
    assert registry.default_format("webp", has_alpha=True, pixels=40_000_001) == "png"


def test_a_webp_has_room_for_16383_pixels() -> None:
    registry.check_size(1, 16_383, "webp")
    with pytest.raises(InvalidOption) as caught:
        registry.check_size(1, 16_384, "webp")
    assert (caught.value.field, caught.value.limit) == ("format", 16_383)
