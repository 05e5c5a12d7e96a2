"""Tests of the geometric transform from a stored picture to the output."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from service.formats.geometry import Transform, compose, has_proportions


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_point_moves_as_the_pixels_of_pillow_do(orientation: int) -> None:
    stored = np.zeros((30, 40), np.uint8)
    stored[5, 33] = 255
    image = Image.fromarray(stored)
    image.getexif()[0x112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(image))
    (row,), (column,) = np.nonzero(upright)
    height, width = upright.shape
    x, y = Transform(width, height, orientation).map_point(33.5 / 40, 5.5 / 30)
    assert (int(x * width), int(y * height)) == (column, row)
    assert Transform(width, height, orientation).stored == (40, 30)


@pytest.mark.parametrize("first", range(1, 9))
@pytest.mark.parametrize("second", range(1, 9))
def test_two_orientations_are_composed_to_one(first: int, second: int) -> None:
    one = Transform(1, 1, second).map_point(*Transform(1, 1, first).map_point(0.2, 0.3))
    assert Transform(1, 1, compose(first, second)).map_point(0.2, 0.3) == pytest.approx(one)


def test_an_unknown_orientation_maps_no_point() -> None:
    with pytest.raises(ValueError, match="unknown"):
        Transform(1, 1, 0).map_point(0.5, 0.5)


def test_proportions_may_differ_by_two_percent() -> None:
    assert has_proportions((400, 300), (200, 150))
    assert has_proportions((400, 300), (200, 152))
    assert not has_proportions((400, 300), (200, 160))
