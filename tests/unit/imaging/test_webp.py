"""WebPs whose pixels are whole are decoded, whatever is odd about their container."""

import struct
from collections.abc import Callable

import numpy as np
import pytest

from service.errors import UnreadableImage
from service.formats import decoding_limits
from service.imaging import decoding, identification
from service.imaging.photo import Photo
from tests.conftest import encoded

LIMITS = decoding_limits.Limits(max_pixels=100_000_000, max_side=65_500)


def decode(data: bytes) -> Photo:
    return decoding.decode(identification.identify(data, LIMITS))


def smooth() -> np.ndarray:
    y, x = np.mgrid[:64, :80]
    return np.clip(np.dstack([128 + 90 * np.sin(x / 9), 2 * y + x, 250 - 3 * y]), 0, 255).astype(np.uint8)


WEBPS = {
    "lossy": encoded(smooth(), "WEBP"),
    "lossless": encoded(smooth(), "WEBP", lossless=True),
    "with EXIF": encoded(smooth(), "WEBP", exif=b"Exif\0\0MM\0*" + bytes(60)),
    "with alpha": encoded(np.dstack([smooth(), smooth()[..., 0]]), "WEBP"),
}


def webp_chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


WEBP_CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "more behind it": lambda data: data + b"junk" * 9,
    "a length that is too short": lambda data: data[:4] + struct.pack("<I", len(data) - 28) + data[8:],
    "a length that is too long": lambda data: data[:4] + struct.pack("<I", len(data) + 92) + data[8:],
    "a length of 0": lambda data: data[:4] + bytes(4) + data[8:],
    "an unknown chunk first": lambda data: data[:12] + webp_chunk(b"abcd", b"xyz") + data[12:],
    "an unknown chunk last": lambda data: data + webp_chunk(b"abcd", b"xyz"),
    "EXIF that is cut short": lambda data: data + webp_chunk(b"EXIF", bytes(80))[:-40],
    "XMP that is none": lambda data: data + webp_chunk(b"XMP ", b"zz"),
    "flags that say everything": lambda data: data[:20] + b"\xfd" + data[21:] if data[12:16] == b"VP8X" else data,
}


@pytest.mark.parametrize("change", WEBP_CHANGES)
@pytest.mark.parametrize("name", WEBPS)
def test_what_is_odd_about_a_webps_container_does_no_harm(name: str, change: str) -> None:
    whole = decode(WEBPS[name])
    found = decode(WEBP_CHANGES[change](WEBPS[name]))
    np.testing.assert_array_equal(found.luma, whole.luma)
    assert (found.alpha is None) == (whole.alpha is None)
    if whole.alpha is not None:
        np.testing.assert_array_equal(found.alpha, whole.alpha)


@pytest.mark.parametrize("name", WEBPS)
def test_a_webp_whose_pixels_are_cut_short_is_damaged(name: str) -> None:
    data = WEBPS[name]
    end = data.rindex(b"EXIF") if name == "with EXIF" else len(data)
    for cut in np.linspace(40, end - 3, 8).astype(int):
        with pytest.raises(UnreadableImage):
            decode(data[:cut])
