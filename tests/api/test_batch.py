"""`POST /colorize/batch` over HTTP."""

import asyncio
import contextlib
import http.client
import io
import json
import signal
import socket
import struct
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.pipeline.colorizer import ColoredImage, Colorizer
from service.settings import Settings
from service.web.app import create_app
from tests.api.test_metrics import has_inside, scrape, total
from tests.api.test_problems import is_problem
from tests.conftest import Serve, Server, encoded
from tests.waiting import WAIT_S, until

Files = list[tuple[str, bytes]]


@pytest.fixture(scope="module")
def large(astronaut: np.ndarray) -> bytes:
    """A photo of 2 megapixels, which takes some tenths of a second as WebP."""
    return encoded(np.tile(astronaut[..., 0], (3, 3)), "JPEG")


SLOWLY = "?format=webp"


def post(client: httpx.Client, photos: Files, url: str = "/colorize/batch", **form: str) -> httpx.Response:
    return client.post(url, files=[("file", photo) for photo in photos], data=form)


def opened(data: bytes) -> tuple[dict[str, bytes], list[dict[str, object]]]:
    """Return the images of a zip and its report, which must be the last entry."""
    read = zipfile.ZipFile(io.BytesIO(data))
    assert read.testzip() is None
    *names, last = read.namelist()
    assert last == "report.json"
    return {name: read.read(name) for name in names}, json.loads(read.read(last))["photos"]


def encoded_form(photos: Files) -> tuple[bytes, str]:
    request = httpx.Request("POST", "http://x", files=[("file", photo) for photo in photos])
    return request.read(), request.headers["content-type"]


def head_of(length: int, kind: str, query: str = "") -> bytes:
    head = f"POST /colorize/batch{query} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n"
    return f"{head}Content-Length: {length}\r\n\r\n".encode()


def is_soon(server: Server, condition: str) -> bool:
    ends = time.monotonic() + WAIT_S
    while time.monotonic() < ends:
        if condition in server.log.read_text():
            return True
        time.sleep(0.02)
    return False


def test_good_and_bad_photos(client: httpx.Client, gray: np.ndarray, jpeg: bytes) -> None:
    png = encoded(gray[:100, :100], "PNG")
    sent = [("a.jpg", jpeg), ("b.png", png), ("words.txt", b"no picture"), ("cut.jpg", jpeg[:3000]), ("none.jpg", b"")]
    answer = post(client, sent)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-disposition"] == 'attachment; filename="coloured.zip"'
    assert answer.headers["transfer-encoding"] == "chunked"
    images, report = opened(answer.content)
    alone = {name: client.post("/colorize", files={"file": (name, data)}) for name, data in sent}
    assert images == {name: alone[name].content for name in ("a.jpg", "b.png")}
    assert [photo["name"] for photo in report] == [name for name, _ in sent]
    assert [photo["entry"] for photo in report] == ["a.jpg", "b.png", None, None, None]
    assert {photo["model"] for photo in report[:2]} == {"compact/1"}
    assert {photo["device"] for photo in report[:2]} == {"cpu"}
    for photo in report[:2]:
        assert photo["seconds"].keys() == {"decode", "infer", "queue", "merge", "encode"}
    for photo in report[2:]:
        expected = alone[photo["name"]].json() | {"instance": f"urn:tomau:request:{answer.headers['x-request-id']}"}
        assert photo["problem"] == expected
    assert [photo["problem"]["code"] for photo in report[2:]] == [
        "unsupported_type",
        "unreadable_image",
        "empty_upload",
    ]


def test_options_are_those_of_every_photo(client: httpx.Client, jpeg: bytes) -> None:
    options = {"model": "warm", "format": "png", "max_side": "100"}
    by_form, report = opened(post(client, [("a.jpg", jpeg), ("b.jpg", jpeg)], **options).content)
    by_query, _ = opened(
        post(
            client, [("a.jpg", jpeg), ("b.jpg", jpeg)], "/colorize/batch?" + "&".join(map("=".join, options.items()))
        ).content
    )
    alone = client.post("/colorize", params=options, files={"file": jpeg}).content
    assert by_form == by_query == {"a.png": alone, "b.png": alone}
    assert {photo["model"] for photo in report} == {"warm/1"}


def test_names_are_kept_but_safe(server: Server, client: httpx.Client, gray: np.ndarray) -> None:
    photo = encoded(gray[:16, :16], "JPEG")
    names = [
        "zwilling.jpg",
        "zwilling.jpg",
        "ZWILLING.JPG",
        "../../zwilling.jpg",
        "C:/x/con.jpg",
        "report.json",
        "祖母.jpg",
        "..",
    ]
    images, report = opened(post(client, [(name, photo) for name in names]).content)
    assert [photo["name"] for photo in report] == names
    assert [photo["entry"] for photo in report] == [
        "zwilling.jpg",
        "zwilling-2.jpg",
        "ZWILLING-3.jpg",
        "zwilling-4.jpg",
        "_con.jpg",
        "report.json.jpg",
        "祖母.jpg",
        "photo.jpg",
    ]
    assert images.keys() == {photo["entry"] for photo in report}
    assert "zwilling" not in server.log.read_text().lower(), "file names are not logged"


@pytest.mark.parametrize(
    ("query", "status", "code", "field"),
    [
        ("colour=blue", 422, "invalid_option", "colour"),
        ("strength=3", 422, "invalid_option", "strength"),
        ("model=nobody", 404, "unknown_model", "model"),
    ],
)
def test_a_bad_option_refuses_all(
    client: httpx.Client, jpeg: bytes, query: str, status: int, code: str, field: str
) -> None:
    answer = post(client, [("a", jpeg), ("b", jpeg)], f"/colorize/batch?{query}")
    assert is_problem(answer, status, code)["field"] == field


def test_bodies_that_are_no_batch(client: httpx.Client, jpeg: bytes) -> None:
    bare = client.post("/colorize/batch", content=jpeg, headers={"content-type": "image/jpeg"})
    is_problem(bare, 415, "unsupported_type")
    is_problem(
        client.post("/colorize/batch", data={"strength": "1"}, files={"strength2": (None, "1")}), 422, "missing_file"
    )
    is_problem(client.get("/colorize/batch"), 405, "method_not_allowed")


def test_as_many_photos_as_a_batch_may_have_and_one_more(client: httpx.Client, gray: np.ndarray) -> None:
    photo = encoded(gray[:8, :8], "PNG")
    images, report = opened(post(client, [("p.png", photo)] * 100).content)
    assert len(images) == len(report) == 100
    problem = is_problem(post(client, [("p.png", photo)] * 101), 413, "too_many_photos")
    assert (problem["field"], problem["limit"]) == ("file", 100)


def test_limits_of_bytes(serve: Serve, jpeg: bytes) -> None:
    size = len(jpeg)
    with serve(max_bytes=size, max_batch_bytes=3 * size + 1) as server, httpx.Client(base_url=server.url) as client:
        images, report = opened(post(client, [("a.jpg", jpeg), ("large.jpg", jpeg + b"x"), ("b.jpg", jpeg)]).content)
        assert images.keys() == {"a.jpg", "b.jpg"}
        problem = report[1]["problem"]
        assert (problem["status"], problem["code"], problem["limit"]) == (413, "too_many_bytes", size)
        problem = is_problem(post(client, [("a.jpg", jpeg)] * 3 + [("b.jpg", b"xx")]), 413, "too_many_bytes")
        assert (problem["field"], problem["limit"]) == ("file", 3 * size + 1)
        with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
            connection.sendall(head_of(4 * size + 200_000, "multipart/form-data; boundary=b"))
            assert connection.recv(65536).startswith(b"HTTP/1.1 413"), "from Content-Length, before a byte arrives"
        assert post(client, [("a.jpg", jpeg)] * 3).status_code == 200


def test_the_zip_is_sent_while_photos_are_coloured(serve: Serve, jpeg: bytes, large: bytes) -> None:
    with serve(workers=1) as server:
        body, kind = encoded_form([("a.jpg", jpeg)] + [("large.jpg", large)] * 3)
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        connection.request("POST", f"/colorize/batch{SLOWLY}", body, {"content-type": kind})
        answer = connection.getresponse()
        begun = time.monotonic()
        first = answer.read(1000)
        first_came = time.monotonic() - begun
        images, _ = opened(first + answer.read())
        connection.close()
        assert first[:4] == b"PK\x03\x04"
        assert len(images) == 4
        assert first_came < 0.5 * (time.monotonic() - begun)


def test_single_photos_are_served_during_a_batch(serve: Serve, jpeg: bytes, large: bytes) -> None:
    """Even with few slots, and while a batch holds most of the bytes of all uploads."""
    photos = [("p.jpg", large)] * 8
    settings = {"workers": 2, "max_photos": 4, "max_wait_s": WAIT_S, "max_batch_bytes": 8 * len(large)}
    settings |= {"max_bytes": len(large), "max_upload_bytes": 10 * len(large)}
    with serve(**settings) as server, ThreadPoolExecutor(2) as pool:
        url = f"{server.url}/colorize"
        batches = [
            pool.submit(httpx.post, f"{url}/batch{SLOWLY}", files=[("file", photo) for photo in half], timeout=120)
            for half in (photos[:4], photos[4:])
        ]
        served = []
        while not all(batch.done() for batch in batches):
            served.append(httpx.post(url, files={"file": jpeg}, timeout=30).status_code)
        assert len(served) > 3
        assert set(served) == {200}
        for batch in batches:
            images, _ = opened(batch.result().content)
            assert len(images) == 4


def test_batches_that_come_slowly_take_no_place_of_single_photos(serve: Serve, jpeg: bytes) -> None:
    body, kind = encoded_form([("p.jpg", jpeg)])
    with serve(max_uploads=3, max_batch_uploads=3) as server, contextlib.ExitStack() as stack:
        for _ in range(3):
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 10))
            slow.sendall(head_of(len(body), kind) + body[:-1])
        until(lambda: total(scrape(server), "tomau_uploads") == 3)
        assert httpx.post(f"{server.url}/colorize", files={"file": jpeg}, timeout=30).status_code == 200
        is_problem(httpx.post(f"{server.url}/colorize/batch", files=[("file", jpeg)]), 503, "overloaded")


def test_a_batch_is_never_refused_in_its_middle(serve: Serve, jpeg: bytes, large: bytes) -> None:
    """Single photos take all slots, and some are refused. The batch waits."""
    with serve(workers=1, max_photos=2, max_wait_s=0.01) as server, ThreadPoolExecutor(9) as pool:
        url = f"{server.url}/colorize"
        batch = pool.submit(httpx.post, f"{url}/batch", files=[("file", ("p.jpg", jpeg))] * 8, timeout=120)
        singles = list(
            pool.map(lambda _: httpx.post(f"{url}{SLOWLY}", files={"file": large}, timeout=60).status_code, range(24))
        )
        assert set(singles) == {200, 503}
        images, report = opened(batch.result().content)
        assert len(images) == 8
        assert not any("problem" in photo for photo in report)


def test_each_photo_has_the_deadline_to_itself(models: Path, jpeg: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    app = create_app(Settings(models=models, device="cpu", workers=1, deadline_s=1))
    colorize = Colorizer.colorize

    def slowly(*args: object, **options: object) -> ColoredImage:
        time.sleep(0.1)
        return colorize(*args, **options)

    monkeypatch.setattr(Colorizer, "colorize", slowly)

    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            return await client.post("/colorize/batch", files=[("file", jpeg)] * 12)

    began = time.monotonic()
    images, report = opened(asyncio.run(send()).content)
    assert time.monotonic() - began > 1
    assert len(images) == 12, report


def test_a_photo_that_takes_too_long_is_its_own_problem(serve: Serve, large: bytes) -> None:
    with serve(workers=1, deadline_s=0.001) as server:
        answer = httpx.post(f"{server.url}/colorize/batch", files=[("file", large)] * 3, timeout=60)
        assert answer.status_code == 200
        images, report = opened(answer.content)
        assert images == {}
        assert [photo["problem"]["code"] for photo in report] == ["deadline_exceeded"] * 3


def room_for_one_batch(photo: bytes, body: bytes) -> dict[str, int]:
    """Return settings with room for one batch of such photos with this body, but not for a second one."""
    size = len(photo)
    return {"max_bytes": size, "max_batch_bytes": len(body), "max_upload_bytes": size + len(body) + 400_000}


@pytest.mark.parametrize("when", ["before the first photo", "in the middle"])
def test_a_client_that_hangs_up_frees_its_places_and_bytes(serve: Serve, jpeg: bytes, large: bytes, when: str) -> None:
    body, kind = encoded_form([("p.jpg", large)] * 30)
    with serve(workers=1, max_photos=1, **room_for_one_batch(large, body)) as server:
        with socket.create_connection(("127.0.0.1", server.port), 30) as connection:
            connection.sendall(head_of(len(body), kind, SLOWLY) + body)
            came = connection.recv(65536)
            while when == "in the middle" and b"PK\x03\x04" not in came:
                came += connection.recv(65536)
            assert came.startswith(b"HTTP/1.1 200")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert is_soon(server, "POST /colorize/batch")
        assert total(scrape(server), "tomau_photos_total") < 30, "the work ends early"
        # A running thread can't be stopped, so the only slot is free a moment later.
        until(lambda: httpx.post(f"{server.url}/colorize", files={"file": jpeg}).status_code == 200, pause=0.1)
        small = httpx.post(
            f"{server.url}/colorize/batch",
            files=[("file", large)] * 29 + [("file", jpeg)],
            data={"max_side": "8"},
            timeout=120,
        )
        assert small.status_code == 200, "the bytes are free, too"
        assert len(opened(small.content)[0]) == 30
        assert "Traceback" not in server.log.read_text()


def test_a_client_that_stops_reading_is_let_go(serve: Serve, jpeg: bytes, large: bytes) -> None:
    body, kind = encoded_form([("p.jpg", large)] * 12)
    with serve(write_s=3, **room_for_one_batch(large, body)) as server:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            connection.connect(("127.0.0.1", server.port))
            connection.sendall(head_of(len(body), kind, "?format=png") + body)
            assert is_soon(server, "stopped reading"), "the zip is larger than the buffers of the connection"
            figures = httpx.get(f"{server.url}/metrics").text
            assert (
                'requests_total{code="client_gone",method="POST",route="/colorize/batch",status="200"} 1.0' in figures
            )
            assert 'tomau_dropped_total{reason="client_gone"} 1.0' in figures
            again = httpx.post(f"{server.url}/colorize/batch", files=[("file", large)] * 12, timeout=120)
            assert again.status_code == 200, "its bytes are free"
        assert "Traceback" not in server.log.read_text()


def test_a_batch_inside_is_finished_when_the_service_stops(serve: Serve, large: bytes) -> None:
    with serve(workers=1, drain_delay_s=0) as server, ThreadPoolExecutor(1) as pool:
        body, kind = encoded_form([("p.jpg", large)] * 8)
        batch = pool.submit(
            httpx.post,
            f"{server.url}/colorize/batch{SLOWLY}",
            content=body,
            headers={"content-type": kind},
            timeout=120,
        )
        has_inside(server, 1)
        assert not batch.done()
        server.process.send_signal(signal.SIGTERM)
        images, _ = opened(batch.result().content)
        assert len(images) == 8
        assert server.process.wait(WAIT_S) in (0, -signal.SIGTERM)
        assert "Traceback" not in server.log.read_text()


def test_the_document_tells_of_it(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    single, batch = paths["/colorize"]["post"], paths["/colorize/batch"]["post"]
    assert batch["parameters"] == single["parameters"]
    schema = batch["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert schema["properties"]["file"]["type"] == "array"
    assert list(batch["responses"]["200"]["content"]) == ["application/zip"]
    assert "Content-Disposition" in batch["responses"]["200"]["headers"]
    assert {"400", "404", "408", "413", "415", "422", "503"} <= set(batch["responses"])


def test_the_largest_photo_finds_room_beside_the_largest_batches(serve: Serve) -> None:
    size = 1 << 20
    limits = {"max_bytes": size, "max_upload_bytes": 4 * size}
    photos = [("p.jpg", bytes(size - 1000))] * 2
    body, kind = encoded_form(photos)
    with serve(**limits) as server, contextlib.ExitStack() as stack:
        url = f"{server.url}/colorize"
        for _ in range(3):
            batch = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 10))
            batch.sendall(head_of(len(body) + 1, kind) + body)
        until(lambda: total(scrape(server), "tomau_upload_bytes_inflight") >= len(body))
        held = [0.0, 1.0]
        while len(set(held[-10:])) > 1:  # Until no more bytes arrive.
            held.append(total(scrape(server), "tomau_upload_bytes_inflight"))
            time.sleep(0.1)
        alone = httpx.post(url, content=bytes(size), headers={"content-type": "image/jpeg"}, timeout=30)
        assert alone.json()["code"] == "unsupported_type", "so its bytes were received"
        too_large = httpx.post(f"{url}/batch", files=[("file", photo) for photo in photos * 2], timeout=30)
        assert too_large.status_code == 413
        assert too_large.json()["limit"] < 3 * size
