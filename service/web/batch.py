"""Several photos of one request: each is coloured when its turn comes, and goes into a zip as it is done."""

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
# Bytes that are sent at once.
CHUNK_BYTES = 64 * 1024


class BatchSlots:
    """How many photos of all albums together may be inside: the other places stay free for single photos."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._slots = asyncio.Semaphore(count)

    async def take(self, colour: Callable[[], Awaitable[ColoredImage]]) -> ColoredImage:
        """Waits for a turn, first come, first served."""
        async with self._slots:
            return await colour()


class BatchZip:
    """The photos of one request on their way into a zip."""

    def __init__(
        self,
        photos: list[UploadedPhoto],
        colour: Callable[[bytes], Awaitable[ColoredImage]],
        slots: BatchSlots,
        done: Callable[[int], None],
        failed: Callable[[str], None],
    ) -> None:
        """colour: waits for a place, however long, so that no photo is refused one. done: told the bytes let go.

        failed: told the code of each photo's problem. The request, whatever becomes of one photo, succeeds.
        """
        self._colour = colour
        self._slots = slots
        self._done = done
        self._failed = failed
        self._photos = photos
        self._left: deque[tuple[int, tuple[UploadedPhoto, str]]] = deque()
        self._report: list[dict[str, Any]] = [{"name": photo.name, "entry": None} for photo in photos]
        self._archive = Archive()
        self._writing = asyncio.Lock()

    async def write(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        """Writes the zip; the report is its last entry. Ends early with what `write` raises.

        Each lane writes its photo before it takes the next, so a slow reader holds the work back. One lane more than
        there are slots: one photo is written while the others are coloured.
        """
        # Names, chosen by the client, may take milliseconds.
        stems = await asyncio.to_thread(unique_stems, [photo.name for photo in self._photos])
        self._left.extend(enumerate(zip(self._photos, stems, strict=True)))
        async with asyncio.TaskGroup() as lanes:
            for _ in range(min(len(self._left), self._slots.count + 1)):
                lanes.create_task(self._lane(write))
        report = json.dumps({"photos": self._report}, ensure_ascii=False, indent=1).encode()
        await write(self._archive.add(REPORT, report))
        await write(self._archive.close())

    async def _lane(self, write: Callable[[bytes], Awaitable[None]]) -> None:
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
                # The checksum of a large photo would hold up the event loop.
                await write(await asyncio.to_thread(self._archive.add, entry, outcome.data))
            # Not kept while the next one is coloured.
            del outcome

    async def _outcome(self, photo: UploadedPhoto) -> ColoredImage | Problem:
        """Whatever is wrong with one photo is its own problem."""
        if photo.problem:
            return photo.problem
        try:
            return await self._slots.take(lambda: self._colour(photo.data))
        except Problem as problem:
            return problem
        except Exception:
            log.exception("unexpected fault in a photo of an album")
            return InternalError("an unexpected fault; the service's log has it under the request's id")


class BatchResponse(Response):
    """Sends an album as it is written. When the client is gone, what has not begun is dropped, the rest cancelled.

    A client that stops reading is gone, too, once the protocol has closed its connection.
    """

    media_type = "application/zip"

    def __init__(self, album: BatchZip, inside: ExitStack) -> None:
        """inside: what the album holds, given back at its end."""
        super().__init__(headers={"Content-Disposition": 'attachment; filename="coloured.zip"'})
        del self.headers["Content-Length"]  # It is not known yet.
        self._album = album
        self._inside = inside

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """ASGI. Returns early when the client is gone: its answer has begun, so that nothing else can be said."""
        with self._inside:
            try:
                async with asyncio.TaskGroup() as group:
                    watch = group.create_task(raise_on_disconnect(receive))
                    await self._send(send)
                    watch.cancel()
            except* ClientGone:
                log.info("the client hung up or stopped reading: what is left of its album is dropped")

    async def _send(self, send: Send) -> None:
        async def write(data: bytes) -> None:
            for start in range(0, len(data), CHUNK_BYTES):
                piece = data[start : start + CHUNK_BYTES]
                await send({"type": "http.response.body", "body": piece, "more_body": True})

        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await self._album.write(write)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
