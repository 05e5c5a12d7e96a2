"""Estimate the cost of decoding from a file's header and size, so that hopeless work is refused before it begins.

Each rate is about twice the slowest that was measured on one core of a virtual server: noise for a byte, even areas for
a pixel. They are no forecast for an ordinary photo, which takes a fraction of the estimate.
"""

from typing import Literal

from service.errors import TooManyBytes, TooManyPixels
from service.formats.decoding_limits import Limits

MEGA = 1_000_000
# A shorter deadline is kept by most photos whose estimate is above it, so it is left to end the others.
MIN_DEADLINE_S = 5.0
Kind = Literal["jpeg", "progressive", "arithmetic", "png", "webp", "gif", "bmp", "hvc1", "av01"]
# Seconds for a megabyte, and for a megapixel of each scan or frame.
RATES: dict[Kind, tuple[float, float]] = {
    "jpeg": (0.03, 0.002),
    "progressive": (0.12, 0.003),
    # Even areas cost the most for a byte here: a bit may stand for a hundred decisions.
    "arithmetic": (1.6, 0.01),
    "png": (0.04, 0.02),
    "webp": (0.25, 0.03),
    "gif": (0.02, 0.02),
    "bmp": (0.01, 0.01),
    "hvc1": (0.25, 0.05),
    "av01": (0.25, 0.05),
}
NAMES: dict[Kind, str] = {
    "jpeg": "JPEG",
    "progressive": "progressive JPEG",
    "arithmetic": "JPEG with arithmetic coding",
    "png": "PNG",
    "webp": "WebP",
    "gif": "GIF",
    "bmp": "BMP",
    "hvc1": "HEIC",
    "av01": "AVIF",
}


def estimated_seconds(kind: Kind, size: int, pixels: int) -> float:
    """Return the estimated seconds to decode a file of so many bytes. pixels: of all scans, tiles and frames."""
    for_megabyte, for_megapixel = RATES[kind]
    return (size * for_megabyte + pixels * for_megapixel) / MEGA


def check(kind: Kind, size: int, pixels: int, limits: Limits) -> None:
    """Check that decoding can be done in time. Raises TooManyBytes, or TooManyPixels where the pixels alone take it."""
    estimate = estimated_seconds(kind, size, pixels)
    if estimate <= limits.seconds:
        return
    for_megabyte, for_megapixel = (rate / MEGA for rate in RATES[kind])
    most = int((limits.seconds - pixels * for_megapixel) / for_megabyte)
    takes = f"decoding may take {estimate:.0f} s, and there are {limits.seconds:g}"
    if most > 0:
        raise TooManyBytes(
            f"the file has {size:,} bytes; a {NAMES[kind]} of its pixels may have {most:,}: {takes}",
            field="file",
            limit=most,
        )
    most = int(limits.seconds / for_megapixel)
    raise TooManyPixels(
        f"the {NAMES[kind]} has {pixels:,} pixels in all its scans, tiles and frames; {takes}", field="file", limit=most
    )


def table() -> str:
    """Return the rates as a Markdown table."""
    lines = ["| kind | seconds per megabyte | seconds per megapixel |", "| --- | --- | --- |"]
    lines += [f"| {NAMES[kind]} | {of_bytes:g} | {of_pixels:g} |" for kind, (of_bytes, of_pixels) in RATES.items()]
    return "\n".join(lines) + "\n"
