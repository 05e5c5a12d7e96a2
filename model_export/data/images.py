"""What a photograph's file shows on a screen: sRGB, as service reads it, and white where it is transparent."""

from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from service.formats import tiff_reader, tiff_tags
from service.formats.registry import Source
from service.imaging import icc_profiles
from service.imaging.color import Bytes
from service.metadata import reader

JPEG, PNG, WEBP, TIFF = b"\xff\xd8", b"\x89PNG", b"RIFF", (b"II*\0", b"MM\0*", b"II+\0")
# How files begin, and what is in those that have a colour profile.
PROFILES: tuple[tuple[bytes, bytes, Source], ...] = (
    (JPEG, b"ICC_PROFILE\0", "jpeg"),
    (PNG, b"iCCP", "png"),
    (WEBP, b"ICCP", "webp"),
)
# A JPEG can be decoded at an eighth, a quarter or half of its size, in a fraction of the time.
REDUCED = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}


def decode(data: bytes, flag: int) -> NDArray[Any] | None:
    """The picture that OpenCV makes of a file; None where it makes none."""
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error:  # for an empty file, and for a header that promises more pixels than it allows
        return None


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Height and width as a JPEG's header has them; None where it is broken."""
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):  # it finds no name for a colour space of none
        return None
    return height, width


def reduction(data: bytes, least: int) -> int:
    """The largest part of its size, 8 for an eighth, that leaves a JPEG a short side of `least` pixels; else 1."""
    size = jpeg_size(data) if data.startswith(JPEG) else None
    return next((factor for factor in REDUCED if size and min(size) // factor >= least), 1)


def read(data: bytes, factor: int = 1) -> Bytes | None:
    """A photograph, RGB, uint8 [H, W, 3]; None where it can't be decoded. factor: a JPEG's `reduction`."""
    picture = _over_white(data) if _may_be_transparent(data) else None
    if picture is None:
        picture = _opaque(data, factor)
    conversion = icc_profiles.conversion_of(_profile(data), channels=3)
    return picture if picture is None or conversion is None else conversion.apply(picture)


def _opaque(data: bytes, factor: int) -> Bytes | None:
    if factor == 1:
        picture = decode(data, cv2.IMREAD_COLOR_RGB)
        return None if picture is None else np.asarray(picture, np.uint8)
    picture = decode(data, REDUCED[factor])
    return None if picture is None else np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)


def _may_be_transparent(data: bytes) -> bool:
    """Whether a PNG or WebP has an alpha channel or a transparent colour. A TIFF's is more often a selection."""
    if data.startswith(PNG):
        return bool(data[25:26] and data[25] & 4) or 0 < data.find(b"tRNS") < data.find(b"IDAT")
    if data[8:15] == b"WEBPVP8" and len(data) > 24:
        return bool((data[15:16] == b"X" and data[20] & 0x10) or (data[15:16] == b"L" and data[24] & 0x10))
    return False


def _over_white(data: bytes) -> Bytes | None:
    """As a page shows it: what lies hidden in transparent parts is nobody's colour. None where nothing is transparent.

    A rotation that the file asks for is not heeded: with transparency there is hardly ever one.
    """
    whole = decode(data, cv2.IMREAD_UNCHANGED)
    if whole is None or whole.ndim < 3 or whole.shape[2] != 4:
        return None
    pixels = (whole >> 8 if whole.dtype == np.uint16 else whole).astype(np.float32)
    alpha = pixels[..., 3:] / 255
    if alpha.min() == 1:
        return None
    return np.rint(pixels[..., 2::-1] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def _profile(data: bytes) -> bytes | None:
    """The colour profile in a file. Its mark is looked for first: most files have none."""
    if data.startswith(TIFF):
        return tiff_reader.values(data, (tiff_tags.ICC_PROFILE,)).get(tiff_tags.ICC_PROFILE)
    for start, mark, source in PROFILES:
        if data.startswith(start) and mark in data:
            return reader.read(data, source).icc
    return None
