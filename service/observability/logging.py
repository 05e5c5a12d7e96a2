"""Set up the log: lines of text or JSON on standard error, each with the id of its request."""

import json
import logging
from datetime import UTC, datetime
from typing import Any, Literal

from service.runtime.request_context import NO_REQUEST, request_id, trace_id

# Libraries that log pieces of an upload: tags of a photo, bytes of a form.
QUOTING_LIBRARIES = ("PIL", "python_multipart")


class _IdFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        request, trace = request_id.get(), trace_id.get()
        record.request_id, record.trace_id = request, trace
        record.ids = f"{request} {trace}" if trace else request
        return True


class _JsonFormatter(logging.Formatter):
    """Writes one JSON object per line. The members of a record's `access` are added to its object."""

    def format(self, record: logging.LogRecord) -> str:
        facts = vars(record)
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": None if facts.get("request_id") == NO_REQUEST else facts.get("request_id"),
            "trace_id": facts.get("trace_id"),
            **facts.get("access", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def set_up_logging(level: str, format_: Literal["text", "json"] = "text") -> None:
    """Log to standard error, one record per line, with the id of its request. In text, tracebacks take more lines."""
    handler = logging.StreamHandler()
    handler.addFilter(_IdFilter())
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s [%(ids)s] %(message)s")
    handler.setFormatter(_JsonFormatter() if format_ == "json" else text)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    _skip_unused_lookups()
    for library in QUOTING_LIBRARIES:
        logging.getLogger(library).setLevel(logging.ERROR)


def _skip_unused_lookups() -> None:
    """Skip lookups of values that neither format writes, as in the section Optimization of Python's logging guide."""
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.logAsyncioTasks = False  # type: ignore[attr-defined]  # It exists from Python 3.12 on.
    logging._srcfile = None  # noqa: SLF001  (the guide documents this)
