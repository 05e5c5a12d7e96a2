"""The photo as a format can hold it: shrunk, in 8 bits, on white."""

import cv2
import numpy as np

from service.formats.registry import ALPHA_FORMATS, DEEP_FORMATS, Format
from service.imaging.color import Levels, like, white
from service.imaging.photo import Photo, Pixels


def fit(photo: Photo, format_: Format, max_side: int | None) -> Photo:
    """The photo as a format can hold it: its longer side at most `max_side` pixels, never enlarged."""
    luma, alpha = _fit(photo.luma, photo.alpha, format_, max_side)
    return Photo(luma, alpha, photo.quality, photo.tone)


def fit_pixels(pixels: Pixels, format_: Format, max_side: int | None) -> Pixels:
    """The same for a picture in colour."""
    return Pixels(*_fit(pixels.rgb, pixels.alpha, format_, max_side))


def _fit(picture: Levels, alpha: Levels | None, format_: Format, max_side: int | None) -> tuple[Levels, Levels | None]:
    if format_ not in DEEP_FORMATS:
        picture, alpha = _shallowed(picture), None if alpha is None else _shallowed(alpha)
    height, width = picture.shape[:2]
    scale = 1.0 if max_side is None else max_side / max(height, width)
    if scale < 1:
        picture, alpha = _shrunk(picture, alpha, (max(1, round(width * scale)), max(1, round(height * scale))))
    if format_ not in ALPHA_FORMATS and alpha is not None:
        return _on_white(picture, alpha), None
    return picture, alpha


def _shallowed(picture: Levels) -> Levels:
    """In 8 bits."""
    return picture if picture.dtype == np.uint8 else np.asarray(cv2.convertScaleAbs(picture, alpha=1 / 257), np.uint8)


def _shrunk(picture: Levels, alpha: Levels | None, size: tuple[int, int]) -> tuple[Levels, Levels | None]:
    """Picture and alpha at a smaller size, columns and rows. A pixel counts for the colour as much as it is opaque:
    what lies under transparent ones would show at the edges.
    """
    plain = like(picture, cv2.resize(picture, size, interpolation=cv2.INTER_AREA))
    if alpha is None:
        return plain, None
    opacity = np.asarray(cv2.resize(alpha.astype(np.float32), size, interpolation=cv2.INTER_AREA))
    is_seen = opacity > 0
    colors = np.atleast_3d(plain)
    # A channel at a time: of a large photo, each takes more than the whole picture in 8 bits.
    for channel in range(colors.shape[2]):
        light = cv2.multiply(cv2.extractChannel(picture, channel), alpha, dtype=cv2.CV_32F)
        light = cv2.resize(light, size, interpolation=cv2.INTER_AREA)[is_seen]
        colors[is_seen, channel] = np.minimum(np.rint(light / opacity[is_seen]), white(picture))
    return plain, like(alpha, cv2.resize(alpha, size, interpolation=cv2.INTER_AREA))


def _on_white(picture: Levels, alpha: Levels) -> Levels:
    """The picture laid on white where it is transparent."""
    most = white(picture)
    share = alpha.astype(np.float32).reshape(*alpha.shape, *[1] * (picture.ndim - 2)) / most
    return like(picture, np.rint(most + (picture.astype(np.float32) - most) * share))
