"""Tests of the estimated time for decoding: which files are refused because of it."""

import io

import numpy as np
import pytest
from PIL import Image

from service.errors import TooManyBytes, TooManyPixels
from service.formats import declared_size, decoding_cost
from service.formats.decoding_limits import Limits
from service.imaging import decoding, identification
from service.settings import Settings
from tests.conftest import encoded

DEFAULTS = Settings()
LIMITS = Limits(DEFAULTS.max_pixels, DEFAULTS.max_side, DEFAULTS.deadline_s)
NOISE = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)


@pytest.mark.parametrize("kind", sorted({*decoding_cost.RATES} - {"arithmetic"}))
def test_the_largest_photo_is_taken_in_every_common_format(kind: decoding_cost.Kind) -> None:
    # A progressive JPEG has about ten scans.
    pixels = DEFAULTS.max_pixels * (10 if kind == "progressive" else 1)
    decoding_cost.check(kind, DEFAULTS.max_bytes, pixels, LIMITS)


def test_the_limit_that_is_named_is_the_one_that_counts() -> None:
    with pytest.raises(TooManyBytes) as told:
        decoding_cost.check("arithmetic", 25_000_000, 24_000_000, LIMITS)
    most = int(told.value.limit or 0)
    assert 0 < most < 25_000_000
    decoding_cost.check("arithmetic", most, 24_000_000, LIMITS)
    with pytest.raises(TooManyPixels) as told_of_pixels:
        decoding_cost.check("arithmetic", 1000, 10_000_000_000, LIMITS)
    decoding_cost.check("arithmetic", 1, int(told_of_pixels.value.limit or 0) - 1_000_000, LIMITS)


def test_a_shorter_deadline_allows_less() -> None:
    data = encoded(NOISE, "PNG")
    decoding.decode(identification.identify(data, LIMITS))
    with pytest.raises(TooManyBytes, match="decoding may take"):
        decoding.decode(identification.identify(data, Limits(DEFAULTS.max_pixels, DEFAULTS.max_side, 1e-4)))
    with pytest.raises(TooManyPixels, match="decoding may take"):
        decoding.decode(identification.identify(data, Limits(DEFAULTS.max_pixels, DEFAULTS.max_side, 1e-6)))


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "BMP", "WEBP", "GIF"])
def test_pillow_has_a_guard_of_its_own(format_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose declared size our reader does not find is not decoded either."""
    data = encoded(NOISE if format_ != "WEBP" else np.dstack([NOISE] * 3), format_)
    monkeypatch.setattr(declared_size, "read", lambda *_: declared_size.DeclaredSize())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(TooManyPixels, match="1,000"):
        identification.identify(data, Limits(1000, 65_500))
    assert identification.identify(data, Limits(5000, 65_500)).size == (64, 64)


def stated(data: bytes) -> tuple[int, int]:
    found = declared_size.read(data, identification.source_of(data))  # type: ignore[arg-type]
    assert found.frames in (0, 1)
    return found.width, found.height


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "MPO", "BMP", "WEBP", "GIF"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
def test_the_size_is_read_as_pillow_reads_it(format_: str, mode: str) -> None:
    picture = Image.new(mode if format_ not in ("JPEG", "MPO") or mode == "L" else "RGB", (301, 47))
    for options in ({}, {"lossless": True}, {"exif": b"Exif\0\0"}) if format_ == "WEBP" else ({},):
        stream = io.BytesIO()
        picture.save(stream, format_, **options)
        assert stated(stream.getvalue()) == (301, 47)


def test_headers_that_are_cut_short_state_nothing_false() -> None:
    for format_ in ("PNG", "JPEG", "BMP", "WEBP", "GIF"):
        data = encoded(np.dstack([NOISE] * 3), format_)
        for end in range(12, len(data), 3):
            width, height = stated(data[:end])
            assert (width, height) in ((0, 0), (64, 64), (64, 0), (0, 64))
