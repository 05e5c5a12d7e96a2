"""Bytes to a Photo, and a coloured photo to bytes. Limits are checked on the header, before anything is decoded."""

import io
import struct
from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from service.color import Bytes, luma_of_rgb
from service.photo import Format, Photo, Pixels, Planes
from service.problems import (
    EmptyUpload,
    InvalidOption,
    TooManyPixels,
    TooManyScans,
    UnreadableImage,
    UnsupportedType,
)
from service.segments import MAX_CHUNKS, MAX_SEGMENTS, START_OF_SCAN, jpeg_segments

# Our own limit, from the settings, is checked instead.
Image.MAX_IMAGE_PIXELS = None

SIDE_LIMITS: dict[Format, int] = {"jpeg": 65_500, "png": 2**31 - 1, "webp": 16_383}
QUALITY = 92
LEAST_QUALITY = 85
ORIENTATION_TAG = 0x0112
MAX_SCANS = 100
# Of all scans together: each takes time for every pixel, were it empty. Twenty scans of the largest photo.
MAX_SCANNED_PIXELS = 2_000_000_000
# Between a JPEG's segments, where nothing should be: Pillow goes over it byte by byte.
MAX_GAPS = 64 * 1024
# Pillow joins them in quadratic time.
MAX_EXIF_SEGMENTS = 16
# What libjpeg warns about though every pixel is there.
HARMLESS_WARNINGS = ("extraneous bytes before marker", "Invalid SOS parameters")
# What libjpeg and Pillow say when it is not the file's fault.
SHORT_OF_MEMORY = ("Insufficient memory", "out of memory")
# The luma table of ITU-T T.81, annex K.1: its sum tells a JPEG's quality, whatever the order of its entries.
LUMA_TABLE = np.array(
    [
        *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
        *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
        *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
        *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
    ]
)


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest photo that is decoded: pixels in all and on a side."""

    max_pixels: int
    max_side: int


def _table_sums() -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    quality = np.arange(1, 101)
    scale = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    tables = np.clip((LUMA_TABLE[np.newaxis] * scale[:, np.newaxis] + 50) // 100, 1, 255)
    return np.asarray(tables.sum(axis=1))


TABLE_SUMS = _table_sums()


def _format(data: bytes) -> Format:
    if data[:3] == b"\xff\xd8\xff":
        return "jpeg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if not data:
        raise EmptyUpload("there is nothing in it", field="file")
    raise UnsupportedType("the file is not a JPEG, PNG or WebP image", field="file")


def _count_scans(data: bytes) -> int:
    """How many scans a JPEG has; refuses one whose segments would keep a decoder busy. Reads only its markers."""
    exif_segments = scans = gaps = 0
    end = 2
    for number, (marker, start) in enumerate(jpeg_segments(data)):
        if not scans:
            gaps += start - 2 - end
            end = start + int.from_bytes(data[start : start + 2])
        scans += marker == START_OF_SCAN
        exif_segments += data[start + 2 : start + 8] == b"Exif\0\0"
        if scans > MAX_SCANS:
            raise TooManyScans(f"the JPEG has more than {MAX_SCANS} scans", field="file", limit=MAX_SCANS)
        if number > MAX_SEGMENTS or exif_segments > MAX_EXIF_SEGMENTS:
            raise UnreadableImage("the JPEG has too many segments", field="file", limit=MAX_SEGMENTS)
        if gaps > MAX_GAPS:
            raise UnreadableImage("the JPEG has too much between its segments", field="file", limit=MAX_GAPS)
    return scans


def _check_png_chunks(data: bytes) -> None:
    """Refuses a PNG of which Pillow would read chunk after chunk for many seconds."""
    position = 8
    for _ in range(MAX_CHUNKS):
        if position >= len(data):
            return
        position += 12 + int.from_bytes(data[position : position + 4])
    raise UnreadableImage("the PNG has too many chunks", field="file", limit=MAX_CHUNKS)


def _unreadable(format_: Format, error: Exception) -> UnreadableImage:
    if any(words in str(error) for words in SHORT_OF_MEMORY):
        raise MemoryError(str(error)) from error
    return UnreadableImage(f"the {format_.upper()} file is damaged or cut short ({error})", field="file")


def _open(data: bytes, format_: Format) -> Image.Image:
    """Reads the header only."""
    try:
        return Image.open(io.BytesIO(data), formats=(format_.upper(),))
    except UnidentifiedImageError:
        raise UnreadableImage(f"the header of the {format_.upper()} file is damaged", field="file") from None
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise _unreadable(format_, error) from error


def _check(image: Image.Image, data: bytes, format_: Format, limits: Limits) -> None:
    width, height = image.size
    if width * height > limits.max_pixels:
        raise TooManyPixels(
            f"{width} x {height} pixels are more than {limits.max_pixels:,}", field="file", limit=limits.max_pixels
        )
    if max(width, height) > limits.max_side:
        raise TooManyPixels(
            f"a side of {max(width, height)} pixels is longer than {limits.max_side:,}",
            field="file",
            limit=limits.max_side,
        )
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise UnsupportedType("the image is animated; only still ones can be coloured", field="file")
    if format_ == "png" and data[12:16] != b"IHDR":
        raise UnreadableImage("the PNG does not begin with its header", field="file")
    if format_ == "png" and data[24] == 16:
        raise UnsupportedType("the PNG has 16 bits a channel; 8 are supported", field="file")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # Pillow's parser lets many kinds through, and a damaged block says nothing about the picture.
        return 1


def _upright(plane: Bytes, orientation: int) -> Bytes:
    """Applies an EXIF orientation, 1..8; any other value is none."""
    match orientation:
        case 2:
            turned = cv2.flip(plane, 1)
        case 3:
            turned = cv2.flip(plane, -1)
        case 4:
            turned = cv2.flip(plane, 0)
        case 5:
            turned = cv2.transpose(plane)
        case 6:
            turned = cv2.rotate(plane, cv2.ROTATE_90_CLOCKWISE)
        case 7:
            turned = cv2.flip(cv2.transpose(plane), -1)
        case 8:
            turned = cv2.rotate(plane, cv2.ROTATE_90_COUNTERCLOCKWISE)
        case _:
            return plane
    return np.asarray(turned, np.uint8)


def _jpeg_quality(image: Image.Image) -> int | None:
    """The quality that the file was written with, estimated from its luma table."""
    tables: dict[int, list[int]] = getattr(image, "quantization", {})
    if 0 not in tables:
        return None
    return 1 + int(np.argmin(np.abs(TABLE_SUMS - sum(tables[0]))))


def _jpeg_luma(image: Image.Image, data: bytes) -> Bytes:
    """The Y plane as it is stored, where there is one; CMYK and RGB files are converted."""
    if image.mode == "CMYK":
        return luma_of_rgb(np.asarray(image.convert("RGB")))
    try:
        plane = simplejpeg.decode_jpeg(data, "GRAY")
    except ValueError as error:
        if "colorspace" in str(error).lower():
            return luma_of_rgb(np.asarray(image.convert("RGB")))
        if not any(warning in str(error) for warning in HARMLESS_WARNINGS):
            raise
        plane = simplejpeg.decode_jpeg(data, "GRAY", strict=False)
    return np.asarray(plane[..., 0], np.uint8)


def _luma_and_alpha(image: Image.Image) -> tuple[Bytes, Bytes | None]:
    if image.has_transparency_data:
        pixels = np.asarray(image.convert("RGBA"))
        alpha = np.ascontiguousarray(pixels[..., 3])
        return luma_of_rgb(np.ascontiguousarray(pixels[..., :3])), alpha
    if image.mode in ("L", "1"):
        return np.asarray(image.convert("L")), None
    return luma_of_rgb(np.asarray(image.convert("RGB"))), None


def decode(data: bytes, limits: Limits) -> Photo:
    """A JPEG, PNG or WebP file as an upright Photo.

    Raises EmptyUpload, UnsupportedType, TooManyPixels, TooManyScans, or UnreadableImage for a damaged file.
    """
    format_ = _format(data)
    scans = _count_scans(data) if format_ == "jpeg" else 0
    if format_ == "png":
        _check_png_chunks(data)
    with _open(data, format_) as image:
        _check(image, data, format_, limits)
        if scans * image.width * image.height > MAX_SCANNED_PIXELS:
            most = MAX_SCANNED_PIXELS // (image.width * image.height)
            raise TooManyScans(f"a JPEG of this size may have {most} scans, not {scans}", field="file", limit=most)
        try:
            if format_ == "jpeg":
                luma, alpha = _jpeg_luma(image, data), None
            else:
                luma, alpha = _luma_and_alpha(image)
        except (OSError, SyntaxError, ValueError, struct.error) as error:
            raise _unreadable(format_, error) from error
        # Only now: to look for EXIF behind a PNG's pixels, Pillow decodes them, and swallows what is wrong with them.
        orientation = _orientation(image)
        quality = _jpeg_quality(image) if format_ == "jpeg" else None
    upright_alpha = None if alpha is None else _upright(alpha, orientation)
    return Photo(_upright(luma, orientation), upright_alpha, format_, quality)


def default_quality(photo: Photo) -> int:
    """The source's own quality, at least 85, so that luma comes back as it was; 92 where it has none."""
    return QUALITY if photo.quality is None else max(LEAST_QUALITY, photo.quality)


def check_size(height: int, width: int, format_: Format) -> None:
    """Raises InvalidOption when a format can't hold a photo of that size."""
    if max(height, width) > SIDE_LIMITS[format_]:
        raise InvalidOption(
            f"a side of {max(height, width)} pixels does not fit into {format_}",
            field="format",
            limit=SIDE_LIMITS[format_],
        )


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


def encode_pixels(pixels: Pixels, format_: Format, quality: int) -> bytes:
    """Any format. A JPEG has no room for alpha: flatten the photo first."""
    if format_ == "jpeg":
        return bytes(simplejpeg.encode_jpeg(pixels.rgb, quality, "RGB", "420"))
    bgr = cv2.cvtColor(pixels.rgb, cv2.COLOR_RGB2BGR)
    if pixels.alpha is not None:
        bgr = np.dstack([bgr, pixels.alpha])
    parameters = [cv2.IMWRITE_WEBP_QUALITY, quality] if format_ == "webp" else []
    done, data = cv2.imencode(f".{format_}", bgr, parameters)
    if not done:
        raise RuntimeError(f"OpenCV can't encode {bgr.shape} as {format_}")
    return data.tobytes()


def shrink(photo: Photo, max_side: int) -> Photo:
    """The photo with its longer side at most `max_side` pixels; never enlarged."""
    height, width = photo.size
    scale = max_side / max(height, width)
    if scale >= 1:
        return photo
    size = (max(1, round(width * scale)), max(1, round(height * scale)))

    def smaller(plane: Bytes) -> Bytes:
        return np.asarray(cv2.resize(plane, size, interpolation=cv2.INTER_AREA), np.uint8)

    alpha = None if photo.alpha is None else smaller(photo.alpha)
    return Photo(smaller(photo.luma), alpha, photo.format, photo.quality)


def flatten(photo: Photo) -> Photo:
    """The photo laid on white where it is transparent, for a format without alpha."""
    if photo.alpha is None:
        return photo
    share = photo.alpha.astype(np.float32) / 255
    luma = np.rint(255 + (photo.luma.astype(np.float32) - 255) * share).astype(np.uint8)
    return Photo(luma, None, photo.format, photo.quality)
