"""Decode photographs for training as the service decodes them: to upright sRGB.

PNG, TIFF and BMP files, transparent WebP files and CMYK JPEGs go through `service.imaging.decoding`. All other files go
through OpenCV, which gives the same pixels in less time: it decodes a JPEG directly at 1/2, 1/4 or 1/8 of its size, and
an opaque WebP in 0.7 of the service's time. Training differs from the service where a photograph to learn from does:

- Transparent parts are laid over white, as a page shows them. A TIFF's alpha channel is ignored: it is more often a
  selection. The service keeps alpha.
- 16 bits a channel are cut to 8. The service keeps 16.
- A damaged JPEG or WebP is decoded as far as it goes. The service rejects it. `filtering` drops JPEGs that are cut off.
- The profile of a gray JPEG is ignored. The service applies its curve.
- There are no limits but `MAX_PIXELS`, so that large scans can be learnt from.
"""

import math

import cv2
import numpy as np
import simplejpeg

from service.errors import Problem
from service.formats import tiff_reader, tiff_tags
from service.formats.decoding_limits import Limits
from service.formats.registry import Source
from service.imaging import decoding, icc_profiles, identification
from service.imaging.color import Bytes, Levels
from service.metadata import reader

JPEG = b"\xff\xd8"
# A file without these bytes has no colour profile. The search is quicker than reading all of its metadata.
PROFILE_MARKS: dict[Source, bytes] = {"jpeg": b"ICC_PROFILE\0", "png": b"iCCP", "webp": b"ICCP"}
# The scales at which OpenCV decodes a JPEG directly, by their divisors.
REDUCED = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}
CMYK = ("CMYK", "YCCK")
# OpenCV's own limit, which the service's decoder gets here too.
MAX_PIXELS = 2**30
LIMITS = Limits(max_pixels=MAX_PIXELS, max_side=MAX_PIXELS, seconds=math.inf)


def _jpeg_header(data: bytes) -> tuple[int, int, str] | None:
    try:
        height, width, color_space, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):  # KeyError for a colour space that simplejpeg does not know.
        return None
    return height, width, color_space


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return height and width from a JPEG's header, or None if the header is broken."""
    header = _jpeg_header(data)
    return header and header[:2]


def reduction(data: bytes, min_side: int) -> int:
    """Return the largest divisor (8, 4, 2 or 1) that leaves a JPEG a short side of `min_side` pixels.

    Return 1 for any other file, and for a JPEG whose header is broken.
    """
    size = jpeg_size(data) if data.startswith(JPEG) else None
    return next((divisor for divisor in REDUCED if size and min(size) // divisor >= min_side), 1)


def decode(data: bytes, divisor: int = 1) -> Bytes | None:
    """Return a photograph as RGB, uint8 [H, W, 3], or None if it can't be decoded.

    divisor: that of `reduction`. It has no effect on files that go through the service's decoder.
    """
    source = _source_of(data)
    if source is not None and not _is_for_opencv(data, source):
        return _decode_by_service(data, source)
    rgb = _decode_by_opencv(data, divisor)
    conversion = icc_profiles.conversion_of(_profile(data, source), channels=3)
    return rgb if rgb is None or conversion is None else conversion.apply(rgb)


def _source_of(data: bytes) -> Source | None:
    try:
        return identification.source_of(data)
    except Problem:
        return None


def _is_for_opencv(data: bytes, source: Source) -> bool:
    if source == "jpeg":
        header = _jpeg_header(data)
        return header is None or header[2] not in CMYK
    return source == "webp" and not _may_be_transparent(data)


def _may_be_transparent(webp: bytes) -> bool:
    """Return whether the header of a WebP declares an alpha channel."""
    kind, flags = webp[12:16], webp[20:25]
    return len(flags) > 4 and bool((kind == b"VP8X" and flags[0] & 0x10) or (kind == b"VP8L" and flags[4] & 0x10))


def _decode_by_opencv(data: bytes, divisor: int) -> Bytes | None:
    flag = REDUCED.get(divisor, cv2.IMREAD_COLOR_RGB)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error:  # for an empty file, and for a header that states more pixels than OpenCV allows
        return None
    if image is None:
        return None
    return np.asarray(image if flag == cv2.IMREAD_COLOR_RGB else cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def _decode_by_service(data: bytes, source: Source) -> Bytes | None:
    try:
        pixels = decoding.decode_pixels(identification.identify(data, LIMITS), icc=_profile(data, source))
    except (Problem, MemoryError):
        return None
    rgb = _eight_bits(pixels.rgb)
    return rgb if pixels.alpha is None or source == "tiff" else _over_white(rgb, _eight_bits(pixels.alpha))


def _eight_bits(levels: Levels) -> Bytes:
    return np.asarray(levels >> 8 if levels.dtype == np.uint16 else levels, np.uint8)


def _over_white(rgb: Bytes, alpha: Bytes) -> Bytes:
    """Return RGB, uint8 [H, W, 3], composited over white by its alpha, uint8 [H, W]."""
    if alpha.min() == 255:
        return rgb
    opacity = alpha[..., np.newaxis].astype(np.float32) / 255
    return np.asarray(np.rint(rgb * opacity + 255 * (1 - opacity)), np.uint8)


def _profile(data: bytes, source: Source | None) -> bytes | None:
    """Return the ICC profile of a file, or None if it has none."""
    if source == "tiff":
        return tiff_reader.values(data, (tiff_tags.ICC_PROFILE,)).get(tiff_tags.ICC_PROFILE)
    if source is None or PROFILE_MARKS.get(source, b"") not in data:
        return None
    return reader.read(data, source).icc
