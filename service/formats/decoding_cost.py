"""Estimate the time to decode a file from its header and size, to reject work that can't meet the deadline.

Each rate is about twice the slowest one measured on one core of a virtual server. Noise gave the rates per byte, even
areas those per pixel. An ordinary photo takes a fraction of the estimate.
"""

from typing import Literal

from service.errors import TooManyBytes, TooManyPixels
from service.formats.decoding_limits import Limits

MEGA = 1_000_000
# Most photos meet a shorter deadline even if their estimate is above it, so the deadline itself stops the others.
MIN_DEADLINE_S = 5.0
Kind = Literal["jpeg", "progressive", "arithmetic", "png", "webp", "gif", "bmp", "hvc1", "av01"]
# Seconds per megabyte, and per megapixel of each scan or frame.
RATES: dict[Kind, tuple[float, float]] = {
    "jpeg": (0.03, 0.002),
    "progressive": (0.12, 0.003),
    # Here even areas cost the most per byte: one bit may stand for a hundred decisions.
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
    """Return the estimated seconds to decode a file.

    size: bytes of the file. pixels: the sum over all scans, tiles and frames.
    """
    for_megabyte, for_megapixel = RATES[kind]
    return (size * for_megabyte + pixels * for_megapixel) / MEGA


def check(kind: Kind, size: int, pixels: int, limits: Limits) -> None:
    """Raise TooManyBytes if the estimated time exceeds `limits.seconds`.

    Raises TooManyPixels instead if the pixels alone exceed it.
    """
    estimate = estimated_seconds(kind, size, pixels)
    if estimate <= limits.seconds:
        return
    for_megabyte, for_megapixel = (rate / MEGA for rate in RATES[kind])
    most = int((limits.seconds - pixels * for_megapixel) / for_megabyte)
    takes = f"decoding may take {estimate:.0f} s, the limit is {limits.seconds:g} s"
    if most > 0:
        raise TooManyBytes(
            f"the file has {size:,} bytes; a {NAMES[kind]} of its size in pixels may have at most {most:,}: {takes}",
            field="file",
            limit=most,
        )
    most = int(limits.seconds / for_megapixel)
    raise TooManyPixels(
        f"the {NAMES[kind]} has {pixels:,} pixels in all its scans, tiles and frames;"
        f" at most {most:,} are decoded: {takes}",
        field="file",
        limit=most,
    )


def table() -> str:
    """Return the rates as a Markdown table."""
    lines = ["| kind | seconds per megabyte | seconds per megapixel |", "| --- | --- | --- |"]
    lines += [f"| {NAMES[kind]} | {of_bytes:g} | {of_pixels:g} |" for kind, (of_bytes, of_pixels) in RATES.items()]
    return "\n".join(lines) + "\n"
