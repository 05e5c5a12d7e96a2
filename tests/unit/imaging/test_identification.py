"""An upload is identified once: what was found is enough for every decoding that follows."""

import io
from dataclasses import astuple

import numpy as np
import pytest
from PIL import Image

from service.errors import EmptyUpload, UnsupportedType
from service.formats import decoding_limits, jpeg_structure
from service.imaging import decoding, identification
from tests.conftest import encoded
from tests.unit.imaging.test_kinds_of_files import heic

LIMITS = decoding_limits.Limits(1_000_000, 65_500)
RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
RGBA = np.dstack([RGB, RGB[..., 0]])
CMYK = io.BytesIO()
Image.fromarray(RGB).convert("CMYK").save(CMYK, "JPEG")
FILES = {
    "jpeg": encoded(RGB, "JPEG"),
    "gray jpeg": encoded(RGB[..., 0], "JPEG"),
    "cmyk jpeg": CMYK.getvalue(),
    "png": encoded(RGB, "PNG"),
    "png with alpha": encoded(RGBA, "PNG"),
    "png of 16 bits": encoded(RGB[..., 0].astype(np.uint16) * 257, "PNG"),
    "webp": encoded(RGBA, "WEBP"),
    "tiff": encoded(RGB, "TIFF"),
    "avif": encoded(RGB, "AVIF"),
    "heic": heic(RGB),
    "bmp": encoded(RGB, "BMP"),
    "bmp with bit fields": encoded(RGBA, "BMP"),
    "gif": encoded(RGB[..., 0], "GIF"),
}


@pytest.mark.parametrize("name", FILES)
def test_an_identified_file_can_be_decoded_several_times(name: str) -> None:
    file = identification.identify(FILES[name], LIMITS)
    again = identification.identify(FILES[name], LIMITS)
    assert file.size == (30, 20)
    for part, fresh in zip(astuple(decoding.decode(file)), astuple(decoding.decode(again)), strict=True):
        np.testing.assert_array_equal(part, fresh)
    fresh = decoding.decode_pixels(identification.identify(FILES[name], LIMITS))
    pixels = decoding.decode_pixels(file)
    np.testing.assert_array_equal(pixels.rgb, fresh.rgb)
    np.testing.assert_array_equal(pixels.alpha, fresh.alpha)


@pytest.mark.parametrize("name", ["jpeg", "gray jpeg", "cmyk jpeg"])
def test_the_header_of_a_jpeg_is_parsed_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parse, calls = jpeg_structure.header, []
    monkeypatch.setattr(jpeg_structure, "header", lambda data: calls.append(name) or parse(data))
    file = identification.identify(FILES[name], LIMITS)
    decoding.decode(file, detect_tone=True)
    decoding.decode_pixels(file)
    assert calls == [name]


@pytest.mark.parametrize("name", ["png", "webp", "gif", "bmp", "avif", "cmyk jpeg"])
def test_pillow_opens_a_file_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    open_, calls = Image.open, []
    monkeypatch.setattr(Image, "open", lambda *a, **k: calls.append(name) or open_(*a, **k))
    file = identification.identify(FILES[name], LIMITS)
    decoding.decode(file, detect_tone=True)
    decoding.decode_pixels(file)
    assert calls == [name]


def test_what_is_not_a_picture_is_refused() -> None:
    with pytest.raises(EmptyUpload):
        identification.identify(b"", LIMITS)
    with pytest.raises(UnsupportedType, match="not a JPEG"):
        identification.identify(b"%PDF-1.7", LIMITS)
