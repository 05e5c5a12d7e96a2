"""Profiles are built here byte by byte, and what becomes of pixels is checked against the definitions, in NumPy."""

import io
import itertools
import logging
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageCms

from service.imaging import icc_profiles

# Linear RGB to XYZ, relative to D50: of sRGB and, as Adobe published it, of Adobe RGB (1998).
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
ADOBE = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
DISPLAY_P3 = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
PROPHOTO = np.array([[0.79767, 0.13519, 0.03135], [0.28804, 0.71188, 0.00008], [0.0, 0.0, 0.82491]])
WHITE = np.array([0.9642, 1.0, 0.8249])

Tags = dict[bytes, bytes]


def fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65_536) for value in values))


def xyz(values: np.ndarray) -> bytes:
    return b"XYZ \0\0\0\0" + fixed(*values)


def gamma(exponent: float) -> bytes:
    return b"curv" + struct.pack(">4xIH", 1, round(exponent * 256))


def sampled(values: np.ndarray) -> bytes:
    return b"curv" + struct.pack(">4xI", len(values)) + np.rint(values * 65_535).astype(">u2").tobytes()


def parametric(kind: int, *values: float) -> bytes:
    return b"para" + struct.pack(">4xHH", kind, 0) + fixed(*values)


SRGB_CURVE = parametric(3, 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
PROPHOTO_CURVE = parametric(3, 1.8, 1, 0, 1 / 16, 1 / 32)


def icc(space: bytes, tags: Tags, *, kind: bytes = b"mntr", pcs: bytes = b"XYZ ", version: int = 2) -> bytes:
    """A profile around these tags."""
    start = 132 + 12 * len(tags)
    entries = body = b""
    for name, content in tags.items():
        entries += name + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(">I4xI4s4s4s12x4s", start + len(body), version << 24, kind, space, pcs, b"acsp").ljust(68, b"\0")
    return (head + fixed(*WHITE)).ljust(128, b"\0") + struct.pack(">I", len(tags)) + entries + body


def gray(curve: bytes, **header: object) -> bytes:
    return icc(b"GRAY", {b"wtpt": xyz(WHITE), b"kTRC": curve}, **header)  # type: ignore[arg-type]


def matrix(primaries: np.ndarray, *curves: bytes, tags: Tags | None = None, **header: object) -> bytes:
    """An RGB profile by its primaries and one curve, or one for each channel; further tags come first."""
    three = curves * 3 if len(curves) == 1 else curves
    tags = (tags or {}) | {b"wtpt": xyz(WHITE)}
    for name, column, curve in zip((b"r", b"g", b"b"), primaries.T, three, strict=True):
        tags |= {name + b"XYZ": xyz(column), name + b"TRC": curve}
    return icc(b"RGB ", tags, **header)  # type: ignore[arg-type]


def lab(points: np.ndarray) -> np.ndarray:
    """L*, a*, b* of XYZ relative to D50, [..., 3]."""
    ratio = points / WHITE
    f = np.where(ratio > 216 / 24_389, np.cbrt(ratio), (24_389 / 27 * ratio + 16) / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def table(channels: int, grid: int, to_xyz: Callable[[np.ndarray], np.ndarray], *, claimed: int | None = None) -> bytes:
    """A tag of 16-bit lookup tables (ICC.1, lut16Type), from device values 0..1, [N, channels], to Lab."""
    nodes = np.array(list(itertools.product(np.linspace(0, 1, grid), repeat=channels)))
    words = np.rint((lab(to_xyz(nodes)) + np.array([0, 128, 128])) * [652.8, 256, 256]).clip(0, 65_535).astype(">u2")
    head = struct.pack(">4s4xBBBx", b"mft2", channels, 3, claimed or grid) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    straight = struct.pack(">HH", 0, 65_535)
    return head + struct.pack(">HH", 2, 2) + straight * channels + words.tobytes() + straight * 3


def modern_table(grid: int, to_xyz: Callable[[np.ndarray], np.ndarray], *, claimed: int | None = None) -> bytes:
    """Return a version 4 tag for RGB (ICC.1, lutAToBType): linear curves, a table, linear curves."""
    nodes = np.array(list(itertools.product(np.linspace(0, 1, grid), repeat=3)))
    words = np.rint((lab(to_xyz(nodes)) + np.array([0, 128, 128])) * [655.35, 257, 257]).clip(0, 65_535).astype(">u2")
    cube = bytes([claimed or grid] * 3).ljust(16, b"\0") + b"\2\0\0\0" + words.tobytes()
    cube += bytes(-len(cube) % 4)
    straight = (b"curv" + bytes(8)) * 3
    head = struct.pack(">4s4xBBxx5I", b"mAB ", 3, 3, 32, 0, 0, 32 + len(straight), 32 + len(straight) + len(cube))
    return head + straight + cube + straight


def with_table(space: bytes, content: bytes, **header: object) -> bytes:
    tags = {b"wtpt": xyz(WHITE), b"A2B0": content}
    return icc(space, tags, **{"kind": b"scnr" if space == b"RGB " else b"prtr", "pcs": b"Lab "} | header)  # type: ignore[arg-type]


def encoded(light: np.ndarray) -> np.ndarray:
    """SRGB, 0..1, of linear light."""
    bounded = np.clip(light, 0, 1)
    return np.where(bounded <= 0.0031308, 12.92 * bounded, 1.055 * bounded ** (1 / 2.4) - 0.055)


def decoded(values: np.ndarray) -> np.ndarray:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def light_of_lightness(values: np.ndarray) -> np.ndarray:
    """Y of L*/100."""
    f = (100 * values + 16) / 116
    return np.where(f > 6 / 29, f**3, (f - 16 / 116) * 108 / 841)


def ink_with_gain(values: np.ndarray) -> np.ndarray:
    """Return the light reflected by inks with a dot gain of 20 % of the paper at half tone."""
    ink = 1 - values
    return 1 - (ink + 0.8 * ink * (1 - ink))


def adobe_xyz(values: np.ndarray) -> np.ndarray:
    return values ** (563 / 256) @ ADOBE.T


def ink_xyz(inks: np.ndarray) -> np.ndarray:
    """Return XYZ of a press whose inks are the complements of sRGB."""
    return decoded((1 - inks[..., :3]) * (1 - inks[..., 3:])) @ SRGB.T


ADOBE_ICC = matrix(ADOBE, gamma(563 / 256))
PRESS_ICC = with_table(b"CMYK", table(4, 9, ink_xyz))
SCANNER_ICC = with_table(b"RGB ", table(3, 17, adobe_xyz))
MODERN_SCANNER_ICC = with_table(b"RGB ", modern_table(17, adobe_xyz), version=4)
RAMP = np.linspace(0, 1, 256)

# Each with the light that its definition gives to a gray value.
CURVED: dict[str, tuple[bytes, Callable[[np.ndarray], np.ndarray]]] = {
    "gray linear": (gray(b"curv" + bytes(8)), lambda v: v),
    "gray 1.8": (gray(gamma(1.8)), lambda v: v ** (461 / 256)),
    "gray 2.2": (gray(gamma(2.2)), lambda v: v ** (563 / 256)),
    "gray 2.2, version 4": (gray(parametric(0, 2.2), version=4), lambda v: v**2.2),
    "gray dot gain": (gray(sampled(ink_with_gain(np.linspace(0, 1, 4096))), kind=b"prtr"), ink_with_gain),
    "gray L*": (gray(sampled(light_of_lightness(np.linspace(0, 1, 4096)))), light_of_lightness),
    "gray L*, by Lab": (gray(b"curv" + bytes(8), pcs=b"Lab "), light_of_lightness),
    "Adobe RGB": (ADOBE_ICC, lambda v: v ** (563 / 256)),
    "ProPhoto": (matrix(PROPHOTO, PROPHOTO_CURVE, version=4), lambda v: np.where(v < 1 / 32, v / 16, v**1.8)),
    "linear RGB": (matrix(SRGB, gamma(1.0)), lambda v: v),
}
SAMPLED = (ink_with_gain, light_of_lightness)
UNTOUCHED = {
    "none": None,
    "empty": b"",
    "sRGB by LittleCMS": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    "sRGB, version 4": matrix(SRGB, SRGB_CURVE, version=4),
    "sRGB by 1,024 samples": matrix(SRGB, sampled(decoded(np.linspace(0, 1, 1024)))),
    "gray sRGB": gray(SRGB_CURVE),
}


@pytest.mark.parametrize("name", CURVED)
@pytest.mark.parametrize(("bits", "off"), [(8, 0.51), (16, 2)])
def test_a_curve_is_that_of_the_definition(name: str, bits: icc_profiles.Bits, off: float) -> None:
    profile, light = CURVED[name]
    curve = icc_profiles.curve_of(profile, channels=1, bits=bits)
    assert curve is not None
    assert (curve.dtype, len(curve)) == (np.dtype(f"uint{bits}"), 1 << bits)
    expected = encoded(light(np.linspace(0, 1, 1 << bits))) * (len(curve) - 1)
    # LittleCMS gives the light of a sampled curve in 16 bits, and sRGB is 12.92 times as steep near black.
    assert np.abs(curve - expected).max() <= (13 if bits == 16 and b"curv" in profile and light in SAMPLED else off)
    assert np.all(np.diff(curve.astype(int)) >= 0)
    as_rgb = icc_profiles.curve_of(profile, channels=3, bits=bits)
    if name.startswith("gray"):
        assert as_rgb is None, "a gray profile says nothing of a file with three channels"
    else:
        np.testing.assert_array_equal(as_rgb, curve)


@pytest.mark.parametrize("profile", [*UNTOUCHED.values(), matrix(DISPLAY_P3, SRGB_CURVE, version=4)])
@pytest.mark.parametrize("bits", [8, 16])
def test_srgbs_own_curve_is_nothing_to_do(profile: bytes | None, bits: icc_profiles.Bits) -> None:
    assert icc_profiles.curve_of(profile, channels=1, bits=bits) is None
    assert icc_profiles.curve_of(profile, channels=3, bits=bits) is None


@pytest.mark.parametrize("name", UNTOUCHED)
def test_srgb_is_not_converted(name: str) -> None:
    assert icc_profiles.conversion_of(UNTOUCHED[name], channels=3) is None


@pytest.mark.parametrize("profile", [SCANNER_ICC, MODERN_SCANNER_ICC])
@pytest.mark.parametrize(("bits", "off"), [(8, 0.51), (16, 10)])
def test_the_curve_of_a_lookup_table(profile: bytes, bits: icc_profiles.Bits, off: float) -> None:
    curve = icc_profiles.curve_of(profile, channels=3, bits=bits)
    assert curve is not None
    # Of gray, the table's own answer is a straight line of L* from node to node.
    nodes = np.linspace(0, 1, 17)
    lightness = np.interp(RAMP, nodes, lab(adobe_xyz(np.stack([nodes] * 3, -1)))[:, 0]) / 100
    expected = encoded(light_of_lightness(lightness)) * (len(curve) - 1)
    assert np.abs(curve[:: (len(curve) - 1) // 255] - expected).max() <= off


def test_curves_that_differ_by_channel_count_by_their_luminance() -> None:
    profile = matrix(SRGB, gamma(1.5), gamma(2.5), gamma(2.0))
    curve = icc_profiles.curve_of(profile, channels=3, bits=16)
    assert curve is not None
    ramp = np.linspace(0, 1, 1 << 16)
    expected = encoded(np.stack([ramp**1.5, ramp**2.5, ramp**2.0], -1) @ SRGB[1])
    # Between the 256 values that are asked for, it is made of straight lines.
    assert np.abs(curve / 65_535 - expected).max() < 0.3 / 255
    assert np.abs(curve[::257] / 65_535 - expected[::257]).max() < 0.01 / 255


@pytest.mark.parametrize(
    ("primaries", "curve", "light"),
    [
        (ADOBE, gamma(563 / 256), lambda v: v ** (563 / 256)),
        (DISPLAY_P3, SRGB_CURVE, decoded),
        (PROPHOTO, PROPHOTO_CURVE, lambda v: np.where(v < 1 / 32, v / 16, v**1.8)),
    ],
)
def test_rgb_is_converted_as_defined(
    primaries: np.ndarray, curve: bytes, light: Callable[[np.ndarray], np.ndarray], astronaut: np.ndarray
) -> None:
    conversion = icc_profiles.conversion_of(matrix(primaries, curve), channels=3)
    assert conversion is not None
    linear = light(astronaut / 255) @ primaries.T @ np.linalg.inv(SRGB).T
    expected = encoded(linear) * 255
    off = np.abs(conversion.apply(astronaut) - expected)
    assert off.mean() < 0.4
    assert np.quantile(off, 0.999) <= 1.1
    assert off.max() <= 3


def test_gray_stays_gray_when_converted() -> None:
    conversion = icc_profiles.conversion_of(ADOBE_ICC, channels=3)
    assert conversion is not None
    ramp = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(16, 16, 3)
    converted = conversion.apply(ramp).reshape(256, 3)
    assert np.ptp(converted.astype(int), axis=1).max() <= 1
    curve = icc_profiles.curve_of(ADOBE_ICC, channels=3)
    assert np.abs(converted[:, 1].astype(int) - curve).max() <= 1


def test_ink_is_converted_by_its_profile() -> None:
    conversion = icc_profiles.conversion_of(PRESS_ICC, channels=4)
    assert conversion is not None
    corners = np.array(list(itertools.product((0, 255), repeat=4)), np.uint8).reshape(4, 4, 4)
    expected = encoded(ink_xyz(corners / 255) @ np.linalg.inv(SRGB).T) * 255
    assert np.abs(conversion.apply(corners) - expected).max() <= 2
    colors = np.random.default_rng(0).integers(0, 256, (64, 64, 4), np.uint8)
    expected = encoded(ink_xyz(colors / 255) @ np.linalg.inv(SRGB).T) * 255
    assert np.abs(conversion.apply(colors) - expected).mean() < 3


def test_a_jpeg_of_ink_as_pillow_reads_it() -> None:
    buffer = io.BytesIO()
    Image.new("CMYK", (16, 16), (0, 0, 0, 64)).save(buffer, "JPEG", quality=95, icc_profile=PRESS_ICC)
    with Image.open(buffer) as image:
        conversion = icc_profiles.conversion_of(image.info["icc_profile"], channels=4)
        assert conversion is not None
        assert np.abs(conversion.apply(np.asarray(image)).astype(int) - (255 - 64)).max() <= 3


@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (3, 700), (600, 700), (2, icc_profiles.STRIP_PIXELS + 1)])
def test_strips_make_no_difference(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    conversion = icc_profiles.conversion_of(ADOBE_ICC, channels=3)
    assert conversion is not None
    whole = conversion.apply(np.ascontiguousarray(pixels.reshape(1, -1, 3)))
    np.testing.assert_array_equal(conversion.apply(pixels).reshape(1, -1, 3), whole)
    np.testing.assert_array_equal(conversion.apply(pixels[::-1, ::-1])[::-1, ::-1], conversion.apply(pixels))
    words = np.random.default_rng(2).integers(0, 1 << 16, shape, np.uint16)
    curve = icc_profiles.curve_of(ADOBE_ICC, channels=3, bits=16)
    assert curve is not None
    np.testing.assert_array_equal(icc_profiles.apply_curve(words, curve), curve[words])


def test_a_curve_is_applied_to_any_plane() -> None:
    curve = icc_profiles.curve_of(ADOBE_ICC, channels=3)
    assert curve is not None
    pixels = np.random.default_rng(3).integers(0, 256, (50, 70, 3), np.uint8)
    for plane in (pixels[..., 0], pixels[..., 0].copy(), pixels[::-1, ::2, 1], pixels):
        np.testing.assert_array_equal(icc_profiles.apply_curve(plane, curve), curve[plane])


def test_threads_share_a_conversion() -> None:
    photos = np.random.default_rng(4).integers(0, 256, (8, 200, 300, 4), np.uint8)
    conversion = icc_profiles.conversion_of(PRESS_ICC, channels=4)
    assert conversion is not None
    expected = [conversion.apply(photo) for photo in photos]
    with ThreadPoolExecutor(8) as threads:
        for _ in range(10):
            for converted, one in zip(threads.map(conversion.apply, photos), expected, strict=True):
                np.testing.assert_array_equal(converted, one)


@pytest.mark.parametrize("png_gamma", [100_000, 55_556, 50_000, 38_462, 20_000])
@pytest.mark.parametrize("bits", [8, 16])
def test_the_gamma_of_a_png(png_gamma: int, bits: icc_profiles.Bits) -> None:
    curve = icc_profiles.curve_of_gamma(png_gamma, bits=bits)
    assert curve is not None
    # The specification's way back: a sample is light to the power of gamma.
    light = np.linspace(0, 1, 1 << bits) ** (100_000 / png_gamma)
    assert np.abs(curve - encoded(light) * (len(curve) - 1)).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("png_gamma", [-1, 0, 1, 19_999, 200_001, 2**31, 45_455, 45_000, 46_000])
def test_a_gamma_that_is_srgbs_or_nonsense(png_gamma: int) -> None:
    assert icc_profiles.curve_of_gamma(png_gamma) is None


FALLING = np.concatenate([np.linspace(0, 1, 200), np.linspace(0.8, 1, 56)])
HUGE = with_table(b"RGB ", table(3, 3, adobe_xyz, claimed=255))
HOSTILE = {
    "words": b"this is no profile",
    "a header alone": gray(gamma(1.8))[:128],
    "cut short": ADOBE_ICC[:200],
    "no magic": ADOBE_ICC.replace(b"acsp", b"abcd"),
    "no tags": icc(b"RGB ", {}),
    "no gray curve": icc(b"GRAY", {b"wtpt": xyz(WHITE)}),
    "a device link": matrix(ADOBE, gamma(1.8), kind=b"link"),
    "abstract": matrix(ADOBE, gamma(1.8), kind=b"abst"),
    "named colours": matrix(ADOBE, gamma(1.8), kind=b"nmcl"),
    "of Lab": icc(b"Lab ", {b"wtpt": xyz(WHITE)}),
    "of a version to come": matrix(ADOBE, gamma(1.8), version=9),
    "a curve of no kind": gray(b"what" + bytes(8)),
    "a curve that claims samples": gray(b"curv" + struct.pack(">4xI", 30_000)),
    "a curve that claims everything": gray(b"curv" + struct.pack(">4xI", 2**32 - 1)),
    "a curve of no kind that there is": gray(parametric(77, 1, 1, 1, 1, 1, 1, 1)),
    "a curve upside down": gray(sampled(np.linspace(1, 0, 256))),
    "a curve that falls": gray(sampled(FALLING)),
    "a curve that is flat": gray(sampled(np.full(256, 0.5))),
    "a curve of black": gray(sampled(np.zeros(2))),
    "a gamma of 0": gray(gamma(0)),
    "a power without end": gray(parametric(0, -32_768)),
    "divided by nothing": gray(parametric(4, 0, 0, 0, 0, 0, 0, 0)),
    "primaries of nothing": matrix(np.zeros((3, 3)), gamma(2.2)),
    "primaries upside down": matrix(-ADOBE, gamma(2.2)),
    "a table that claims a grid of 255": HUGE,
    "and a tag of nine bytes": HUGE[:152] + struct.pack(">I", 9) + HUGE[156:],
    "a modern table that claims a grid of 255": with_table(b"RGB ", modern_table(3, adobe_xyz, claimed=255), version=4),
    "a table that claims a grid of 1": with_table(b"RGB ", table(3, 3, adobe_xyz, claimed=1)),
    "a table of ink for a grid of 100": with_table(b"CMYK", table(4, 3, ink_xyz, claimed=100)),
    "a table for other channels": with_table(b"RGB ", table(4, 3, ink_xyz)),
    "too big": ADOBE_ICC + bytes(icc_profiles.MAX_PROFILE),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_bad_profile_is_ignored_and_said(name: str, caplog: pytest.LogCaptureFixture) -> None:
    icc_profiles._curve.cache_clear()
    with caplog.at_level(logging.DEBUG, "service.imaging.icc_profiles"):
        for bits in (8, 16):
            assert icc_profiles.curve_of(HOSTILE[name], channels=1, bits=bits) is None  # type: ignore[arg-type]
            assert icc_profiles.curve_of(HOSTILE[name], channels=3, bits=bits) is None  # type: ignore[arg-type]
        for channels in (3, 4):
            assert icc_profiles.conversion_of(HOSTILE[name], channels=channels) is None  # type: ignore[arg-type]
    assert "is ignored" in caplog.text


def test_a_profile_for_other_channels_is_ignored() -> None:
    assert icc_profiles.conversion_of(PRESS_ICC, channels=3) is None
    assert icc_profiles.conversion_of(ADOBE_ICC, channels=4) is None
    assert icc_profiles.conversion_of(gray(gamma(1.8)), channels=3) is None
    assert icc_profiles.curve_of(PRESS_ICC, channels=1) is None


def chain(stages: int) -> bytes:
    """Return a tag of processing elements (ICC.1, multiProcessElementsType) that are all the same matrix."""
    identity = b"matf" + struct.pack(">4xHH12f", 3, 3, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0)
    place = struct.pack(">II", 16 + 8 * stages, len(identity))
    return b"mpet" + struct.pack(">4xHHI", 3, 3, stages) + place * stages + identity


@pytest.mark.parametrize("stages", [1, 100_000])
def test_an_endless_chain_keeps_nobody_waiting(stages: int) -> None:
    profile = matrix(
        ADOBE,
        gamma(563 / 256),
        tags={b"D2B0": chain(stages), b"D2B1": chain(stages), b"B2D0": chain(stages)},
        version=4,
    )
    started = time.process_time()
    curve = icc_profiles.curve_of(profile, channels=3)
    assert icc_profiles.conversion_of(profile, channels=3) is not None
    assert time.process_time() - started < 1
    np.testing.assert_array_equal(curve, icc_profiles.curve_of(ADOBE_ICC, channels=3))
