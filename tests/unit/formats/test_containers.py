"""Tests of the walks over segments, chunks and blocks."""

import io
import time

import numpy as np
import pytest
from PIL import Image

from service.formats import containers
from service.metadata import transfer
from tests.conftest import encoded

COLOR = np.random.default_rng(0).integers(0, 256, (33, 47, 3), np.uint8)


@pytest.mark.parametrize(
    "data",
    [
        b"GIF89a" + bytes(7) + b"!\xfe" + b"\1x" * 20_000_000,
        b"GIF89a" + bytes(7) + b"!\xfe\1x\0" * 8_000_000,
        b"GIF89a" + bytes(7) + b"!\xfe" + (b"\xff" + b"x" * 255) * 100_000,
        b"GIF89a",
    ],
    ids=range(4),
)
def test_hostile_gifs(data: bytes) -> None:
    started = time.process_time()
    assert len(transfer.read(data, "gif").comments) <= 1000
    assert time.process_time() - started < 2


def test_segments_are_added_behind_jfif_and_removed_again() -> None:
    plain = encoded(COLOR, "JPEG")
    data = containers.jpeg_with_segments(plain, [(0xE1, b"mine"), (0xFE, b"a comment")])
    assert data[2:4] == b"\xff\xe0"
    assert list(containers.jpeg_bodies(data, (0xE1, 0xFE))) == [(0xE1, b"mine"), (0xFE, b"a comment")]
    without = containers.jpeg_without_segments(data, 0xE1, b"mi")
    assert containers.jpeg_without_segments(without, 0xFE, b"") == plain


def test_a_chunk_with_a_wrong_checksum_is_skipped() -> None:
    data = containers.png_with_chunks(encoded(COLOR, "PNG"), [(b"teSt", b"one"), (b"teSt", b"two")])
    assert list(containers.png_bodies(data, (b"teSt",))) == [(b"teSt", b"one"), (b"teSt", b"two")]
    assert list(containers.png_bodies(data.replace(b"two", b"too"), (b"teSt",))) == [(b"teSt", b"one")]


def test_a_webp_without_other_chunks_has_the_same_pixels() -> None:
    data = containers.webp_with_metadata(encoded(COLOR, "WEBP", lossless=True), b"II*\0", b"<x/>")
    odd = data + b"teSt\3\0\0\0odd\0" + b"VP8"
    still = containers.webp_still(odd)
    assert [kind for kind, _, _ in containers.webp_chunks(still)] == [b"VP8X", b"VP8L", b"EXIF", b"XMP "]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(still))), COLOR)


def test_a_still_gif_has_its_first_image_only() -> None:
    first, second = (Image.fromarray(COLOR[..., number]) for number in (0, 1))
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=[second], comment=b"a comment")
    assert list(containers.gif_comments(buffer.getvalue())) == [b"a comment"]
    still = containers.gif_still(buffer.getvalue())
    assert b"a comment" not in still
    image = Image.open(io.BytesIO(still))
    assert image.n_frames == 1
    np.testing.assert_array_equal(np.asarray(image.convert("L")), COLOR[..., 0])


def test_a_gif_with_too_many_sub_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "MAX_GIF_SUB_BLOCKS", 100)
    data = b"GIF89a" + bytes(7) + b"!\xfe" + b"\1x" * 200 + b"\0"
    with pytest.raises(containers.TooManyBlocks, match="100 sub-blocks"):
        list(containers.gif_blocks(data))
