"""Fit a photo to a format: shrink it, reduce it to 8 bits, and lay it over white."""

import cv2
import numpy as np

from service.formats.registry import ALPHA_FORMATS, DEEP_FORMATS, Format
from service.imaging.color import Levels, as_levels, max_level
from service.imaging.photo import Photo, Pixels


def fit(photo: Photo, format_: Format, max_side: int | None) -> Photo:
    """Return the photo as the format can store it, with a longer side of at most `max_side` pixels.

    It is never enlarged. Formats with 8 bits get 8 bits. Formats without alpha get the photo over white.
    """
    luma, alpha = _fit(photo.luma, photo.alpha, format_, max_side)
    return Photo(luma, alpha, photo.quality, photo.tone)


def fit_pixels(pixels: Pixels, format_: Format, max_side: int | None) -> Pixels:
    """Return a picture in colour as the format can store it, as `fit` does for a photo."""
    return Pixels(*_fit(pixels.rgb, pixels.alpha, format_, max_side))


def _fit(picture: Levels, alpha: Levels | None, format_: Format, max_side: int | None) -> tuple[Levels, Levels | None]:
    if format_ not in DEEP_FORMATS:
        picture, alpha = _to_8_bits(picture), None if alpha is None else _to_8_bits(alpha)
    height, width = picture.shape[:2]
    scale = 1.0 if max_side is None else max_side / max(height, width)
    if scale < 1:
        picture, alpha = _shrunk(picture, alpha, (max(1, round(width * scale)), max(1, round(height * scale))))
    if format_ not in ALPHA_FORMATS and alpha is not None:
        return _over_white(picture, alpha), None
    return picture, alpha


def _to_8_bits(picture: Levels) -> Levels:
    """Return levels as uint8, rounded."""
    return picture if picture.dtype == np.uint8 else np.asarray(cv2.convertScaleAbs(picture, alpha=1 / 257), np.uint8)


def _shrunk(picture: Levels, alpha: Levels | None, size: tuple[int, int]) -> tuple[Levels, Levels | None]:
    """Return picture and alpha at a smaller size, given as columns and rows.

    Pixels are weighted by their opacity. Otherwise the colours of transparent pixels would show at the edges.
    """
    plain = as_levels(picture, cv2.resize(picture, size, interpolation=cv2.INTER_AREA))
    if alpha is None:
        return plain, None
    opacity = np.asarray(cv2.resize(alpha.astype(np.float32), size, interpolation=cv2.INTER_AREA))
    is_seen = opacity > 0
    colors = np.atleast_3d(plain)
    # One channel at a time saves memory: a float32 channel is larger than the whole 8-bit picture.
    for channel in range(colors.shape[2]):
        light = cv2.multiply(cv2.extractChannel(picture, channel), alpha, dtype=cv2.CV_32F)
        light = cv2.resize(light, size, interpolation=cv2.INTER_AREA)[is_seen]
        colors[is_seen, channel] = np.minimum(np.rint(light / opacity[is_seen]), max_level(picture))
    return plain, as_levels(alpha, cv2.resize(alpha, size, interpolation=cv2.INTER_AREA))


def _over_white(picture: Levels, alpha: Levels) -> Levels:
    """Return the picture composited over white by its alpha."""
    most = max_level(picture)
    share = alpha.astype(np.float32).reshape(*alpha.shape, *[1] * (picture.ndim - 2)) / most
    return as_levels(picture, np.rint(most + (picture.astype(np.float32) - most) * share))
