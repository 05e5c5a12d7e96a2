"""Fuzz the upload's parser with damaged forms, in chunks of any size: python -m tests.fuzz.upload --help"""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Iterator

import atheris

from tests.fuzz.run import run

with atheris.instrument_imports(include=["service", "python_multipart"]):
    from service.errors import Problem
    from service.runtime.admission import Slots, UploadReservation
    from service.settings import Settings
    from service.web.options import options_of
    from service.web.upload import Upload, receive, receive_batch

SETTINGS = Settings(max_bytes=300, max_batch_bytes=2000, max_batch_photos=3)
RUNNER = asyncio.Runner()
SEPARATOR = b"\0\0"


def seeds() -> Iterator[tuple[str, bytes]]:
    """Yield forms and bare bodies. Each has the chunk size, the content type and the body."""
    part = b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    photo = part % (b"file", b'; filename="a.jpg"\r\nContent-Type: image/jpeg', b"pixels" * 9)
    option = part % (b"strength", b"", b"1.5")
    for number, body in enumerate((photo, option + photo, photo + photo, photo + option + option, photo * 5)):
        for chunk in (1, 7, 200):
            name = f"{number}-{chunk}"
            yield name, bytes([chunk]) + b"multipart/form-data; boundary=b" + SEPARATOR + body + b"--b--\r\n"
    yield "bare", b"\x20image/jpeg" + SEPARATOR + b"pixels"


def channel(chunks: list[bytes]) -> Callable[[], Awaitable[dict[str, object]]]:
    """Return an ASGI receive function with these messages."""
    messages = iter([{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks[:-1]])

    async def receive_message() -> dict[str, object]:
        return next(messages, {"type": "http.request", "body": chunks[-1], "more_body": False})

    return receive_message


def one_body(data: bytes) -> None:
    """Check that any input is a photo or a problem of the client, and that every byte is released."""
    if not data:
        return
    declared, _, body = data[1:].partition(SEPARATOR)
    step = max(1, data[0])
    chunks = [body[start : start + step] for start in range(0, len(body), step)] or [b""]
    for call in (receive, receive_batch):
        uploads, held = Slots("uploads", 1), Slots("bytes", 10_000)
        try:
            with UploadReservation(uploads, held) as receiving:
                headers = {"content-type": declared.decode("latin-1")}
                upload = RUNNER.run(call(headers, channel(chunks), receiving, SETTINGS))
                if isinstance(upload, Upload) and len(upload.data) > SETTINGS.max_bytes:
                    raise AssertionError("the upload exceeds max_bytes")
                options_of([], upload.fields, "")
        except Problem as problem:
            if not 400 <= problem.status < 500:
                raise
        if uploads.in_use or held.in_use:
            raise AssertionError(f"{uploads.in_use} slots and {held.in_use} bytes are not released")


if __name__ == "__main__":
    logging.disable()
    run(one_body, seeds(), largest=4000, name=sys.argv[0])
