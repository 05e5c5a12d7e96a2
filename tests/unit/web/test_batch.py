"""The zip of a batch upload, and the response that streams it."""

import asyncio
import io
import json
import threading
import time
import zipfile
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest

from service.errors import UnreadableImage
from service.pipeline.colorizer import ColoredImage
from service.runtime.admission import Slots, UploadReservation
from service.runtime.worker_pool import WorkerPool
from service.web.batch import CHUNK_BYTES, BatchResponse, BatchSlots, BatchZip
from service.web.form import UploadedPhoto
from tests.waiting import WAIT_S, eventually


def answer(data: bytes, media_type: str = "image/jpeg") -> ColoredImage:
    return ColoredImage(data, media_type, "tint/1", "cpu", {"decode": 0.01, "infer": 0.12345678})


async def coloured(data: bytes) -> ColoredImage:
    if data == b"bad":
        raise UnreadableImage("it is bad", field="file")
    if data == b"fault":
        raise ZeroDivisionError("in the dark")
    return answer(b"coloured " + data, "image/png" if data == b"png" else "image/jpeg")


def ignore(_: object) -> None: ...


def photos(*data: bytes, name: str = "p{}.jpg") -> list[UploadedPhoto]:
    return [UploadedPhoto(name.format(number), each) for number, each in enumerate(data)]


def opened(data: bytes) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """Return the images of a zip and its report, which must be the last entry."""
    read = zipfile.ZipFile(io.BytesIO(data))
    assert read.testzip() is None
    *names, last = read.namelist()
    assert last == "report.json"
    return {name: read.read(name) for name in names}, json.loads(read.read(last))["photos"]


async def written(album: BatchZip) -> bytes:
    pieces = []

    async def write(data: bytes) -> None:
        pieces.append(data)

    await album.write(write)
    return b"".join(pieces)


def test_each_photo_is_an_entry_or_a_problem() -> None:
    released: list[int] = []
    failed: list[str] = []
    sent = photos(b"one", b"bad", b"png", b"one", name="p.jpg")
    sent.append(UploadedPhoto("large", problem=UnreadableImage("thrown away", field="file", limit=7)))
    images, report = opened(
        asyncio.run(written(BatchZip(sent, coloured, BatchSlots(2), released.append, failed.append)))
    )
    assert images == {"p.jpg": b"coloured one", "p-3.png": b"coloured png", "p-4.jpg": b"coloured one"}
    assert [photo["name"] for photo in report] == ["p.jpg"] * 4 + ["large"]
    assert [photo["entry"] for photo in report] == ["p.jpg", None, "p-3.png", "p-4.jpg", None]
    seconds = {"decode": 0.01, "infer": 0.1235}
    assert report[0] == {
        "name": "p.jpg",
        "entry": "p.jpg",
        "model": "tint/1",
        "device": "cpu",
        "seconds": seconds,
    }
    assert report[1].keys() == {"name", "entry", "problem"}
    assert report[1]["problem"] == UnreadableImage("it is bad", field="file").body("-")
    assert report[4]["problem"]["limit"] == 7
    assert sorted(released) == [0, 3, 3, 3, 3]
    assert failed == ["unreadable_image"] * 2


def test_a_fault_is_one_photos_own_and_logged_without_its_name(caplog: pytest.LogCaptureFixture) -> None:
    sent = photos(b"fault", b"one", name="secret{}.jpg")
    failed: list[str] = []
    images, report = opened(asyncio.run(written(BatchZip(sent, coloured, BatchSlots(1), ignore, failed.append))))
    assert failed == ["internal_error"]
    assert images == {"secret1.jpg": b"coloured one"}
    assert report[0]["problem"]["code"] == "internal_error"
    assert "dark" not in report[0]["problem"]["detail"]
    assert "ZeroDivisionError" in caplog.text
    assert "secret" not in caplog.text


def test_all_albums_together_have_so_many_photos_inside() -> None:
    inside = most = 0

    async def colour(data: bytes) -> ColoredImage:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.002)
        inside -= 1
        return answer(data)

    async def main() -> None:
        slots = BatchSlots(3)
        await asyncio.gather(
            *(written(BatchZip(photos(*[b"x"] * 10), colour, slots, ignore, ignore)) for _ in range(4))
        )

    asyncio.run(main())
    assert most == 3


def test_entries_come_in_the_order_they_are_done() -> None:
    async def colour(data: bytes) -> ColoredImage:
        await asyncio.sleep(float(data))
        return answer(data)

    album = BatchZip(photos(b"0.2", b"0.1", b"0.001"), colour, BatchSlots(3), ignore, ignore)
    images, report = opened(asyncio.run(written(album)))
    assert list(images) == ["p2.jpg", "p1.jpg", "p0.jpg"]
    assert [photo["entry"] for photo in report] == ["p0.jpg", "p1.jpg", "p2.jpg"]


def test_who_reads_slowly_holds_the_work_back() -> None:
    begun = []

    async def colour(data: bytes) -> ColoredImage:
        begun.append(data)
        return answer(data)

    async def main() -> None:
        may_read = asyncio.Event()

        async def write(_: bytes) -> None:
            await may_read.wait()

        album = asyncio.create_task(BatchZip(photos(*[b"x"] * 20), colour, BatchSlots(2), ignore, ignore).write(write))
        await asyncio.sleep(0.1)
        assert len(begun) == 3, "one is being written, two are done and wait"
        may_read.set()
        await album
        assert len(begun) == 20

    asyncio.run(main())


class Client:
    """A client that reads a response, and disconnects or stops reading when an event says so."""

    def __init__(self) -> None:
        self.start: dict[str, Any] = {}
        self.body = b""
        self.is_complete = False
        self.hangs_up = asyncio.Event()
        self.came = asyncio.Event()
        self.reads = asyncio.Event()
        self.reads.set()

    async def receive(self) -> dict[str, Any]:
        await self.hangs_up.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        await self.reads.wait()
        if message["type"] == "http.response.start":
            self.start = message
            return
        await asyncio.sleep(0)
        assert len(message["body"]) <= CHUNK_BYTES
        self.body += message["body"]
        self.came.set()
        self.is_complete = not message["more_body"]


def play(scene: Callable[[Client, Callable[..., BatchResponse]], Awaitable[None]]) -> None:
    async def main() -> None:
        client = Client()
        open_ends = []

        def response(album: BatchZip) -> BatchResponse:
            inside = ExitStack()
            open_ends.append(album)
            inside.callback(open_ends.pop)
            return BatchResponse(album, inside)

        await scene(client, response)
        assert open_ends == []
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_a_response_is_a_zip_of_unknown_length() -> None:
    async def scene(client: Client, response: Callable[..., BatchResponse]) -> None:
        sent = photos(b"x" * 3 * CHUNK_BYTES, b"y")
        await response(BatchZip(sent, coloured, BatchSlots(2), ignore, ignore))({}, client.receive, client.send)
        headers = dict(client.start["headers"])
        assert headers[b"content-type"] == b"application/zip"
        assert headers[b"content-disposition"] == b'attachment; filename="coloured.zip"'
        assert b"content-length" not in headers
        assert client.is_complete
        images, _ = opened(client.body)
        assert images["p0.jpg"] == b"coloured " + b"x" * 3 * CHUNK_BYTES

    play(scene)


def test_a_client_that_hangs_up_ends_the_work_and_frees_everything() -> None:
    begun = []

    async def scene(client: Client, response: Callable[..., BatchResponse]) -> None:
        pool = WorkerPool(2, Slots("photos", 8))
        held = Slots("bytes", 100)
        told = threading.Event()

        def work(data: bytes, cancelled: threading.Event) -> ColoredImage:
            begun.append(data)
            if data == b"first":
                return answer(data)
            assert cancelled.wait(WAIT_S)
            told.set()
            return answer(data)

        async def colour(data: bytes) -> ColoredImage:
            never = asyncio.Event()
            return await pool.run(partial(work, data), deadline=time.monotonic() + WAIT_S, disconnect=never.wait)

        with UploadReservation(Slots("uploads", 1), held) as receiving:
            receiving.grow(50)
            album = BatchZip(photos(b"first", *[b"other"] * 9), colour, BatchSlots(2), receiving.shrink, ignore)
            task = asyncio.create_task(response(album)({}, client.receive, client.send))
            await eventually(lambda: begun.count(b"other") == 2 and bool(client.body))
            assert pool.slots.in_use == 2
            assert held.in_use == 45, "the bytes of the photo that is done are released"
            client.hangs_up.set()
            await asyncio.wait_for(task, WAIT_S)
        assert await asyncio.to_thread(told.wait, 5), "the running call is cancelled"
        await eventually(lambda: not pool.slots.in_use)
        assert held.in_use == 0
        assert not client.is_complete
        assert sorted(begun) == [b"first", b"other", b"other"], "photos that were not started are dropped"
        pool.stop()

    play(scene)


def test_a_fault_in_sending_is_no_hang_up() -> None:
    async def scene(client: Client, response: Callable[..., BatchResponse]) -> None:
        async def send(message: dict[str, Any]) -> None:
            if message["type"] != "http.response.start":
                raise RuntimeError("no wire")

        with pytest.raises(ExceptionGroup):
            await response(BatchZip(photos(b"x"), coloured, BatchSlots(2), ignore, ignore))({}, client.receive, send)

    play(scene)
