"""Faxes in TIFF, and the calls to libtiff for them."""

import io

import numpy as np
import pytest
from PIL import Image

from service.errors import UnreadableImage
from service.formats import tiff_tags
from service.imaging.decoders import libtiff
from tests.samples.tiffs import tiff
from tests.unit.imaging.decoders.test_tiff import check, fax_of, noise, photo


def fax(image: Image.Image, compression: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "TIFF", compression=compression)
    return stream.getvalue()


@pytest.mark.parametrize("compression", ["tiff_ccitt", "group3", "group4"])
@pytest.mark.parametrize("is_inverted", [False, True])
def test_a_fax(astronaut: np.ndarray, compression: str, is_inverted: bool) -> None:
    image = Image.fromarray(astronaut).convert("1")
    data = fax(image, compression)
    gray = np.asarray(image.convert("L"))
    with Image.open(io.BytesIO(data)) as written:
        kind = written.tag_v2[tiff_tags.PHOTOMETRIC_INTERPRETATION]
    entry = data.index(b"\x06\x01\x03\0\1\0\0\0")
    told = (kind + is_inverted) % 2
    data = data[: entry + 8] + bytes([told]) + data[entry + 9 :]
    check(data, 255 - gray if is_inverted else gray)


def fax_strip(picture: np.ndarray, compression: str) -> bytes:
    """Return the only strip of a fax."""
    stream = io.BytesIO()
    image = Image.fromarray(picture).convert("1")
    image.save(stream, "TIFF", compression=compression, tiffinfo={tiff_tags.ROWS_PER_STRIP: image.height})
    with Image.open(stream) as written:
        (start,), (size,) = written.tag_v2[tiff_tags.STRIP_OFFSETS], written.tag_v2[tiff_tags.STRIP_BYTE_COUNTS]
    return stream.getvalue()[start : start + size]


FAXES = pytest.mark.parametrize(("compression", "number"), [("tiff_ccitt", 2), ("group3", 3), ("group4", 4)])


@FAXES
@pytest.mark.parametrize("tile", [None, (128, 256)])
def test_a_fax_in_strips_and_tiles(
    compression: str, number: int, tile: tuple[int, int] | None, astronaut: np.ndarray
) -> None:
    image = np.asarray(Image.fromarray(astronaut).convert("1"))
    across, down = tile or (512, 64)
    parts = [
        image[top : top + down, left : left + across] for top in range(0, 512, down) for left in range(0, 512, across)
    ]
    # Pillow writes black as zero.
    contents = [fax_strip(~part, compression) for part in parts]
    check(fax_of(contents, number, tile), np.where(image, np.uint8(255), np.uint8(0)))


@FAXES
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_fax_that_is_garbage_is_no_photo(
    compression: str, number: int, seed: int, astronaut: np.ndarray, capfd: pytest.CaptureFixture[str]
) -> None:
    sound = fax_strip(astronaut, compression)
    half = len(sound) // 2
    noise = np.random.default_rng(seed).integers(0, 256, len(sound), np.uint8).tobytes()
    garbage = [noise, bytes(len(sound)), sound[:half] + noise[half:], sound[:half] + bytes(half), b"\x10" * len(sound)]
    for content in garbage:
        with pytest.raises(UnreadableImage, match="fax"):
            photo(fax_of([content], number))
        with pytest.raises(UnreadableImage, match="fax"):
            photo(fax_of([content] * 8, number, (128, 256)))
    photo(fax_of([sound], number))
    written = capfd.readouterr()
    assert (written.out, written.err) == ("", "")


def test_a_fax_with_a_spoilt_row_is_a_photo(astronaut: np.ndarray) -> None:
    strip = bytearray(fax_strip(astronaut, "group3"))
    strip[len(strip) // 2] ^= 0xFF
    found = photo(fax_of([bytes(strip)], 3)).luma
    sound = photo(fax_of([fax_strip(astronaut, "group3")], 3)).luma
    assert 1 <= np.any(found != sound, axis=1).sum() <= 3


def test_faxes_are_decoded_where_libtiff_can_not_be_called(
    astronaut: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libtiff, "library", lambda: None)
    image = np.asarray(Image.fromarray(astronaut).convert("1"))
    data = fax_of([fax_strip(~image, "group4")], 4)
    check(data, np.where(image, np.uint8(255), np.uint8(0)))


def test_libtiff_can_be_called_here() -> None:
    assert libtiff.library() is not None


def test_a_library_that_hides_its_functions_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ctypes.PyDLL", lambda _: object())
    with caplog.at_level("INFO"):
        assert libtiff.library.__wrapped__() is None
    assert "can't be called" in caplog.text


def test_messages_of_libtiff_go_nowhere(capfd: pytest.CaptureFixture[str]) -> None:
    for number in (5, 7, 8, 34925, 50000):
        with pytest.raises(UnreadableImage):
            photo(tiff(noise(1), tags={tiff_tags.COMPRESSION: (3, [number])}))
    written = capfd.readouterr()
    assert (written.out, written.err) == ("", "")
