"""Encode a coloured photo to a file's bytes, with a default quality."""

import io
from collections.abc import Mapping

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from service.formats.registry import Format
from service.imaging.color import Bytes
from service.imaging.photo import Photo, Pixels, Planes

QUALITY = 92
MIN_QUALITY = 85
# 0 to 10, where 10 is the fastest. At 8, an image of noise takes three times as long as at 9.
AVIF_SPEED = 9
TIFF_LZW = 5


def default_quality(photo: Photo) -> int:
    """Return the quality of the uploaded JPEG, but at least 85, so that luma is preserved; 92 for other formats."""
    return QUALITY if photo.quality is None else max(MIN_QUALITY, photo.quality)


def encode_planes(planes: Planes, quality: int) -> bytes:
    """Return a JPEG, 4:2:0, of planes that are stored without a colour conversion. quality: 1..100."""
    luma = _with_even_sides(planes.luma)
    return bytes(simplejpeg.encode_jpeg_yuv_planes(luma, planes.cb, planes.cr, quality))


def _with_even_sides(plane: Bytes) -> Bytes:
    """Return the same plane, as a view of one with even sides.

    TurboJPEG reads a 4:2:0 luma plane up to the next even row and column. Past the end of an odd plane, it would read
    foreign memory and write that into the file.
    """
    height, width = plane.shape
    if height % 2 == 0 and width % 2 == 0:
        return plane
    return np.pad(plane, ((0, height % 2), (0, width % 2)), "edge")[:height, :width]


def encode_pixels(
    pixels: Pixels, format_: Format, quality: int, *, avif_options: Mapping[str, bytes] | None = None
) -> bytes:
    """Return the pixels as a file of the format. Call `fit_pixels` first, as most formats lack alpha or 16 bits.

    quality: 1..100, for lossy formats. avif_options: metadata for the AVIF encoder. Other formats get it later.
    Raises RuntimeError if OpenCV can't encode the pixels.
    """
    if format_ == "jpeg":
        return bytes(simplejpeg.encode_jpeg(pixels.rgb, quality, "RGB", "420"))
    if format_ == "avif":
        return _avif(pixels, quality, avif_options or {})
    bgr = cv2.cvtColor(pixels.rgb, cv2.COLOR_RGB2BGR if pixels.alpha is None else cv2.COLOR_RGB2BGRA)
    if pixels.alpha is not None:
        cv2.insertChannel(pixels.alpha, bgr, 3)
    parameters = {"webp": [cv2.IMWRITE_WEBP_QUALITY, quality], "tiff": [cv2.IMWRITE_TIFF_COMPRESSION, TIFF_LZW]}
    done, data = cv2.imencode(f".{format_}", bgr, parameters.get(format_, []))
    if not done:
        raise RuntimeError(f"OpenCV can't encode {bgr.shape} as {format_}")
    return data.tobytes()


def _avif(pixels: Pixels, quality: int, blocks: Mapping[str, bytes]) -> bytes:
    picture = Image.fromarray(pixels.rgb if pixels.alpha is None else np.dstack([pixels.rgb, pixels.alpha]))
    stream = io.BytesIO()
    # One thread, because photos are encoded concurrently.
    picture.save(stream, "AVIF", quality=quality, speed=AVIF_SPEED, max_threads=1, **blocks)
    return stream.getvalue()
