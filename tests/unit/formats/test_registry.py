"""Tests of the default format of outputs, and of the limits of each format."""

import pytest

from service.errors import InvalidOption
from service.formats import registry
from service.formats.registry import Format, Source


@pytest.mark.parametrize(
    ("source", "has_alpha", "pixels", "expected"),
    [
        ("jpeg", False, 0, "jpeg"),
        ("tiff", True, 0, "tiff"),
        ("avif", False, 0, "jpeg"),
        ("avif", True, 0, "png"),
        ("heic", False, 0, "jpeg"),
        ("gif", True, 0, "png"),
        ("webp", False, registry.PIXEL_LIMITS["webp"], "webp"),
        ("webp", False, registry.PIXEL_LIMITS["webp"] + 1, "jpeg"),
        ("webp", True, registry.PIXEL_LIMITS["webp"] + 1, "png"),
    ],
)
def test_the_default_format(source: Source, has_alpha: bool, pixels: int, expected: Format) -> None:
    assert registry.default_format(source, has_alpha=has_alpha, pixels=pixels) == expected


@pytest.mark.parametrize("format_", registry.FORMATS)
def test_a_side_that_is_too_long_is_named_with_its_limit(format_: Format) -> None:
    most = registry.SIDE_LIMITS[format_]
    registry.check_size(most, 1, format_)
    with pytest.raises(InvalidOption, match="max_side") as caught:
        registry.check_size(1, most + 1, format_)
    assert caught.value.limit == most


def test_every_media_type_has_a_suffix_that_is_recognised() -> None:
    assert set(registry.SUFFIXES) == set(registry.MEDIA_TYPES.values())
    assert all(registry.PHOTO_SUFFIXES[suffix] == media_type for media_type, suffix in registry.SUFFIXES.items())
