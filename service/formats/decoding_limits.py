"""Limits of the photos that are decoded, and the translation of decoder errors into problems."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from PIL import UnidentifiedImageError

from service.errors import Problem, TooManyPixels, UnreadableImage, UnsupportedType
from service.formats.registry import Source

ANIMATED = "the file is animated; single, still photos can be coloured"
# Messages of libjpeg, OpenCV and Pillow that mean a lack of memory and not a damaged file.
SHORT_OF_MEMORY = ("Insufficient memory", "out of memory")
# Messages of decoder libraries about sound files that they do not support.
UNSUPPORTED = re.compile(r"unsupported|not (yet )?supported|not (yet )?implemented|cannot handle", re.IGNORECASE)


# The sum of pixels over all scans of a JPEG. Each scan takes time for every pixel, even if it is empty. This allows
# twenty scans of the largest photo.
MAX_SCANNED_PIXELS = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a photo: its pixels, the pixels of a side, and the estimated seconds for decoding."""

    max_pixels: int
    max_side: int
    seconds: float = 30.0


@contextmanager
def library_call(source: Source) -> Iterator[None]:
    """Translate errors of a decoder library into problems. Wrap calls of the library only, never our own code.

    Raises UnreadableImage and UnsupportedType, and MemoryError if the library ran out of memory.
    """
    try:
        yield
    except (MemoryError, Problem):
        raise
    except Exception as error:
        raise unreadable(source, error) from error


def unreadable(source: Source, error: Exception) -> UnreadableImage | UnsupportedType:
    """Return the problem for a file whose decoder raised an error. Raises MemoryError if it ran out of memory.

    A file of a kind that the library does not support is reported as unsupported, not as damaged.
    """
    text = str(error)
    if any(words in text for words in SHORT_OF_MEMORY):
        raise MemoryError(text) from error
    if isinstance(error, NotImplementedError) or UNSUPPORTED.search(text):
        return UnsupportedType(f"this kind of {source.upper()} file is not supported ({text})", field="file")
    if isinstance(error, UnidentifiedImageError):
        return UnreadableImage(f"the header of the {source.upper()} file is damaged", field="file")
    return UnreadableImage(f"the {source.upper()} file is damaged or cut short ({text})", field="file")


def check_size(width: int, height: int, limits: Limits) -> None:
    """Raise TooManyPixels unless an image of this size, in pixels, is within the limits."""
    if width * height > limits.max_pixels:
        raise TooManyPixels(
            f"the photo has {width} x {height} pixels; at most {limits.max_pixels:,} are accepted",
            field="file",
            limit=limits.max_pixels,
        )
    if max(width, height) > limits.max_side:
        raise TooManyPixels(
            f"the photo has a side of {max(width, height)} pixels; at most {limits.max_side:,} are accepted",
            field="file",
            limit=limits.max_side,
        )
