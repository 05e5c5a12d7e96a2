"""Convert pixels to sRGB by an upload's ICC profile or by a PNG's gamma. Every output is sRGB.

For a single plane, a profile becomes a Curve: a table from stored to sRGB gray. For RGB and CMYK, it becomes a
Conversion. LittleCMS computes both, with relative colorimetric intent and black point compensation. Both are None where
pixels stay as they are. They are None, too, if a profile is damaged or unsuitable: a bad profile never fails a photo.
"""

import io
import itertools
import logging
import math
import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from service.imaging.color import Bytes, L, Levels, Words, as_levels, luma_of_rgb

log = logging.getLogger(__name__)

Unit = NDArray[np.float64]
# uint8 [256] or uint16 [65,536], non-decreasing: the sRGB gray value of each stored value.
Curve = Levels
Bits = Literal[8, 16]

# CMYK profiles have up to 3 MB. With the two caches' sizes, this limits the memory of hostile profiles to 64 MiB.
MAX_PROFILE = 4 << 20
CACHED = 8

HEADER = 128
TAG = struct.Struct(">4sII")
MAX_TAGS = 100
PRIMARIES = (b"rXYZ", b"gXYZ", b"bXYZ")
DEVICE_CLASSES = (b"scnr", b"mntr", b"prtr", b"spac")
# Colour spaces of profiles that fit a number of channels. Gray files often have the RGB profile of an editor's display.
SPACES = {1: (b"GRAY", b"RGB "), 3: (b"RGB ",), 4: (b"CMYK",)}
TABLE_TAGS = (b"A2B0", b"A2B1", b"A2B2")
# Tags with chains of any number of stages, which can take LittleCMS hours. Each is optional beside a mandatory tag.
MULTI_STAGE_TAGS = (b"D2B0", b"D2B1", b"D2B2", b"D2B3", b"B2D0", b"B2D1", b"B2D2", b"B2D3")

# As shares of the range from black to white. A curve or conversion that changes less is not applied. A measured profile
# may have a small dip. A sound curve covers at least half of the range.
INSIGNIFICANT = 1 / 255
DIP = 2 / 255
MIN_RANGE = 0.5
# Mean second difference of luma along a lookup table for RGB, at most. The table of XYB has 0.03, noise has 0.35.
MAX_BEND = 0.1

# A PNG's gamma is in units of 1/100,000. 45,455 means sRGB, within the tolerance that libpng uses, too.
GAMMA_UNIT = 100_000
SRGB_GAMMA = 45_455
SAME_GAMMA = 0.05
GAMMAS = range(20_000, 200_001)

STRIP_PIXELS = 1 << 18
# Steps of each channel when a conversion is compared with the identity.
PROBES = 9


class _Unusable(Exception):
    """The reason why a profile can't be applied."""


# Exceptions of this module, Pillow and LittleCMS for a profile that can't be applied.
UNUSABLE = (_Unusable, ImageCms.PyCMSError, OSError, ValueError)


def _fixed(*values: float) -> bytes:
    """Return values as ICC's s15Fixed16Number."""
    return struct.pack(f">{len(values)}i", *(round(value * 65_536) for value in values))


def _gray_profile(curve: bytes) -> bytes:
    """Return a gray display profile, ICC version 2.4, with this curve tag."""
    start = HEADER + 4 + TAG.size
    head = struct.pack(">I4xI4s4s4s12x4s", start + len(curve), 0x02400000, b"mntr", b"GRAY", b"XYZ ", b"acsp")
    head = head.ljust(68, b"\0") + _fixed(0.9642, 1, 0.8249)
    return head.ljust(HEADER, b"\0") + struct.pack(">I", 1) + TAG.pack(b"kTRC", start, len(curve)) + curve


SRGB_GRAY = _gray_profile(
    b"para" + struct.pack(">4xHH", 3, 0) + _fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
)


class Conversion:
    """A conversion from RGB or CMYK of a profile to sRGB. Thread-safe.

    keeps_grays: whether equal amounts of all channels, from black to white, stay grays from black to white.
    """

    keeps_grays = True

    def __init__(self, icc: bytes, channels: Literal[3, 4]) -> None:
        self._mode = "RGB" if channels == 3 else "CMYK"
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        self._transform = _transform(icc, self._mode, srgb, "RGB")

    def apply(self, pixels: Bytes) -> Bytes:
        """Return sRGB, uint8 [H, W, 3], of RGB, uint8 [H, W, 3], or CMYK, uint8 [H, W, 4] with 255 for full ink."""
        rgb = np.empty((*pixels.shape[:2], 3), np.uint8)
        # Strips save memory, because Pillow copies pixels to an image of four bytes a pixel.
        for rows in _strips(pixels.shape):
            rgb[rows] = np.asarray(self._transform.apply(_image(pixels[rows], self._mode)))
        return rgb


def curve_of(icc: bytes | None, *, channels: Literal[1, 3], bits: Bits = 8) -> Curve | None:
    """Return the curve of a profile, for gray pixels, the Y plane of a YCbCr file, or each channel of 16-bit RGB.

    channels: of the file, 1 or 3. The curve of an RGB profile is its result for R = G = B. None if pixels stay as they
    are (no profile, sRGB, Display P3), or if the profile is unusable.
    """
    return _curve(icc, channels, bits) if icc and _is_small(icc) else None


def conversion_of(icc: bytes | None, *, channels: Literal[3, 4]) -> Conversion | None:
    """Return the conversion from RGB (3 channels) or CMYK (4 channels) of this profile to sRGB.

    None if pixels stay as they are (no profile, sRGB), or if the profile is unusable.
    """
    return _conversion(icc, channels) if icc and _is_small(icc) else None


def needs_conversion(icc: bytes | None) -> bool:
    """Return whether RGB of this profile needs a conversion of all channels, so that a curve for Y is not enough.

    This is so if R = G = B is not a gray, as in a JPEG that stores XYB, or if the primaries are swapped.
    """
    if not icc or not _is_small(icc):
        return False
    if _has_swapped_primaries(icc):
        return _conversion(icc, 3) is not None
    if not _has_table(icc):
        return False
    conversion = _conversion(icc, 3)
    return conversion is not None and not conversion.keeps_grays


def _has_swapped_primaries(icc: bytes) -> bool:
    """Return whether green is not the lightest primary of a profile, or blue not the darkest."""
    lightness = {
        name: int.from_bytes(icc[start + 12 : start + 16], signed=True)
        for _, name, start, _ in _tags(icc)
        if name in PRIMARIES
    }
    red, green, blue = (lightness.get(name, 0) for name in PRIMARIES)
    return len(lightness) == len(PRIMARIES) and not green > red > blue


def curve_of_gamma(gamma: int, *, bits: Bits = 8) -> Curve | None:
    """Return the curve of a PNG's gAMA chunk, for a file without iCCP, sRGB, and cICP of sRGB.

    gamma: in units of 1/100,000. None for the gamma of sRGB, and for a gamma out of range. The output follows the sRGB
    curve of IEC 61966-2-1.
    """
    if gamma not in GAMMAS:
        log.debug("a gamma of %d is ignored", gamma)
        return None
    if abs(gamma / SRGB_GAMMA - 1) <= SAME_GAMMA:
        return None
    light = np.linspace(0, 1, 1 << bits) ** (GAMMA_UNIT / gamma)
    return _table(np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055), bits)


def apply_curve(pixels: L, curve: Curve) -> L:
    """Return pixels, uint8 or uint16 [H, W] or [H, W, C], mapped by a curve of the same type."""
    if pixels.dtype == np.uint8:
        return as_levels(pixels, cv2.LUT(pixels, curve))
    applied = as_levels(pixels, np.empty_like(pixels))
    # Strips save memory, because NumPy converts the indices to eight bytes each.
    for rows in _strips(pixels.shape):
        np.take(curve, pixels[rows], out=applied[rows], mode="clip")
    return applied


def _is_small(icc: bytes) -> bool:
    """Return whether a profile is small enough for the caches, which keep it as their key."""
    if len(icc) > MAX_PROFILE:
        log.debug("a colour profile of %d bytes is ignored", len(icc))
    return len(icc) <= MAX_PROFILE


@lru_cache(CACHED)
def _curve(icc: bytes, channels: Literal[1, 3], bits: Bits) -> Curve | None:
    try:
        values = _gray_values(_checked(icc, channels), bits)
        _check_ramp(values)
    except UNUSABLE as error:
        log.debug("a colour profile is ignored: %s", error)
        return None
    if np.abs(values - np.linspace(0, 1, len(values))).max() <= INSIGNIFICANT:
        return None
    return _table(np.maximum.accumulate(values), bits)


@lru_cache(CACHED)
def _conversion(icc: bytes, channels: Literal[3, 4]) -> Conversion | None:
    try:
        conversion = Conversion(_checked(icc, channels), channels)
        conversion.keeps_grays = _keeps_grays(conversion, icc, channels)
    except UNUSABLE as error:
        log.debug("a colour profile is ignored: %s", error)
        return None
    return None if channels == 3 and _changes_nothing(conversion) else conversion


def _keeps_grays(conversion: Conversion, icc: bytes, channels: Literal[3, 4]) -> bool:
    """Return whether grays stay grays. Raises _Unusable if they don't and the colours are no plausible table either."""
    try:
        _check_ramp(luma_of_rgb(conversion.apply(_ramp(channels))).ravel() / 255)
    except _Unusable:
        if channels == 4 or not _has_table(icc):
            raise
        luma = luma_of_rgb(conversion.apply(_cube())).reshape(PROBES, PROBES, PROBES) / 255
        bends = max(np.abs(np.diff(luma, n=2, axis=axis)).mean() for axis in range(3))
        if np.ptp(luma) < MIN_RANGE or bends > MAX_BEND:
            raise
        return False
    return True


def _has_table(icc: bytes) -> bool:
    """Return whether a profile has a lookup table from device colours."""
    return any(name in TABLE_TAGS for _, name, _, _ in _tags(icc))


def _checked(icc: bytes, channels: Literal[1, 3, 4]) -> bytes:
    """Return a profile that is safe for LittleCMS. Raises _Unusable if it does not fit a file of these channels."""
    if len(icc) < HEADER + 4 or icc[36:40] != b"acsp":
        raise _Unusable("it has no header")
    if icc[12:16] not in DEVICE_CLASSES:
        raise _Unusable(f"its class is {icc[12:16]!r}")
    if icc[16:20] not in SPACES[channels]:
        raise _Unusable(f"it is for {icc[16:20]!r}, the photo has {channels} channels")
    checked = bytearray(icc)
    for place, name, start, _ in _tags(icc):
        if _declared_samples(memoryview(icc)[start:]) > len(icc):
            raise _Unusable(f"the table {name!r} is larger than the profile")
        if name in MULTI_STAGE_TAGS:
            # A lower-case name is unknown to LittleCMS. Each name stays different, as LittleCMS refuses duplicates.
            checked[place : place + 4] = name.lower()
    return bytes(checked)


def _tags(icc: bytes) -> Iterator[tuple[int, bytes, int, int]]:
    """Yield of each tag: the position of its entry, its name, the start of its content, and its size in bytes.

    A profile that is cut short has the tags whose entries are whole.
    """
    if len(icc) < HEADER + 4:
        return
    (count,) = struct.unpack_from(">I", icc, HEADER)
    for number in range(min(count, MAX_TAGS)):
        place = HEADER + 4 + TAG.size * number
        if place + TAG.size > len(icc):
            return
        yield place, *TAG.unpack_from(icc, place)


def _declared_samples(tag: memoryview) -> int:
    """Return how many samples a lookup table declares, 0 for other tags. tag: the profile from the tag's first byte on.

    LittleCMS allocates memory for all of them before it reads the first, whatever size the tag declares.
    """
    kind = bytes(tag[:4])
    if kind in (b"mft1", b"mft2") and len(tag) > 10:
        return tag[9] * math.prod(itertools.repeat(tag[10], tag[8]))
    if kind in (b"mAB ", b"mBA ") and len(tag) > 28:
        start = int.from_bytes(tag[24:28])
        return tag[9] * math.prod(tag[start : start + tag[8]]) if start else 0
    return 0


def _gray_values(icc: bytes, bits: Bits) -> Unit:
    """Return the sRGB gray, 0..1, of every stored gray value of 8 or 16 bits: [256] or [65,536]."""
    is_gray = icc[16:20] == b"GRAY"
    if is_gray and bits == 16:
        return _gray_through(icc, _all_words(), "I;16")
    values = _gray_through(icc, _ramp(1), "L") if is_gray else _gray_through(icc, _ramp(3), "RGB")
    return values if bits == 8 else _refine(values, icc)


def _refine(values: Unit, icc: bytes) -> Unit:
    """Return 65,536 values, interpolated between the 256 values of an RGB profile.

    Pillow has no RGB of 16 bits. The green curve gives the values if it agrees with these 256. Otherwise, for lookup
    tables and for curves that differ by channel, the interpolation is linear.
    """
    for _, name, start, size in _tags(icc):
        if name == b"gTRC":
            alone = _gray_through(_gray_profile(icc[start : start + size]), _all_words(), "I;16")
            if np.abs(alone[::257] - values).max() <= INSIGNIFICANT:
                return alone
    return np.interp(np.linspace(0, 1, 1 << 16), np.linspace(0, 1, 1 << 8), values)


def _all_words() -> Words:
    """Return all values of 16 bits, uint16 [256, 256]."""
    return np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)


def _ramp(channels: Literal[1, 3, 4]) -> Bytes:
    """Return black to white, uint8 [1, 256] or [1, 256, channels]. CMYK uses black ink alone."""
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 256)
    if channels == 1:
        return ramp
    if channels == 3:
        return np.dstack([ramp] * 3)
    return np.dstack([np.zeros((1, 256, 3), np.uint8), 255 - ramp])


def _gray_through(icc: bytes, pixels: Bytes | Words, mode: str) -> Unit:
    """Return the sRGB gray, 0..1 [N], that LittleCMS computes for N pixels."""
    # Without this flag, it would use tables of eight bits.
    transform = _transform(icc, mode, _open_profile(SRGB_GRAY), "I;16", ImageCms.Flags.NOOPTIMIZE)
    gray = np.asarray(transform.apply(_image(pixels, mode)), np.uint16)
    return gray.ravel() / 65_535


def _open_profile(icc: bytes) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(io.BytesIO(icc))


def _transform(
    icc: bytes,
    mode: str,
    output: ImageCms.ImageCmsProfile,
    output_mode: str,
    flags: ImageCms.Flags = ImageCms.Flags.NONE,
) -> ImageCms.ImageCmsTransform:
    # Threads may share a transform, because LittleCMS copies its one-pixel cache to the stack.
    return ImageCms.buildTransform(
        _open_profile(icc),
        output,
        mode,
        output_mode,
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION | flags,
    )


def _image(pixels: Bytes | Words, mode: str) -> Image.Image:
    height, width = pixels.shape[:2]
    return Image.frombuffer(mode, (width, height), np.ascontiguousarray(pixels), "raw", mode, 0, 1)


def _check_ramp(values: Unit) -> None:
    """Check that a ramp from black to white stays one. Raises _Unusable."""
    if values[-1] - values[0] < MIN_RANGE:
        raise _Unusable("black and white become nearly the same")
    if (np.maximum.accumulate(values) - values).max() > DIP:
        raise _Unusable("its curve decreases")


def _cube() -> Bytes:
    """Return colours in PROBES steps of each channel, uint8 [1, PROBES ** 3, 3]."""
    steps = np.linspace(0, 255, PROBES).astype(np.uint8)
    return np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)


def _changes_nothing(conversion: Conversion) -> bool:
    """Return whether a conversion from RGB changes no channel by more than a level."""
    colors = _cube()
    return bool(np.abs(conversion.apply(colors).astype(int) - colors).max() <= 255 * INSIGNIFICANT)


def _table(values: Unit, bits: Bits) -> Curve:
    table = np.rint(values * 255).astype(np.uint8) if bits == 8 else np.rint(values * 65_535).astype(np.uint16)
    # All photos with the profile share this table.
    table.setflags(write=False)
    return table


def _strips(shape: tuple[int, ...]) -> Iterator[slice]:
    rows = max(1, STRIP_PIXELS // max(1, shape[1]))
    return (slice(top, top + rows) for top in range(0, shape[0], rows))
