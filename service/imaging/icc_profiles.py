"""Colour profiles: what an upload's ICC profile, or a PNG's gamma, means for its pixels. Every answer is sRGB.

Where one plane is decoded, a profile is a Curve: a table from stored to sRGB gray. For stored RGB and CMYK it is a
Conversion. Both are LittleCMS's: relative colorimetric, with black point compensation. Both are None where nothing is
to be done, and where a profile is damaged or means something else: a bad profile never fails a photo.
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

from service.imaging.color import Bytes, L, Levels, Words, like, luma_of_rgb

log = logging.getLogger(__name__)

Unit = NDArray[np.float64]
# uint8 [256] or uint16 [65,536], never falling: the sRGB gray value of each stored one.
Curve = Levels
Bits = Literal[8, 16]

# CMYK profiles have up to 3 MB. With the sizes of the caches, it also bounds what hostile ones keep: 64 MiB.
MAX_PROFILE = 4 << 20
CACHED = 8

HEADER = 128
TAG = struct.Struct(">4sII")
MAX_TAGS = 100
PRIMARIES = (b"rXYZ", b"gXYZ", b"bXYZ")
DEVICE_CLASSES = (b"scnr", b"mntr", b"prtr", b"spac")
# Which profiles fit files of so many channels: gray ones often have the RGB profile of the editor's display.
SPACES = {1: (b"GRAY", b"RGB "), 3: (b"RGB ",), 4: (b"CMYK",)}
TABLE_TAGS = (b"A2B0", b"A2B1", b"A2B2")
# Chains of any number of stages, which take LittleCMS hours. Each is an option to a tag that must be there too.
ENDLESS_TAGS = (b"D2B0", b"D2B1", b"D2B2", b"D2B3", b"B2D0", b"B2D1", b"B2D2", b"B2D3")

# Of black to white: what a curve or a conversion may change before it is worth applying, how far a curve may fall back
# (profiles are measured), and how much a sane one covers.
INSIGNIFICANT = 1 / 255
DIP = 2 / 255
LEAST_RANGE = 0.5
# How much the luma of a lookup table for RGB may bend from step to step, on average. XYB's has 0.03, noise 0.35.
MOST_BEND = 0.1

# A PNG's gamma is in 1/100,000. 45,455 stands for sRGB, give or take what libpng too takes for no difference.
GAMMA_UNIT = 100_000
SRGB_GAMMA = 45_455
SAME_GAMMA = 0.05
GAMMAS = range(20_000, 200_001)

STRIP_PIXELS = 1 << 18
# Steps of each channel when a conversion is compared with doing nothing.
PROBES = 9


class _Unusable(Exception):
    """The profile can't be applied, and why."""


# What a profile can bring about here, in Pillow and in LittleCMS.
UNUSABLE = (_Unusable, ImageCms.PyCMSError, OSError, ValueError)


def _fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65_536) for value in values))


def _gray_profile(curve: bytes) -> bytes:
    """A gray display profile, ICC version 2.4, whose curve is this tag."""
    start = HEADER + 4 + TAG.size
    head = struct.pack(">I4xI4s4s4s12x4s", start + len(curve), 0x02400000, b"mntr", b"GRAY", b"XYZ ", b"acsp")
    head = head.ljust(68, b"\0") + _fixed(0.9642, 1, 0.8249)
    return head.ljust(HEADER, b"\0") + struct.pack(">I", 1) + TAG.pack(b"kTRC", start, len(curve)) + curve


SRGB_GRAY = _gray_profile(
    b"para" + struct.pack(">4xHH", 3, 0) + _fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
)


class Conversion:
    """RGB or CMYK of one profile to sRGB. Safe to use from many threads at once.

    keeps_grays: whether black to white in equal amounts of all channels is black to white.
    """

    keeps_grays = True

    def __init__(self, icc: bytes, channels: Literal[3, 4]) -> None:
        self._mode = "RGB" if channels == 3 else "CMYK"
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        self._transform = _transform(icc, self._mode, srgb, "RGB")

    def apply(self, pixels: Bytes) -> Bytes:
        """Converts RGB, uint8 [H, W, 3], or CMYK, uint8 [H, W, 4] with 255 for full ink, to sRGB, uint8 [H, W, 3]."""
        rgb = np.empty((*pixels.shape[:2], 3), np.uint8)
        # Pillow makes pictures of its own, of four bytes a pixel.
        for rows in _strips(pixels.shape):
            rgb[rows] = np.asarray(self._transform.apply(_image(pixels[rows], self._mode)))
        return rgb


def curve_of(icc: bytes | None, *, channels: Literal[1, 3], bits: Bits = 8) -> Curve | None:
    """The curve of a profile: for gray pixels, for the Y plane of a YCbCr file, for each channel of 16-bit RGB.

    channels: of the file, 1 or 3. An RGB profile counts by what it makes of R = G = B.
    None where nothing is to be done (no profile, sRGB, Display P3), and for a profile that is unusable.
    """
    return _curve(icc, channels, bits) if icc and _is_small(icc) else None


def conversion_of(icc: bytes | None, *, channels: Literal[3, 4]) -> Conversion | None:
    """How RGB (3 channels) or CMYK (4) of this profile becomes sRGB.

    None where nothing is to be done (no profile, sRGB), and for a profile that is unusable.
    """
    return _conversion(icc, channels) if icc and _is_small(icc) else None


def means_colors_only(icc: bytes | None) -> bool:
    """Return whether RGB of this profile has to be converted as a whole: its R = G = B are no grays, or R is not red.

    Examples are the profile of a JPEG that stores XYB, and one whose primaries are swapped.
    """
    if not icc or not _is_small(icc):
        return False
    if _swaps_primaries(icc):
        return _conversion(icc, 3) is not None
    if not _has_table(icc):
        return False
    conversion = _conversion(icc, 3)
    return conversion is not None and not conversion.keeps_grays


def _swaps_primaries(icc: bytes) -> bool:
    """Return whether green is not the lightest primary of a profile, or blue not the darkest."""
    if len(icc) < HEADER + 4:
        return False
    lightness = {
        name: int.from_bytes(icc[start + 12 : start + 16], signed=True)
        for _, name, start, _ in _tags(icc)
        if name in PRIMARIES
    }
    red, green, blue = (lightness.get(name, 0) for name in PRIMARIES)
    return len(lightness) == len(PRIMARIES) and not green > red > blue


def curve_of_gamma(gamma: int, *, bits: Bits = 8) -> Curve | None:
    """The curve of a PNG's gAMA chunk, in 1/100,000, which counts where there is no iCCP, sRGB, or cICP of sRGB.

    None for sRGB's own, and for one that can't be meant.
    """
    if gamma not in GAMMAS:
        log.debug("a gamma of %d is ignored", gamma)
        return None
    if abs(gamma / SRGB_GAMMA - 1) <= SAME_GAMMA:
        return None
    light = np.linspace(0, 1, 1 << bits) ** (GAMMA_UNIT / gamma)
    return _table(np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055), bits)


def apply_curve(pixels: L, curve: Curve) -> L:
    """Pixels, [H, W] or [H, W, C], through a curve of their own type."""
    if pixels.dtype == np.uint8:
        return like(pixels, cv2.LUT(pixels, curve))
    applied = like(pixels, np.empty_like(pixels))
    # NumPy makes indices of eight bytes each.
    for rows in _strips(pixels.shape):
        np.take(curve, pixels[rows], out=applied[rows], mode="clip")
    return applied


def _is_small(icc: bytes) -> bool:
    """Looked at before the caches are, which keep what they are asked for."""
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
    """Return whether grays stay grays. Raises _Unusable where they don't, and the colours make no sense either."""
    try:
        _check_ramp(luma_of_rgb(conversion.apply(_ramp(channels))).ravel() / 255)
    except _Unusable:
        if channels == 4 or not _has_table(icc):
            raise
        luma = luma_of_rgb(conversion.apply(_cube())).reshape(PROBES, PROBES, PROBES) / 255
        bends = max(np.abs(np.diff(luma, n=2, axis=axis)).mean() for axis in range(3))
        if np.ptp(luma) < LEAST_RANGE or bends > MOST_BEND:
            raise
        return False
    return True


def _has_table(icc: bytes) -> bool:
    return any(name in TABLE_TAGS for _, name, _, _ in _tags(icc))


def _checked(icc: bytes, channels: Literal[1, 3, 4]) -> bytes:
    """The profile as LittleCMS may read it. Raises _Unusable where it is not meant for such a file."""
    if len(icc) < HEADER + 4 or icc[36:40] != b"acsp":
        raise _Unusable("it has no header")
    if icc[12:16] not in DEVICE_CLASSES:
        raise _Unusable(f"its class is {icc[12:16]!r}")
    if icc[16:20] not in SPACES[channels]:
        raise _Unusable(f"it is for {icc[16:20]!r}, the photo has {channels} channels")
    checked = bytearray(icc)
    for place, name, start, _ in _tags(icc):
        if _claim(memoryview(icc)[start:]) > len(icc):
            raise _Unusable(f"the table {name!r} is larger than the profile")
        if name in ENDLESS_TAGS:
            # To a name that nobody knows, and each to its own: LittleCMS takes no two tags of one name.
            checked[place : place + 4] = name.lower()
    return bytes(checked)


def _tags(icc: bytes) -> Iterator[tuple[int, bytes, int, int]]:
    """Of each tag: the place of its entry, its name, where its content begins, and of how many bytes it is."""
    (count,) = struct.unpack_from(">I", icc, HEADER)
    for number in range(min(count, MAX_TAGS)):
        place = HEADER + 4 + TAG.size * number
        if place + TAG.size > len(icc):
            return
        yield place, *TAG.unpack_from(icc, place)


def _claim(tag: memoryview) -> int:
    """How many samples a lookup table says it has, 0 for other tags; of the profile from the tag's first byte on.

    LittleCMS clears memory for all of them before it reads the first, whatever the size that the tag says it has.
    """
    kind = bytes(tag[:4])
    if kind in (b"mft1", b"mft2") and len(tag) > 10:
        return tag[9] * math.prod(itertools.repeat(tag[10], tag[8]))
    if kind in (b"mAB ", b"mBA ") and len(tag) > 28:
        start = int.from_bytes(tag[24:28])
        return tag[9] * math.prod(tag[start : start + tag[8]]) if start else 0
    return 0


def _gray_values(icc: bytes, bits: Bits) -> Unit:
    """What the profile makes of every gray value of so many bits: sRGB, 0..1."""
    is_gray = icc[16:20] == b"GRAY"
    if is_gray and bits == 16:
        return _pushed(icc, _all_words(), "I;16")
    values = _pushed(icc, _ramp(1), "L") if is_gray else _pushed(icc, _ramp(3), "RGB")
    return values if bits == 8 else _refined(values, icc)


def _refined(values: Unit, icc: bytes) -> Unit:
    """The 65,536 values between these 256 of an RGB profile: by its green curve where that says the same of them.

    Pillow has no RGB of 16 bits. Of lookup tables, and of curves that differ by channel, straight lines will do.
    """
    for _, name, start, size in _tags(icc):
        if name == b"gTRC":
            alone = _pushed(_gray_profile(icc[start : start + size]), _all_words(), "I;16")
            if np.abs(alone[::257] - values).max() <= INSIGNIFICANT:
                return alone
    return np.interp(np.linspace(0, 1, 1 << 16), np.linspace(0, 1, 1 << 8), values)


def _all_words() -> Words:
    return np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)


def _ramp(channels: Literal[1, 3, 4]) -> Bytes:
    """Black to white, uint8 [1, 256] or [1, 256, channels]; of CMYK by black ink alone."""
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 256)
    if channels == 1:
        return ramp
    if channels == 3:
        return np.dstack([ramp] * 3)
    return np.dstack([np.zeros((1, 256, 3), np.uint8), 255 - ramp])


def _pushed(icc: bytes, pixels: Bytes | Words, mode: str) -> Unit:
    """Pixels as LittleCMS turns them into sRGB gray, 0..1, [N]."""
    # Unless told so, it takes its tables of eight bits for good enough.
    transform = _transform(icc, mode, _opened(SRGB_GRAY), "I;16", ImageCms.Flags.NOOPTIMIZE)
    gray = np.asarray(transform.apply(_image(pixels, mode)), np.uint16)
    return gray.ravel() / 65_535


def _opened(icc: bytes) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(io.BytesIO(icc))


def _transform(
    icc: bytes,
    mode: str,
    output: ImageCms.ImageCmsProfile,
    output_mode: str,
    flags: ImageCms.Flags = ImageCms.Flags.NONE,
) -> ImageCms.ImageCmsTransform:
    # LittleCMS copies the one pixel that it remembers to the stack, so that threads may share a transform.
    return ImageCms.buildTransform(
        _opened(icc),
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
    """Raises _Unusable unless black to white becomes something of the kind."""
    if values[-1] - values[0] < LEAST_RANGE:
        raise _Unusable("it hardly tells black from white")
    if (np.maximum.accumulate(values) - values).max() > DIP:
        raise _Unusable("its curve falls")


def _cube() -> Bytes:
    """Colours in PROBES steps of each channel, uint8 [1, PROBES ** 3, 3]."""
    steps = np.linspace(0, 255, PROBES).astype(np.uint8)
    return np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)


def _changes_nothing(conversion: Conversion) -> bool:
    colors = _cube()
    return bool(np.abs(conversion.apply(colors).astype(int) - colors).max() <= 255 * INSIGNIFICANT)


def _table(values: Unit, bits: Bits) -> Curve:
    table = np.rint(values * 255).astype(np.uint8) if bits == 8 else np.rint(values * 65_535).astype(np.uint16)
    # Every photo with the profile gets this very one.
    table.setflags(write=False)
    return table


def _strips(shape: tuple[int, ...]) -> Iterator[slice]:
    rows = max(1, STRIP_PIXELS // max(1, shape[1]))
    return (slice(top, top + rows) for top in range(0, shape[0], rows))
