"""Each limit holds under load. A request that is refused, late or cancelled releases its slot."""

import contextlib
import http.client
import re
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.api.test_metrics import has_inside
from tests.api.test_problems import form, is_problem
from tests.conftest import Serve, Server, encoded
from tests.waiting import WAIT_S, cpu_within, until

MIB = 1 << 20
CHUNKED = b"POST /colorize HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"


def head(length: int, *more: str) -> bytes:
    lines = ["POST /colorize HTTP/1.1", "Host: x", "Content-Type: image/png", f"Content-Length: {length}", *more]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@contextlib.contextmanager
def connection(server: Server) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), WAIT_S) as one:
        yield one


def hang_up(one: socket.socket) -> None:
    """Close the connection with a reset."""
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.close()


def status_of(one: socket.socket) -> int:
    answer = b""
    while b"\r\n" not in answer:
        piece = one.recv(65536)
        assert piece, "closed without an answer"
        answer += piece
    return int(answer.split()[1])


@pytest.fixture(scope="module")
def large(astronaut: np.ndarray) -> bytes:
    """A PNG of about ten megapixels, which keeps a core busy for a while."""
    return encoded(np.tile(astronaut[..., 0], (6, 7)), "PNG", compress_level=1)


@pytest.fixture(scope="module")
def huge(astronaut: np.ndarray) -> bytes:
    """A PNG of 26 megapixels. It is in progress long enough for the rest of a test."""
    return encoded(np.tile(astronaut[..., 0], (10, 10)), "PNG", compress_level=1)


@pytest.fixture(scope="module")
def small(gray: np.ndarray) -> bytes:
    return encoded(gray[:50, :50], "PNG")


@pytest.fixture(scope="module")
def narrow(serve: Serve) -> Iterator[Server]:
    """A server with one worker, two photos, two uploads and 16 MiB for each."""
    with serve(workers=1, max_photos=2, max_uploads=2, max_bytes=16 * MIB, max_upload_bytes=40 * MIB) as server:
        yield server


def is_soon_free(server: Server, photo: bytes) -> bool:
    """Return whether two photos are accepted concurrently, five times in a row."""
    ends = time.monotonic() + WAIT_S
    row = 0
    with ThreadPoolExecutor(2) as pool, httpx.Client(base_url=server.url) as client:
        while row < 5 and time.monotonic() < ends:
            codes = list(pool.map(lambda _: client.post("/colorize", **form(photo)).status_code, range(2)))
            row = row + 1 if codes == [200, 200] else 0
    return row == 5


def test_chunks_are_counted_and_the_rest_is_not_waited_for(narrow: Server, small: bytes) -> None:
    with connection(narrow) as one:
        one.sendall(CHUNKED)
        chunk = b"10000\r\n" + bytes(1 << 16) + b"\r\n"
        for _ in range(257):
            one.sendall(chunk)
        assert status_of(one) == 413
    assert is_soon_free(narrow, small)


def test_a_length_that_is_too_large_is_refused_before_a_byte_is_sent(narrow: Server) -> None:
    for more in ((), ("Expect: 100-continue",)):
        with connection(narrow) as one:
            one.sendall(head(17 * MIB, *more))
            assert status_of(one) == 413


def test_a_length_that_lies(narrow: Server, small: bytes) -> None:
    with connection(narrow) as one:
        one.sendall(head(len(small) + 1000) + small)
        one.shutdown(socket.SHUT_WR)
        assert one.recv(65536) == b"", "broken off: nobody to answer"
    with connection(narrow) as one:
        one.sendall(head(len(small) // 2) + small)
        assert status_of(one) == 400
    for lie in ("-1", "1e3", "0x10", "9" * 30, "5, 6"):
        with connection(narrow) as one:
            one.sendall(head(0).replace(b"Length: 0", b"Length: " + lie.encode()))
            assert status_of(one) in (400, 413)
    with connection(narrow) as one:
        one.sendall(CHUNKED.replace(b"Transfer", b"Content-Length: 5\r\nTransfer") + b"0\r\n\r\n")
        assert status_of(one) == 400, "one of the two is a lie"
    assert is_soon_free(narrow, small)


def test_a_part_with_endless_headers(narrow: Server) -> None:
    for many in (b"a: b\r\n" * 200_000, b"a: " + b"b" * MIB):
        body = b'--x\r\nContent-Disposition: form-data; name="file"\r\n' + many + b"\r\n\r\n--x--\r\n"
        headers = {"content-type": "multipart/form-data; boundary=x"}
        with cpu_within(2, narrow.process.pid):
            answer = httpx.post(f"{narrow.url}/colorize", content=body, headers=headers)
        is_problem(answer, 400, "broken_upload")


@pytest.mark.parametrize(
    ("query", "content_type", "status"),
    [
        ("?" + "&".join(f"o{i}=" for i in range(8000)), "image/png", 422),
        ("", 'multipart/form-data; boundary="' + ";" * 40_000, 400),
    ],
    ids=["options", "a type"],
)
def test_nothing_in_a_head_takes_quadratic_time(narrow: Server, query: str, content_type: str, status: int) -> None:
    with cpu_within(0.6, narrow.process.pid):
        answer = httpx.post(f"{narrow.url}/colorize{query}", content=b"x", headers={"content-type": content_type})
    assert answer.status_code == status


def test_fifty_slow_senders_delay_nobody(serve: Serve, small: bytes) -> None:
    # If a request had to wait for these senders, it would exceed the timeout of the client.
    patient = {"head_s": 10 * WAIT_S, "upload_grace_s": 10 * WAIT_S}
    with serve(**patient) as server, contextlib.ExitStack() as stack, httpx.Client(base_url=server.url) as client:
        slow = [stack.enter_context(connection(server)) for _ in range(50)]
        for number, one in enumerate(slow):
            one.sendall(head(50_000) if number % 2 else head(50_000)[:40])
        for _ in range(20):
            for one in slow[1::2]:
                one.sendall(b"x")
            assert client.post("/colorize", **form(small)).status_code == 200


def test_clients_that_hang_up_while_they_send(narrow: Server, small: bytes) -> None:
    for sent in (head(MIB)[:30], head(MIB), head(MIB) + bytes(1000), CHUNKED + b"1000\r\nx"):
        for _ in range(3):
            with connection(narrow) as one:
                one.sendall(sent)
                time.sleep(0.02)
                hang_up(one)
    assert is_soon_free(narrow, small)


def test_clients_that_hang_up_while_their_photo_waits_or_is_coloured(narrow: Server, huge: bytes, small: bytes) -> None:
    ended = narrow.log.read_text().count("POST /colorize 499")
    with contextlib.ExitStack() as stack:
        both = [stack.enter_context(connection(narrow)) for _ in range(2)]
        for count, one in enumerate(both, 1):
            one.sendall(head(len(huge)) + huge)
            has_inside(narrow, count)
        answer = httpx.post(f"{narrow.url}/colorize", **form(small))
        is_problem(answer, 503, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
        for one in reversed(both):  # the waiting one first
            hang_up(one)
    assert is_soon_free(narrow, small)
    until(lambda: narrow.log.read_text().count("POST /colorize 499") == ended + 2)


def test_clients_that_hang_up_while_they_are_answered(narrow: Server, large: bytes, small: bytes) -> None:
    for _ in range(2):
        with connection(narrow) as one:
            one.sendall(head(len(large)) + large)
            assert status_of(one) == 200
            hang_up(one)
    assert is_soon_free(narrow, small)
    assert "Traceback" not in narrow.log.read_text()


def test_a_late_photo_keeps_its_place_until_it_is_done_and_no_longer(serve: Serve, large: bytes, small: bytes) -> None:
    with serve(workers=1, max_photos=1, deadline_s=0.15) as server:
        late = httpx.post(f"{server.url}/colorize?format=png", **form(large))
        is_problem(late, 504, "deadline_exceeded")
        codes = set()

        def is_taken() -> bool:
            code = httpx.post(f"{server.url}/colorize", **form(small)).status_code
            codes.add(code)
            return code == 200

        until(is_taken, pause=0.02)
        assert codes <= {200, 503, 504}, "on a busy machine a small one, too, may be late"


def test_answers_that_nobody_reads_keep_new_photos_out_until_they_are_dropped(
    serve: Serve, large: bytes, small: bytes
) -> None:
    with serve(max_unread_bytes=MIB, write_s=5) as server, connection(server) as one:
        one.sendall(head(len(large)).replace(b"/colorize", b"/colorize?format=png") + large)
        one.recv(1)
        answer = httpx.post(f"{server.url}/colorize", **form(small))
        is_problem(answer, 503, "overloaded")
        is_problem(httpx.post(f"{server.url}/colorize/batch", **form(small)), 503, "overloaded")
        until(lambda: httpx.post(f"{server.url}/colorize", **form(small)).status_code == 200, pause=0.1)
        assert "reads its response too slowly" in server.log.read_text()


@pytest.fixture(scope="module")
def refusing(serve: Serve) -> Iterator[Server]:
    with serve(max_bytes=MIB) as server:
        yield server


def by_http_client(url: str, body: bytes) -> tuple[int, bytes]:
    client = http.client.HTTPConnection(url.removeprefix("http://"), timeout=WAIT_S)
    client.request("POST", "/colorize", body, {"Content-Type": "image/jpeg"})
    answer = client.getresponse()
    return answer.status, answer.read()


def by_http_client_chunked(url: str, body: bytes) -> tuple[int, bytes]:
    client = http.client.HTTPConnection(url.removeprefix("http://"), timeout=WAIT_S)
    pieces = (body[start : start + 10_000] for start in range(0, len(body), 10_000))
    client.request("POST", "/colorize", pieces, {"Content-Type": "image/jpeg"}, encode_chunked=True)
    answer = client.getresponse()
    return answer.status, answer.read()


def by_httpx(url: str, body: bytes) -> tuple[int, bytes]:
    answer = httpx.post(f"{url}/colorize", files={"file": body})
    return answer.status_code, answer.content


def by_curl(url: str, body: bytes, *options: str) -> tuple[int, bytes]:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    command = ["curl", "-s", "-m", f"{WAIT_S:g}", "-w", "%{stderr}%{http_code}", *options, f"{url}/colorize"]
    done = subprocess.run(command, input=body, capture_output=True, check=True)
    return int(done.stderr), done.stdout


def by_curls_form(url: str, body: bytes) -> tuple[int, bytes]:
    return by_curl(url, body, "-F", "file=@-")


def by_curl_that_does_not_ask(url: str, body: bytes) -> tuple[int, bytes]:
    return by_curl(url, body, "-H", "Expect:", "-H", "Content-Type: image/jpeg", "--data-binary", "@-")


def by_curl_in_chunks(url: str, body: bytes) -> tuple[int, bytes]:
    return by_curl(url, body, "-H", "Content-Type: image/jpeg", "-T", "-", "-X", "POST")


@pytest.mark.parametrize(
    "client",
    [by_http_client, by_http_client_chunked, by_httpx, by_curls_form, by_curl_that_does_not_ask, by_curl_in_chunks],
)
def test_every_client_that_is_refused_while_it_sends_reads_why(refusing: Server, client) -> None:
    body = np.random.default_rng(1).bytes(6 * MIB)
    for _ in range(5):
        status, content = client(refusing.url, body)
        assert status == 413
        assert b'"too_many_bytes"' in content


def is_closed(server: Server) -> bool:
    with contextlib.suppress(ConnectionRefusedError), connection(server):
        return False
    return True


def test_what_is_inside_is_finished_and_what_comes_later_refused(serve: Serve, large: bytes, small: bytes) -> None:
    with serve(workers=1, drain_delay_s=0.3) as server, ThreadPoolExecutor(3) as pool:
        post = lambda: httpx.post(f"{server.url}/colorize?format=png", **form(large))  # noqa: E731
        inside = [pool.submit(post) for _ in range(3)]
        has_inside(server, 3)
        with connection(server) as late:
            server.process.terminate()
            until(lambda: is_closed(server))
            with contextlib.suppress(ConnectionError):
                late.sendall(head(len(small)) + small)
                assert late.recv(1000) == b"", "an idle connection is closed"
        assert [one.result().status_code for one in inside] == [200] * 3
        server.process.wait(WAIT_S)
    assert Path(server.log).read_text().count("POST /colorize 200") == 3


def test_its_state_is_told_when_there_are_more_connections_than_it_was_given_files(serve: Serve) -> None:
    with (
        serve(shell='ulimit -Sn 128; exec "$@"', max_connections=110) as server,
        contextlib.ExitStack() as stack,
    ):
        for _ in range(150):
            # A connection that has started a request is never evicted.
            stack.enter_context(connection(server)).sendall(b"G")
        for path in ("/livez", "/readyz", "/metrics"):
            assert httpx.get(server.url + path).status_code == 200
        is_problem(httpx.get(f"{server.url}/models"), 503, "overloaded")


def test_too_few_files_for_the_connections_are_told_at_start(serve: Serve) -> None:
    with serve(shell='ulimit -n 512; exec "$@"') as server:
        told = "this process may open 512 files, but TOMAU_MAX_CONNECTIONS=1000 needs 2024"
        assert told in server.log.read_text()
        limits = Path(f"/proc/{server.process.pid}/limits")
        if limits.exists():
            assert re.search(r"^Max open files +512 +512 ", limits.read_text(), re.MULTILINE)
