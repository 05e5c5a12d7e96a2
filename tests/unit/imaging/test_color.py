import colorsys
import tracemalloc
from collections.abc import Callable

import cv2
import numpy as np
import pytest
import skimage.color
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from service.imaging import color
from service.imaging.color import ColorSpace

spaces = st.sampled_from(color.COLOR_SPACES)
lumas = arrays.arrays(np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40))


@st.composite
def grids(draw: st.DrawFn) -> np.ndarray:
    """Return chroma far outside any gamut, as an untrained model could predict it."""
    side = draw(st.integers(1, 9))
    scale = draw(st.sampled_from([0.1, 1.0, 30.0, 300.0]))
    seed = draw(st.integers(0, 2**32 - 1))
    return (np.random.default_rng(seed).normal(size=(2, side, side)) * scale).astype(np.float32)


def own_grid(rgb: np.ndarray, space: ColorSpace) -> np.ndarray:
    """Return the true chroma of a picture, as a grid of the picture's own size."""
    return np.ascontiguousarray(color.split_rgb(rgb, space)[1].transpose(2, 0, 1))


def test_lightness_of_every_gray_is_that_of_scikit_image() -> None:
    grays = np.arange(256, dtype=np.uint8)
    expected = skimage.color.rgb2lab(np.stack([grays] * 3, axis=-1)[np.newaxis])[0, :, 0]
    np.testing.assert_allclose(color.LIGHTNESS_OF_LUMA * 100, expected, atol=0.01)


@pytest.mark.parametrize("space", color.COLOR_SPACES)
def test_split_is_the_whole_photo_in_the_models_size(gray: np.ndarray, space: ColorSpace) -> None:
    lightness = color.split(gray, space, 64)
    assert lightness.shape == (1, 64, 64)
    assert lightness.dtype == np.float32
    assert 0 <= lightness.min() < lightness.max() <= 1
    whole = color.lightness_of_luma(gray, space).mean()
    assert abs(lightness.mean() - whole) < 0.01


@given(lumas, grids(), spaces)
@settings(max_examples=200, deadline=None)
def test_luma_is_kept_whatever_the_chroma(plane: np.ndarray, grid: np.ndarray, space: ColorSpace) -> None:
    rgb = color.merge_rgb(plane, grid, space)
    assert np.abs(color.luma_of_rgb(rgb).astype(int) - plane).max() <= 1


@given(lumas, spaces)
@settings(max_examples=50, deadline=None)
def test_no_chroma_is_gray(plane: np.ndarray, space: ColorSpace) -> None:
    nothing = np.zeros((2, 3, 3), np.float32)
    expected = np.dstack([plane] * 3)
    np.testing.assert_array_equal(color.merge_rgb(plane, nothing, space), expected)
    cb, cr = color.merge_planes(plane, nothing, space)
    assert (cb == 128).all()
    assert (cr == 128).all()
    assert np.abs(color.merge_literal(plane, nothing, space).astype(int) - expected).max() <= 1


@given(st.integers(0, 255), grids(), spaces)
@settings(max_examples=300, deadline=None)
def test_planes_are_the_color_difference_of_the_pixels(level: int, grid: np.ndarray, space: ColorSpace) -> None:
    """Colour stays in gamut for every luma of a slice. Far outside the gamut, up to 22 levels are lost (measured)."""
    plane = np.full((5, 7), level, np.uint8)
    one = np.clip(grid[:, :1, :1], -color.CHROMA_RANGE[space], color.CHROMA_RANGE[space])
    cb, cr = color.merge_planes(plane, one, space)
    red, green, blue = np.moveaxis(color.merge_rgb(plane, one, space).astype(float), -1, 0)
    own = 0.299 * red + 0.587 * green + 0.114 * blue
    assert np.abs((blue - own) / 1.772 + 128 - cb).max() <= 25
    assert np.abs((red - own) / 1.402 + 128 - cr).max() <= 25


@pytest.mark.parametrize("space", color.COLOR_SPACES)
def test_of_colours_that_photographs_have_the_planes_are_the_difference(space: ColorSpace) -> None:
    random = np.random.default_rng(1)
    scale = 15 if space == "lab" else 0.15
    plane = random.integers(60, 200, (64, 64)).astype(np.uint8)
    grid = random.normal(0, scale, (2, 64, 64)).astype(np.float32)
    cb, cr = color.merge_planes(plane, grid, space)
    red, green, blue = np.moveaxis(color.merge_rgb(plane, grid, space).astype(float), -1, 0)
    own = 0.299 * red + 0.587 * green + 0.114 * blue
    for plane_of, made in ((cb, (blue - own) / 1.772), (cr, (red - own) / 1.402)):
        error = np.abs(made + 128 - plane_of)
        assert error.mean() < 0.6
        assert np.quantile(error, 0.99) < 5


def test_every_luma_has_a_slice_near_it() -> None:
    assert (np.diff(color.SLICE_OF_LUMA.astype(int)) >= 0).all()
    ends = [255 * end[color.SLICE_OF_LUMA] for end in (color.MIN_LUMA_OF_SLICE, color.MAX_LUMA_OF_SLICE)]
    width = ends[1] - ends[0]
    assert (ends[0] - 0.01 <= np.arange(256)).all()
    assert (np.arange(256) <= ends[1] + 0.01).all()
    assert width.max() < 7.5
    assert (width[[0, 1, 2, 253, 254, 255]] == 0).all()


@pytest.mark.parametrize("space", color.COLOR_SPACES)
@pytest.mark.parametrize("side", [1, 7, 32])
def test_a_large_photo_is_merged_as_the_reference_does(gray: np.ndarray, space: ColorSpace, side: int) -> None:
    random = np.random.default_rng(side)
    coarse = random.normal(0, 25 if space == "lab" else 0.3, (2, max(1, side // 4), max(1, side // 4)))
    grid = np.stack([cv2.resize(c, (side, side)) for c in coarse]).astype(np.float32)
    large = cv2.resize(gray, (1203, 907), interpolation=cv2.INTER_CUBIC)
    cb, cr = color.merge_planes(large, grid, space)
    merged = color.rgb_of_planes(large, cb, cr)
    assert np.abs(color.luma_of_rgb(merged).astype(int) - large).max() <= 1
    reference = color.merge_rgb(large, grid, space)
    difference = skimage.color.deltaE_ciede2000(skimage.color.rgb2lab(merged), skimage.color.rgb2lab(reference))
    assert difference.mean() < 0.7


@pytest.mark.parametrize("shape", [(1, 4000), (4000, 1), (3, 40_000), (40_000, 2)])
def test_long_photos_are_merged(shape: tuple[int, int]) -> None:
    """OpenCV's remap has a limit on sides, which a panorama may exceed."""
    plane = np.full(shape, 128, np.uint8)
    cb, cr = color.merge_planes(plane, np.full((2, 4, 4), 30, np.float32), "lab")
    assert cb.shape == cr.shape == shape
    assert np.ptp(cb) <= 1
    assert cr.min() > 140


@pytest.mark.parametrize("space", color.COLOR_SPACES)
def test_true_chroma_gives_back_the_photograph(astronaut: np.ndarray, space: ColorSpace) -> None:
    merged = color.merge_rgb(color.luma_of_rgb(astronaut), own_grid(astronaut, space), space)
    difference = skimage.color.deltaE_ciede2000(skimage.color.rgb2lab(merged), skimage.color.rgb2lab(astronaut))
    assert difference.mean() < 0.3


def test_split_of_a_color_photo_is_that_of_scikit_image(astronaut: np.ndarray) -> None:
    lightness, chroma = color.split_rgb(astronaut, "lab")
    expected = skimage.color.rgb2lab(astronaut)
    np.testing.assert_allclose(lightness * 100, expected[..., 0], atol=0.3)
    np.testing.assert_allclose(chroma, expected[..., 1:], atol=0.5)
    value, vector = color.split_rgb(astronaut, "hsv")
    hue, saturation, expected_value = np.moveaxis(skimage.color.rgb2hsv(astronaut), -1, 0)
    np.testing.assert_allclose(value, expected_value, atol=1e-5)
    np.testing.assert_allclose(vector[..., 0], saturation * np.cos(2 * np.pi * hue), atol=1e-4)
    np.testing.assert_allclose(vector[..., 1], saturation * np.sin(2 * np.pi * hue), atol=1e-4)


@pytest.mark.filterwarnings("ignore:Conversion from CIE-LAB")
def test_literal_lab_is_that_of_scikit_image_and_opencv(gray: np.ndarray) -> None:
    random = np.random.default_rng(0)
    grid = random.uniform(-40, 40, (2, *gray.shape)).astype(np.float32)
    lab = np.dstack([color.LIGHTNESS_OF_LUMA[gray] * 100, *grid]).astype(np.float32)
    merged = color.merge_literal(gray, grid, "lab").astype(float)
    expected = skimage.color.lab2rgb(lab) * 255
    inside = ((expected > 0.5) & (expected < 254.5)).all(axis=-1)
    assert inside.mean() > 0.2
    assert np.abs(merged - expected)[inside].max() <= 1
    by_opencv = cv2.cvtColor(lab, cv2.COLOR_Lab2RGB) * 255
    assert np.abs(merged - by_opencv)[inside].mean() < 0.6


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255))
@settings(max_examples=300, deadline=None)
def test_literal_hsv_is_that_of_the_standard_library(red: int, green: int, blue: int) -> None:
    hue, saturation, value = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
    angle = 2 * np.pi * hue
    grid = np.array([saturation * np.cos(angle), saturation * np.sin(angle)], np.float32).reshape(2, 1, 1)
    plane = np.array([[round(255 * value)]], np.uint8)
    merged = color.merge_literal(plane, grid, "hsv")[0, 0].astype(int)
    assert np.abs(merged - [red, green, blue]).max() <= 1


@given(st.floats(-180, 180), spaces, st.integers(20, 235))
@settings(max_examples=200, deadline=None)
def test_out_of_gamut_keeps_the_hue(angle: float, space: ColorSpace, level: int) -> None:
    """Chroma out of gamut is scaled towards gray with the same Cb : Cr, to the gamut's edge and no further."""
    luma = np.full((1, 1), level / 255, np.float32)
    reach = np.float32(120 if space == "lab" else 1)
    x, y = (np.full((1, 1), reach * f(np.deg2rad(angle)), np.float32) for f in (np.cos, np.sin))
    wanted = color._color_difference(luma, color.LIGHTNESS_OF_LUMA[[[level]]], x, y, space)
    kept = color._into_gamut(luma, luma, *wanted)
    cb, cr = (float(c[0, 0]) for c in kept)
    assert np.arctan2(cr, cb) == pytest.approx(float(np.arctan2(wanted[1], wanted[0])[0, 0]), abs=1e-4)
    channels = luma[0, 0] + np.array([1.402 * cr, -0.344136 * cb - 0.714136 * cr, 1.772 * cb])
    assert channels.min() >= -1e-5
    assert channels.max() <= 1 + 1e-5
    if (cb, cr) != tuple(float(c[0, 0]) for c in wanted):
        assert channels.min() < 1e-4 or channels.max() > 1 - 1e-4


@pytest.mark.parametrize(("sides", "size"), [((40, 60), 64), ((32, 32), 64), ((100, 40), 64), ((64, 64), 64)])
def test_small_photos_are_enlarged_smoothly(sides: tuple[int, int], size: int) -> None:
    """Chroma is interpolated, not repeated: a ramp stays a ramp."""
    ramp = np.tile(np.linspace(0, 255, sides[1]).astype(np.uint8), (sides[0], 1))
    steps = np.diff(color.square(ramp, size)[size // 2].astype(int))
    assert steps.min() >= 0
    assert steps.max() <= 1.6 * 255 / min(size, sides[1])


@pytest.mark.parametrize("shape", [(512, 512), (2001, 1503), (600, 4002), (601, 4003)])
def test_large_photos_are_shrunk_by_area(gray: np.ndarray, shape: tuple[int, int]) -> None:
    picture = cv2.resize(gray, shape[::-1], interpolation=cv2.INTER_CUBIC)
    at_once = cv2.resize(picture, (64, 64), interpolation=cv2.INTER_AREA).astype(int)
    difference = np.abs(color.square(picture, 64).astype(int) - at_once)
    assert difference.mean() < 1.2
    assert difference.max() <= 12


def test_hues_are_enlarged_without_a_seam_at_red() -> None:
    """Between two reds at -10 and +10 degrees lies red, not cyan."""
    angles = np.deg2rad([-10, 10])
    grid = np.stack([np.cos(angles), np.sin(angles)]).astype(np.float32).reshape(2, 1, 2)
    rgb = color.merge_literal(np.full((1, 9), 200, np.uint8), grid, "hsv")
    assert (rgb[..., 0] >= rgb[..., 1:].max(axis=-1)).all()
    red, green, blue = rgb[0, 4].astype(int)
    assert red == 200
    assert abs(green - blue) <= 2


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (2, 2), (3, 4), (333, 501)])
def test_half_rounds_up(shape: tuple[int, int]) -> None:
    assert color.half(np.zeros(shape, np.uint8)).shape == ((shape[0] + 1) // 2, (shape[1] + 1) // 2)


def test_strips_make_no_difference(gray: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = np.random.default_rng(1).normal(size=(2, 14, 14)).astype(np.float32) * 25
    whole = color.merge_rgb(gray, grid, "lab")
    monkeypatch.setattr(color, "STRIP_PIXELS", 1000)
    np.testing.assert_array_equal(color.merge_rgb(gray, grid, "lab"), whole)


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (97, 201), (333, 501), (4, 4), (20, 3)])
@pytest.mark.parametrize("side", [1, 2, 7, 56])
def test_strips_of_large_photos_are_enlarged_as_whole_planes_are(
    shape: tuple[int, int], side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = np.random.default_rng(side).uniform(-1, 1, (2, side, side)).astype(np.float32)
    whole = np.stack(color.enlarge(grid, *shape))
    monkeypatch.setattr(color, "WHOLE_PIXELS", 0)
    monkeypatch.setattr(color, "STRIP_PIXELS", 1000)
    strips = list(color.enlarge_in_strips(grid, *shape))
    assert [rows.start for rows, _, _ in strips[1:]] == [rows.stop for rows, _, _ in strips[:-1]]
    found = np.concatenate([np.stack([x, y]) for _, x, y in strips], axis=1)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, whole, atol=1e-5)


@pytest.mark.parametrize("merge", [color.merge_rgb, color.merge_literal, color.merge_planes])
def test_a_merge_holds_little_more_than_its_answer(merge: Callable[..., object]) -> None:
    luma, grid = np.full((2000, 3000), 99, np.uint8), np.full((2, 56, 56), 20, np.float32)
    merge(luma[:9], grid, "lab")
    tracemalloc.start()
    try:
        merge(luma, grid, "lab")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    answer = 2 if merge is color.merge_planes else 3
    assert peak < answer * luma.size + 16 * 2**20
