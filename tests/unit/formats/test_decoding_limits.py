"""Tests that errors of a decoder library are problems of the file, and errors of our own code are not."""

import asyncio
import logging
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.errors import TooManyPixels, UnreadableImage, UnsupportedType
from service.formats import jpeg_structure, png_structure
from service.formats.decoding_limits import library_call
from service.imaging import decoding, icc_profiles
from service.imaging.decoders import bmp, jpeg, tiff
from service.inference.registry import ModelRegistry
from service.pipeline.colorizer import Colorizer
from service.pipeline.options import Options
from service.settings import Settings
from service.web.app import create_app
from tests.conftest import encoded

PICTURE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
LIBRARYS = (OSError, EOFError, RuntimeError, SyntaxError, TypeError, ValueError, IndexError, AssertionError, KeyError)


@pytest.mark.parametrize("kind", LIBRARYS)
def test_whatever_a_library_raises_is_about_the_file(kind: type[Exception]) -> None:
    with pytest.raises(UnreadableImage, match="damaged"), library_call("png"):
        raise kind("what a file")


@pytest.mark.parametrize(
    "error",
    [
        NotImplementedError("no such thing"),
        OSError("Unsupported BMP bitfields layout"),
        SyntaxError("cannot handle 2-layer images"),
        ValueError("Fractional sampling not implemented yet"),
        RuntimeError("this profile is not supported"),
    ],
)
def test_what_a_library_does_not_support_is_not_called_damaged(error: Exception) -> None:
    with pytest.raises(UnsupportedType) as caught, library_call("bmp"):
        raise error
    assert str(error) in caught.value.detail
    assert "damaged" not in caught.value.detail


@pytest.mark.parametrize("error", [MemoryError(), OSError("out of memory"), ValueError("Insufficient memory (case 4)")])
def test_a_library_that_is_short_of_memory_says_nothing_about_the_file(error: Exception) -> None:
    with pytest.raises(MemoryError), library_call("jpeg"):
        raise error


def test_a_problem_passes_through() -> None:
    with pytest.raises(TooManyPixels), library_call("jpeg"):
        raise TooManyPixels("too many")


FILES = {
    "jpeg": encoded(PICTURE, "JPEG"),
    "gray jpeg": encoded(PICTURE[..., 0], "JPEG"),
    "png": encoded(PICTURE, "PNG"),
    "webp": encoded(PICTURE, "WEBP"),
    "gif": encoded(PICTURE[..., 0], "GIF"),
    "bmp": encoded(PICTURE, "BMP"),
    "tiff": encoded(PICTURE, "TIFF"),
    "deep png": encoded(PICTURE[..., 0].astype(np.uint16) * 257, "PNG"),
}
OURS = [
    (decoding, "_apply_orientation", FILES),
    (decoding, "_to_srgb", {"png", "webp", "gif", "bmp", "tiff", "deep png"}),
    (decoding, "_tone", {"png", "webp", "gif", "bmp", "tiff", "deep png"}),
    (decoding, "_jpeg_quality", {"jpeg", "gray jpeg"}),
    (decoding, "tone_of_rgb", {"jpeg", "png"}),
    (decoding, "luma_of_rgb", {"png", "webp", "bmp", "tiff"}),
    (decoding, "_check_shape", FILES.keys() - {"tiff"}),
    (tiff, "chunks_of", {"tiff"}),
    (tiff, "picture_of", {"tiff"}),
    (decoding, "_split_deep_png", {"deep png"}),
    (icc_profiles, "curve_of", {"jpeg", "gray jpeg"}),
    (jpeg_structure, "header", {"jpeg", "gray jpeg"}),
    (jpeg.Decoder, "pixels", {"jpeg", "gray jpeg"}),
    (png_structure, "plain", {"png", "deep png"}),
    (bmp, "read_bit_fields", {"bmp"}),
]
FAULTS = (AttributeError, TypeError, ValueError, KeyError, IndexError, AssertionError, ZeroDivisionError, OSError)


@pytest.fixture(scope="module")
def colorizer(models: Path) -> Colorizer:
    settings = Settings(models=models, device="cpu")
    return Colorizer(ModelRegistry(settings), settings)


@pytest.mark.parametrize(("owner", "name", "files"), OURS, ids=[name for _, name, _ in OURS])
def test_a_fault_of_our_own_is_nobody_elses(
    colorizer: Colorizer, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, files: set[str]
) -> None:
    for fault in FAULTS:

        def broken(*_: object, fault: type[Exception] = fault, **__: object) -> None:
            raise fault("a bug")

        monkeypatch.setattr(owner, name, broken)
        for file in files:
            with pytest.raises(fault, match="a bug"):
                colorizer.colorize(FILES[file], Options(if_color="recolor"))


@pytest.mark.parametrize("name", ["_apply_orientation"])
def test_a_fault_of_our_own_is_a_500_with_its_traceback_in_the_log(
    models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    def broken(*_: object) -> None:
        raise TypeError("a bug of ours")

    app = create_app(Settings(models=models, device="cpu"))
    monkeypatch.setattr(decoding, name, broken)

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://tomau") as client:
            headers = {"Content-Type": "application/octet-stream"}
            return [await client.post("/colorize", content=data, headers=headers) for data in FILES.values()]

    with caplog.at_level(logging.ERROR):
        answers = asyncio.run(ask())
    for answer in answers:
        assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
        assert "bug" not in answer.text
    assert caplog.text.count("TypeError: a bug of ours") == len(FILES)
    assert "Traceback" in caplog.text
