"""Colour the photos of a batch upload, and stream them as a zip in the order in which they are done."""

import asyncio
import json
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.errors import ClientGone, InternalError, Problem
from service.formats.registry import SUFFIXES
from service.pipeline.colorizer import ColoredImage
from service.runtime.request_context import request_id
from service.web.disconnect import raise_on_disconnect
from service.web.form import UploadedPhoto
from service.web.zip_stream import Archive, unique_stems

log = logging.getLogger(__name__)

REPORT = "report.json"
# Most bytes of one ASGI message.
CHUNK_BYTES = 64 * 1024


class BatchSlots:
    """Slots that the photos of all batches share, so that the other photo slots stay free for single photos."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._slots = asyncio.Semaphore(count)

    async def run(self, color: Callable[[], Awaitable[ColoredImage]]) -> ColoredImage:
        """Await the call in a slot. Waits for a free slot, first come, first served."""
        async with self._slots:
            return await color()


class BatchZip:
    """The zip of one batch upload, written photo by photo."""

    def __init__(
        self,
        photos: list[UploadedPhoto],
        color: Callable[[bytes], Awaitable[ColoredImage]],
        slots: BatchSlots,
        done: Callable[[int], None],
        failed: Callable[[str], None],
    ) -> None:
        """Make the zip of these photos.

        color: colours a photo. It waits for a photo slot as long as it takes, so that no photo is refused.
        done: receives the number of upload bytes that are released with each photo.
        failed: receives the problem code of each photo that fails. The request itself succeeds in any case.
        """
        self._color = color
        self._slots = slots
        self._done = done
        self._failed = failed
        self._photos = photos
        self._left: deque[tuple[int, tuple[UploadedPhoto, str]]] = deque()
        self._report: list[dict[str, Any]] = [{"name": photo.name, "entry": None} for photo in photos]
        self._archive = Archive()
        self._writing = asyncio.Lock()

    async def write(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        """Write the zip, with the report as its last entry. Raises what `write` raises.

        Each task writes its photo before it takes the next one, so that a slow client slows down the work
        (back-pressure). There is one task more than there are slots: it writes while the others colour.
        """
        # In a thread, because long names may take milliseconds.
        stems = await asyncio.to_thread(unique_stems, [photo.name for photo in self._photos])
        self._left.extend(enumerate(zip(self._photos, stems, strict=True)))
        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(len(self._left), self._slots.count + 1)):
                tasks.create_task(self._write_photos(write))
        report = json.dumps({"photos": self._report}, ensure_ascii=False, indent=1).encode()
        await write(self._archive.add(REPORT, report))
        await write(self._archive.close())

    async def _write_photos(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        while self._left:
            number, (photo, stem) = self._left.popleft()
            outcome = await self._outcome(photo)
            self._done(len(photo.data))
            photo.data = b""
            if isinstance(outcome, Problem):
                self._failed(outcome.code)
                self._report[number]["problem"] = outcome.body(request_id.get())
                continue
            entry = stem + SUFFIXES[outcome.media_type]
            self._report[number] |= {
                "entry": entry,
                "model": outcome.model,
                "device": outcome.device,
                "seconds": {stage: round(seconds, 4) for stage, seconds in outcome.seconds.items()},
            }
            if outcome.tone is not None:
                self._report[number]["input"] = outcome.tone
            async with self._writing:
                # In a thread, because the checksum of a large photo would block the event loop.
                await write(await asyncio.to_thread(self._archive.add, entry, outcome.data))
            # Free the image before the next one is coloured.
            del outcome

    async def _outcome(self, photo: UploadedPhoto) -> ColoredImage | Problem:
        """Colour one photo. Return the problem if it fails, so that the other photos are not affected."""
        if photo.problem:
            return photo.problem
        try:
            return await self._slots.run(lambda: self._color(photo.data))
        except Problem as problem:
            return problem
        except Exception:
            log.exception("unexpected error in a photo of a batch")
            return InternalError("unexpected error; search the service's log for the request id")


class BatchResponse(Response):
    """A response that streams the zip of a batch while its photos are coloured.

    If the client disconnects, photos in progress are cancelled and the others dropped. The protocol also disconnects a
    client that stops reading.
    """

    media_type = "application/zip"

    def __init__(self, batch: BatchZip, held: ExitStack) -> None:
        """held: the slots and bytes of the upload, which are released at the end of the response."""
        super().__init__(headers={"Content-Disposition": 'attachment; filename="coloured.zip"'})
        del self.headers["Content-Length"]  # The length is not known yet.
        self._batch = batch
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """ASGI. Return early if the client disconnects; no error can be sent once the response has begun."""
        with self._held:
            try:
                async with asyncio.TaskGroup() as group:
                    watch = group.create_task(raise_on_disconnect(receive))
                    await self._send(send)
                    watch.cancel()
            except* ClientGone:
                log.info("the client disconnected or stopped reading; the rest of its batch is dropped")

    async def _send(self, send: Send) -> None:
        async def write(data: bytes) -> None:
            for start in range(0, len(data), CHUNK_BYTES):
                chunk = data[start : start + CHUNK_BYTES]
                await send({"type": "http.response.body", "body": chunk, "more_body": True})

        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await self._batch.write(write)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
