"""The file formats that the service reads and writes: names, media types, file suffixes, and limits."""

from typing import Literal, get_args

from service.errors import InvalidOption

# The formats of outputs (Format), and of uploads (Source).
Format = Literal["jpeg", "png", "webp", "tiff", "avif"]


Source = Literal["jpeg", "png", "webp", "tiff", "avif", "heic", "bmp", "gif"]


FORMATS: tuple[Format, ...] = get_args(Format)


MEDIA_TYPES: dict[Source, str] = {source: f"image/{source}" for source in get_args(Source)}


# The file suffix of each media type, and the media types of all suffixes that are recognised.
SUFFIXES = {media_type: f".{source}" for source, media_type in MEDIA_TYPES.items()} | {"image/jpeg": ".jpg"}


PHOTO_SUFFIXES = {suffix: media_type for media_type, suffix in SUFFIXES.items()} | {
    ".jpeg": "image/jpeg",
    ".jpe": "image/jpeg",
    ".jfif": "image/jpeg",
    ".tif": "image/tiff",
    ".heif": "image/heic",
}


SIDE_LIMITS: dict[Format, int] = {"jpeg": 65_500, "png": 2**31 - 1, "webp": 16_383, "tiff": 2**31 - 1, "avif": 32_768}


# Formats that store 16 bits a channel, and formats that store transparency.
DEEP_FORMATS: tuple[Format, ...] = ("png", "tiff")


ALPHA_FORMATS: tuple[Format, ...] = ("png", "webp", "tiff", "avif")


# Formats that are used only on request: the AVIF encoder takes more than ten times as long as that of JPEG.
SLOW_FORMATS: tuple[Format, ...] = ("avif",)


# Most pixels of an output whose encoder takes up to 0.3 s per megapixel, to meet the deadline on slow cores too.
PIXEL_LIMITS: dict[Format, int] = {"webp": 40_000_000, "avif": 40_000_000}


def default_format(source: Source, *, has_alpha: bool, pixels: int = 0) -> Format:
    """Return the format of an output for which the client requested none.

    This is the format of the upload, unless that is slow or can't hold this many pixels. Otherwise it is JPEG, or PNG
    if the photo has alpha.
    """
    if source in FORMATS and source not in SLOW_FORMATS and pixels <= PIXEL_LIMITS.get(source, pixels):
        return source
    return "png" if has_alpha else "jpeg"


def check_size(height: int, width: int, format_: Format) -> None:
    """Raise InvalidOption unless the format can hold a photo of this size, in pixels."""
    if max(height, width) > SIDE_LIMITS[format_]:
        raise InvalidOption(
            f"a side of {max(height, width)} pixels is too long for {format_}: at most {SIDE_LIMITS[format_]:,};"
            " set `max_side` or another `format`",
            field="format",
            limit=SIDE_LIMITS[format_],
        )
    most = PIXEL_LIMITS.get(format_)
    if most is not None and height * width > most:
        raise InvalidOption(
            f"{width} x {height} pixels take too long to encode as {format_}: at most {most:,};"
            " set `max_side` or another `format`",
            field="format",
            limit=most,
        )
