"""The ids of the current request, for log lines of any thread."""

from contextvars import ContextVar

NO_REQUEST = "-"

request_id: ContextVar[str] = ContextVar("request_id", default=NO_REQUEST)
trace_id: ContextVar[str | None] = ContextVar("trace_id", default=None)
