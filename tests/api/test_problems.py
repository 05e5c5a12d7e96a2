"""The problems that wrong requests get over HTTP."""

import json
import socket
import struct
import time

import httpx
import numpy as np
import pytest

from tests.conftest import Serve, Server, encoded
from tests.unit.imaging.test_decoding import png_header
from tests.waiting import until


def form(data: bytes) -> dict[str, object]:
    return {"files": {"file": ("photo", data)}}


def is_problem(answer: httpx.Response, status: int, code: str) -> dict[str, object]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["type"] == f"urn:tomau:problem:{code}"
    assert problem["instance"] == f"urn:tomau:request:{answer.headers['x-request-id']}"
    assert problem["title"]
    assert problem["detail"]
    return problem


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"", 400, "empty_upload"),
        (b"words, and no picture\n" * 100, 415, "unsupported_type"),
        (png_header(60_000, 60_000), 413, "too_many_pixels"),
        (b"\xff\xd8\xff\xe0junk", 400, "unreadable_image"),
    ],
)
def test_bad_files(client: httpx.Client, jpeg: bytes, data: bytes, status: int, code: str) -> None:
    problem = is_problem(client.post("/colorize", **form(data)), status, code)
    assert problem["field"] == "file"
    assert client.post("/colorize", **form(jpeg)).status_code == 200, "the service goes on"


def test_a_truncated_jpeg(client: httpx.Client, jpeg: bytes) -> None:
    is_problem(client.post("/colorize", **form(jpeg[: len(jpeg) // 2])), 400, "unreadable_image")


def test_an_empty_bare_body(client: httpx.Client) -> None:
    is_problem(client.post("/colorize", headers={"content-type": "image/jpeg"}), 400, "empty_upload")


@pytest.mark.parametrize(
    ("query", "status", "code", "field"),
    [
        ("model=nobody", 404, "unknown_model", "model"),
        ("model=../compact", 404, "unknown_model", "model"),
        ("colour=blue", 422, "invalid_option", "colour"),
        ("strength=2.1", 422, "invalid_option", "strength"),
        ("strength=nan", 422, "invalid_option", "strength"),
        ("strength=much", 422, "invalid_option", "strength"),
        ("quality=0", 422, "invalid_option", "quality"),
        ("quality=101", 422, "invalid_option", "quality"),
        ("format=bmp", 422, "invalid_option", "format"),
        ("merge=best", 422, "invalid_option", "merge"),
        ("max_side=0", 422, "invalid_option", "max_side"),
        ("model=compact&model=warm", 422, "invalid_option", "model"),
    ],
)
def test_bad_options(client: httpx.Client, jpeg: bytes, query: str, status: int, code: str, field: str) -> None:
    problem = is_problem(client.post(f"/colorize?{query}", **form(jpeg)), status, code)
    assert problem["field"] == field


def test_a_limit_is_named(client: httpx.Client, jpeg: bytes) -> None:
    problem = is_problem(client.post("/colorize?strength=2.1", **form(jpeg)), 422, "invalid_option")
    assert problem["limit"] == 2


def test_a_side_that_webp_can_not_hold(client: httpx.Client) -> None:
    long = encoded(np.zeros((1, 17_000), np.uint8), "PNG")
    problem = is_problem(client.post("/colorize?format=webp", **form(long)), 422, "invalid_option")
    assert (problem["field"], problem["limit"]) == ("format", 16_383)


def test_forms(client: httpx.Client, jpeg: bytes) -> None:
    is_problem(client.post("/colorize", files={"photo": ("a", jpeg)}), 422, "missing_file")
    is_problem(client.post("/colorize", files=[("file", jpeg), ("file", jpeg)]), 422, "missing_file")
    is_problem(client.post("/colorize", json={"file": "no"}), 415, "unsupported_type")
    headers = {"content-type": "multipart/form-data"}
    is_problem(client.post("/colorize", content=b"x", headers=headers), 400, "broken_upload")


def test_paths_and_methods(client: httpx.Client) -> None:
    is_problem(client.get("/nowhere"), 404, "not_found")
    refused = client.get("/colorize")
    is_problem(refused, 405, "method_not_allowed")
    assert refused.headers["allow"] == "POST"
    assert "connection" not in refused.headers, "there is no body to wait for"
    is_problem(client.post("/nowhere", content=b"x" * 100_000), 404, "not_found")


def exchange(server: Server, request: bytes, *more: bytes) -> bytes:
    """Send all of it, and read the response until the connection is closed."""
    with socket.create_connection(("127.0.0.1", server.port), 15) as connection:
        connection.settimeout(15)
        for piece in (request, *more):
            connection.sendall(piece)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


@pytest.mark.parametrize("announced", [True, False])
def test_a_client_that_is_refused_while_it_sends_gets_its_answer(serve: Serve, announced: bool) -> None:
    megabyte = bytes(1 << 20)
    with serve(max_bytes=1_000_000) as server:
        head = "POST /colorize HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
        if announced:
            answer = exchange(server, f"{head}Content-Length: {6 << 20}\r\n\r\n".encode(), *[megabyte] * 6)
        else:
            chunk = f"{1 << 20:x}\r\n".encode() + megabyte + b"\r\n"
            answer = exchange(server, f"{head}Transfer-Encoding: chunked\r\n\r\n".encode(), *[chunk] * 6, b"0\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 413"), answer[:200]
        assert b'"code": "too_many_bytes"' in answer
        assert httpx.get(f"{server.url}/readyz").status_code == 200


def answer_to(connection: socket.socket) -> bytes:
    answer = b""
    while piece := connection.recv(65536):
        answer += piece
    return answer


def test_headers_have_to_come_in_time(serve: Serve) -> None:
    whole = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    with serve(head_s=2) as server:
        address = ("127.0.0.1", server.port)
        with socket.create_connection(address, 10) as half, socket.create_connection(address, 10) as idle:
            half.sendall(whole[:20])
            answer = answer_to(half)
            assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
            assert json.loads(answer.split(b"\r\n\r\n")[1])["limit"] == 2
            assert answer_to(idle) == b"", "an idle connection is closed without a response"
        with socket.create_connection(address, 10) as again:
            again.sendall(whole)
            first = b""
            while not first.endswith(b"}"):
                first += again.recv(65536)
            assert first.startswith(b"HTTP/1.1 200")
            again.sendall(whole[:20])
            assert answer_to(again).startswith(b"HTTP/1.1 408"), "also for the second request of a connection"
        with socket.create_connection(address, 10) as slow, socket.create_connection(address, 10) as late:
            slow.sendall(whole[:20])
            time.sleep(0.1)
            slow.sendall(whole[20:])
            assert slow.recv(65536).startswith(b"HTTP/1.1 200")
            late.sendall(b"POST /colorize HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 4\r\n\r\n")
            time.sleep(2.5)
            late.sendall(b"body")
            assert late.recv(65536).startswith(b"HTTP/1.1 415"), "the body has a limit of its own"


def test_what_is_not_http(server: Server) -> None:
    answer = exchange(server, b"\x16\x03\x01 hello, is this HTTPS?\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    problem = json.loads(answer.split(b"\r\n\r\n")[1])
    assert problem["code"] == "invalid_request"


@pytest.mark.parametrize("path", ["/colorize/", "/models/", "/docs/"])
def test_a_slash_too_many_is_no_way_to_another_host(client: httpx.Client, path: str) -> None:
    is_problem(client.get(path, headers={"Host": "elsewhere.example"}), 404, "not_found")


def test_the_bare_address_leads_to_the_page_and_its_assets(client: httpx.Client) -> None:
    page = client.get("/", follow_redirects=True)
    assert (page.status_code, page.url.path) == (200, "/docs")
    assert client.get("/docs/assets/swagger-ui.css").status_code == 200


def test_a_slow_upload_is_ended(serve: Serve) -> None:
    with serve(upload_grace_s=0.2, min_upload_rate=100_000) as server:
        with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
            head = b"POST /colorize HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 1000\r\n\r\nx"
            connection.sendall(head)
            answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 408")


def test_a_photo_too_many_is_refused_at_once_and_told_when_to_come_back(serve: Serve, jpeg: bytes) -> None:
    with serve(max_uploads=1) as server, socket.create_connection(("127.0.0.1", server.port), 10) as slow:
        slow.sendall(b"POST /colorize HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 9\r\n\r\nx")
        post = lambda: httpx.post(f"{server.url}/colorize", **form(jpeg))  # noqa: E731
        until(lambda: post().status_code == 503)
        answer = post()
        is_problem(answer, 503, "overloaded")
        assert answer.headers["retry-after"] == "1"
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        slow.close()
        until(lambda: post().status_code == 200)  # The slot of a disconnected client is free again.


def test_a_deadline(serve: Serve, astronaut: np.ndarray) -> None:
    large = encoded(np.tile(astronaut, (8, 8, 1)), "JPEG")
    with serve(deadline_s=0.02) as server:
        answer = httpx.post(f"{server.url}/colorize?format=png", timeout=30, **form(large))
        is_problem(answer, 504, "deadline_exceeded")
        assert httpx.get(f"{server.url}/readyz").status_code == 200
