"""Logs, and the trace context that goes into them."""

import asyncio
import json
import logging
import re
from collections.abc import Callable, Iterator
from datetime import datetime

import pytest

from service.errors import NotFound, Overloaded, Problem
from service.observability.logging import set_up_logging
from service.observability.metrics import Metrics
from service.observability.middleware import Telemetry, record_stages
from service.observability.tracing import parse_traceparent

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
VALID = f"00-{TRACE}-{SPAN}-01"

Logged = Callable[[], list[str]]


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([VALID], TRACE),
        ([f"00-{TRACE}-{SPAN}-00"], TRACE),
        ([f"cc-{TRACE}-{SPAN}-01"], TRACE),
        ([f"cc-{TRACE}-{SPAN}-01-what-comes-later"], TRACE),
        ([], None),
        ([VALID, VALID], None),
        ([""], None),
        ([VALID.upper()], None),
        ([f" {VALID}"], None),
        ([f"{VALID}\n"], None),
        ([f"{VALID}-more"], None),
        ([f"cc-{TRACE}-{SPAN}-01.more"], None),
        ([f"ff-{TRACE}-{SPAN}-01"], None),
        ([f"00-{'0' * 32}-{SPAN}-01"], None),
        ([f"00-{TRACE}-{'0' * 16}-01"], None),
        ([f"00-{TRACE[:-1]}-{SPAN}-01"], None),
        ([f"00-{TRACE}-{SPAN}-1"], None),
        ([f"00-{TRACE[:-1]}g-{SPAN}-01"], None),
        ([f"00-{TRACE}-{SPAN}"], None),
    ],
)
def test_a_traceparent_is_taken_only_when_it_is_valid(values: list[str], found: str | None) -> None:
    parent = parse_traceparent(values)
    assert (parent and parent.trace_id) == found


@pytest.fixture
def logged(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], list[str]]]:
    """The lines that were logged to standard error."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield lambda: capsys.readouterr().err.splitlines()
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


def exchange(app, *headers: tuple[bytes, bytes], path: str = "/colorize") -> list[dict]:
    """Sends a POST through Telemetry; what it answers."""
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


def test_json_lines(logged: Logged) -> None:
    set_up_logging("info", "json")
    exchange(coloured, (b"x-request-id", b"mine"), (b"traceparent", VALID.encode()))
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


@pytest.mark.parametrize(("level", "status", "lines"), [("info", 200, 0), ("info", 503, 1), ("debug", 200, 1)])
def test_probes_are_quiet_while_all_is_well(logged: Logged, level: str, status: int, lines: int) -> None:
    async def probed(_scope, _receive, send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    set_up_logging(level)
    exchange(probed, path="/readyz")
    assert len([line for line in logged() if "/readyz" in line]) == lines


def test_text_lines(logged: Logged) -> None:
    set_up_logging("info")
    exchange(coloured, (b"x-request-id", b"mine"), (b"traceparent", VALID.encode()))
    exchange(coloured, (b"x-request-id", b"other"), (b"traceparent", b"00-zero"))
    text = "\n".join(logged())
    assert f"INFO service.observability.middleware [mine {TRACE}] POST /colorize 200 " in text
    assert "INFO service.observability.middleware [other] POST /colorize 200 " in text


def test_a_problem_names_its_request_and_not_its_trace(logged: Logged) -> None:
    async def nothing(*_: object) -> None:
        raise NotFound("POST /nowhere")

    set_up_logging("info", "json")
    start, body = exchange(nothing, (b"x-request-id", b"mine"), (b"traceparent", VALID.encode()), path="/nowhere")
    assert start["status"] == 404
    assert json.loads(body["body"])["instance"] == "urn:tomau:request:mine"
    assert TRACE.encode() not in body["body"]
    (access,) = map(json.loads, logged())
    assert (access["route"], access["path"], access["code"]) == ("other", "/nowhere", "not_found")


@pytest.mark.parametrize(
    ("problem", "told"), [(Overloaded("too many uploads at once (100%)"), True), (NotFound("POST /x"), False)]
)
@pytest.mark.parametrize("format_", ["text", "json"])
def test_why_a_good_request_was_refused_is_logged(logged: Logged, problem: Problem, told: bool, format_: str) -> None:
    """One code has many causes. What a client did wrong is for the client, in its own words."""

    async def refused(*_: object) -> None:
        raise problem

    set_up_logging("info", format_)
    exchange(refused)
    (line,) = logged()
    assert (problem.detail in line) is told
    if format_ == "json":
        assert json.loads(line).get("detail") == (problem.detail if told else None)


@pytest.mark.parametrize("begun", [False, True])
def test_a_request_that_the_services_end_cuts_off_is_told_and_counted(begun: bool) -> None:
    sent: list[dict] = []

    async def endless(_scope, _receive, send) -> None:
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.Event().wait()

    async def send(message: dict) -> None:
        sent.append(message)

    async def main() -> None:
        task = asyncio.create_task(Telemetry(endless, metrics)(scope, None, send))  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        task.cancel()
        await task

    metrics = Metrics(["/colorize"])
    scope = {"type": "http", "method": "POST", "path": "/colorize", "raw_path": b"/colorize", "headers": []}
    asyncio.run(main())
    status = 200 if begun else 503
    assert [message.get("status") for message in sent] == ([200] if begun else [503, None])
    if not begun:
        assert json.loads(sent[1]["body"])["code"] == "draining"
        assert (b"retry-after", b"5") in sent[0]["headers"]
    text = metrics.page("")[0].decode()
    assert f'tomau_requests_total{{code="draining",method="POST",route="/colorize",status="{status}"}} 1.0' in text
    assert 'tomau_dropped_total{reason="draining"} 1.0' in text


def test_a_record_looks_up_nothing_that_is_not_written(logged: Logged, caplog: pytest.LogCaptureFixture) -> None:
    set_up_logging("info")
    root = logging.getLogger()
    root.addHandler(caplog.handler)
    logging.getLogger("service").info("a line")
    record = caplog.records[-1]
    assert (record.threadName, record.process, record.pathname) == (None, None, "(unknown file)")
    assert logged()[0].endswith(" INFO service [-] a line")
