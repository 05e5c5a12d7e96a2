"""Uploads of several photos in one form."""

import asyncio
import re

import pytest

from service.errors import BrokenUpload, MissingFile, Overloaded, Problem, TooManyBytes, TooManyPhotos, UnsupportedType
from service.runtime.admission import Slots, UploadReservation
from service.settings import FORM_OVERHEAD, Settings
from service.web.upload import (
    BatchUpload,
    UploadedPhoto,
    _batch_limits,
    receive_batch,
    reserved_for_photos,
    warn_about_cap,
)
from tests.unit.web.test_upload import FORM, OVERHEAD, SETTINGS, channel, form, part, take, take_batch


def test_a_batch_has_its_photos_in_order_with_their_names() -> None:
    body = form(
        part("file", b"first", "a.jpg"), part("strength", b"0.5"), part("file", b"", "a.jpg"), part("file", b"third")
    )
    expected = BatchUpload(
        [UploadedPhoto("a.jpg", b"first"), UploadedPhoto("a.jpg", b""), UploadedPhoto("", b"third")],
        {"strength": "0.5"},
    )
    for size in (1, 7, 1000):
        assert take_batch([body[i : i + size] for i in range(0, len(body), size)]) == expected


@pytest.mark.parametrize("size", [1, 10, 300, 5000])
def test_a_photo_of_a_batch_that_is_too_large_is_thrown_away(size: int) -> None:
    body = form(part("file", b"a" * 50, "a"), part("file", b"b" * 1801, "b"), part("file", b"c" * 100, "c"))
    held = Slots("bytes", 5000)
    most = 0

    class Watched(UploadReservation):
        def grow(self, count: int) -> None:
            nonlocal most
            super().grow(count)
            most = max(most, held.in_use)

    async def main() -> BatchUpload:
        with Watched(Slots("uploads", 1), held) as receiving:
            chunks = channel([body[i : i + size] for i in range(0, len(body), size)])
            upload = await receive_batch({"content-type": FORM}, chunks, receiving, SETTINGS)
            receiving.complete()
            assert held.in_use == len(body) - 1801
            return upload

    a, b, c = asyncio.run(main()).photos
    assert (a.data, b.data, c.data) == (b"a" * 50, b"", b"c" * 100)
    assert (a.problem, c.problem) == (None, None)
    assert isinstance(b.problem, TooManyBytes)
    assert (b.problem.field, b.problem.limit) == ("file", 1000)
    assert held.in_use == 0
    assert most < 1500 or size == 5000, "its first bytes are released before its last bytes arrive"


@pytest.mark.parametrize(
    ("body", "problem", "limit"),
    [
        (form(*[part("file", b"x", "a")] * 4), TooManyPhotos, 3),
        (form(*[part("file", b"x" * 700, "a")] * 3), TooManyBytes, 2000),
        (form(part("file", b"x" * 2001, "a")), TooManyBytes, 2000),
        (part("file", b"x", "a") + b"y" * (2000 + OVERHEAD), TooManyBytes, 2000),
        (form(part("strength", b"1")), MissingFile, None),
        (form(part("photo", b"x", "a.jpg")), MissingFile, None),
        (form(part("file", b"x", "a"), *[part(f"field{i}", b"") for i in range(33)]), BrokenUpload, 32),
        (part("file", b"x", "a"), BrokenUpload, None),
    ],
)
def test_bad_batches(body: bytes, problem: type[Problem], limit: int | None) -> None:
    for size in (100, len(body)):
        with pytest.raises(problem) as caught:
            take_batch([body[i : i + size] for i in range(0, len(body), size)], (Slots("u", 1), Slots("b", 100_000)))
        assert caught.value.limit == limit


@pytest.mark.parametrize(("batch", "uploads", "told"), [(2000, 100_000, 0), (100_000, 100_000, 1), (2000, 70_000, 1)])
def test_a_batch_that_may_have_less_than_is_set_is_told(
    caplog: pytest.LogCaptureFixture, batch: int, uploads: int, told: int
) -> None:
    given = Settings(
        max_bytes=1000, max_batch_photos=3, max_batch_bytes=batch, max_upload_bytes=uploads + FORM_OVERHEAD
    )
    warn_about_cap(given)
    assert len(caplog.records) == told
    real = _batch_limits(given).bytes
    assert (real < batch) == bool(told)
    if told:
        assert f"TOMAU_MAX_BATCH_BYTES={batch}: a batch may have only {real} bytes" in caplog.text


def test_photos_of_just_the_bytes_that_a_batch_may_have() -> None:
    assert len(take_batch([form(*[part("file", b"x" * 1000, "a")] * 2)]).photos) == 2


def test_a_batch_whose_length_is_too_large_is_refused_unread() -> None:
    length = str(2000 + OVERHEAD + 1)
    with pytest.raises(TooManyBytes) as caught:
        take_batch([], headers={"content-length": length}, hangs=True)
    assert re.search("all photos of a batch .* 2,000 bytes", caught.value.detail)


@pytest.mark.parametrize("content_type", ["image/jpeg", "", "application/zip"])
def test_a_batch_is_a_form(content_type: str) -> None:
    with pytest.raises(UnsupportedType):
        take(content_type, [b"x"], receive=receive_batch)


def test_a_batch_may_have_what_a_photo_leaves() -> None:
    """By default, a batch may have all its bytes; with hardly room for one photo, none."""
    assert _batch_limits(Settings()).bytes == Settings().max_batch_bytes
    least = Settings(max_bytes=1000, max_upload_bytes=1000 + FORM_OVERHEAD)
    with pytest.raises(TooManyBytes) as caught:
        take_batch([form(part("file", b"x", "a"))], settings=least)
    assert caught.value.limit == 0


def test_batches_leave_some_bytes_to_single_photos() -> None:
    for bytes_ in ({}, {"max_bytes": 1000, "max_upload_bytes": 66_536}, {"max_upload_bytes": 1 << 27}):
        chosen = Settings(**bytes_)
        assert reserved_for_photos(chosen) >= chosen.max_bytes + FORM_OVERHEAD
    held = Slots("bytes", 10)
    with (
        UploadReservation(Slots("uploads", 1), held, leave=4) as batch,
        UploadReservation(Slots("uploads", 1), held) as single,
    ):
        batch.grow(6)
        with pytest.raises(Overloaded):
            batch.grow(1)
        single.grow(4)
        batch.shrink(5)
        assert held.in_use == 5
    assert held.in_use == 0
