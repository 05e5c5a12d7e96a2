"""A request through the middleware, and what it logs."""

import asyncio
import logging
from collections.abc import Callable, Iterator

import pytest

from service.observability.metrics import Metrics
from service.observability.middleware import Telemetry, record_stages

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01"

Logged = Callable[[], list[str]]


@pytest.fixture
def logged(capsys: pytest.CaptureFixture[str]) -> Iterator[Logged]:
    """Return the lines that were logged to standard error."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield lambda: capsys.readouterr().err.splitlines()
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)


def exchange(app, *headers: tuple[bytes, bytes], path: str = "/colorize") -> list[dict]:
    """Send a POST through Telemetry, and return the messages of the response."""
    sent: list[dict] = []

    async def receive() -> dict:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "headers": list(headers),
    }
    asyncio.run(Telemetry(app, Metrics(["/colorize", "/readyz"]))(scope, receive, send))
    return sent


async def coloured(scope, _receive, send) -> None:
    logging.getLogger("service.work").warning("a line\nin two")
    record_stages(scope, {"decode": 0.25, "infer": 0.5}, {})
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"12345"})
