import asyncio
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.admission import Places, Receiving
from service.problems import (
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
from service.settings import Settings
from service.upload import Upload, receive

BOUNDARY = "b0undary"
FORM = f"multipart/form-data; boundary={BOUNDARY}"
SETTINGS = Settings(max_bytes=1000)


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    file = f'; filename="{filename}"' if filename else ""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
    return head.encode() + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def channel(chunks: Iterable[bytes], *, hangs: bool = False, ends: bool = True):
    """An ASGI receive channel."""
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
    content_type: str, chunks: Iterable[bytes], places: tuple[Places, Places] | None = None, **how: object
) -> Upload:
    options = {key: how.pop(key) for key in ("hangs", "ends") if key in how}
    uploads, held = places or (Places("uploads", 4), Places("bytes", 5000))

    async def main() -> Upload:
        headers = {"content-type": content_type, **how.pop("headers", {})}
        with Receiving(uploads, held) as receiving:
            return await receive(headers, channel(chunks, **options), receiving, how.pop("settings", SETTINGS))

    try:
        return asyncio.run(main())
    finally:
        assert (uploads.taken, held.taken) == (0, 0)


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
@settings(max_examples=500, deadline=None)
def test_no_body_is_a_fault(pieces: list[bytes], size: int) -> None:
    """Whatever comes is an upload or a problem."""
    content = b"".join(pieces)
    try:
        take(FORM, [content[i : i + size] for i in range(0, len(content), size)] or [b""])
    except Problem as problem:
        status = problem.status
    else:
        status = 200
    assert 200 <= status < 500


@pytest.mark.parametrize(
    ("content_type", "body", "problem", "field"),
    [
        (FORM, form(part("photo", b"x", "a.jpg")), InvalidOption, "photo"),
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


def test_places_are_given_back_whatever_happens() -> None:
    uploads, held = Places("uploads", 1), Places("bytes", 10)
    with pytest.raises(Overloaded) as caught:
        take("image/png", [b"x" * 11], (uploads, held))
    assert caught.value.retry_after == 1
    assert take("image/png", [b"x" * 10], (uploads, held)).data == b"x" * 10
    with Receiving(uploads, held), pytest.raises(Overloaded):
        Receiving(uploads, held).__enter__()


def test_a_complete_upload_leaves_its_place_and_keeps_its_bytes() -> None:
    uploads, held = Places("uploads", 1), Places("bytes", 10)
    with Receiving(uploads, held) as receiving:
        receiving.grow(7)
        receiving.complete()
        assert (uploads.taken, held.taken) == (0, 7)
    assert (uploads.taken, held.taken) == (0, 0)
