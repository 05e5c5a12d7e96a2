"""Forms as browsers, scripts and old clients write them."""

import json
import time

import pytest

from service.errors import BrokenUpload, MissingFile, TooManyPhotos, UnsupportedType
from service.runtime.admission import Slots
from service.web.form import MAX_PREAMBLE_BYTES, Preamble, UploadedPhoto
from service.web.upload import Upload, _is_longer, receive_batch
from service.web.zip_stream import unique_stems
from tests.unit.web.test_upload import BOUNDARY, FORM, form, part, take, take_batch

LINE = f"--{BOUNDARY}".encode()
PHOTO = part("file", b"picture", "a.jpg")
PLAIN = form(PHOTO)


def pieces(body: bytes, size: int) -> list[bytes]:
    return [body[start : start + size] for start in range(0, len(body), size)]


@pytest.mark.parametrize("size", [1, 5, 1000])
@pytest.mark.parametrize(
    "body",
    [
        b"This is a multipart message.\r\n" + PLAIN,
        b"\r\n" + PLAIN,
        b"\r\n\r\n" + PLAIN,
        b"\n" + PLAIN,
        b"Several lines,\nof - any - kind,\r--\r\n\r\n--\r\n" + PLAIN,
        b"not the --" + LINE + b"\r\n" + PLAIN,
        LINE + b"andmore\r\n" + PLAIN,
        PLAIN.replace(LINE, LINE + b" \t ", 1),
        form(PHOTO, part("strength", b"")).replace(LINE + b"\r\n", LINE + b" \t\r\n"),
        PLAIN + b"An epilogue.\r\n" + LINE + b"\r\n\r\nmore",
        PLAIN.removesuffix(b"\r\n"),
        PLAIN.removesuffix(b"\r\n") + b" \t\r\n",
        b"x" * 5000 + b"\r\n" + PLAIN,
    ],
)
def test_what_stands_around_a_form_is_passed_over(body: bytes, size: int) -> None:
    places = Slots("uploads", 1), Slots("bytes", 10_000)
    assert take(FORM, pieces(body, size), places) == Upload(b"picture")


@pytest.mark.parametrize(
    "declared",
    [
        f'multipart/form-data; boundary="{BOUNDARY}"',
        f"Multipart/Form-Data;charset=utf-8;BOUNDARY={BOUNDARY}",
        f"multipart/form-data; boundary={BOUNDARY} ; charset=utf-8",
        f'multipart/form-data; boundary = "{BOUNDARY}" ',
        f'multipart/form-data; boundary="{BOUNDARY}  "',
    ],
)
def test_a_boundary_is_named_in_many_ways(declared: str) -> None:
    assert take(declared, [PLAIN]) == Upload(b"picture")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"text without an end", "has no line '--b0undary'"),
        (b"x\r\n--another\r\n", "has no line '--b0undary'"),
        (b"", "has no line '--b0undary'"),
        (LINE + b"\n\n", "lines of the form end with LF alone"),
        (PLAIN.replace(b"\r\n", b"\n"), "lines of the form end with LF alone"),
        (b"x\r\n" + PHOTO, "ends before its last boundary"),
    ],
)
def test_a_form_without_its_boundary_is_told_so(body: bytes, said: str) -> None:
    with pytest.raises(BrokenUpload, match=said):
        take(FORM, [body])


def test_a_form_that_is_closed_at_once_has_no_file() -> None:
    for body in (LINE + b"--", b"preamble\r\n" + LINE + b"--\r\n"):
        with pytest.raises(MissingFile, match="has no field `file`"):
            take(FORM, [body])


@pytest.mark.parametrize(
    "body",
    [b"x" * 140_000, b"\n" * 140_000, (LINE[:-1] + b"\r\n") * 12_000, LINE + b" " * 140_000],
    ids=["one line", "empty lines", "almost boundaries", "spaces behind a boundary"],
)
def test_a_preamble_is_bounded_and_costs_linear_time(body: bytes) -> None:
    preamble = Preamble(BOUNDARY.encode())
    started, taken = time.process_time(), 0

    def skip_on() -> None:
        nonlocal taken
        for start in range(len(body)):
            assert preamble.skip(body[start : start + 1]) == b""
            taken += 1

    with pytest.raises(BrokenUpload):
        skip_on()
    assert taken <= MAX_PREAMBLE_BYTES + 100
    assert time.process_time() - started < 2


def named(disposition: str | bytes) -> bytes:
    head = disposition if isinstance(disposition, bytes) else disposition.encode()
    return LINE + b'\r\nContent-Disposition: form-data; name="file"; ' + head + b"\r\n\r\nx\r\n"


@pytest.mark.parametrize(
    ("sent", "name"),
    [
        ("filename*=utf-8''t%C3%B4%20m%C3%A0u.jpg", "tô màu.jpg"),
        ("filename=\"t_.jpg\"; filename*=UTF-8''b%C3%A0.jpg", "bà.jpg"),
        ("filename*=utf-8'vi'b%c3%a0.jpg; filename=t_.jpg", "bà.jpg"),
        ("FileName*=UTF-8''b%C3%A0.jpg", "bà.jpg"),
        ("filename* = UTF-8''b%C3%A0.jpg", "bà.jpg"),
        ("filename*=\"UTF-8''b%C3%A0.jpg\"", "bà.jpg"),
        ("filename*=iso-8859-1''M%F6bel.jpg", "Möbel.jpg"),
        ("filename*=windows-1252'de'%80.jpg", "€.jpg"),
        ("filename*=shift_jis''%83%65.jpg", "テ.jpg"),
        ("filename*=UTF-8''it's.jpg", "it's.jpg"),
        ("filename=a.jpg; filename*=UTF-8''%C3%28.jpg", "a.jpg"),
        ("filename=a.jpg; filename*=UTF-8''%zz.jpg", "a.jpg"),
        ("filename=a.jpg; filename*=no-such''b.jpg", "a.jpg"),
        ("filename=a.jpg; filename*=base64''b.jpg", "a.jpg"),
        ("filename=a.jpg; filename*=b.jpg", "a.jpg"),
        ("filename=a.jpg; filename*=", "a.jpg"),
        ("filename=a.jpg; filename*=UTF-8''", "a.jpg"),
        ("filename*=UTF-8''%C3%28.jpg", "UTF-8''%C3%28.jpg"),
        ("filename=\"filename*=UTF-8''b.jpg\"", "filename*=UTF-8''b.jpg"),
        ("filename=\"a; filename*=UTF-8''b.jpg\"", "a; filename*=UTF-8''b.jpg"),
        ("filename=\"a*.jpg\"; filename*=UTF-8''b.jpg", "b.jpg"),
        ("xfilename*=UTF-8''b.jpg; filename=a.jpg", "a.jpg"),
    ],
)
def test_an_extended_name_goes_before_the_plain_one(sent: str, name: str) -> None:
    assert take_batch([form(named(sent))]).photos == [UploadedPhoto(name, b"x")]
    assert take(FORM, [form(named(sent))]).data == b"x"


LONE = [
    b'filename="=?utf-7?Q?a+2AA-.jpg?="',
    b'filename="=?utf-7?B?YSsyQUEtLmpwZw==?="',
    b"filename*=utf-7''a+2AA-.jpg",
    b"filename*=utf-16-le''%00%D8",
    b"filename*=utf-8''%ED%A0%80.jpg",
    b'filename="\xed\xa0\x80.jpg"',
    b'filename="=?\xc3\xa9?Q?a?="',
    b'filename="=?utf-8?Q?=ED=A0=80?="',
    b'filename="=?base64?Q?a?= =?rot13?Q?b?="',
    b"filename*=utf-8''%00%0D%0A%1B%7F.jpg",
    b"filename*=utf-8''%E2%80%AEgpj.exe",
    b"filename*=utf-8''..%2F..%2Fetc%2Fpasswd",
    b"filename*=utf-8''C%3A%5CWindows%5Cnul.jpg",
    b"filename*=utf-8''" + b"%C3%A0" * 600,
]


@pytest.mark.parametrize("sent", LONE)
def test_no_name_is_more_than_can_be_encoded(sent: bytes) -> None:
    """Otherwise writing the report would fail, and the zip would end without it."""
    photos = take_batch([form(named(sent), named("filename=b.jpg"))]).photos
    assert len(photos) == 2
    report = json.dumps([photo.name for photo in photos], ensure_ascii=False).encode()
    assert json.loads(report)[1] == "b.jpg"
    for stem in unique_stems(photo.name for photo in photos):
        assert stem.encode()
        assert not set(stem) & set("/\\:\0\r\n\x1b\u202e")


def test_both_halves_of_a_pair_are_a_character() -> None:
    assert take_batch([form(named(b"filename*=utf-7''+2D3eAA-.jpg"))]).photos[0].name == "😀.jpg"


def test_python_does_not_come_to_know_the_encodings_that_clients_invent() -> None:
    import encodings

    known = vars(encodings)["_cache"]
    take_batch([form(named(b"filename*=utf-8''a.jpg"))])
    before = len(known)
    for number in range(5):
        take_batch([form(named(f"filename*=code-{number}''a.jpg"), named(f'filename="=?word-{number}?Q?a?="'))])
        take_batch([form(named(f"filename*=utf--{'-' * number}8''a.jpg"))])
    assert len(known) <= before + 1


def option(name: str, value: bytes, *more: str) -> bytes:
    lines = "".join(f"\r\n{line}" for line in more)
    return f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{lines}\r\n\r\n'.encode() + value + b"\r\n"


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ([part("quality", b""), part("format", b"")], {}),
        ([part("quality", b""), part("quality", b"90")], {"quality": "90"}),
        ([part("quality", b"90"), part("quality", b"")], {"quality": "90"}),
        ([part("search", b""), part("_charset_", b"utf-8")], {}),
        ([part("quality", b"90", "blob")], {"quality": "90"}),
        ([option("quality", b"90", "Content-Type: text/plain; charset=UTF-8")], {"quality": "90"}),
        ([option("quality", b"90", "Content-Type: application/octet-stream")], {"quality": "90"}),
        ([option("model", "tô".encode(), "Content-Type: text/plain;charset=utf-8")], {"model": "tô"}),
        ([option("model", b"M\xf6", 'Content-Type: text/plain; charset="iso-8859-1"')], {"model": "Mö"}),
        (
            [option("quality", "90".encode("utf-16-le"), "Content-Type: text/plain; charset=utf-16le")],
            {"quality": "90"},
        ),
        ([option("quality", b"90", "Content-Type: text/plain; charset=no-such")], {"quality": "90"}),
        ([option("quality", b"90", "Content-Transfer-Encoding: 8bit", "Content-Length: 2")], {"quality": "90"}),
        ([part("mask", b"", "")], {}),
    ],
)
def test_options_as_forms_of_html_and_scripts_send_them(fields: list[bytes], found: dict[str, str]) -> None:
    assert take(FORM, [form(PHOTO, *fields)]) == Upload(b"picture", found)
    assert take_batch([form(*fields, PHOTO)]).fields == found


NOT_CHOSEN = (
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename=""\r\n'
    "Content-Type: application/octet-stream\r\n\r\n\r\n"
).encode()


@pytest.mark.parametrize("blank", [NOT_CHOSEN, part("file", b"")])
def test_a_file_field_that_was_left_empty(blank: bytes) -> None:
    for receive_any in (take_batch, lambda chunks: take(FORM, chunks)):
        with pytest.raises(MissingFile, match="`file` is empty") as caught:
            receive_any([form(blank, part("strength", b"1"))])
        assert caught.value.field == "file"
    assert take(FORM, [form(blank, PHOTO, blank)]) == Upload(b"picture")
    photos = take_batch([form(blank, *[PHOTO] * 3, blank)]).photos
    assert photos == [UploadedPhoto("a.jpg", b"picture")] * 3


def test_a_file_with_a_name_and_no_bytes_is_an_empty_photo() -> None:
    assert take(FORM, [form(part("file", b"", "a.jpg"))]).data == b""
    assert take_batch([form(part("file", b"", "a.jpg"))]).photos == [UploadedPhoto("a.jpg")]


def test_a_file_without_a_name_is_a_photo_once_it_has_a_byte() -> None:
    assert take(FORM, [form(part("file", b"picture"))]).data == b"picture"
    with pytest.raises(TooManyPhotos):
        take_batch([form(*[part("file", b"x")] * 4)])


def test_an_encoding_of_a_part_is_named() -> None:
    body = option("file", b"cGljdHVyZQ==", "Content-Transfer-Encoding: base64")
    with pytest.raises(UnsupportedType, match="Content-Transfer-Encoding 'base64' of a part is not supported"):
        take(FORM, [form(body)], receive=receive_batch)


SHORT = ["1000", "0001000", "0" * 5000 + "5", "0", ""]
LONG = ["1001", "0001001", "0" * 5000 + "1001", "9" * 5000, "9" * 30]
# The protocol refuses these.
NO_NUMBERS = ["-1", "+5000", "5_000", "\u0665\u0660\u0660\u0660", "\u00b2", " 5000"]


@pytest.mark.parametrize("length", SHORT + LONG + NO_NUMBERS, ids=lambda length: f"{length:.12}")
def test_a_length_of_any_count_of_digits(length: str) -> None:
    assert _is_longer(length, 1000) is (length in LONG)
