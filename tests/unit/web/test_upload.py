"""Receiving uploads: forms and bare bodies, limits of bytes, rates and times."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import (
    BrokenUpload,
    ClientGone,
    InvalidOption,
    MissingFile,
    Overloaded,
    Problem,
    TooManyBytes,
    UnsupportedType,
    UploadTooSlow,
)
from service.runtime.admission import Slots, UploadReservation
from service.settings import FORM_OVERHEAD, Settings
from service.web.upload import (
    PHOTO_OVERHEAD,
    Upload,
    UploadedPhoto,
    receive,
    receive_batch,
)

T = TypeVar("T")

BOUNDARY = "b0undary"
FORM = f"multipart/form-data; boundary={BOUNDARY}"
SETTINGS = Settings(max_bytes=1000, max_batch_photos=3, max_batch_bytes=2000)


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    file = f'; filename="{filename}"' if filename else ""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
    return head.encode() + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def channel(chunks: Iterable[bytes], *, hangs: bool = False, ends: bool = True):
    """Return an ASGI receive channel."""
    left = list(chunks)

    async def receive_one() -> dict[str, object]:
        if left:
            chunk = left.pop(0)
            return {"type": "http.request", "body": chunk, "more_body": bool(left) or hangs or not ends}
        if hangs:
            await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    return receive_one


def take(
    content_type: str,
    chunks: Iterable[bytes],
    places: tuple[Slots, Slots] | None = None,
    receive: Callable[..., Awaitable[T]] = receive,
    **how: object,
) -> T:
    options = {key: how.pop(key) for key in ("hangs", "ends") if key in how}
    uploads, held = places or (Slots("uploads", 4), Slots("bytes", 5000))

    async def main() -> T:
        headers = {"content-type": content_type, **how.pop("headers", {})}
        with UploadReservation(uploads, held) as receiving:
            return await receive(headers, channel(chunks, **options), receiving, how.pop("settings", SETTINGS))

    try:
        return asyncio.run(main())
    finally:
        assert (uploads.in_use, held.in_use) == (0, 0)


def test_a_form_with_options() -> None:
    upload = take(
        FORM, [form(part("strength", b"0.5"), part("file", b"\x00picture\r\n--b", "a.jpg"), part("model", b"x"))]
    )
    assert upload == Upload(b"\x00picture\r\n--b", {"strength": "0.5", "model": "x"})


@pytest.mark.parametrize("content_type", ["image/jpeg", "application/octet-stream", ""])
def test_a_bare_body(content_type: str) -> None:
    assert take(content_type, [b"pic", b"", b"ture"]) == Upload(b"picture")


@given(st.binary(max_size=900), st.integers(1, 50))
@settings(max_examples=200, deadline=None)
def test_any_content_comes_through_in_any_pieces(content: bytes, size: int) -> None:
    if f"\r\n--{BOUNDARY}".encode() in content:
        return
    body = form(part("file", content, "x"))
    assert take(FORM, [body[i : i + size] for i in range(0, len(body), size)]).data == content


FRAGMENTS = [
    f"--{BOUNDARY}\r\n".encode(),
    f"\r\n--{BOUNDARY}\r\n".encode(),
    f"\r\n--{BOUNDARY}--\r\n".encode(),
    b'Content-Disposition: form-data; name="file"; filename="a"\r\n',
    b'Content-Disposition: form-data; name="strength"\r\n',
    b"Content-Disposition: form-data\r\n",
    b"Content-Type: image/jpeg\r\n",
    b": \r\n",
    b"\r\n",
    b"\xff\xd8picture",
    b"0.5",
    b"--",
]


@given(st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.binary(max_size=20)), max_size=12), st.integers(1, 50))
@pytest.mark.parametrize("receiver", [receive, receive_batch])
@settings(max_examples=500, deadline=None)
def test_no_body_is_a_fault(receiver: Callable[..., Awaitable[object]], pieces: list[bytes], size: int) -> None:
    """Every body gives an upload or a problem."""
    content = b"".join(pieces)
    try:
        take(FORM, [content[i : i + size] for i in range(0, len(content), size)] or [b""], receive=receiver)
    except Problem as problem:
        status = problem.status
    else:
        status = 200
    assert 200 <= status < 500


@pytest.mark.parametrize(
    ("content_type", "body", "problem", "field"),
    [
        (FORM, form(part("photo", b"x", "a.jpg")), MissingFile, "photo"),
        (FORM, form(part("strength", b"1")), MissingFile, "file"),
        (FORM, form(part("file", b"x", "a"), part("file", b"x", "b")), MissingFile, "file"),
        (
            FORM,
            form(part("strength", b"1"), part("strength", b"2"), part("file", b"x", "a")),
            InvalidOption,
            "strength",
        ),
        (FORM, form(part("model", b"m" * 1025), part("file", b"x", "a")), InvalidOption, "model"),
        (FORM, form(part("file", b"x" * 1001, "a")), TooManyBytes, "file"),
        ("image/png", b"x" * 1001, TooManyBytes, "file"),
        (FORM, part("file", b"x", "a"), BrokenUpload, None),
        (FORM, b"no form at all", BrokenUpload, None),
        (FORM, form(part("mask", b"x", "a.png"), part("file", b"x", "a")), MissingFile, "mask"),
        (FORM, form(part("mask", b"", "a.png"), part("file", b"x", "a")), MissingFile, "mask"),
        (FORM, form(*[part("file", b"")] * 34), BrokenUpload, None),
        (FORM, form(*[part(f"field{i}", b"") for i in range(33)]), BrokenUpload, None),
        ("multipart/form-data", form(part("file", b"x", "a")), BrokenUpload, None),
        ("application/json", b"{}", UnsupportedType, None),
        ("application/x-www-form-urlencoded", b"file=1", UnsupportedType, None),
    ],
)
def test_bad_bodies(content_type: str, body: bytes, problem: type[Problem], field: str | None) -> None:
    with pytest.raises(problem) as caught:
        take(content_type, [body])
    assert caught.value.field == field


def test_a_length_that_is_too_large_is_refused_unread() -> None:
    with pytest.raises(TooManyBytes) as caught:
        take("image/png", [], headers={"content-length": "1001"}, hangs=True)
    assert caught.value.limit == 1000


def test_a_client_that_hangs_up() -> None:
    with pytest.raises(ClientGone):
        take("image/png", [b"x"], ends=False)


def test_a_body_that_comes_too_slowly() -> None:
    slow = Settings(max_bytes=1000, min_upload_rate=1000, upload_grace_s=0.05)
    with pytest.raises(UploadTooSlow) as caught:
        take("image/png", [b"x"], hangs=True, settings=slow)
    assert caught.value.limit == 1000


@pytest.mark.parametrize(("trickle", "came"), [(60, "901"), (0.1, r"90\d")], ids=["silence", "a trickle"])
def test_a_burst_buys_no_time(trickle: float, came: str) -> None:
    """Otherwise megabytes that arrive quickly would be held for hours."""
    chunks = [b"x" * 900] + [b"x"] * 50

    async def receive_slowly() -> dict[str, object]:
        if len(chunks) < 50:
            await asyncio.sleep(trickle)
        return {"type": "http.request", "body": chunks.pop(0), "more_body": True}

    async def main() -> None:
        with UploadReservation(Slots("uploads", 1), Slots("bytes", 1000)) as receiving:
            hurried = Settings(max_bytes=1000, min_upload_rate=100, upload_grace_s=0.45)
            await receive({"content-type": "image/png"}, receive_slowly, receiving, hurried)

    started = time.monotonic()
    with pytest.raises(UploadTooSlow, match=f"after {came} bytes"):
        asyncio.run(main())
    assert time.monotonic() - started < 30, "it does not wait for the chunk that arrives after a minute"


def test_a_steady_upload_may_take_longer_than_the_grace() -> None:
    left = [b"x" * 50] * 18

    async def receive_steadily() -> dict[str, object]:
        await asyncio.sleep(0.1)
        return {"type": "http.request", "body": left.pop(), "more_body": bool(left)}

    async def main() -> Upload:
        with UploadReservation(Slots("uploads", 1), Slots("bytes", 1000)) as receiving:
            steady = Settings(max_bytes=1000, min_upload_rate=250, upload_grace_s=0.6)
            return await receive({"content-type": "image/png"}, receive_steadily, receiving, steady)

    assert len(asyncio.run(main()).data) == 900


@pytest.mark.parametrize("rate", [0, 10])
def test_no_upload_lasts_for_ever_however_steady_it_is(rate: int) -> None:
    async def receive_steadily() -> dict[str, object]:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def main() -> None:
        with UploadReservation(Slots("uploads", 1), Slots("bytes", 1_000_000)) as receiving:
            patient = Settings(max_bytes=1_000_000, min_upload_rate=rate, max_upload_s=0.3)
            await receive({"content-type": "image/png"}, receive_steadily, receiving, patient)

    with pytest.raises(UploadTooSlow, match=r"the upload took longer than 0\.3 s") as caught:
        asyncio.run(asyncio.wait_for(main(), 20))
    assert caught.value.limit == 0.3


def test_places_are_given_back_whatever_happens() -> None:
    uploads, held = Slots("uploads", 1), Slots("bytes", 10)
    with pytest.raises(Overloaded) as caught:
        take("image/png", [b"x" * 11], (uploads, held))
    assert caught.value.retry_after == 1
    assert take("image/png", [b"x" * 10], (uploads, held)).data == b"x" * 10
    with UploadReservation(uploads, held), pytest.raises(Overloaded):
        UploadReservation(uploads, held).__enter__()


def test_a_complete_upload_leaves_its_place_and_keeps_its_bytes() -> None:
    uploads, held = Slots("uploads", 1), Slots("bytes", 10)
    with UploadReservation(uploads, held) as receiving:
        receiving.grow(7)
        receiving.complete()
        assert (uploads.in_use, held.in_use) == (0, 7)
    assert (uploads.in_use, held.in_use) == (0, 0)


take_batch = partial(take, FORM, receive=receive_batch)


@pytest.mark.parametrize(
    ("sent", "name"),
    [
        ("Tô màu 祖母.jpg".encode(), "Tô màu 祖母.jpg"),
        ("Möbel.jpg".encode("latin-1"), "Möbel.jpg"),
        (b"../../a.jpg", "../../a.jpg"),
        (b'a\\"b.jpg', 'a"b.jpg'),
        (b"=?utf-8?B?dMO0LmpwZw==?=", "tô.jpg"),
        (b"=?no-such-code?B?dMO0LmpwZw==?=", "=?no-such-code?B?dMO0LmpwZw==?="),
        (b"=?utf-8?B?d?=", "=?utf-8?B?d?="),
        (b"=?", "=?"),
        (b"x" * 3000, "x" * 3000),
    ],
)
def test_a_name_comes_as_it_was_sent(sent: bytes, name: str) -> None:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="'.encode()
    assert take_batch([form(head + sent + b'"\r\n\r\nx\r\n')]).photos == [UploadedPhoto(name, b"x")]


OVERHEAD = FORM_OVERHEAD + 3 * PHOTO_OVERHEAD
