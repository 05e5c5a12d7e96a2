"""The metrics of a real service, over HTTP."""

import asyncio
import random
import socket
import string
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.observability.metrics import STAGES
from service.pipeline.colorizer import ColoredImage, Colorizer
from service.settings import Settings
from service.web.app import create_app
from tests.conftest import Serve, Server, encoded
from tests.waiting import WAIT_S

Samples = list[tuple[str, dict[str, str], float]]


def scrape(server: Server) -> Samples:
    answer = httpx.get(f"{server.url}/metrics")
    assert answer.status_code == 200
    return samples_of(answer.text)


def samples_of(page: str) -> Samples:
    families = text_string_to_metric_families(page)
    return [(sample.name, sample.labels, sample.value) for family in families for sample in family.samples]


def total(samples: Samples, metric: str, **labels: str) -> float:
    found = [value for name, have, value in samples if name == metric and labels.items() <= have.items()]
    return sum(found)


def settled(server: Server, condition: Callable[[Samples], bool]) -> Samples:
    """Return the samples once the condition holds. A response arrives a moment before the service has counted it."""
    ends = time.monotonic() + WAIT_S
    while not condition(samples := scrape(server)):
        assert time.monotonic() < ends, [sample for sample in samples if sample[0] == "tomau_requests_total"]
        time.sleep(0.05)
    return samples


def has_inside(server: Server, photos: int) -> None:
    """Return once `photos` photos wait or are being coloured."""
    settled(server, lambda now: total(now, "tomau_photos_inside") == photos)


def test_labels_are_few_whatever_is_asked_for(serve: Serve) -> None:
    chance = random.Random(3)
    known = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"]
    letters = string.ascii_letters + string.digits + "-._~"
    with serve() as server:

        def ask(number: int, client: httpx.Client) -> None:
            method = chance.choice(known) if number % 3 else "".join(chance.choices(string.ascii_uppercase, k=9))
            start = chance.choice(["/", "/colorize/", "/docs/", "/docs/assets/", "/metrics", "/models?"])
            client.request(method, start + "".join(chance.choices(letters, k=chance.randint(1, 200))))

        with httpx.Client(base_url=server.url, timeout=10) as client:
            client.get("/models")
            before = {(name, *labels.items()) for name, labels, _ in scrape(server)}
            for number in range(1000):
                ask(number, client)
        samples = scrape(server)
        after = {(name, *labels.items()) for name, labels, _ in samples}
        requests = [labels for name, labels, _ in samples if name == "tomau_requests_total"]
        assert {labels["route"] for labels in requests} <= {"other", "none", "/models", "/metrics", "/readyz"} | {
            "/docs/assets"
        }
        assert {labels["method"] for labels in requests} <= {*known, "other", "none"}
        assert len(requests) < 40
        assert len(after) - len(before) < 100
        assert total(samples, "tomau_requests_total") >= 1000
        page = httpx.get(f"{server.url}/metrics").text
        assert "127.0.0.1" not in page


def test_everything_is_counted_once(serve: Serve, jpeg: bytes, astronaut: np.ndarray) -> None:
    large = encoded(np.tile(astronaut[..., 0], (8, 8)), "PNG")
    with serve(max_bytes=10_000_000) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        ready = total(scrape(server), "tomau_requests_total", route="/readyz")

        def post(data: bytes, query: str = "") -> tuple[int, str]:
            answer = client.post(f"/colorize?{query}", files={"file": ("secret.jpg", data)})
            problem = answer.headers["content-type"] == "application/problem+json"
            return answer.status_code, answer.json()["code"] if problem else ""

        jobs = [(jpeg, ""), (jpeg, "model=warm"), (jpeg, "strength=9"), (b"", ""), (b"words" * 99, "")] * 6
        jobs += [(bytes(11_000_000), ""), (jpeg, "model=nobody")] * 3
        random.Random(1).shuffle(jobs)
        with ThreadPoolExecutor(4) as pool:
            seen = Counter(pool.map(lambda job: post(*job), jobs))
        assert seen[200, ""] == 12
        assert seen == {
            (200, ""): 12,
            (422, "invalid_option"): 6,
            (400, "empty_upload"): 6,
            (415, "unsupported_type"): 6,
            (413, "too_many_bytes"): 3,
            (404, "unknown_model"): 3,
        }
        assert client.get("/colorize").status_code == 405
        head = "POST /colorize HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {}\r\n\r\n"
        for _ in range(4):  # The client disconnects in the middle of an upload.
            with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
                connection.sendall(head.format(1000).encode() + b"x" * 10)
        for _ in range(3):  # The client disconnects while the photo is being coloured.
            with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
                connection.sendall(head.format(len(large)).encode() + large)
        with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
            connection.sendall(b"\x16\x03\x01 is this HTTPS?\r\n\r\n")
            assert connection.recv(65536)

        expected = seen + Counter({(405, "method_not_allowed"): 1, (499, "client_gone"): 7})
        samples = settled(
            server,
            lambda now: (
                total(now, "tomau_requests_total", route="/colorize") == expected.total()
                and not total(now, "tomau_photos_inside")
            ),
        )
        for (status, code), count in expected.items():
            labels = {"route": "/colorize", "status": str(status), "code": code}
            assert total(samples, "tomau_requests_total", **labels) == count, (status, code)
        assert total(samples, "tomau_requests_total", route="none", code="invalid_request") == 1
        assert total(samples, "tomau_requests_total", route="/readyz") == ready
        assert total(samples, "tomau_request_seconds_count", route="/colorize") == expected.total()
        assert total(samples, "tomau_dropped_total") == total(samples, "tomau_dropped_total", reason="client_gone") == 7

        assert total(samples, "tomau_photos_total") == 12, "those that were answered"
        assert total(samples, "tomau_photos_total", model="warm") == 6
        for stage in STAGES:
            assert total(samples, "tomau_stage_seconds_count", stage=stage) == 12
        assert total(samples, "tomau_photo_bytes_total", direction="in") == 12 * len(jpeg)
        for direction in ("in", "out"):
            assert total(samples, "tomau_photo_pixels_total", direction=direction) == 12 * 333 * 501
        assert total(samples, "tomau_batch_size_count") >= 12
        for gauge in ("tomau_photos_waiting", "tomau_queue_depth", "tomau_uploads", "tomau_upload_bytes_inflight"):
            assert total(samples, gauge) == 0, gauge
        assert total(samples, "tomau_ready") == 1
        assert total(samples, "process_resident_memory_bytes") > 50e6
        assert total(samples, "tomau_memory_limit_bytes") > total(samples, "process_resident_memory_bytes")


def test_a_body_that_is_no_body_is_counted_once(serve: Serve) -> None:
    start = b"POST /colorize HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
    with serve() as server:
        for pause in (0.2, 0):  # The body comes in a packet of its own, or together with the header section.
            with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
                connection.sendall(start if pause else start + b"no chunk\r\n")
                time.sleep(pause)
                if pause:
                    connection.sendall(b"no chunk\r\n")
                assert connection.recv(65536).startswith(b"HTTP/1.1 400 ")
        refused = {"route": "/colorize", "status": "400", "code": "invalid_request"}
        samples = settled(server, lambda now: total(now, "tomau_requests_total", **refused) == 2)
        assert total(samples, "tomau_requests_total", method="POST") == 2
        assert total(samples, "tomau_requests_total", route="none") == 0
        assert total(samples, "tomau_dropped_total") == 0


def test_what_is_inside_can_be_seen(serve: Serve, astronaut: np.ndarray) -> None:
    large = encoded(np.tile(astronaut[..., 0], (6, 6)), "PNG")
    with serve(workers=1, max_wait_s=60) as server, ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(httpx.post, server.url + "/colorize", files={"file": large}, timeout=60) for _ in range(4)]
        samples = settled(server, lambda now: total(now, "tomau_photos_inside") == 4)
        assert 1 <= total(samples, "tomau_photos_waiting") <= 3
        assert total(samples, "tomau_upload_bytes_inflight") >= 4 * len(large)
        assert total(samples, "tomau_photos_limit") == 32
        assert [job.result().status_code for job in jobs] == [200] * 4
        settled(server, lambda now: total(now, "tomau_photos_inside") == 0)


def test_openmetrics_is_there_for_who_accepts_it(client: httpx.Client) -> None:
    answer = client.get("/metrics", headers={"accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")
    plain = client.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")


def test_a_photo_that_nobody_waited_for_is_not_counted(
    models: Path, jpeg: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread can't be stopped, and ends after the deadline."""
    done = threading.Event()
    colorize = Colorizer.colorize

    def late(*args: object, deadline: float, **options: object) -> ColoredImage:
        answer = colorize(*args, **options)
        time.sleep(max(0.0, deadline - time.monotonic()) + 0.1)
        done.set()
        return answer

    app = create_app(Settings(models=models, device="cpu", workers=1, deadline_s=0.5))
    monkeypatch.setattr(Colorizer, "colorize", late)

    async def send() -> str:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            assert (await client.post("/colorize", files={"file": jpeg})).status_code == 504
            assert await asyncio.to_thread(done.wait, WAIT_S)
            await asyncio.sleep(0.2)
            return (await client.get("/metrics")).text

    samples = samples_of(asyncio.run(send()))
    assert total(samples, "tomau_dropped_total", reason="deadline_exceeded") == 1
    assert total(samples, "tomau_photos_total") == 0
    assert not any(total(samples, "tomau_stage_seconds_count", stage=stage) for stage in STAGES)


def test_a_photo_that_is_kept_has_no_stages(serve: Serve, astronaut: np.ndarray) -> None:
    with serve() as server:
        photo = encoded(astronaut, "JPEG")
        kept = httpx.post(f"{server.url}/colorize?if_color=keep", files={"file": photo}, timeout=30)
        assert kept.content == photo
        samples = settled(server, lambda now: total(now, "tomau_photos_total", model="") == 1)
        assert not any(total(samples, "tomau_stage_seconds_count", stage=stage) for stage in STAGES)
