import io

import cv2
import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images

from service.imaging.tone import tone_of_rgb
from tests.bench.tone import KINDS, made
from tests.conftest import encoded

SEPIA = np.array([1.1, 0.98, 0.76])
CYANOTYPE = ((8, 28, 60), (225, 240, 250))


@pytest.fixture(scope="session")
def photographs(astronaut: np.ndarray) -> list[np.ndarray]:
    return [astronaut, skimage.data.coffee(), *load_sample_images().images]


def levels(picture: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def as_gray(rgb: np.ndarray) -> np.ndarray:
    return np.dstack([cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)] * 3)


def scene(seed: int, height: int, width: int) -> np.ndarray:
    """Return a synthetic gray photo, float64 [H, W, 1]: broad light and shadow, edges, fine texture."""
    random = np.random.default_rng(seed)
    broad, fine = (
        cv2.resize(random.normal(size=(cells, cells)), (width, height), interpolation=mode)
        for cells, mode in ((4, cv2.INTER_CUBIC), (24, cv2.INTER_NEAREST))
    )
    gray = 128 + 50 * broad + 15 * fine + random.normal(0, 3, (height, width))
    return np.clip(gray, 0, 255)[..., np.newaxis]


def of(rgb: np.ndarray) -> set[str]:
    """Return the tone of the picture, and check that it is the same in 8 and in 16 bits."""
    return {tone_of_rgb(rgb), tone_of_rgb(rgb.astype(np.uint16) * 257)}


def test_photographs_are_in_color(photographs: list[np.ndarray]) -> None:
    for photograph in photographs:
        assert of(photograph) == {"color"}


def test_without_their_color_they_are_gray(photographs: list[np.ndarray]) -> None:
    for photograph in photographs:
        assert of(as_gray(photograph)) == {"gray"}


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"gray", "stained", "stamp", "grainy", "fringed"}))
def test_made_kinds_are_not_in_color(photographs: list[np.ndarray], kind: str) -> None:
    random = np.random.default_rng(5)
    assert {tone_of_rgb(made(photograph, kind, random)) for photograph in photographs for _ in range(5)} <= {
        "gray",
        "toned",
    }


@pytest.mark.parametrize("strength", [0.2, 0.6, 1.0])
def test_sepia_is_toned(photographs: list[np.ndarray], strength: float) -> None:
    for photograph in photographs:
        assert of(levels(as_gray(photograph) * (1 + strength * (SEPIA - 1)))) == {"toned"}


def test_a_hue_that_changes_with_lightness_is_toned(photographs: list[np.ndarray]) -> None:
    for photograph in photographs:
        gray = as_gray(photograph)[..., 0]
        ends = zip(*CYANOTYPE, strict=True)
        assert of(levels(np.dstack([np.interp(gray, (0, 255), pair) for pair in ends]))) == {"toned"}


def test_a_print_that_yellowed_in_a_corner_is_toned(photographs: list[np.ndarray]) -> None:
    for photograph in photographs:
        gray = as_gray(photograph).astype(float)
        down, across = np.indices(gray.shape[:2]) / np.array(gray.shape[:2]).reshape(2, 1, 1)
        corner = np.clip(1 - np.hypot(down, across) / 1.2, 0, 1)[..., np.newaxis]
        assert tone_of_rgb(levels(gray * (1 + 0.5 * (SEPIA - 1)) - corner * [1, 6, 18])) == "toned"


def test_a_tint_of_a_few_levels_is_toned_and_one_of_rounding_is_gray(gray: np.ndarray) -> None:
    flat = np.dstack([gray] * 3).astype(float)
    assert of(levels(flat + np.array([3, 0, -3]))) == {"toned"}
    assert of(levels(flat + np.array([0, 0, 1]))) == {"gray"}


def test_a_small_stamp_and_a_colored_frame_do_not_count(gray: np.ndarray) -> None:
    picture = np.dstack([gray] * 3)
    picture[200:230, 300:330] = (190, 30, 40)
    assert tone_of_rgb(picture) == "gray"
    frame = cv2.copyMakeBorder(picture, 30, 30, 30, 30, cv2.BORDER_CONSTANT, value=(30, 60, 140))
    assert tone_of_rgb(frame) == "gray"


def test_one_large_colored_thing_makes_a_gray_photo_one_in_color(gray: np.ndarray) -> None:
    picture = np.dstack([gray] * 3).astype(float)
    picture[100:200, 150:300] *= (1.3, 0.8, 0.7)
    assert of(levels(picture)) == {"color"}


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 300),
    st.integers(1, 300),
    st.floats(0, 6),
    st.tuples(*[st.floats(0.85, 1.1)] * 3),
)
@settings(max_examples=150, deadline=None)
def test_noise_and_an_even_tint_never_make_color(
    seed: int, height: int, width: int, noise: float, tint: tuple[float, float, float]
) -> None:
    random = np.random.default_rng(seed)
    picture = scene(seed, height, width) * tint + random.normal(0, noise, (height, width, 3))
    assert tone_of_rgb(levels(picture)) != "color"


@given(st.integers(0, 2**32 - 1), st.integers(40, 400), st.integers(40, 400), st.floats(0, 2 * np.pi), st.booleans())
@settings(max_examples=100, deadline=None)
def test_two_hues_well_apart_are_always_color(seed: int, height: int, width: int, hue: float, beside: bool) -> None:
    random = np.random.default_rng(seed)
    share = random.uniform(0.3, 0.7)
    at = np.linspace(0, 1, width if beside else height) < share
    first = np.broadcast_to(at if beside else at[:, np.newaxis], (height, width))[..., np.newaxis]
    angles = hue + np.where(first, 0, random.uniform(2, 4)) + np.array([0, 2 * np.pi / 3, 4 * np.pi / 3])
    picture = np.clip(scene(seed, height, width), 50, 205) + random.uniform(15, 40) * np.cos(angles)
    assert of(levels(picture)) == {"color"}


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (2, 2), (3, 3), (1, 500), (500, 1), (7, 9)])
def test_tiny_ones_have_an_answer(shape: tuple[int, int]) -> None:
    for value in ((0, 0, 0), (255, 255, 255), (120, 120, 120)):
        assert of(np.full((*shape, 3), value, np.uint8)) == {"gray"}
    assert of(np.full((*shape, 3), (200, 40, 40), np.uint8)) == {"toned"}


@pytest.mark.parametrize("value", [0, 77, 255])
def test_large_flat_ones_are_gray(value: int) -> None:
    assert tone_of_rgb(np.full((4000, 6000, 3), value, np.uint8)) == "gray"


@pytest.mark.parametrize("shape", [(40, 20_000), (20_000, 40), (2001, 1503)])
def test_size_and_shape_make_no_difference(astronaut: np.ndarray, shape: tuple[int, int]) -> None:
    large = cv2.resize(astronaut, shape[::-1], interpolation=cv2.INTER_AREA)
    assert of(large) == {"color"}
    assert of(as_gray(large)) == {"gray"}
    assert of(levels(as_gray(large) * SEPIA)) == {"toned"}


def test_turning_makes_no_difference(astronaut: np.ndarray) -> None:
    for picture in (astronaut, as_gray(astronaut), levels(as_gray(astronaut) * SEPIA)):
        assert len({tone_of_rgb(np.rot90(picture, turns)) for turns in range(4)}) == 1


def test_a_view_without_alpha_is_taken(astronaut: np.ndarray) -> None:
    """Colours of transparent pixels are part of the picture, because the tone ignores alpha."""
    rgba = np.dstack([astronaut, np.zeros(astronaut.shape[:2], np.uint8)])
    assert tone_of_rgb(rgba[..., :3]) == "color"


def test_pictures_are_left_as_they_are(astronaut: np.ndarray) -> None:
    picture = astronaut.copy()
    picture.flags.writeable = False
    tone_of_rgb(picture)
    np.testing.assert_array_equal(picture, astronaut)


def small(photograph: np.ndarray, width: int) -> np.ndarray:
    height = round(width * photograph.shape[0] / photograph.shape[1])
    return cv2.resize(photograph, (width, height), interpolation=cv2.INTER_AREA)


def saved(picture: np.ndarray, format_: str, quality: int) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded(picture, format_, quality=quality))).convert("RGB"))


@pytest.mark.parametrize("width", [61, 80, 96, 120])
@pytest.mark.parametrize(("format_", "quality"), [("JPEG", 75), ("JPEG", 95), ("WEBP", 80)])
def test_small_photos_in_one_tone_are_toned_and_those_in_color_in_color(
    photographs: list[np.ndarray], width: int, format_: str, quality: int
) -> None:
    """With few pixels in a cell, the noise of their encoding stays in it."""
    for photograph in photographs:
        picture = small(photograph, width)
        assert tone_of_rgb(saved(picture, format_, quality)) == "color"
        for strength in (0.5, 1.0):
            sepia = levels(as_gray(picture) * (1 + strength * (SEPIA - 1)))
            assert tone_of_rgb(saved(sepia, format_, quality)) == "toned"
