"""The file formats that the service reads and writes: names, media types, suffixes, and limits of each format."""

from typing import Literal, get_args

from service.errors import InvalidOption

# What answers are given in, and what may be uploaded.
Format = Literal["jpeg", "png", "webp", "tiff", "avif"]


Source = Literal["jpeg", "png", "webp", "tiff", "avif", "heic", "bmp", "gif"]


FORMATS: tuple[Format, ...] = get_args(Format)


MEDIA_TYPES: dict[Source, str] = {source: f"image/{source}" for source in get_args(Source)}


# Of the names of files: what they are given by their media type, and all that they are known by.
SUFFIXES = {media_type: f".{source}" for source, media_type in MEDIA_TYPES.items()} | {"image/jpeg": ".jpg"}


PHOTO_SUFFIXES = {suffix: media_type for media_type, suffix in SUFFIXES.items()} | {
    ".jpeg": "image/jpeg",
    ".jpe": "image/jpeg",
    ".jfif": "image/jpeg",
    ".tif": "image/tiff",
    ".heif": "image/heic",
}


SIDE_LIMITS: dict[Format, int] = {"jpeg": 65_500, "png": 2**31 - 1, "webp": 16_383, "tiff": 2**31 - 1, "avif": 32_768}


# What 16 bits a channel fit into, and transparency.
DEEP_FORMATS: tuple[Format, ...] = ("png", "tiff")


ALPHA_FORMATS: tuple[Format, ...] = ("png", "webp", "tiff", "avif")


# AVIF's encoder takes seconds for what JPEG's does in a tenth of one: an upload alone does not ask for it.
SLOW_FORMATS: tuple[Format, ...] = ("avif",)


# Pixels of an answer, of formats whose encoders take up to 0.3 s a megapixel: within the deadline on slow cores too.
PIXEL_LIMITS: dict[Format, int] = {"webp": 40_000_000, "avif": 40_000_000}


def default_format(source: Source, *, has_alpha: bool, pixels: int = 0) -> Format:
    """What an upload is answered in when nothing is asked for: its own format where that is not slow nor too small for
    so many pixels, else JPEG, or PNG where it has alpha.
    """
    if source in FORMATS and source not in SLOW_FORMATS and pixels <= PIXEL_LIMITS.get(source, pixels):
        return source
    return "png" if has_alpha else "jpeg"


def check_size(height: int, width: int, format_: Format) -> None:
    """Raises InvalidOption when a format can't hold a photo of that size."""
    if max(height, width) > SIDE_LIMITS[format_]:
        raise InvalidOption(
            f"a side of {max(height, width)} pixels does not fit into {format_}",
            field="format",
            limit=SIDE_LIMITS[format_],
        )
    most = PIXEL_LIMITS.get(format_)
    if most is not None and height * width > most:
        raise InvalidOption(
            f"{width} x {height} pixels take too long to encode as {format_}: at most {most:,}, see `max_side`",
            field="format",
            limit=most,
        )
