"""Decode an identified file to a Photo, or to the Pixels of an output that keeps its colours."""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from pi_heif.heif import BaseImage
from PIL import Image

from service.errors import UnreadableImage
from service.formats import containers, jpeg_structure, png_structure, tiff_tags
from service.formats.decoding_limits import library_call
from service.formats.registry import Source
from service.imaging import icc_profiles
from service.imaging.color import Bytes, L, Levels, Words, as_levels, luma_of_rgb, max_level
from service.imaging.decoders import bmp, jpeg, tiff
from service.imaging.identification import IdentifiedFile, JpegFile
from service.imaging.photo import Photo, Pixels, Tone
from service.imaging.tone import tone_of_rgb
from service.metadata.exif import is_excessive

# Otherwise OpenCV writes a line to standard error for every odd tag of an upload.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

# EXIF orientation of an upright picture. libheif applies the orientation of a HEIC itself.
UPRIGHT = 1
# IHDR's colour type.
PNG_GRAY_ALPHA = 4
# Transfer characteristics in cICP, as numbered by ITU-T H.273.
SRGB_TRANSFER = bytes([13])
# Shortest side, pixels, of the reduced picture in which the tone of a JPEG is found.
TONE_SIDE = 192
# The quantization table of ITU-T T.81, annex K.1. Its sum gives a JPEG's quality, in any order of its entries.
LUMA_TABLE = np.array(
    [
        *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
        *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
        *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
        *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
    ]
)


def _luma_table_sums() -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the sums of libjpeg's luma tables for the qualities 1 to 100, int64 [100]."""
    quality = np.arange(1, 101)
    scale = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    tables = np.clip((LUMA_TABLE[np.newaxis] * scale[:, np.newaxis] + 50) // 100, 1, 255)
    return np.asarray(tables.sum(axis=1))


LUMA_TABLE_SUMS = _luma_table_sums()


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1..8; 1 if the file has no valid one."""
    try:
        if is_excessive(_exif_block(image)):
            return UPRIGHT
        if image.format == "AVIF":
            # Pillow writes the file's own transformations into EXIF. `getexif` would read the orientation in XMP, too.
            exif = Image.Exif()
            exif.load(image.info.get("exif", b""))
        else:
            # A PNG's own method would decode the pixels, to find EXIF after them.
            exif = Image.Image.getexif(image)
        value = exif.get(tiff_tags.ORIENTATION)
    except Exception:  # noqa: BLE001 - Pillow's parser raises many types, and damaged EXIF must not fail a photo
        return UPRIGHT
    return value if isinstance(value, int) and 1 <= value <= 8 else UPRIGHT


def _exif_block(image: Image.Image) -> bytes:
    """Return the EXIF block that Pillow reads. Raises ValueError if a PNG's text is not hexadecimal."""
    block: bytes | None = image.info.get("exif")
    if block is None:
        block = bytes.fromhex("".join(image.info.get("Raw profile type exif", "").split("\n")[3:]))
    return block.removeprefix(b"Exif\0\0")


def _apply_orientation(picture: L, orientation: int) -> L:
    """Return the picture with an EXIF orientation, 1..8, applied. Other values have no effect."""
    match orientation:
        case 2:
            upright = cv2.flip(picture, 1)
        case 3:
            upright = cv2.flip(picture, -1)
        case 4:
            upright = cv2.flip(picture, 0)
        case 5:
            upright = cv2.transpose(picture)
        case 6:
            upright = cv2.rotate(picture, cv2.ROTATE_90_CLOCKWISE)
        case 7:
            upright = cv2.flip(cv2.transpose(picture), -1)
        case 8:
            upright = cv2.rotate(picture, cv2.ROTATE_90_COUNTERCLOCKWISE)
        case _:
            return picture
    return as_levels(picture, upright)


def _jpeg_quality(image: Image.Image) -> int | None:
    """Return the quality of a JPEG, 1..100, estimated by the sum of its luma table; None without a table."""
    tables: dict[int, list[int]] = getattr(image, "quantization", {})
    if 0 not in tables:
        return None
    return 1 + int(np.argmin(np.abs(LUMA_TABLE_SUMS - sum(tables[0]))))


@dataclass(frozen=True, slots=True)
class _Raster:
    """A file's pixels before its orientation is applied: gray, [H, W], or RGB, [H, W, 3]; alpha, [H, W], or None."""

    picture: Levels
    alpha: Levels | None
    orientation: int
    quality: int | None = None


def decode(file: IdentifiedFile, *, icc: bytes | None = None, detect_tone: bool = False) -> Photo:
    """Return a file as an upright Photo, with the luma of the sRGB picture.

    icc: the file's colour profile. detect_tone: whether to find the photo's tone, which takes a quarter more time for a
    JPEG in colour. Raises UnreadableImage for a damaged file, UnsupportedType and TooManyScans.
    """
    structure = file.structure
    if isinstance(structure, JpegFile) and _is_luma_enough(structure.header.space, icc):
        return _jpeg_photo(file, structure, icc, detect_tone)
    raster = _raster(file, icc)
    tone = _tone(raster.picture) if detect_tone else None
    luma = raster.picture if raster.picture.ndim == 2 else luma_of_rgb(raster.picture)
    return Photo(_apply_orientation(luma, raster.orientation), _oriented_alpha(raster), raster.quality, tone)


def decode_pixels(file: IdentifiedFile, *, icc: bytes | None = None) -> Pixels:
    """Return a file in sRGB, upright, for an output that keeps its colours. Raises what `decode` raises."""
    raster = _raster(file, icc)
    picture = raster.picture
    rgb = as_levels(picture, np.dstack([picture] * 3)) if picture.ndim == 2 else picture
    return Pixels(_apply_orientation(rgb, raster.orientation), _oriented_alpha(raster))


def _oriented_alpha(raster: _Raster) -> Levels | None:
    return None if raster.alpha is None else _apply_orientation(raster.alpha, raster.orientation)


def _is_luma_enough(space: jpeg_structure.Space, icc: bytes | None) -> bool:
    """Return whether the Y plane of a JPEG is its luma. CMYK and RGB have no Y plane, and some profiles redefine it."""
    return space == "gray" or (space == "YCbCr" and not icc_profiles.needs_conversion(icc))


def _jpeg_photo(file: IdentifiedFile, structure: JpegFile, icc: bytes | None, detect_tone: bool) -> Photo:
    """Decode the Y plane of a JPEG alone."""
    is_gray = structure.header.space == "gray"
    decoder = jpeg.Decoder(file.data)
    luma = decoder.pixels("GRAY")[..., 0]
    _check_shape(luma, file.size)
    curve = icc_profiles.curve_of(icc, channels=1 if is_gray else 3)
    luma = luma if curve is None else icc_profiles.apply_curve(luma, curve)
    tone: Tone | None = None
    if detect_tone:
        tone = "gray" if is_gray else tone_of_rgb(decoder.small(TONE_SIDE))
    return Photo(_apply_orientation(luma, _orientation(structure.image)), None, _jpeg_quality(structure.image), tone)


def _raster(file: IdentifiedFile, icc: bytes | None) -> _Raster:
    """Return the pixels of any file, in sRGB."""
    picture: Levels
    alpha: Levels | None
    match file.structure:
        case JpegFile() as structure:
            return _jpeg(file, structure, icc)
        case tiff.TiffFile() as structure:
            return _tiff(structure, icc)
        case bmp.BitFields() as structure:
            picture, alpha = bmp.unpack(file.data, structure)
            return _Raster(_to_srgb(picture, icc), alpha, UPRIGHT)
        case BaseImage() as structure:
            picture, alpha = _heic(structure)
            return _Raster(_to_srgb(picture, icc), alpha, UPRIGHT)
        case structure:
            return _pillow(file, structure, icc)


def _tiff(structure: tiff.TiffFile, icc: bytes | None) -> _Raster:
    decoded = tiff.decode(structure)
    stored = decoded.picture
    if stored.shape[2:] != (4,):
        return _Raster(_to_srgb(stored, icc), decoded.alpha, decoded.orientation)
    return _Raster(_rgb_of_cmyk(np.asarray(stored, np.uint8), icc), decoded.alpha, decoded.orientation)


def _pillow(file: IdentifiedFile, image: Image.Image, icc: bytes | None) -> _Raster:
    """Return the pixels of a file that Pillow opened."""
    picture: Levels
    data, source = file.data, file.source
    if image.mode == "CMYK":
        picture, alpha = _rgb_of_cmyk(_pixels_by_pillow(image, source, "CMYK"), icc), None
    else:
        is_deep = source == "png" and data[png_structure.DEPTH] == 16
        stored, alpha = _split_deep_png(image, data) if is_deep else _split_8_bit(image, source)
        picture = _to_srgb(stored, icc, _gamma(image, data) if source == "png" else None)
    _check_shape(picture, file.size)
    return _Raster(picture, alpha, _orientation(image))


def _jpeg(file: IdentifiedFile, structure: JpegFile, icc: bytes | None) -> _Raster:
    """Return the pixels of a JPEG."""
    decoder = jpeg.Decoder(file.data)
    picture: Levels
    match structure.header.space:
        case "CMYK":
            picture = _rgb_of_cmyk(255 - decoder.pixels("CMYK"), icc)
        case "gray":
            picture = _to_srgb(decoder.pixels("GRAY")[..., 0], icc)
        case _:
            picture = _to_srgb(decoder.pixels("RGB"), icc)
    _check_shape(picture, file.size)
    return _Raster(picture, None, _orientation(structure.image), _jpeg_quality(structure.image))


def _check_shape(picture: Levels, size: tuple[int, int]) -> None:
    """Check that a picture, [H, W] or [H, W, C], has the width and height of its header. Raises UnreadableImage."""
    if picture.shape[1::-1] != tuple(size):
        raise UnreadableImage("the file is damaged: its header declares another size than its pixels", field="file")


def _tone(picture: Levels) -> Tone:
    return "gray" if picture.ndim == 2 else tone_of_rgb(picture)


def _rgb_of_cmyk(inks: Bytes, icc: bytes | None) -> Bytes:
    """Return sRGB, uint8 [H, W, 3], of CMYK, uint8 [H, W, 4] with 255 for full ink."""
    conversion = icc_profiles.conversion_of(icc, channels=4)
    if conversion is not None:
        return conversion.apply(inks)
    height, width, _ = inks.shape
    image = Image.frombuffer("CMYK", (width, height), np.ascontiguousarray(inks), "raw", "CMYK", 0, 1)
    return np.asarray(image.convert("RGB"), np.uint8)


def _gamma(image: Image.Image, data: bytes) -> float | None:
    """Return the gamma of a PNG; None without gAMA, or if sRGB or cICP declare sRGB. Pillow ignores cICP."""
    gamma: float | None = image.info.get("gamma")
    if gamma is None or "srgb" in image.info:
        return None
    _, cicp = next(containers.png_bodies(data, (b"cICP",)), (b"", b""))
    return None if cicp[1:2] == SRGB_TRANSFER else gamma


def _to_srgb(picture: Levels, icc: bytes | None, gamma: float | None = None) -> Levels:
    """Return gray or RGB in sRGB, by its profile, or by a PNG's gamma if there is no profile.

    RGB of 16 bits gets only the profile's tone curve, unless its channels need a conversion.
    """
    bits: icc_profiles.Bits = 8 if picture.dtype == np.uint8 else 16
    channels: Literal[1, 3] = 1 if picture.ndim == 2 else 3
    curve = None
    if icc is None:
        curve = icc_profiles.curve_of_gamma(round(gamma * 100_000), bits=bits) if gamma is not None else None
    elif channels == 3 and (bits == 8 or icc_profiles.needs_conversion(icc)):
        # Pillow's interface to LittleCMS has only 8 bits for RGB.
        rgb = np.asarray(picture if bits == 8 else picture >> 8, np.uint8)
        conversion = icc_profiles.conversion_of(icc, channels=3)
        if conversion is None:
            return picture
        converted = conversion.apply(rgb)
        return converted if bits == 8 else converted.astype(np.uint16) * 257
    else:
        curve = icc_profiles.curve_of(icc, channels=channels, bits=bits)
    return picture if curve is None else icc_profiles.apply_curve(picture, curve)


def _decode_deep_png(png: bytes) -> Words:
    """Return 16-bit pixels, [H, W] or [H, W, 3 or 4] in the order B, G, R.

    OpenCV decodes them, as Pillow drops the low eight bits of RGB. Raises UnreadableImage.
    """
    bare = np.frombuffer(png_structure.pixels_only(png), np.uint8)
    with library_call("png"):
        decoded = cv2.imdecode(bare, cv2.IMREAD_UNCHANGED)
    if decoded is None or decoded.dtype != np.uint16:
        raise UnreadableImage("the PNG file is damaged: its pixels can't be decoded", field="file")
    return np.asarray(decoded, np.uint16)


def _split_deep_png(image: Image.Image, data: bytes) -> tuple[Levels, Levels | None]:
    """Return gray or RGB of a PNG of 16 bits, and its alpha."""
    pixels = _decode_deep_png(data)
    if pixels.ndim == 2:
        clear = image.info.get("transparency")
        return pixels, None if clear is None else np.where(pixels == clear, 0, max_level(pixels)).astype(np.uint16)
    picture = pixels[..., 0] if data[png_structure.COLOR_TYPE] == PNG_GRAY_ALPHA else pixels[..., 2::-1]
    return np.ascontiguousarray(picture), np.ascontiguousarray(pixels[..., 3]) if pixels.shape[2] == 4 else None


def _heic(image: BaseImage) -> tuple[Levels, Levels | None]:
    """Return gray or RGB of a HEIC, and its alpha: of 8 bits, or of 10 and 12 bits scaled to 16."""
    with library_call("heic"):
        # A copy, because pi-heif frees its memory with the image.
        pixels: Levels = np.array(image)
    if pixels.ndim == 2:
        return pixels, None
    alpha = np.ascontiguousarray(pixels[..., -1]) if pixels.shape[2] in (2, 4) else None
    picture = pixels[..., 0] if pixels.shape[2] <= 2 else pixels[..., :3]
    return np.ascontiguousarray(picture), alpha


def _split_8_bit(image: Image.Image, source: Source) -> tuple[Levels, Levels | None]:
    """Return gray or RGB of an image of 8 bits, and its alpha."""
    with library_call(source):
        has_alpha = image.mode == "La" or image.has_transparency_data
    if has_alpha:
        is_gray = image.mode in ("LA", "La")
        pixels = _pixels_by_pillow(image, source, "LA" if is_gray else "RGBA")
        picture = pixels[..., 0] if is_gray else pixels[..., :3]
        return np.ascontiguousarray(picture), np.ascontiguousarray(pixels[..., -1])
    return _pixels_by_pillow(image, source, "L" if image.mode in ("L", "1") else "RGB"), None


def _pixels_by_pillow(image: Image.Image, source: Source, mode: str) -> Bytes:
    """Decode an image by Pillow, uint8 [H, W] or [H, W, C]. Raises UnreadableImage and UnsupportedType."""
    with library_call(source):
        return np.asarray(image if image.mode == mode else image.convert(mode), np.uint8)
