"""Set up the log: text or JSON lines on standard error, each with its request's id."""

import json
import logging
from datetime import UTC, datetime
from typing import Any, Literal

from service.runtime.request_context import NO_REQUEST, request_id, trace_id

# They log pieces of what a client sent: tags of a photo, bytes of a form.
LIBRARIES_THAT_QUOTE = ("PIL", "python_multipart")


class _IdFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        request, trace = request_id.get(), trace_id.get()
        record.request_id, record.trace_id = request, trace
        record.ids = f"{request} {trace}" if trace else request
        return True


class _JsonFormatter(logging.Formatter):
    """One JSON object a line. A record's `access` has the members of a request's line."""

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
    """Everything goes to standard error, one record a line (a traceback takes more of text), with its request's id."""
    handler = logging.StreamHandler()
    handler.addFilter(_IdFilter())
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s [%(ids)s] %(message)s")
    handler.setFormatter(_JsonFormatter() if format_ == "json" else text)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    _look_up_no_more_than_is_written()
    for library in LIBRARIES_THAT_QUOTE:
        logging.getLogger(library).setLevel(logging.ERROR)


def _look_up_no_more_than_is_written() -> None:
    """As Python's guide to logging says under 'Optimization': a record asks for what neither format writes."""
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.logAsyncioTasks = False  # type: ignore[attr-defined]  # from Python 3.12 on
    logging._srcfile = None
