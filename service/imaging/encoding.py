"""A coloured photo to bytes: what each format has room for, the default format and quality, and the encoders."""

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
LEAST_QUALITY = 85
# From 0 to 10. At 8, noise takes three times as long as at 9.
AVIF_SPEED = 9
TIFF_LZW = 5


def default_quality(photo: Photo) -> int:
    """The source's own quality, at least 85, so that luma comes back as it was; 92 where it has none."""
    return QUALITY if photo.quality is None else max(LEAST_QUALITY, photo.quality)


def encode_planes(planes: Planes, quality: int) -> bytes:
    """A JPEG, 4:2:0, whose luma plane goes in as it is."""
    luma = _even(planes.luma)
    return bytes(simplejpeg.encode_jpeg_yuv_planes(luma, planes.cb, planes.cr, quality))


def _even(plane: Bytes) -> Bytes:
    """The same plane, as a part of one with even sides.

    TurboJPEG reads a 4:2:0 luma plane up to the next even row and column: past the end of an odd one, whatever lies
    in memory there would go into the file.
    """
    height, width = plane.shape
    if height % 2 == 0 and width % 2 == 0:
        return plane
    return np.pad(plane, ((0, height % 2), (0, width % 2)), "edge")[:height, :width]


def encode_pixels(
    pixels: Pixels, format_: Format, quality: int, *, avif_options: Mapping[str, bytes] | None = None
) -> bytes:
    """Any format. A JPEG has no room for alpha, and only PNG and TIFF have some for 16 bits: `fit_pixels` them first.

    avif_options: AVIF's encoder takes the metadata; into the others it is written later.
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
    # One thread: photos run beside one another.
    picture.save(stream, "AVIF", quality=quality, speed=AVIF_SPEED, max_threads=1, **blocks)
    return stream.getvalue()
