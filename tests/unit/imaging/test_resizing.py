import numpy as np
import pytest

from service.formats.registry import Format
from service.imaging import decoding, identification, resizing
from service.imaging.photo import Photo, Pixels
from tests.conftest import encoded
from tests.unit.imaging.test_decoding import LIMITS, decode


def test_a_fitting_photo_keeps_its_shape_and_is_never_enlarged(gray: np.ndarray) -> None:
    photo = decode(encoded(gray, "PNG"))
    assert resizing.fit(photo, "png", 100).size == (66, 100)
    assert resizing.fit(photo, "png", 10_000).size == photo.size
    assert resizing.fit(photo, "png", 1).size == (1, 1)


def test_a_jpeg_has_no_alpha_so_the_photo_is_laid_on_white() -> None:
    pixels = np.array([[[0, 0], [0, 255], [100, 128]]], np.uint8)
    photo = decode(encoded(pixels, "PNG"))
    flat = resizing.fit(photo, "jpeg", None)
    assert flat.alpha is None
    assert flat.luma.tolist() == [[255, 0, 177]]
    rgb = resizing.fit_pixels(
        decoding.decode_pixels(identification.identify(encoded(pixels, "PNG"), LIMITS)), "jpeg", None
    ).rgb
    assert rgb.tolist() == [[[255] * 3, [0] * 3, [177] * 3]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("format_", ["png", "jpeg", "webp"])
def test_what_lies_under_transparent_pixels_does_not_show_at_the_edges(dtype: type, format_: Format) -> None:
    down, across = np.indices((301, 301)) - 150
    disc = (np.hypot(down, across) < 100).astype(dtype) * np.iinfo(dtype).max
    colored = np.dstack([disc, disc // 2, disc // 4])
    gray = resizing.fit(Photo(disc, disc), format_, 100)
    fitted = resizing.fit_pixels(Pixels(colored, disc), format_, 100)
    most = np.iinfo(gray.luma.dtype).max
    if format_ == "jpeg":
        assert gray.alpha is None
        assert (gray.luma == most).all()
        return
    assert gray.alpha is not None
    assert set(np.unique(gray.luma)) <= {0, most}
    assert ((gray.alpha > 0) & (gray.alpha < most)).sum() > 100
    shown = gray.alpha > 0
    assert (gray.luma[shown] == most).all()
    assert np.abs(fitted.rgb[shown].astype(int) - (most, most // 2, most // 4)).max() <= 1


def test_fully_transparent_parts_keep_their_colors_and_opaque_ones_are_shrunk_by_area(astronaut: np.ndarray) -> None:
    by_area = resizing.fit_pixels(Pixels(astronaut, None), "png", 128).rgb
    for level in (0, 1, 255):
        alpha = np.full(astronaut.shape[:2], level, np.uint8)
        fitted = resizing.fit_pixels(Pixels(astronaut, alpha), "png", 128)
        assert np.abs(fitted.rgb.astype(int) - by_area).max() <= 1
        assert (fitted.alpha == level).all()
