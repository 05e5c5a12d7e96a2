import json
import logging
import re
from datetime import datetime

import pytest

from service.observability.logging import set_up_logging
from tests.unit.observability.conftest import TRACE, TRACEPARENT, Logged, coloured, exchange


def test_json_lines(logged: Logged) -> None:
    set_up_logging("info", "json")
    exchange(coloured, (b"x-request-id", b"mine"), (b"traceparent", TRACEPARENT.encode()))
    work, access = map(json.loads, logged())
    assert (work["level"], work["logger"], work["message"]) == ("warning", "service.work", "a line\nin two")
    assert (work["request_id"], work["trace_id"]) == (access["request_id"], access["trace_id"]) == ("mine", TRACE)
    written = datetime.fromisoformat(access["time"])
    assert written.utcoffset() is not None
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", access["time"])
    expected = {"method": "POST", "path": "/colorize", "route": "/colorize", "status": 200, "code": "", "bytes": 5}
    assert {key: access[key] for key in expected} == expected
    assert access["stages"] == {"decode": 0.25, "infer": 0.5}
    assert 0 <= access["seconds"] < 5


def test_json_of_a_fault_has_its_traceback_in_the_same_line(logged: Logged) -> None:
    async def broken(*_: object) -> None:
        raise ZeroDivisionError("what a day")

    set_up_logging("info", "json")
    start, _body = exchange(broken)
    assert start["status"] == 500
    fault, access = map(json.loads, logged())
    assert fault["exception"].endswith("ZeroDivisionError: what a day")
    assert (access["status"], access["code"]) == (500, "internal_error")


def test_what_no_request_asked_for_has_no_ids(logged: Logged) -> None:
    set_up_logging("info", "json")
    logging.getLogger("py.warnings").warning("careful")
    line = json.loads(logged()[0])
    assert (line["request_id"], line["trace_id"], line["level"]) == (None, None, "warning")
    assert "careful" in line["message"]


def test_text_lines(logged: Logged) -> None:
    set_up_logging("info")
    exchange(coloured, (b"x-request-id", b"mine"), (b"traceparent", TRACEPARENT.encode()))
    exchange(coloured, (b"x-request-id", b"other"), (b"traceparent", b"00-zero"))
    text = "\n".join(logged())
    assert f"INFO service.observability.middleware [mine {TRACE}] POST /colorize 200 " in text
    assert "INFO service.observability.middleware [other] POST /colorize 200 " in text


def test_a_record_looks_up_nothing_that_is_not_written(logged: Logged, caplog: pytest.LogCaptureFixture) -> None:
    set_up_logging("info")
    root = logging.getLogger()
    root.addHandler(caplog.handler)
    logging.getLogger("service").info("a line")
    record = caplog.records[-1]
    assert (record.threadName, record.process, record.pathname) == (None, None, "(unknown file)")
    assert logged()[0].endswith(" INFO service [-] a line")
