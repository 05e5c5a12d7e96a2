"""Unusual but valid requests to a real server: HTML forms, names, half-closed connections, odd lengths."""

import io
import json
import socket
import zipfile

import httpx
import pytest

from tests.api.test_limits import connection
from tests.api.test_problems import is_problem
from tests.conftest import Server

TYPE = {"content-type": "multipart/form-data; boundary=XX"}
HTML_OPTIONS = ("model", "format", "quality", "strength", "max_side", "if_color", "metadata", "merge")


def part(disposition: bytes, content: bytes) -> bytes:
    return b"--XX\r\nContent-Disposition: form-data; " + disposition + b"\r\n\r\n" + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--XX--\r\n"


def photo(jpeg: bytes, name: bytes = b'filename="a.jpg"') -> bytes:
    return part(b'name="file"; ' + name, jpeg)


@pytest.mark.parametrize("path", ["/colorize", "/colorize/batch"])
def test_a_form_of_html_with_nothing_filled_in(client: httpx.Client, jpeg: bytes, path: str) -> None:
    empty = [part(b'name="%s"' % name.encode(), b"") for name in HTML_OPTIONS]
    body = b"This is a multipart message.\r\n" + form(photo(jpeg), *empty) + b"An epilogue."
    answer = client.post(f"{path}?quality=&format=", content=body, headers=TYPE)
    assert answer.status_code == 200, answer.text
    chosen = client.post(f"{path}?format=", content=form(photo(jpeg), part(b'name="format"', b"png")), headers=TYPE)
    assert chosen.status_code == 200
    if path == "/colorize":
        assert answer.headers["content-type"] == "image/jpeg"
        assert chosen.headers["content-type"] == "image/png", "an empty one overrules nothing"
    blank = form(part(b'name="file"; filename=""', b""))
    is_problem(client.post(path, content=blank, headers=TYPE), 422, "missing_file")


def test_a_query_whose_name_is_no_option_is_refused_though_it_is_empty(client: httpx.Client, jpeg: bytes) -> None:
    is_problem(client.post("/colorize?qualty=", files={"file": jpeg}), 422, "invalid_option")


NAMES = [
    (b"filename*=utf-8''t%C3%B4%20m%C3%A0u.jpg", "tô màu.jpg", "tô màu.jpg"),
    (b'filename="=?utf-7?Q?a+2AA-.jpg?="', "a\ufffd.jpg", "a\ufffd.jpg"),
    (b"filename*=utf-8''..%5C..%5CCON.jpg", "..\\..\\CON.jpg", "_CON.jpg"),
    (b"filename*=utf-8''%E2%80%AEa%00b.jpg", "\u202ea\0b.jpg", "ab.jpg"),
    (b"filename*=utf-8''C%3A%2Fx%2FAB.JPG", "C:/x/AB.JPG", "AB-2.jpg"),
    (b"filename*=utf-8''" + b"%C3%A0" * 500 + b".jpg", "à" * 500 + ".jpg", "à" * 90 + ".jpg"),
]


def test_a_batch_with_names_of_every_kind_is_a_whole_zip(client: httpx.Client, jpeg: bytes) -> None:
    body = form(*(photo(jpeg, sent) for sent, _, _ in NAMES))
    answer = client.post("/colorize/batch", content=body, headers=TYPE)
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    assert archive.testzip() is None
    report = json.loads(archive.read("report.json"))["photos"]
    assert [one["name"] for one in report] == [name for _, name, _ in NAMES]
    assert [one["entry"] for one in report] == [entry for _, _, entry in NAMES]
    assert sorted(archive.namelist()) == sorted(["report.json", *(entry for _, _, entry in NAMES)])


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("path", ["/colorize", "/colorize/batch"])
def test_a_client_that_closes_its_side_gets_its_answer(server: Server, jpeg: bytes, path: str, version: str) -> None:
    body = form(photo(jpeg))
    kind = TYPE["content-type"]
    head = f"POST {path} HTTP/{version}\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    with connection(server) as one:
        one.sendall(head.encode() + body)
        one.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := one.recv(65536):
            answer += piece
    head, _, content = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert b"report.json" in content or content.startswith(b"\xff\xd8")


@pytest.mark.parametrize(
    ("length", "status"),
    [
        ("0" * 5000 + "5", 415),
        ("0" * 5000 + "99999999", 413),
        ("9" * 5000, 400),
        ("+5", 400),
        ("5_0", 400),
        ("", 400),
        ("5\r\nContent-Length: 5", 400),
    ],
)
def test_a_length_in_any_spelling(server: Server, length: str, status: int) -> None:
    with connection(server) as one:
        head = f"POST /colorize HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {length}\r\n\r\nhello"
        one.sendall(head.encode())
        answer = one.recv(65536)
    assert int(answer.split()[1]) == status


@pytest.mark.parametrize("whole", [1, 2])
def test_what_came_whole_is_answered_though_the_next_request_breaks_off(
    server: Server, jpeg: bytes, whole: int
) -> None:
    head = f"POST /colorize HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
    request = head.encode() + jpeg
    with connection(server) as client:
        client.sendall(whole * request + request[: len(head) + 5])
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := client.recv(65536):
            answer += piece
    assert answer.count(b"HTTP/1.1 200") == whole
    assert "unexpected fault" not in server.log.read_text()
