"""Decoding of photographs for training."""

import io
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from model_export.data import batching, filtering, images, sources
from model_export.evaluation.metrics import mean_chroma
from model_export.recipe import Augment, Filtering
from service.formats import containers
from service.imaging import decoding, identification
from service.metadata import reader
from tests.conftest import encoded
from tests.unit.data.test_batching import LAB, write_folder
from tests.unit.imaging import test_icc_profiles

SPACES = {
    "adobe": test_icc_profiles.matrix(test_icc_profiles.ADOBE, test_icc_profiles.gamma(2.2)),
    "p3": test_icc_profiles.matrix(test_icc_profiles.DISPLAY_P3, test_icc_profiles.SRGB_CURVE),
    "prophoto": test_icc_profiles.matrix(test_icc_profiles.PROPHOTO, test_icc_profiles.PROPHOTO_CURVE),
}


def in_space(rgb: np.ndarray, profile: bytes, format_: str) -> bytes:
    """Return the file of a photograph with a colour profile."""
    own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    picture = ImageCms.profileToProfile(Image.fromarray(rgb), ImageCms.createProfile("sRGB"), own, outputMode="RGB")
    assert picture is not None
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 98, "subsampling": 0}}.get(format_, {})
    return encoded(np.asarray(picture), format_, icc_profile=profile, **options)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_colours_are_those_of_the_profile(astronaut: np.ndarray, space: str, format_: str) -> None:
    read = images.decode(in_space(astronaut, SPACES[space], format_))
    assert read is not None
    assert np.abs(read.astype(int) - astronaut).mean() < 3
    assert mean_chroma(read) == pytest.approx(mean_chroma(astronaut), rel=0.02)


def with_gamma(png: bytes, gamma: int) -> bytes:
    return containers.png_with_chunks(png, [(b"gAMA", struct.pack(">I", gamma))])


@pytest.mark.parametrize("gamma", [100_000, 55_556, 22_727])
def test_a_pngs_gamma_is_applied(astronaut: np.ndarray, gamma: int) -> None:
    png = with_gamma(encoded(astronaut, "PNG"), gamma)
    light = (astronaut / 255) ** (100_000 / gamma)
    srgb = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    found = images.decode(png)
    assert found is not None
    assert np.abs(found - 255 * srgb).max() <= 1


def in_cmyk(rgb: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgb).convert("CMYK").save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def kinds_of_files(rgb: np.ndarray) -> dict[str, bytes]:
    adobe = SPACES["adobe"]
    deep = rgb.astype(np.uint16) * np.uint16(257) - (rgb > 0).astype(np.uint16)
    return {
        "gamma.png": with_gamma(encoded(rgb, "PNG"), 100_000),
        "profile.png": encoded(rgb, "PNG", icc_profile=adobe),
        "gray.png": encoded(rgb[..., 1], "PNG"),
        "gray_alpha.png": encoded(rgb[..., :2], "PNG"),
        "deep.png": cv2.imencode(".png", deep[..., ::-1])[1].tobytes(),
        "deep.tiff": cv2.imencode(".tiff", deep[..., ::-1])[1].tobytes(),
        "profile.tiff": encoded(rgb, "TIFF", icc_profile=adobe),
        "plain.bmp": encoded(rgb, "BMP"),
        "lossy.webp": encoded(rgb, "WEBP", quality=80),
        "profile.webp": encoded(rgb, "WEBP", icc_profile=adobe),
        "plain.jpg": encoded(rgb, "JPEG", quality=80),
        "profile.jpg": encoded(rgb, "JPEG", icc_profile=adobe),
        "turned.jpg": encoded(rgb, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"),
        "cmyk.jpg": in_cmyk(rgb),
    }


def test_pixels_are_those_of_the_service(astronaut: np.ndarray) -> None:
    """Training and serving must see the same colours, whatever decodes the file."""
    for name, data in kinds_of_files(astronaut[:, :300]).items():
        file = identification.identify(data, images.LIMITS)
        pixels = decoding.decode_pixels(file, icc=reader.read(data, file.source).icc)
        served = (pixels.rgb >> 8 if pixels.rgb.dtype == np.uint16 else pixels.rgb).astype(int)
        if pixels.alpha is not None:
            opacity = pixels.alpha[..., np.newaxis] / 255
            served = np.rint(served * opacity + 255 * (1 - opacity)).astype(int)
        found = images.decode(data)
        assert found is not None, name
        assert found.shape == served.shape, name
        assert np.abs(found - served).max() <= 1, name


def test_learning_sifting_and_measuring_see_the_same_colours(tmp_path: Path, astronaut: np.ndarray) -> None:
    (entry,) = sources.find([write_folder(tmp_path, {"a.jpg": in_space(astronaut, SPACES["adobe"], "JPEG")})])
    true = mean_chroma(astronaut)
    assert mean_chroma(entry.read()) == pytest.approx(true, rel=0.03)
    assert mean_chroma(filtering._decode(entry)[0]) == pytest.approx(true, rel=0.05)


def test_a_file_without_a_profile_is_read_as_it_is(astronaut: np.ndarray) -> None:
    for format_ in ("JPEG", "PNG", "WEBP", "TIFF", "BMP"):
        content = encoded(astronaut, format_)
        plain = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
        np.testing.assert_array_equal(images.decode(content), plain)


def test_a_broken_profile_fails_no_photograph(astronaut: np.ndarray) -> None:
    content = encoded(astronaut, "PNG", icc_profile=b"no profile at all")
    np.testing.assert_array_equal(images.decode(content), astronaut)


def with_alpha(rgb: np.ndarray, mode: str) -> Image.Image:
    """Return an image whose left half is transparent, with magenta in its hidden pixels."""
    hidden = np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])
    hidden[:, : rgb.shape[1] // 2] = 255, 0, 255, 0
    return Image.fromarray(hidden).convert(mode) if mode != "P" else Image.fromarray(hidden).quantize(64)


@pytest.mark.parametrize(
    ("format_", "mode", "options"),
    [
        ("PNG", "RGBA", {}),
        ("PNG", "P", {}),
        ("WEBP", "RGBA", {"lossless": True}),
        ("WEBP", "RGBA", {"quality": 95, "exact": True}),
    ],
)
def test_nothing_hidden_is_learnt(astronaut: np.ndarray, format_: str, mode: str, options: dict[str, object]) -> None:
    buffer = io.BytesIO()
    with_alpha(astronaut, mode).save(buffer, format_, **options)
    read = images.decode(buffer.getvalue())
    assert read is not None
    assert read.shape == astronaut.shape
    half = astronaut.shape[1] // 2
    assert read[:, : half - 8].min() > 250, "white"
    assert np.abs(read[:, half + 8 :].astype(int) - astronaut[:, half + 8 :]).mean() < 12


def test_half_transparent_parts_of_deep_files_are_half_white() -> None:
    deep = np.zeros((8, 8, 4), np.uint16)
    deep[..., 2], deep[..., 3] = 0xFFFF, 0x8000
    _, content = cv2.imencode(".png", deep)
    read = images.decode(content.tobytes())
    assert read is not None
    assert read[0, 0].tolist() == [255, 127, 127]


def test_an_opaque_alpha_changes_nothing(astronaut: np.ndarray) -> None:
    opaque = np.dstack([astronaut, np.full(astronaut.shape[:2], 255, np.uint8)])
    np.testing.assert_array_equal(images.decode(encoded(opaque, "PNG")), astronaut)


def test_a_large_jpeg_is_decoded_no_larger_than_it_takes(astronaut: np.ndarray) -> None:
    large = np.asarray(cv2.resize(astronaut, (1600, 1200), interpolation=cv2.INTER_CUBIC), np.uint8)
    jpeg = encoded(large, "JPEG", quality=95)
    assert [images.reduction(jpeg, least) for least in (1201, 1200, 601, 600, 300, 151, 150, 10)] == [
        *(1, 1, 1, 2, 4, 4, 8, 8)
    ]
    assert images.reduction(encoded(large, "PNG"), 10) == 1
    assert images.reduction(b"\xff\xd8 no", 10) == 1
    small = images.decode(jpeg, 4)
    assert small is not None
    assert small.shape == (300, 400, 3)
    whole = cv2.resize(large, (400, 300), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - whole).mean() < 3


def test_views_of_a_large_jpeg_are_those_of_the_whole(
    tmp_path: Path, astronaut: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = np.asarray(cv2.resize(astronaut, (1600, 1600), interpolation=cv2.INTER_CUBIC), np.uint8)
    entries = sources.find([write_folder(tmp_path, {"a.jpg": encoded(large, "JPEG", quality=95)})])
    factors: list[int] = []
    decode = images.decode

    def spy(content: bytes, factor: int = 1) -> np.ndarray | None:
        factors.append(factor)
        return decode(content, factor)

    monkeypatch.setattr(images, "decode", spy)
    seen, chroma = next(batching.Stream(entries, 4, LAB, Augment(degrade=0), 1).batches(96, 1))
    assert factors == [4] * 4, "a crop keeps three quarters: 256 pixels and more"
    monkeypatch.setattr(images, "reduction", lambda *_: 1)
    whole, true = next(batching.Stream(entries, 4, LAB, Augment(degrade=0), 1).batches(96, 1))
    assert np.abs(seen - whole).mean() < 0.01
    assert np.abs(chroma - true).mean() < 1
    next(batching.Stream(entries, 1, LAB, Augment(min_crop=0), 1).batches(96, 1))
    assert factors[-1] == 1


def test_a_shards_small_photographs_are_decoded_whole() -> None:
    """Photographs of 128 to 176 pixels are decoded as they were for runs of older versions."""
    jpeg = encoded(np.zeros((176, 176, 3), np.uint8), "JPEG")
    assert images.reduction(jpeg, batching.OVERSAMPLING * 96) == 1


def test_a_cut_out_is_judged_by_what_is_seen(tmp_path: Path, astronaut: np.ndarray) -> None:
    gray = np.dstack([cv2.cvtColor(astronaut, cv2.COLOR_RGB2GRAY)] * 3)
    buffer = io.BytesIO()
    with_alpha(gray, "RGBA").save(buffer, "PNG")
    entries = sources.find([write_folder(tmp_path, {"a.png": buffer.getvalue()})])
    assert filtering.find_faults(entries, Filtering()) == ["gray"]
