"""The largest photo that is decoded, and how a decoder library's error becomes a problem."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from PIL import UnidentifiedImageError

from service.errors import Problem, TooManyPixels, UnreadableImage, UnsupportedType
from service.formats.registry import Source

ANIMATED = "the file is animated; single, still photos can be coloured"
# What libjpeg, OpenCV and Pillow say when it is not the file's fault.
SHORT_OF_MEMORY = ("Insufficient memory", "out of memory")
# What decoder libraries say of sound files that they can't decode.
UNSUPPORTED = re.compile(r"unsupported|not (yet )?supported|not (yet )?implemented|cannot handle", re.IGNORECASE)


# Pixels of all scans of a JPEG together: each scan takes time for every pixel, even if it is empty. The limit is that
# of twenty scans of the largest photo.
MAX_SCANNED_PIXELS = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest photo that is decoded: pixels in all and on a side, and estimated seconds for decoding."""

    max_pixels: int
    max_side: int
    seconds: float = 30.0


@contextmanager
def library_call(source: Source) -> Iterator[None]:
    """Turn the errors of a decoder library into problems. Wrap only calls of the library, never our own code.

    Raises UnreadableImage, UnsupportedType, and MemoryError where the library was short of memory.
    """
    try:
        yield
    except (MemoryError, Problem):
        raise
    except Exception as error:  # Pillow's parsers let nearly every kind through when a file is damaged.
        raise unreadable(source, error) from error


def unreadable(source: Source, error: Exception) -> UnreadableImage | UnsupportedType:
    """Return the refusal of a file whose decoder raised an error. Raises MemoryError when that was for want of memory.

    A file of a kind that the library does not support is not called damaged.
    """
    text = str(error)
    if any(words in text for words in SHORT_OF_MEMORY):
        raise MemoryError(text) from error
    if isinstance(error, NotImplementedError) or UNSUPPORTED.search(text):
        return UnsupportedType(f"the {source.upper()} file is of a kind that can't be read ({text})", field="file")
    if isinstance(error, UnidentifiedImageError):
        return UnreadableImage(f"the header of the {source.upper()} file is damaged", field="file")
    return UnreadableImage(f"the {source.upper()} file is damaged or cut short ({text})", field="file")


def check_size(width: int, height: int, limits: Limits) -> None:
    """Check the size of a picture, in pixels. Raises TooManyPixels."""
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
